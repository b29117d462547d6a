"""What the simulated server decides: a state machine without clock, socket or loop."""

from __future__ import annotations

import math
import sys
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import orjson

from scaleinfer.testing import _refusals
from scaleinfer.testing._answers import answer
from scaleinfer.testing._batch_api import BatchService
from scaleinfer.testing._batched import BatchedJobs
from scaleinfer.testing._changes import Change, what_of
from scaleinfer.testing._conditions import Conditions
from scaleinfer.testing._delivery import End, deliver
from scaleinfer.testing._embeddings import refuse_embedding
from scaleinfer.testing._faults import FaultScript
from scaleinfer.testing._job import WAKE_UP, Job
from scaleinfer.testing._load import Load
from scaleinfer.testing._pages import COMPLETIONS, authorised, is_own, page
from scaleinfer.testing._refusals import Refusal
from scaleinfer.testing._responder import Responder, script_failed
from scaleinfer.testing._schedule import Slots, Timers
from scaleinfer.testing._view import RequestView, find_prompts

if TYPE_CHECKING:
    from scaleinfer.testing._changes import What
    from scaleinfer.testing._job import Head, Output
    from scaleinfer.testing._ledger import Ledger
    from scaleinfer.testing._settings import Settings

__all__ = ["Service"]

_KNOWN_FIELDS = frozenset({
    "messages", "prompt", "model", "stream", "stream_options", "n", "max_tokens",
    "max_completion_tokens", "temperature", "top_p", "seed", "stop", "logprobs", "top_logprobs",
    "tools", "tool_choice", "parallel_tool_calls", "response_format", "presence_penalty",
    "frequency_penalty", "logit_bias", "user", "structured_outputs", "guided_json", "input",
    "encoding_format", "dimensions",
})  # fmt: skip


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
        self.conditions = Conditions(settings)
        self._epoch = epoch
        self._responder = Responder(
            settings, ledger, self.conditions, lambda: self.load, epoch=epoch
        )
        self._began = math.inf
        self._next_change = math.inf
        self._hangs = False
        self._held: list[Job] = []
        self._offline: BatchService | None = None
        if settings.batches is not None:
            self._offline = BatchService(settings.batches, settings, ledger, epoch=epoch)
        self._batch: BatchedJobs | None = None
        if settings.batching is not None:
            self._batch = BatchedJobs(settings, self.timers, self.conditions, self._responder)

    # Events.

    def arrive(self, head: Head, body: bytes, client: Any, now: float) -> Job:
        """Take a request. If the job is due now, `advance` it; else `due_jobs` will name it."""
        if self._began == math.inf:
            if is_own(head.path):
                return self._arrive_other(head, body, client, now, 0.0)
            self._begin(now)
        if self._next_change <= now:
            self._change_in_time(now)
        elapsed = now - self._began
        if head.path in COMPLETIONS and head.method == "POST":
            job = self._arrive_completion(head, body, client, now, elapsed)
        else:
            job = self._arrive_other(head, body, client, now, elapsed)
        if job.due is not None:
            if self._hangs and not is_own(head.path):
                job.due = None
                self._held.append(job)
            elif job.due > now:
                self.timers.add(job.due, job)
        return job

    def due_jobs(self, now: float) -> list[Job]:
        """Return the jobs to be advanced now."""
        if self._next_change <= now:
            self._change_in_time(now)
        ready = self.timers.pop(now)
        if self._batch is not None:
            ready += self._batch.ready(now)
        if self._hangs:
            self._held += ready
            return []
        return [job for job in ready if not job.done]

    def advance(self, job: Job, now: float) -> Output:
        """Return what is to be sent for a job that is due."""
        if self._batch is not None and job.work is not None and job.work.paced:
            data, over = self._batch.advance_stream(job, now)
            return data, self._end(job, now) if over else None
        delivery, data = job.delivery, b""
        for at, part in delivery.parts[job.sent :]:
            due = job.started + at
            if due > now:
                job.due = due
                self.timers.add(due, job)
                return data, None
            data += part
            job.sent += 1
        return data, self._end(job, now)

    def _end(self, job: Job, now: float) -> End:
        """Give a job its end, of which all has been sent; return it."""
        end = job.delivery.end
        if end is End.HANG:
            return end
        if (trap := job.verdict.trap) is not None:
            job.trapped = trap.on == "next_request"
            end = end if job.trapped else End.CLOSE
        self._finish(job, now, ok=job.delivery.ok)
        return end

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
        if job.reserved:
            used = 0 if job.entry is None else job.entry.prompt_tokens + job.entry.completion_tokens
            self.conditions.limits.settle(job.reserved, used)
        if self._batch is not None:
            self._batch.leave(job, now)
            return
        if not job.served:
            self.slots.withdraw(job)
            return
        following = self.slots.leave()
        if following is not None:
            self._serve_waiting(following, now)

    def _serve_waiting(self, job: Job, now: float) -> None:
        self._serve(job, now)
        self.timers.add(job.due or now, job)

    # Completions.

    def _arrive_completion(
        self, head: Head, data: bytes, client: Any, now: float, elapsed: float
    ) -> Job:
        body, refusal = self._parse_body(data)
        view = RequestView(head.path, body, elapsed=elapsed, headers=head.headers)
        try:
            view.prompts = self._prompts(view)
        except Exception as error:
            refusal = refusal or script_failed(error)
        entry = self.ledger.arrive(
            view.prompts,
            self._epoch + now,
            model=view.model,
            authorised=head.authorization is not None,
            stream=view.stream,
            headers=head.kept if self.settings.keep_headers else (),
            body=data if self.settings.keep_bodies else None,
            client=head.client,
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
        what = "messages" if view.chat else "input" if view.embedding else "prompt"
        if what not in view.body:
            return Refusal(HTTPStatus.BAD_REQUEST, f"Missing field: {what}.", param=what)
        if view.model and view.model not in settings.models:
            return _refusals.unknown_model(view.model)
        limit = settings.max_prompt_tokens
        if view.embedding:
            return refuse_embedding(view, limit)
        if limit is not None and (tokens := view.prompt_tokens) > limit:
            return _refusals.too_long(limit, tokens, chat=view.chat)
        return None

    def _decide(self, job: Job, refusal: Refusal | None, now: float) -> None:
        """Let faults and refusals have their say, then take a slot or wait for one."""
        conditions = self.conditions
        if conditions.down is not None and conditions.down != "hang":
            job.delivery = self._responder.outage(job)
            job.started = job.due = now
            return
        try:
            job.verdict = self._script.decide(job.view)
        except Exception as error:
            refusal = refusal or script_failed(error)
        verdict = job.verdict
        if job.entry is not None:
            job.entry.fault = verdict.name
        fault = verdict.fault
        if fault is not None and fault.early:
            job.delivery = self._responder.fault(job, fault, now)
        else:
            if refusal is None and conditions.guarded:
                refusal = self._refuse_load(job, now)
            if refusal is not None:
                job.delivery = self._responder.refusal(job, refusal)
            elif self._batch is None:
                if self.slots.enter(job):
                    self._serve(job, now)
                return
            elif self._batch.enter(job, now):
                return
        job.started = job.due = now + verdict.delay

    def _refuse_load(self, job: Job, now: float) -> Refusal | None:
        """Return the 503 of a full queue or the 429 of a rate limit, if there is one."""
        load, most = self.load, self.conditions.max_waiting
        batch = self._batch
        has_slot = self.slots.has_free if batch is None else batch.has_free
        if load.waiting >= most and not has_slot:
            return _refusals.queue_full(load.waiting)
        body = job.view.body
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        tokens = job.view.prompt_tokens + (limit if isinstance(limit, int) else 0)
        refusal = self.conditions.refuse_rate(tokens, now, self._epoch + now)
        if refusal is None:
            job.reserved = tokens
        return refusal

    def _serve(self, job: Job, now: float) -> None:
        """Begin to serve a job that has a slot: make its answer, set its time."""
        job.served = True
        if job.entry is not None:
            job.entry.started = self._epoch + now
        wait = 0.0
        try:
            wait += self._responder.latency(job.view)
            job.delivery, tokens = self._responder.answer(job, answer(job.view, self.settings), now)
            if self.settings.tokens_per_second is not None:
                wait += (1 if job.view.stream else tokens) / self.settings.tokens_per_second
        except Refusal as refusal:
            job.delivery = self._responder.refusal(job, refusal)
        except Exception as error:
            job.delivery = self._responder.refusal(job, script_failed(error))
        job.started = job.due = now + wait * self.conditions.slowdown + job.verdict.delay

    # Changes.

    @property
    def load(self) -> Load:
        """The load now. Without batching, the share of the slots stands for the KV cache's."""
        if self._batch is not None:
            return self._batch.load
        slots = self.slots
        usage = min(slots.taken / slots.capacity, 1.0) if slots.capacity else 0.0
        return Load(slots.taken, slots.waiting, usage)

    def change(self, what: What, now: float) -> What:
        """Become another server from `now` on; return what was before, of what is named."""
        before = self.conditions.change(what)
        self._hangs = self.conditions.down == "hang"
        if "slots" in what:
            before["slots"] = self._resize(what["slots"], now)
        if before.keys() & {"slots", "slowdown", "down"} and self._batch is not None:
            slowdown = math.inf if self._hangs else self.conditions.slowdown
            self._batch.change(now, slowdown=slowdown)
        if self._held and not self._hangs:
            held, self._held = self._held, []
            for job in held:
                job.due = now
                self.timers.add(now, job)
        return before

    def _resize(self, slots: float, now: float) -> float:
        most = None if slots == math.inf else int(slots)
        if self._batch is not None:
            before: float = self._batch.model.slots
            self._batch.change(now, slots=most or sys.maxsize)
            return before
        old = self.slots.capacity or math.inf
        for job in self.slots.resize(most):
            self._serve_waiting(job, now)
        return old

    def _begin(self, now: float) -> None:
        """Let the clock of the script begin with the first request."""
        self._began = now
        timeline = self.conditions.timeline
        self._next_change = now + timeline.due
        for at in timeline.times():
            self.timers.add(now + at, WAKE_UP)

    def _change_in_time(self, now: float) -> None:
        timeline = self.conditions.timeline
        while (change := timeline.pop(now - self._began)) is not None:
            before = self.change(change.what, now)
            if change.until is not None:
                timeline.add(Change(at=change.until, **before))
        self._next_change = self._began + timeline.due

    # Everything else.

    def _page(self, head: Head, data: bytes, now: float) -> tuple[str, bytes]:
        """Return the content type and body of what is no completion.

        Raises:
            Refusal: It is answered with an error.
        """
        offline = self._offline
        if offline is not None:
            if offline.serves(head.path):
                return offline.answer(head, data, now)
            offline.advance(now)  # so that the ledger shows what was done by now
        return page(head, self.settings, self.ledger, self.load)

    def _arrive_other(
        self, head: Head, data: bytes, client: Any, now: float, elapsed: float
    ) -> Job:
        view = RequestView(head.path, {}, elapsed=elapsed, headers=head.headers)
        job = Job(client, view, None, head.keep_alive)
        job.started = job.due = now
        own = is_own(head.path)
        if not own and self.conditions.down not in (None, "hang"):
            job.delivery = self._responder.outage(job)
            return job
        try:
            if not own:
                self.ledger.other_paths[head.path] += 1
                job.verdict = self._script.decide(view, completion=False)
        except Exception as error:
            job.delivery = self._responder.refusal(job, script_failed(error))
            return job
        job.started = job.due = now + job.verdict.delay
        fault = job.verdict.fault
        if fault is not None and fault.early:
            job.delivery = self._responder.fault(job, fault, now)
            return job
        try:
            if head.path == "/control" and head.method == "POST":
                self.change(what_of(data), now)
            kind, body = self._page(head, data, now)
            job.delivery = deliver(
                HTTPStatus.OK, body, keep_alive=job.keep_alive, fault=fault, content_type=kind
            )
        except Refusal as refusal:
            job.delivery = self._responder.refusal(job, refusal)
        return job
