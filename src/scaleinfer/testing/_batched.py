"""Requests of clients as sequences of a `BatchingModel`: one for each prompt and choice."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from scaleinfer.testing._answers import answer
from scaleinfer.testing._batching import BatchingModel
from scaleinfer.testing._job import WAKE_UP
from scaleinfer.testing._load import Load
from scaleinfer.testing._prefix import prefix_blocks
from scaleinfer.testing._refusals import Refusal
from scaleinfer.testing._responder import script_failed
from scaleinfer.testing._view import count_tokens, text_of

if TYPE_CHECKING:
    from scaleinfer.testing._answers import Choice
    from scaleinfer.testing._batched_request import BatchedRequest
    from scaleinfer.testing._conditions import Conditions
    from scaleinfer.testing._job import Job
    from scaleinfer.testing._responder import Responder
    from scaleinfer.testing._schedule import Timers
    from scaleinfer.testing._settings import Settings
    from scaleinfer.testing._view import RequestView

__all__ = ["BatchedJobs", "Work"]


_LONGEST_NAP = 0.1
"""Seconds after which a stream that stands still looks again whether there are tokens."""


class Work:
    """What the batch does for one job.

    Attributes:
        choices: The answer to be given.
        requests: The sequences, one for each choice.
        unfinished: How many of them have no end yet.
        paced: True if the answer is streamed token by token, as the batch brings them forth.
    """

    __slots__ = ("choices", "paced", "requests", "unfinished")

    def __init__(self, choices: list[Choice], *, paced: bool) -> None:
        self.choices = choices
        self.paced = paced
        self.requests: list[BatchedRequest[Job]] = []
        self.unfinished = len(choices)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that came from the prefix cache."""
        return sum(request.cached_tokens for request in self.requests)

    @property
    def admitted(self) -> float:
        """When the first of its sequences got a slot."""
        return min(r.admitted for r in self.requests if r.admitted is not None)


class BatchedJobs:
    """Jobs in one batch: it makes their answers and says when each is due.

    Args:
        settings: How the server behaves; it batches.
        timers: Where the times go at which something is due.
        conditions: What holds now.
        responder: Makes the answers.

    Attributes:
        model: The batch.
    """

    def __init__(
        self,
        settings: Settings,
        timers: Timers[Job],
        conditions: Conditions,
        responder: Responder,
    ) -> None:
        assert settings.batching is not None
        self.model: BatchingModel[Job] = BatchingModel(settings.batching)
        self._settings = settings
        self._timers = timers
        self._conditions = conditions
        self._responder = responder
        self._due = math.inf
        cached = settings.batching.prefix_cache_tokens is not None
        self._block_tokens = settings.batching.prefix_block_tokens if cached else 0

    # In.

    def enter(self, job: Job, now: float) -> bool:
        """Put a job into the batch; return False if it is answered with an error instead."""
        try:
            choices = answer(job.view, self._settings)
        except Refusal as refusal:
            job.delivery = self._responder.refusal(job, refusal)
            return False
        except Exception as error:
            job.delivery = self._responder.refusal(job, script_failed(error))
            return False
        view = job.view
        paced = view.stream and len(choices) == 1 and job.verdict.fault is None
        job.work = Work(choices, paced=paced)
        priority = view.body.get("priority")
        each = len(choices) // len(view.prompts)
        for number, choice in enumerate(choices):
            prompt = view.prompts[number // each]
            request = self.model.arrive(
                now,
                job,
                view.prompt_tokens if view.chat else count_tokens(prompt),
                count_tokens(choice.text),
                blocks=self._blocks(view, prompt),
                priority=priority if isinstance(priority, int) else 0,
                watch=paced,
            )
            job.work.requests.append(request)
        self._await()
        return True

    def _blocks(self, view: RequestView, prompt: str) -> tuple[int, ...]:
        if not self._block_tokens:
            return ()
        if view.chat:
            prompt = "".join(f"{m.get('role')}\0{text_of(m.get('content'))}" for m in view.messages)
        return prefix_blocks(prompt, self._block_tokens)

    def leave(self, job: Job, now: float) -> None:
        """Take a job out; harmless if it is done or was never in."""
        if job.work is not None and job.work.unfinished:
            for request in job.work.requests:
                self.model.leave(request, now)
            self._await()

    def change(
        self, now: float, *, slots: int | None = None, slowdown: float | None = None
    ) -> None:
        """Change the batch, see `BatchingModel.change`."""
        self.model.change(now, slots=slots, slowdown=slowdown)
        self._await()

    # Now.

    @property
    def load(self) -> Load:
        """The load now."""
        model = self.model
        return Load(
            model.running, model.waiting, model.kv_usage, model.prefix_queries, model.prefix_hits
        )

    @property
    def has_free(self) -> bool:
        """True if a request would not have to wait for a slot."""
        return self.model.running < self.model.slots and not self.model.waiting

    # Out.

    def _await(self) -> None:
        """Ask to be asked when something is due."""
        due = self.model.due
        if due is not None and due < self._due:
            self._due = due
            self._timers.add(due, WAKE_UP)

    def ready(self, now: float) -> list[Job]:
        """Return the jobs that are to be advanced now: those whose answers are there."""
        if self._due > now + self._timers.tick:
            return []
        self._due = math.inf
        finished = self._finished(now)
        for request in self.model.take_started():
            if not request.who.done:
                self._complete(request.who, now)
                self._timers.add(request.who.started, request.who)
        found = []
        for job in finished:
            if job.work is not None and not job.work.paced:
                self._complete(job, now)
            if job.started > now:
                self._timers.add(job.started, job)
            else:
                found.append(job)
        self._await()
        return found

    def _finished(self, now: float) -> list[Job]:
        """Return the jobs whose last sequence has come to its end."""
        found = []
        for request in self.model.advance(now):
            work = request.who.work
            if work is not None:
                work.unfinished -= 1
                if not work.unfinished:
                    found.append(request.who)
        return found

    def _complete(self, job: Job, now: float) -> None:
        """Make the answer of a job that has it, or whose stream begins."""
        work = job.work
        assert work is not None
        try:
            wait = self._responder.latency(job.view) * self._conditions.slowdown
            job.delivery, _ = self._responder.answer(job, work.choices, now)
        except Exception as error:
            job.delivery, wait = self._responder.refusal(job, script_failed(error)), 0.0
            work.paced = False
        job.started = job.due = now + wait + job.verdict.delay

    def advance_stream(self, job: Job, now: float) -> tuple[bytes, bool]:
        """Return the tokens of a paced job that are there and unsent, and whether that is all.

        The times of such a delivery's parts are tokens, not seconds.
        """
        tokens, data = self._tokens(job, now), b""
        for at, part in job.delivery.parts[job.sent :]:
            if at > tokens:
                nap = (at - tokens) * self.model.step_time
                job.due = now + min(max(nap, self._timers.tick), _LONGEST_NAP)
                self._timers.add(job.due, job)
                return data, False
            data += part
            job.sent += 1
        return data, True

    def _tokens(self, job: Job, now: float) -> float:
        """Return how many tokens of a paced answer there are; infinity once it has its end."""
        if job.work is None or not job.work.unfinished:
            return math.inf
        self.model.peek(now)
        self._await()
        return self.model.generated(job.work.requests[0])
