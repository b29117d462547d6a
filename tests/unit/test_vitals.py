"""The verdict on what held a run back, and the shares behind it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer._vitals import Vitals, verdict
from scaleinfer.engine import Concurrency
from scaleinfer.engine._adaptive import AdaptiveLimiter
from scaleinfer.engine._endpoint import Endpoint
from scaleinfer.engine._limiter import FixedLimiter, Outcome
from scaleinfer.engine._statistics import Waits
from scaleinfer.map_result import TimeShares

CALM = TimeShares(endpoint=1.0, client=0.1, loop_lag_s=0.001)


@pytest.mark.parametrize(
    ("shares", "more", "said"),
    [
        ({}, {}, "the endpoint"),
        ({"input": 0.9}, {}, "the input"),
        ({"input": 0.25, "client": 0.9}, {}, "this process: its event loop was busy"),
        ({"client": 0.9}, {}, "this process: its event loop was busy"),
        ({"client": 0.7, "loop_lag_s": 0.1}, {}, "this process: its event loop was busy"),
        ({"client": 0.1, "loop_lag_s": 0.1}, {}, "this process: something blocked"),
        ({"record": 0.3}, {"limit": "4: fixed"}, "the journal"),
        ({"connection": 0.3}, {"limit": "4: fixed"}, "opening connections"),
        ({"retry": 0.6, "connection": 0.3}, {}, "errors"),
        ({"queue": 0.6, "connection": 0.3}, {"rated": True}, "the rate limit"),
        ({"queue": 0.6}, {"limit": "4: fixed"}, "the limit of calls in flight (4: fixed)"),
        ({}, {"rated": True, "limit": "4: fixed"}, "the limit of calls in flight (4: fixed)"),
        ({"connection": 0.3}, {"prompting": 0.9}, "prompt_fn"),
    ],
)
def test_verdicts(shares: dict[str, Any], more: dict[str, Any], said: str) -> None:
    assert verdict(replace(CALM, **shares), **more).startswith(said)


class FakeEngine:
    def __init__(self, *endpoints: Endpoint) -> None:
        self.waits = Waits()
        self._endpoints = endpoints

    def endpoints(self) -> list[Any]:
        return [endpoint.statistics() for endpoint in self._endpoints]


class FakeIntake:
    input_s = prompt_s = 0.0


class FakeBackend:
    def __init__(self, *, adaptive: bool = True) -> None:
        self.adaptive = adaptive
        self.connection_wait_s = 7.0


def vitals_of(engine: FakeEngine, *backends: FakeBackend) -> Vitals:
    fakes: Any = (engine, FakeIntake(), backends or (FakeBackend(),))
    return Vitals(*fakes)


def full(limiter: Any) -> Endpoint:
    endpoint = Endpoint("e", limiter)
    for _ in range(limiter.limit):
        endpoint.started(0.0)
    for number in range(limiter.limit):
        endpoint.ended(1.0 + number, Outcome.OK, began=0.0, tokens=1)
    return endpoint


@pytest.mark.parametrize(
    ("endpoint", "adaptive", "said"),
    [
        (full(FixedLimiter(4)), True, "the limit of calls in flight (4: fixed)"),
        (full(FixedLimiter(4)), False, "the endpoint"),
        (Endpoint("e", FixedLimiter(4)), True, "the endpoint"),
        (
            full(AdaptiveLimiter(Concurrency(min=4, max=4), start=4)),
            True,
            "the limit of calls in flight (4: bounded by max)",
        ),
    ],
)
def test_a_limit_is_named_if_it_was_reached_and_is_ours(
    endpoint: Endpoint, adaptive: bool, said: str
) -> None:
    vitals = vitals_of(FakeEngine(endpoint), FakeBackend(adaptive=adaptive))
    assert vitals.shares(10.0).held_back_by == said


def test_one_endpoint_with_room_is_enough() -> None:
    engine = FakeEngine(full(FixedLimiter(4)), Endpoint("idle", FixedLimiter(4)))
    assert vitals_of(engine, FakeBackend(), FakeBackend()).shares(10.0).held_back_by == (
        "the endpoint"
    )


@given(
    endpoint=st.floats(0, 1e6),
    record=st.floats(0, 1e6),
    retry=st.floats(0, 1e6),
    place=st.floats(0, 1e6),
    connecting=st.floats(-7, 1e6),
    elapsed=st.floats(0, 1e6),
)
def test_shares_are_shares(  # noqa: PLR0917 - what Hypothesis draws
    endpoint: float, record: float, retry: float, place: float, connecting: float, elapsed: float
) -> None:
    engine, backend = FakeEngine(Endpoint("e", FixedLimiter(1))), FakeBackend()
    vitals = vitals_of(engine, backend)
    engine.waits = Waits(place, endpoint, record, retry)
    backend.connection_wait_s += connecting  # a closed backend has forgotten what it waited
    shares = vitals.shares(elapsed)
    parts = (shares.endpoint, shares.connection, shares.record, shares.retry)
    assert all(0 <= part <= 1 + 1e-9 for part in (*parts, shares.queue, shares.input))
    if endpoint + record + retry > 0:
        assert sum(parts) == pytest.approx(1.0)


@pytest.mark.anyio
async def test_waiting_for_connections_is_known_after_they_were_closed() -> None:
    engine, backend = FakeEngine(Endpoint("e", FixedLimiter(1))), FakeBackend()
    vitals = vitals_of(engine, backend)
    watching = asyncio.create_task(vitals.watch())
    await asyncio.sleep(0)
    engine.waits.endpoint = 10.0
    backend.connection_wait_s += 4.0
    async with asyncio.timeout(10):
        while not vitals.shares(1.0).client:  # noqa: ASYNC110 - `watch` has no event
            await asyncio.sleep(0.02)
    watching.cancel()
    backend.connection_wait_s = 0.0
    shares = vitals.shares(1.0)
    assert shares.connection == pytest.approx(0.4)
    assert shares.held_back_by == "opening connections"
