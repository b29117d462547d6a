"""What the simulated server decides: a state machine without clock, socket or loop."""

from __future__ import annotations

import traceback
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import orjson

from scaleinfer.testing import _refusals
from scaleinfer.testing._answers import Envelope, answer, body_of, events_of, usage_of
from scaleinfer.testing._chance import draw
from scaleinfer.testing._delivery import (
    Delivery,
    End,
    deliver,
    deliver_events,
    deliver_fault,
    deliver_refusal,
)
from scaleinfer.testing._faults import FaultScript
from scaleinfer.testing._job import Job
from scaleinfer.testing._pages import COMPLETIONS, authorised, page
from scaleinfer.testing._refusals import Refusal
from scaleinfer.testing._schedule import Slots, Timers
from scaleinfer.testing._view import RequestView, find_prompts

if TYPE_CHECKING:
    from scaleinfer.testing._faults import Fault
    from scaleinfer.testing._job import Head, Output
    from scaleinfer.testing._ledger import Ledger
    from scaleinfer.testing._settings import Settings

__all__ = ["Service"]

_KNOWN_FIELDS = frozenset(
    [
        "messages",
        "prompt",
        "model",
        "stream",
        "stream_options",
        "n",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "seed",
        "stop",
        "logprobs",
        "top_logprobs",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "user",
        "structured_outputs",
        "guided_json",
    ]
)


