from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from scaleinfer._watching import phase_of, wait_in_words


def endpoint(name: str = "a", state: str = "closed", rpm: float | None = None) -> Any:
    return SimpleNamespace(
        name=name,
        left=False,
        breaker=SimpleNamespace(state=state),
        rate=SimpleNamespace(requests_per_minute=rpm, tokens_per_minute=None),
    )


@pytest.mark.parametrize(
    ("counts", "endpoints", "phase"),
    [
        ((4, 9, 9), [endpoint()], "running"),
        ((0, 0, 0), [endpoint()], "running"),
        ((0, 0, 3), [endpoint()], "waiting to try again"),
        ((0, 2, 0), [endpoint(state="open")], "waiting for a to answer again"),
        (
            (0, 2, 0),
            [endpoint(state="open"), endpoint("b", "open")],
            "waiting for a and 1 more to answer again",
        ),
        ((0, 2, 0), [endpoint(rpm=60.0), endpoint("b", "open")], "waiting for the rate limit"),
        ((0, 2, 0), [endpoint()], "waiting for a place at an endpoint"),
        ((0, 2, 0), [], "waiting for an endpoint"),
    ],
)
def test_the_phase_says_what_a_run_waits_for(
    counts: tuple[int, int, int], endpoints: list[Any], phase: str
) -> None:
    in_flight, queued, waiting = counts
    engine: Any = SimpleNamespace(
        in_flight=in_flight, queued=queued, waiting=waiting, endpoints=lambda: endpoints
    )
    assert phase_of(engine) == phase


def test_waits_are_said_once() -> None:
    assert wait_in_words(["sophia: queued", "sophia: queued", "starting the workers"]) == (
        "waiting for sophia: queued; starting the workers"
    )
