"""Decisions of batch mode that need no clock of their own: which mode, and where rows go next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from scaleinfer.observe import duration

if TYPE_CHECKING:
    from scaleinfer.backends import BatchLimits

__all__ = ["Choice", "cancel_after", "choose_mode", "next_place"]

_FEW = 100
_BATCHES_OF_A_ROW = 2
_OF_THE_DEADLINE = 0.75


class Choice(NamedTuple):
    """What `mode="auto"` chose."""

    mode: Literal["batch", "online"]
    """The mode."""
    why: str
    """In words."""


def choose_mode(
    *,
    available: bool,
    limits: BatchLimits | None,
    discount: float | None,
    priced: bool,
    deadline: float | None,
    items: int | None,
) -> Choice:
    """Choose between a batch and calls of their own, by time and price.

    Args:
        available: The endpoint has a batch API.
        limits: What that takes; `None` without one.
        discount: Price of a token in a batch over its price online, if that is known.
        priced: The endpoint's owner may charge for tokens.
        deadline: Seconds within which the answers are needed; `None` for no hurry.
        items: Items there are, if that is known.
    """
    if not available or limits is None:
        return Choice("online", "the endpoint has no batch API")
    if deadline is not None and deadline < limits.window_s:
        within, window = duration(deadline), _hours(limits)
        return Choice("online", f"answers are wanted within {within}, a batch may take {window}")
    if items is not None and items < _FEW:
        return Choice("online", f"{items:,} items are too few to wait for a batch")
    if discount is not None and discount < 1:
        saved = round((1 - discount) * 100)
        return Choice("batch", f"it costs {saved} % less and may take up to {_hours(limits)}")
    if not priced:
        return Choice("online", "the endpoint is your own: a batch would not be cheaper")
    return Choice("online", "a batch is not known to be cheaper here; mode='batch' uses it")


def _hours(limits: BatchLimits) -> str:
    return f"{limits.window_s / 3600:.0f} h"


def cancel_after(deadline: float | None) -> float | None:
    """Return after how many seconds unfinished batches are cancelled.

    A quarter of the time is then left to ask the rest online.
    """
    return None if deadline is None else deadline * _OF_THE_DEADLINE


def next_place(
    *,
    sent: int,
    leftovers: Literal["auto", "batch", "online"],
    attempts: int,
    time_left: float | None,
    window_s: float,
) -> Literal["batch", "online"]:
    """Return where a row goes that a batch has not answered well.

    Args:
        sent: Batches that it was in.
        leftovers: What the user wants.
        attempts: Batches that it may be in at most.
        time_left: Seconds until the answers are needed; `None` for no hurry.
        window_s: Seconds that a batch may take.
    """
    if leftovers == "online" or sent >= attempts:
        return "online"
    if time_left is not None and time_left < window_s:
        return "online"
    if leftovers == "batch":
        return "batch"
    return "batch" if sent < _BATCHES_OF_A_ROW else "online"
