"""What holds a run back: the endpoint, or something on our own side."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from scaleinfer.map_result import TimeShares

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaleinfer._intake import Intake
    from scaleinfer.backends import Backend
    from scaleinfer.engine import EndpointStatistics, Engine

__all__ = ["Vitals", "verdict"]

_EVERY_S = 0.05
_TOO_SHORT_S = 0.5
_BUSY = 0.85
_LARGE = 0.2
_HALF = 0.5
_OF_ITS_OWN = ("at the knee", "load report", "cut: refused", "cut: timeouts")
"""Reasons for a limit that are the endpoint's: more calls in flight would not be faster."""


class Vitals:
    """Measures how busy the event loop is while a run goes on.

    Args:
        engine: Makes the run's calls.
        intake: Takes the run's items.
        backends: The adapters, for what their connections tell.
    """

    def __init__(self, engine: Engine, intake: Intake, backends: Sequence[Backend]) -> None:
        self._engine = engine
        self._intake = intake
        self._backends = backends
        self._connecting_before = self._connecting = self._pool_wait()
        self._lag = 0.0
        self._worst = 0.0
        self._looks = 0
        self._busy = 0.0
        self._watched = 0.0

    async def watch(self) -> None:
        """Look every few milliseconds, until cancelled; in the loop's own thread."""
        while True:
            began, busy = time.monotonic(), time.thread_time()
            await asyncio.sleep(_EVERY_S)
            # A backend that is closed has forgotten it.
            self._connecting = max(self._connecting, self._pool_wait())
            took = time.monotonic() - began
            lag = max(0.0, took - _EVERY_S)
            self._looks += 1
            self._lag += lag
            self._worst = max(self._worst, lag)
            self._busy += time.thread_time() - busy
            self._watched += took

    def shares(self, elapsed: float) -> TimeShares:
        """Return where the time of a run that took `elapsed` seconds went."""
        waits = self._engine.waits
        connecting = max(self._connecting, self._pool_wait()) - self._connecting_before
        pool_wait = min(connecting, waits.endpoint)
        asked = waits.endpoint + waits.record + waits.retry
        shares = TimeShares(
            endpoint=_share(waits.endpoint - pool_wait, asked),
            connection=_share(pool_wait, asked),
            record=_share(waits.record, asked),
            retry=_share(waits.retry, asked),
            queue=_share(waits.place, waits.place + asked),
            input=min(1.0, _share(self._intake.input_s, elapsed)),
            client=min(1.0, _share(self._busy, self._watched)),
            loop_lag_s=_share(self._lag, self._looks),
            worst_loop_lag_s=self._worst,
        )
        if elapsed < _TOO_SHORT_S:
            return shares
        prompting = self._intake.prompt_s
        endpoints = self._engine.endpoints()
        return shares.with_verdict(
            verdict(
                shares,
                prompting=_share(prompting, prompting + asked),
                limit=self._limit(endpoints),
                rated=any(endpoint.rate.requests_per_minute for endpoint in endpoints)
                or any(endpoint.rate.tokens_per_minute for endpoint in endpoints),
            )
        )

    def _limit(self, endpoints: Sequence[EndpointStatistics]) -> str:
        """Return the limit of calls in flight that was reached everywhere, and why it is one."""
        limiters = [endpoint.limiter for endpoint in endpoints]
        if any(limiter.peak_in_flight < limiter.limit for limiter in limiters):
            return ""
        if not any(backend.adaptive for backend in self._backends):
            return ""  # the number that is known to be best there
        busiest = max(limiters, key=lambda limiter: limiter.limit)
        if busiest.reason in _OF_ITS_OWN:
            return ""
        return f"{busiest.limit}: {busiest.reason}"

    def _pool_wait(self) -> float:
        return sum(backend.connection_wait_s for backend in self._backends)


def verdict(
    shares: TimeShares, *, prompting: float = 0.0, limit: str = "", rated: bool = False
) -> str:
    """Return in a few words what held a run back.

    Args:
        shares: Where the time went.
        prompting: Waiting for an async `prompt_fn`, as a share of that and the calls' time.
        limit: The limit of calls in flight and its reason, if it was reached and is not the
            endpoint's own.
        rated: True if an endpoint has a rate limit.
    """
    late = shares.loop_lag_s / (shares.loop_lag_s + _EVERY_S)
    computing = shares.client >= _BUSY or (late >= _HALF and shares.client >= late / 2)
    found = [
        (
            shares.input >= max(_LARGE, shares.client / 2),
            "the input: its iterator held up everything else",
        ),
        (computing, "this process: its event loop was busy all the time"),
        (late >= _HALF, "this process: something blocked its event loop without computing"),
        (shares.queue >= _LARGE and rated, "the rate limit"),
        (prompting >= _HALF, "prompt_fn: most of the time went into waiting for it"),
        (shares.retry >= _HALF, "errors: most of the time went into waiting to try again"),
        (shares.record >= _LARGE, "the journal"),
        (shares.connection >= _LARGE, "opening connections"),
        (limit, f"the limit of calls in flight ({limit})"),
    ]
    return next((name for holds, name in found if holds), "the endpoint")


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