class Service:
    """Takes requests, client departures and times; says what to send.

    All times that are passed in are of one monotonic clock, in seconds.

    Args:
        settings: How to behave.
        ledger: Where to write down what happened.
        epoch: Unix time at the clock's zero.
    """

    def __init__(self, settings: Settings, ledger: Ledger, *, epoch: float) -> None:
        self.settings = settings
        self.ledger = ledger
        self.slots: Slots[Job] = Slots(settings.slots)
        self.timers: Timers[Job] = Timers()
        self._script = FaultScript(settings.faults, settings.seed)
        self._epoch = epoch
        self._first: float | None = None

    # Events.

    def arrive(self, head: Head, body: bytes, client: Any, now: float) -> Job:
        """Take a request. If the job is due now, `advance` it; else `due_jobs` will name it."""
        if self._first is None:
            self._first = now
        elapsed = now - self._first
        if head.path in COMPLETIONS and head.method == "POST":
            job = self._arrive_completion(head, body, client, now, elapsed)
        else:
            job = self._arrive_other(head, client, now, elapsed)
        if job.due is not None and job.due > now:
            self.timers.add(job.due, job)
        return job

    def due_jobs(self, now: float) -> list[Job]:
        """Return the jobs to be advanced now."""
        return [job for job in self.timers.pop(now) if not job.done]

    def advance(self, job: Job, now: float) -> Output:
        """Return what is to be sent for a job that is due."""
        delivery, data = job.delivery, b""
        for at, part in delivery.parts[job.sent :]:
            due = job.started + at
            if due > now:
                job.due = due
                self.timers.add(due, job)
                return data, None
            data += part
            job.sent += 1
        end = delivery.end
        if end is End.HANG:
            return data, end
        if (trap := job.verdict.trap) is not None:
            job.trapped = trap.on == "next_request"
            end = end if job.trapped else End.CLOSE
        self._finish(job, now, ok=delivery.ok)
        return data, end

    def leave(self, job: Job, now: float, *, aborted: bool = True) -> None:
        """Take note that a job's connection is gone; harmless if the job has its end.

        Args:
            job: The job.
            now: The time.
            aborted: False if the server itself ended it.
        """
        if not job.done:
            self._finish(job, now, aborted=aborted)

    # Ends.

    def _finish(self, job: Job, now: float, *, ok: bool = False, aborted: bool = False) -> None:
        job.done = True
        if job.entry is not None:
            status = job.delivery.status if job.sent else 0
            self.ledger.finish(job.entry, self._epoch + now, status=status, ok=ok, aborted=aborted)
        if not job.served:
            self.slots.withdraw(job)
            return
        following = self.slots.leave()
        if following is not None:
            self._serve(following, now)
            self.timers.add(following.due or now, following)

    # Completions.

    def _arrive_completion(
        self, head: Head, data: bytes, client: Any, now: float, elapsed: float
    ) -> Job:
        body, refusal = self._parse_body(data)
        view = RequestView(head.path, body, elapsed=elapsed, headers=head.headers)
        try:
            view.prompts = self._prompts(view)
        except Exception as error:
            refusal = refusal or _script_failed(error)
        entry = self.ledger.arrive(
            view.prompts,
            self._epoch + now,
            model=view.model,
            authorised=head.authorization is not None,
            stream=view.stream,
            headers=head.kept if self.settings.keep_headers else (),
            body=data if self.settings.keep_bodies else None,
        )
        view.attempt = entry.attempt
        if not body.keys() <= _KNOWN_FIELDS:
            self.ledger.unknown_fields.update(body.keys() - _KNOWN_FIELDS)
        job = Job(client, view, entry, head.keep_alive)
        self._decide(job, refusal or self._refuse(head, view), now)
        return job

    def _parse_body(self, data: bytes) -> tuple[dict[str, Any], Refusal | None]:
        try:
            body = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            return {}, Refusal(HTTPStatus.BAD_REQUEST, f"The body is not JSON: {error}.")
        if not isinstance(body, dict):
            return {}, Refusal(HTTPStatus.BAD_REQUEST, "The body is not a JSON object.")
        return body, None

    def _prompts(self, view: RequestView) -> tuple[str, ...]:
        if self.settings.prompt_of is not None:
            return (self.settings.prompt_of(view.body),)
        return find_prompts(view, self.ledger.knows)

    def _refuse(self, request: Head, view: RequestView) -> Refusal | None:
        settings = self.settings
        if settings.api_key is not None and not authorised(request, settings):
            return _refusals.wrong_key(request.authorization is not None)
        what = "messages" if view.chat else "prompt"
        if what not in view.body:
            return Refusal(HTTPStatus.BAD_REQUEST, f"Missing field: {what}.", param=what)
        if view.model and view.model not in settings.models:
            return _refusals.unknown_model(view.model)
        limit = settings.max_prompt_tokens
        if limit is not None and (tokens := view.prompt_tokens) > limit:
            return _refusals.too_long(limit, tokens, chat=view.chat)
        return None

    def _decide(self, job: Job, refusal: Refusal | None, now: float) -> None:
        """Let faults and refusals have their say, then take a slot or wait for one."""
        try:
            job.verdict = self._script.decide(job.view)
        except Exception as error:
            refusal = refusal or _script_failed(error)
        verdict = job.verdict
        if job.entry is not None:
            job.entry.fault = verdict.name
        fault = verdict.fault
        if fault is not None and fault.early:
            job.delivery = self._deliver_fault(job, fault, now)
        elif refusal is not None:
            job.delivery = self._deliver_refusal(job, refusal)
        else:
            if self.slots.enter(job):
                self._serve(job, now)
            return
        job.started = job.due = now + verdict.delay

    def _deliver_fault(self, job: Job, fault: Fault, now: float) -> Delivery:
        return deliver_fault(
            fault,
            dialect=self.settings.dialect,
            keep_alive=job.keep_alive,
            unix_time=self._epoch + now,
        )

    def _deliver_refusal(self, job: Job, refusal: Refusal) -> Delivery:
        return deliver_refusal(refusal, dialect=self.settings.dialect, keep_alive=job.keep_alive)

    def _serve(self, job: Job, now: float) -> None:
        """Begin to serve a job that has a slot: make its answer, set its time."""
        job.served = True
        wait = job.verdict.delay
        try:
            wait += self._latency(job.view)
            job.delivery, tokens = self._answer(job, now)
            if self.settings.tokens_per_second is not None:
                wait += (1 if job.view.stream else tokens) / self.settings.tokens_per_second
        except Refusal as refusal:
            job.delivery = self._deliver_refusal(job, refusal)
        except Exception as error:
            job.delivery = self._deliver_refusal(job, _script_failed(error))
        job.started = job.due = now + wait

    def _latency(self, view: RequestView) -> float:
        latency = self.settings.latency
        if isinstance(latency, tuple):
            mean, jitter = latency
            luck = draw(self.settings.seed, "latency", view.prompt, view.attempt)
            return mean + jitter * (2 * luck - 1)
        return latency(view) if callable(latency) else latency

    def _answer(self, job: Job, now: float) -> tuple[Delivery, int]:
        view, fault = job.view, job.verdict.fault
        choices = answer(view, self.settings)
        usage = usage_of(view, choices)
        model = view.model or self.settings.models[0]
        envelope = Envelope(self.ledger.arrived, int(self._epoch + now), model, usage)
        empty = fault is not None and fault.kind == "empty_choices"
        if empty:
            choices = []
        if not view.stream:
            body = orjson.dumps(body_of(envelope, choices, view))
            delivery = deliver(200, body, keep_alive=job.keep_alive, fault=fault, ok=not empty)
            return delivery, usage["completion_tokens"]
        pace = self.settings.tokens_per_second
        delivery = deliver_events(
            map(orjson.dumps, events_of(envelope, choices, view)),
            interval=0.0 if pace is None else 1 / pace,
            keep_alive=job.keep_alive,
            fault=fault,
        )
        return delivery, usage["completion_tokens"]

    # Everything else.

    def _arrive_other(self, head: Head, client: Any, now: float, elapsed: float) -> Job:
        view = RequestView(head.path, {}, elapsed=elapsed, headers=head.headers)
        job = Job(client, view, None, head.keep_alive)
        job.started = job.due = now
        try:
            if not head.path.startswith("/ledger"):
                self.ledger.other_paths[head.path] += 1
                job.verdict = self._script.decide(view, completion=False)
        except Exception as error:
            job.delivery = self._deliver_refusal(job, _script_failed(error))
            return job
        job.started = job.due = now + job.verdict.delay
        fault = job.verdict.fault
        if fault is not None and fault.early:
            job.delivery = self._deliver_fault(job, fault, now)
            return job
        try:
            body = page(head, self.settings, self.ledger)
            job.delivery = deliver(200, body, keep_alive=job.keep_alive, fault=fault)
        except Refusal as refusal:
            job.delivery = self._deliver_refusal(job, refusal)
        return job


def _script_failed(error: Exception) -> Refusal:
    """A callable of the user's raised: its author must see it, here and in the answer."""
    traceback.print_exception(error)
    message = f"The simulated server's script raised {type(error).__name__}: {error}"
    return Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, message)
