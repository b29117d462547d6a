"""`retry_policy`: which failures of a node are worth running it again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaleinfer.errors import JournalError, ScaleInferError, Starting, WorkerLost

if TYPE_CHECKING:
    from collections.abc import Iterable

    from langgraph.types import RetryPolicy

__all__ = ["retry_policy", "worth_another_run"]

_PASSES = (Starting, WorkerLost)


def worth_another_run(error: Exception) -> bool:
    """Return whether a node that failed with one of scaleinfer's errors may do better.

    `RateLimited`, `Overloaded` and `Transient` are not: the map has tried them again as often
    and as long as its `retry=` says. Nor is what no repetition mends: `ConfigError`,
    `AuthError`, `Permanent`, `PromptError`, `SchemaError`, `BudgetExceeded`, `RunStopped`. What
    passes by itself is: `Starting` (a model that was still loading when the map's patience
    ended), `WorkerLost`, and a `JournalError` of a journal that somebody else is writing.
    """
    if isinstance(error, JournalError):
        return error.reason == "locked"
    return isinstance(error, _PASSES)


def retry_policy(
    *,
    max_attempts: int = 3,
    initial_interval: float = 2.0,
    backoff_factor: float = 2.0,
    max_interval: float = 60.0,
    jitter: bool = True,
    also: Iterable[type[Exception]] = (),
) -> RetryPolicy:
    """Return a LangGraph `RetryPolicy` that agrees with what maps try again by themselves.

    Errors that are not scaleinfer's are judged by LangGraph's own rule. A node with a journal
    asks only for what is missing when it is run again.

    Args:
        max_attempts: Runs of the node, the first one included.
        initial_interval: Seconds before the second run.
        backoff_factor: How much longer each further wait is.
        max_interval: Seconds that a wait lasts at most.
        jitter: True to add up to a second by chance.
        also: Further errors that are worth another run.
    """
    from langgraph.types import RetryPolicy

    others = RetryPolicy().retry_on
    more = tuple(also)

    def retry_on(error: Exception) -> bool:
        if isinstance(error, more):
            return True
        if isinstance(error, ScaleInferError):
            return worth_another_run(error)
        return bool(others(error)) if callable(others) else isinstance(error, tuple(others))

    return RetryPolicy(
        initial_interval=initial_interval,
        backoff_factor=backoff_factor,
        max_interval=max_interval,
        max_attempts=max_attempts,
        jitter=jitter,
        retry_on=retry_on,
    )
