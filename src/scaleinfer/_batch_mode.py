"""Whether a run uses batches, and how: `mode=` and `deadline=` of the front door."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from scaleinfer.batch import Batch, cancel_after, choose_mode
from scaleinfer.errors import ConfigError, EndpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scaleinfer.backends import Backend, BatchBackend
    from scaleinfer.engine import Retry
    from scaleinfer.journal import Journal
    from scaleinfer.observe import Progress

__all__ = ["BatchPlan", "Mode", "batch_plan", "checked_deadline", "checked_mode"]

Mode = Literal["online", "batch", "auto"] | Batch
"""How a map asks: calls of their own, batches, whichever fits, or batches as it says."""

_MODES = ("online", "batch", "auto")


def checked_mode(mode: Any, *, fleet: bool) -> Mode:
    """Return the mode.

    Raises:
        ConfigError: It is none, or one that a fleet does not have.
    """
    if not isinstance(mode, Batch) and mode not in _MODES:
        raise ConfigError(f"mode must be 'online', 'batch', 'auto' or a Batch, not {mode!r}.")
    if fleet and mode != "online":
        raise ConfigError("A fleet's workers ask online; mode= is for a map without a fleet.")
    checked: Mode = mode
    return checked


def checked_deadline(deadline: Any) -> float | None:
    """Return the seconds within which the answers are needed.

    Raises:
        ConfigError: That is no time to come.
    """
    seconds = deadline.total_seconds() if isinstance(deadline, timedelta) else deadline
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise ConfigError(f"deadline must be seconds or a timedelta, not {deadline!r}.")
    return None if seconds == math.inf else float(seconds)


@dataclass(slots=True)
class BatchPlan:
    """How a run uses batches.

    Attributes:
        backend: The endpoint's batch API, open.
        options: How batches work.
        attempts: Batches that one question may be in.
        patience: Seconds for which failures of the server that may pass are followed.
        deadline: Seconds within which the answers are needed; `None` for no hurry.
        cancel_after: Seconds after which batches are cancelled; 0 sends no new ones.
        note: Shows a line to the user.
    """

    backend: BatchBackend
    options: Batch
    attempts: int
    patience: float
    deadline: float | None
    cancel_after: float | None
    note: Callable[[str], None]


async def batch_plan(
    mode: Mode,
    deadline: float | None,
    *,
    backends: Sequence[Backend],
    retry: Retry,
    journal: Journal | None,
    items: int | None,
    progress: Progress,
) -> BatchPlan | None:
    """Return how a run uses batches; `None` if it does not.

    An online run uses them too if the journal holds batches of an earlier one: these are
    cancelled, and what they have answered is taken.

    Args:
        mode: What the user asked for.
        deadline: Seconds within which the answers are needed.
        backends: The adapters, open.
        retry: How failures are followed.
        journal: The run's journal, if it has one.
        items: Items there are, if that is known.
        progress: Told what is done, and why.

    Raises:
        ConfigError: `mode="batch"`, and no endpoint has a batch API.
    """
    backend = mode.via if isinstance(mode, Batch) else None
    if backend is None:
        own = (one.batches() for one in backends)
        backend = next((found for found in own if found is not None), None)
    if isinstance(mode, Batch) and backend is not None and (mode.folder or mode.stage):
        folder = None if mode.folder is None else os.fspath(mode.folder)
        backend.keep_files(folder, mode.stage, mode.fetch)
    stop_after = cancel_after(deadline)
    if mode == "auto":
        available = backend is not None and await _has_batches(backend)
        choice = choose_mode(
            available=available,
            limits=None if backend is None else backend.limits,
            discount=None if backend is None else backend.discount,
            priced=backends[0].priced,
            deadline=deadline,
            items=items,
        )
        progress.note(f"mode='auto' chose {choice.mode}: {choice.why}.")
        mode = choice.mode
    if mode == "online":
        ours = [] if journal is None or backend is None else [
            one for one in journal.open_batches if one.endpoint == backend.endpoint
        ]  # fmt: skip
        if not ours or backend is None:
            return None
        progress.note(
            f"The journal has {len(ours)} open batches. Those with rows of this run are cancelled, "
            "what they have answered is taken, the rest is asked now; mode='batch' would wait."
        )
        stop_after = 0.0
    if backend is None:
        raise ConfigError(
            f"{backends[0].endpoint} has no batch API that is known here.",
            hint="Use mode='online'.",
        )
    if stop_after != 0.0:
        backend.check_settings()
    if journal is None:
        progress.note("Without a journal a batch cannot be picked up again if this process ends.")
    return BatchPlan(
        backend,
        options=mode if isinstance(mode, Batch) else Batch(),
        attempts=retry.attempts,
        patience=retry.patience,
        deadline=deadline,
        cancel_after=stop_after,
        note=progress.note,
    )


async def _has_batches(backend: BatchBackend) -> bool:
    try:
        return await backend.available()
    except EndpointError:
        return False  # the calls to come will show what is wrong
