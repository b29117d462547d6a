"""`Budget`, and the ledger that keeps to it. Plain state machines: no I/O, no clock of their own.

A call is reserved at the most it may use before it is sent, and settled at what it did use once
it has ended. What is settled and what is reserved together never pass the cap, so no number of
calls that end at the same time can.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

from scaleinfer.errors import ConfigError
from scaleinfer.prices import PICO

__all__ = ["NOTHING", "Account", "Budget", "Ledger", "Spend"]


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Budget:
    """Hard caps on what a run may use. `None` means no cap.

    Before a call is sent, the most it may use is reserved; when it ends, what it did use is
    booked and the rest given back. A run that has reached a cap sends nothing more, lets what is
    in flight land, and leaves the other items with `BudgetExceeded`.

    Maps that are given the same `Budget` object share it, at the same time and one after the
    other. With a journal, what earlier runs of it have used counts too: to go on with a larger
    cap, call again with a larger `Budget`.

    Attributes:
        usd: US dollars, by your own `prices=` or the public list's.
        tokens: Prompt and completion tokens together.
        requests: Calls sent; those that fail, repeat or hedge included.
        seconds: Wall time of each run. No call is sent after it.
        node_hours: Wall time of the nodes on which a fleet's workers are, while a run uses it.
        per_item_usd: US dollars for one item; passing it fails that item alone.

    Raises:
        ConfigError: A cap is not a positive number, or none is set.
    """

    usd: float | None = None
    tokens: int | None = None
    requests: int | None = None
    seconds: float | None = None
    node_hours: float | None = None
    per_item_usd: float | None = None

    def __post_init__(self) -> None:
        caps = {f.name: getattr(self, f.name) for f in fields(self)}
        if all(cap is None for cap in caps.values()):
            raise ConfigError("Budget() caps nothing.", hint=f"Set one of {', '.join(caps)}.")
        for name, cap in caps.items():
            if cap is None:
                continue
            number = isinstance(cap, int | float) and not isinstance(cap, bool)
            if not number or not 0 < cap < math.inf:
                raise ConfigError(f"Budget.{name} must be a positive number, not {cap!r}.")

    @property
    def needs_prices(self) -> bool:
        """True if a cap is in dollars."""
        return self.usd is not None or self.per_item_usd is not None


class Spend(NamedTuple):
    """What calls use, or may use."""

    tokens: int = 0
    """Prompt and completion tokens."""
    requests: int = 0
    """Calls."""
    pico: int = 0
    """Picodollars."""

    def plus(self, other: Spend) -> Spend:
        """Return the sum of both."""
        return Spend(
            self.tokens + other.tokens, self.requests + other.requests, self.pico + other.pico
        )

    def within(self, cap: Spend) -> bool:
        """Return whether nothing of it passes the cap."""
        return self.tokens <= cap.tokens and self.requests <= cap.requests and self.pico <= cap.pico


NOTHING = Spend()
_ENDLESS = 10**30


class Account:
    """Sums of what was used and of what calls in flight may use, in place: this is the hot path.

    Attributes:
        in_flight: Reservations that are not settled.
    """

    __slots__ = ("_most", "_used", "in_flight")

    def __init__(self, spent: Spend = NOTHING) -> None:
        self._used = [*spent]
        self._most = [*spent]
        self.in_flight = 0

    @property
    def spent(self) -> Spend:
        """What ended calls have used."""
        return Spend(*self._used)

    @property
    def committed(self) -> Spend:
        """The same, and what calls in flight may use at the most."""
        return Spend(*self._most)

    def commit(self, most: Spend) -> None:
        """A call is under way that may use so much."""
        sums = self._most
        sums[0] += most[0]
        sums[1] += most[1]
        sums[2] += most[2]
        self.in_flight += 1

    def settle(self, reserved: Spend, used: Spend) -> None:
        """A call has ended and has used so much; the rest is free again."""
        sums, spent = self._most, self._used
        sums[0] += used[0] - reserved[0]
        sums[1] += used[1] - reserved[1]
        sums[2] += used[2] - reserved[2]
        spent[0] += used[0]
        spent[1] += used[1]
        spent[2] += used[2]
        self.in_flight -= 1


class Ledger(Account):
    """What was used and what may still be, against caps.

    Args:
        cap: The most of everything.
        spent: What was used before.

    Attributes:
        cap: The same.
    """

    __slots__ = ("cap",)

    def __init__(self, cap: Spend, spent: Spend = NOTHING) -> None:
        super().__init__(spent)
        self.cap = cap

    @classmethod
    def of(cls, budget: Budget) -> Ledger:
        """Return the ledger of a budget's caps on dollars, tokens and requests."""
        return cls(cap_of(budget.usd, budget.tokens, budget.requests))

    def reserve(self, most: Spend) -> bool:
        """Commit what a call may use, if that fits; return whether it did."""
        sums, cap = self._most, self.cap
        if sums[0] + most[0] > cap[0] or sums[1] + most[1] > cap[1] or sums[2] + most[2] > cap[2]:
            return False
        self.commit(most)
        return True

    def charge(self, used: Spend) -> None:
        """Book what was used without a reservation."""
        self.commit(used)
        self.settle(used, used)

    def may_fit(self, most: Spend) -> bool:
        """Return whether a call could go if everything in flight were given back."""
        return self.spent.plus(most).within(self.cap)

    @property
    def left(self) -> Spend:
        """What may still be reserved; not less than nothing."""
        return Spend(*(max(0, cap - most) for cap, most in zip(self.cap, self._most, strict=True)))


def cap_of(
    usd: float | None = None, tokens: float | None = None, requests: float | None = None
) -> Spend:
    """Return caps as a `Spend`; what is not capped is more than anything."""
    return Spend(
        _ENDLESS if tokens is None else int(tokens),
        _ENDLESS if requests is None else int(requests),
        _ENDLESS if usd is None else int(usd * PICO),
    )


def is_capped(amount: int) -> bool:
    """Return whether a part of a cap is one."""
    return amount < _ENDLESS
