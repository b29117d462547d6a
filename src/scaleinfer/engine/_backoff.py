"""How long to wait after a failure: tenacity's strategies as plain functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenacity.wait import wait_base

__all__ = ["between", "exponential_jitter"]


def exponential_jitter(initial: float, maximum: float) -> Callable[[int], float]:
    """Return tenacity's exponential backoff with jitter as a function of the failure's number."""

    def wait(failure: int) -> float:
        # Imported on the first failure: tenacity costs 80 ms that a run without one saves.
        import tenacity

        # Not wait_exponential_jitter: its arguments have other names in every other version.
        strategy = tenacity.wait_exponential(initial, maximum) + tenacity.wait_random(0, initial)
        return min(maximum, _seconds(strategy, failure))

    return wait


def between(longest: float) -> Callable[[], float]:
    """Return tenacity's random wait, from half of the longest on."""

    def wait() -> float:
        import tenacity

        return _seconds(tenacity.wait_random(longest / 2, longest), 1)

    return wait


def _seconds(strategy: wait_base, failure: int) -> float:
    import tenacity

    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    state.attempt_number = failure
    return float(strategy(state))
