"""What a simulated server answers, as bytes and times: a delivery for each request."""

from __future__ import annotations

import traceback
from http import HTTPStatus
from typing import TYPE_CHECKING

import orjson

from scaleinfer.testing import _refusals
from scaleinfer.testing._answers import Envelope, body_of, events_of, usage_of
from scaleinfer.testing._chance import draw
from scaleinfer.testing._delivery import (
    Delivery,
    End,
    deliver,
    deliver_events,
    deliver_fault,
    deliver_refusal,
)
from scaleinfer.testing._load import REPORT_FORMAT, load_report
from scaleinfer.testing._refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaleinfer.testing._answers import Choice
    from scaleinfer.testing._batched import Work
    from scaleinfer.testing._conditions import Conditions
    from scaleinfer.testing._faults import Fault
    from scaleinfer.testing._job import Job
    from scaleinfer.testing._ledger import Ledger
    from scaleinfer.testing._load import Load
    from scaleinfer.testing._settings import Settings
    from scaleinfer.testing._view import RequestView

__all__ = ["Responder", "script_failed"]


class Responder:
    """Makes the deliveries.

    Args:
        settings: How to answer.
        ledger: Counts the answers.
        conditions: What holds now.
        load: Returns the load, for the reports of it.
        epoch: Unix time at the clock's zero.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        conditions: Conditions,
        load: Callable[[], Load],
        *,
        epoch: float,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._conditions = conditions
        self._load = load
        self._epoch = epoch

    def fault(self, job: Job, fault: Fault, now: float) -> Delivery:
        """Return what a fault sends in place of any answer."""
        return deliver_fault(
            fault,
            dialect=self._settings.dialect,
            keep_alive=job.keep_alive,
            unix_time=self._epoch + now,
        )

    def refusal(self, job: Job, refusal: Refusal) -> Delivery:
        """Return an error."""
        return deliver_refusal(refusal, dialect=self._settings.dialect, keep_alive=job.keep_alive)

    def outage(self, job: Job) -> Delivery:
        """Return what comes of a server that is down: nothing, or 503."""
        if self._conditions.down == "refuse":
            return Delivery(0, (), End.CLOSE)
        return self.refusal(job, _refusals.outage())

    def latency(self, view: RequestView) -> float:
        """Return the seconds a request takes, but for its tokens."""
        latency = self._settings.latency
        if isinstance(latency, tuple):
            mean, jitter = latency
            luck = draw(self._settings.seed, "latency", view.prompt, view.attempt)
            return mean + jitter * (2 * luck - 1)
        return latency(view) if callable(latency) else latency

    def answer(self, job: Job, choices: list[Choice], now: float) -> tuple[Delivery, int]:
        """Return an answer and how many tokens it has; the ledger's entry gets the tokens."""
        view, fault, work = job.view, job.verdict.fault, job.work
        usage = usage_of(view, choices)
        tokens: int = usage["completion_tokens"]
        entry = job.entry
        if entry is not None:
            entry.prompt_tokens = usage["prompt_tokens"]
            entry.completion_tokens = tokens
        if work is not None:
            cached = work.cached_tokens
            usage["prompt_tokens_details"] = {"cached_tokens": cached}
            if entry is not None:
                entry.cached_tokens = cached
                entry.started = self._epoch + work.admitted
        model = view.model or self._settings.models[0]
        envelope = Envelope(self._ledger.arrived, int(self._epoch + now), model, usage)
        empty = fault is not None and fault.kind == "empty_choices"
        if empty:
            choices = []
        headers = self._headers(view, now) if self._conditions.talkative else None
        if not view.stream:
            delivery = deliver(
                HTTPStatus.OK,
                orjson.dumps(body_of(envelope, choices, view)),
                keep_alive=job.keep_alive,
                fault=fault,
                ok=not empty,
                headers=headers,
            )
            return delivery, tokens
        delivery = deliver_events(
            map(orjson.dumps, events_of(envelope, choices, view)),
            interval=self._interval(work),
            keep_alive=job.keep_alive,
            fault=fault,
            headers=headers,
        )
        return delivery, tokens

    def _interval(self, work: Work | None) -> float:
        """Return the seconds between two events; in tokens if the batch sets the pace."""
        if work is not None:
            return 1.0 if work.paced else 0.0
        pace = self._settings.tokens_per_second
        return 0.0 if pace is None else self._conditions.slowdown / pace

    def _headers(self, view: RequestView, now: float) -> dict[str, str]:
        headers = self._conditions.rate_headers(now)
        form = view.headers.get(REPORT_FORMAT)
        # vLLM leaves its load report out of streams.
        if form is not None and self._conditions.load_report and not view.stream:
            headers |= load_report(form, self._load())
        return headers


def script_failed(error: Exception) -> Refusal:
    """A callable of the user's raised: its author must see it, here and in the answer."""
    traceback.print_exception(error)
    message = f"The simulated server's script raised {type(error).__name__}: {error}"
    return Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, message)
