"""One map while it runs: lanes that each take an item from input to result.

A lane pulls an item, renders it, looks into the journal, has the engine ask, records the answer
and hands the result over. There are about twice as many lanes as calls in flight, so that
rendering, waiting for a retry and writing to disk never leave a place at the endpoint empty.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scaleinfer._answers import Answer, ask, joint_result, single_result
from scaleinfer._identity import identity_of, item_key
from scaleinfer.data import END
from scaleinfer.engine import Gate, Window
from scaleinfer.errors import (
    EndpointError,
    JournalError,
    PromptError,
    RunStopped,
    ScaleInferError,
    SchemaError,
    error_from_dict,
)
from scaleinfer.results import Result, Usage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from scaleinfer.data import Source
    from scaleinfer.engine import Engine
    from scaleinfer.journal import Claim, Journal
    from scaleinfer.prompts import Question, Renderer
    from scaleinfer.results import Attempt

__all__ = ["Counts", "Run"]

_SETTLE = 2.0
_LATE = 0.5


@dataclass(slots=True)
class Counts:
    """What a run has come to so far.

    Attributes:
        done: Items that were asked or resumed.
        ok: Items with a usable answer.
        failed: Items without.
        not_asked: Items that a stopped run left.
        resumed: Items answered from the journal.
        cut: Answers that ended at `max_tokens`.
        calls: Calls made.
        usage: Tokens used by this run; resumed items not counted.
    """

    done: int = 0
    ok: int = 0
    failed: int = 0
    not_asked: int = 0
    resumed: int = 0
    cut: int = 0
    calls: int = 0
    usage: Usage = Usage()  # noqa: RUF009 - an immutable tuple


class Run:
    """One map from its first item to its last result.

    Args:
        source: The items.
        renderer: Items to requests.
        engine: Makes the calls.
        journal: Where everything is recorded, if anywhere.
        key: The user's identity of an item.
        repairs: How often a bad answer is shown to the model again.
        lanes: Items worked on at once.
        ordered: True to deliver results in input order.

    Attributes:
        counts: What the run has come to.
        stopped: Why the run was stopped early; empty if it was not.
        cause: The error that stopped it, if one did.
        last_error: The latest failure, for progress displays.
    """

    def __init__(
        self,
        source: Source,
        renderer: Renderer,
        engine: Engine,
        *,
        journal: Journal | None,
        key: Callable[[Any], Any] | None,
        repairs: int,
        lanes: int,
        ordered: bool,
    ) -> None:
        self.counts = Counts()
        self.stopped = ""
        self.cause: ScaleInferError | None = None
        self.last_error: ScaleInferError | None = None
        self._source = source
        self._renderer = renderer
        self._engine = engine
        self._journal = journal
        self._key = key
        self._repairs = repairs
        self._lanes = lanes if source.total is None else max(1, min(lanes, source.total))
        # Twice the lanes: in order, a slow item holds back finished ones without holding up
        # the lanes that come after it.
        self._window: Window[Result] = Window(2 * lanes, ordered=ordered)
        self._room = Gate(lambda: self._window.has_room, self._window.reserve)
        self._tasks: set[asyncio.Task[None]] = set()
        self._recording: set[asyncio.Task[Any] | None] = set()
        self._wake = asyncio.Event()
        self._left: list[tuple[int, Any]] = []
        self._ended = False
        self._raised: BaseException | None = None

    async def results(self) -> AsyncGenerator[Result, None]:
        """Yield results as they become ready; ends every lane before it ends itself.

        Raises:
            JournalError: An answer could not be recorded.
            Exception: Whatever the input's iterator raised.
        """
        for _ in range(self._lanes):
            task = asyncio.create_task(self._lane())
            self._tasks.add(task)
            task.add_done_callback(self._lane_ended)
        try:
            while self._tasks or self._window.ready:
                while self._window.ready:
                    result = self._window.take()
                    self._room.wake()
                    yield result
                self._wake.clear()
                if self._tasks and not self._window.ready:
                    await self._wake.wait()
            for result in self._window.drain():
                yield result
        finally:
            await self._end_lanes()
        if self._raised is not None:
            raise self._raised

    def stop(self, reason: str, cause: ScaleInferError | None = None) -> None:
        """Stop the run: calls in flight are ended, answers being recorded are kept."""
        if self.stopped:
            return
        self.stopped, self.cause = reason, cause
        for task in self._tasks - self._recording:
            task.cancel()

    async def not_asked(self) -> AsyncGenerator[Result, None]:
        """Yield a result for each item that the stopped run left.

        An input of unknown length may be endless: of it, only what was pulled. One that is
        slow must not hold up Ctrl-C: results whose items would come late are without them.
        """
        for index, item in self._left:
            yield self._unanswered(index, item)
        total, deadline = self._source.total or 0, time.monotonic() + _LATE
        while self._window.pulled < total:
            item = await self._source.next() if time.monotonic() < deadline else None
            if item is END:
                return
            self._window.reserve()
            yield self._unanswered(self._window.pull(), item)

    def _unanswered(self, index: int, item: Any) -> Result:
        self.counts.not_asked += 1
        cause = self.cause
        error: ScaleInferError
        if isinstance(cause, EndpointError) and (cause.fatal or not cause.reached):
            # What stands in the way of one item stands in the way of all.
            error = error_from_dict(cause.to_dict() | {"index": index, "key": None})
        else:
            error = RunStopped(
                f"not answered: {self.stopped}", hint="Call again to ask it.", index=index
            )
        return Result(key="", index=index, item=item, error=error)

    async def _end_lanes(self) -> None:
        if not self._tasks:
            return
        self.stop("the consumer went away")
        await asyncio.wait(self._tasks, timeout=_SETTLE)

    def _lane_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            self._raised = self._raised or error
            self.stop(f"{type(error).__name__}: {error}")
        self._wake.set()

    async def _lane(self) -> None:
        while not (self._ended or self.stopped):
            await self._room.enter(leave=self._window.unreserve)
            item = END if self._ended else await self._pull()
            if item is END:
                self._ended = True
                self._window.unreserve()
                self._room.wake()
                return
            index = self._window.pull()
            try:
                result = await self._result(index, item)
            except asyncio.CancelledError:
                if not self.stopped:
                    raise
                self._left.append((index, item))
                return
            self._count(result)
            self._window.finish(index, result)
            self._wake.set()

    async def _pull(self) -> Any:
        try:
            return self._source.next_nowait() if self._source.nowait else await self._source.next()
        except Exception as error:
            # What is in flight still lands; then the caller gets their own exception.
            error.add_note(f"raised by the input after {self._window.pulled} items")
            self._raised = self._raised or error
            return END

    async def _result(self, index: int, item: Any) -> Result:
        key = ""
        try:
            questions = await self._renderer.render(item)
            own = None if self._key is None else _own_key(self._key, item)
            key = item_key(own, questions)
        except PromptError as error:
            error.index = index
            if self._journal is not None:
                self._journal.unrendered(index=index, key=key, error=error.to_dict())
            return Result(key=key, index=index, item=item, error=error)
        if "" in questions:
            answer = await self._answer(index, key, own, "", questions[""])
            return single_result(index, key, item, answer)
        names = list(questions)
        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(self._answer(index, key, own, name, questions[name]))
                for name in names
            ]
        answers = {name: task.result() for name, task in zip(names, asked, strict=True)}
        return joint_result(index, key, item, answers)

    async def _answer(
        self, index: int, key: str, own: str | None, name: str, question: Question
    ) -> Answer:
        if self._journal is None:
            answer = await self._ask(question, _ignore, _nowhere)
        else:
            identity = identity_of(own, question.request)
            claim = await self._journal.claim(identity, key=key, question=name, index=index)
            answer = await self._journaled(self._journal, claim, question)
        if answer.error is not None:
            answer.error.index, answer.error.key = index, key
        return answer

    async def _journaled(self, journal: Journal, claim: Claim, question: Question) -> Answer:
        if claim.stored is not None:
            try:
                return Answer.from_payload(claim.stored, question.schema)
            except SchemaError:
                pass  # the schema's validators have changed: ask again
        try:
            return await self._ask(
                question,
                lambda attempt: journal.attempt(claim, attempt),
                lambda answer: self._record(journal, claim, answer),
            )
        except asyncio.CancelledError:
            journal.release(claim)
            raise

    async def _record(self, journal: Journal, claim: Claim, answer: Answer) -> None:
        recorded = asyncio.get_running_loop().create_future()

        def done(error: JournalError | None) -> None:
            if recorded.done():
                return
            if error is None:
                recorded.set_result(None)
            else:
                recorded.set_exception(error)

        task = asyncio.current_task()
        self._recording.add(task)
        try:
            journal.record(claim, answer.to_payload(), ok=answer.error is None, done=done)
            await recorded
        finally:
            self._recording.discard(task)

    async def _ask(
        self,
        question: Question,
        attempted: Callable[[Attempt], None],
        record: Callable[[Answer], Awaitable[None]],
    ) -> Answer:
        answer = await ask(
            self._engine, question, repairs=self._repairs, attempted=attempted, record=record
        )
        self.counts.calls += answer.attempts
        self.counts.usage = self.counts.usage.plus(answer.usage)
        cause = self._engine.authority.cause
        if cause is not None and not self.stopped:
            # Not from within this lane's own task: it has an answer to hand over first.
            asyncio.get_running_loop().call_soon(self.stop, cause.message, cause)
        return answer

    def _count(self, result: Result) -> None:
        counts = self.counts
        counts.done += 1
        if result.ok:
            counts.ok += 1
            counts.resumed += result.resumed
            counts.cut += result.finish_reason == "length"
        else:
            counts.failed += 1
            self.last_error = result.error


def _ignore(attempt: Attempt) -> None:
    """Without a journal, attempts are only counted."""


async def _nowhere(answer: Answer) -> None:
    """Without a journal, there is nothing to record."""


def _own_key(key: Callable[[Any], Any], item: Any) -> str:
    try:
        value = key(item)
    except Exception as error:
        raise PromptError(f"key raised {type(error).__name__}: {error}") from error
    text = "" if value is None else str(value)
    try:
        usable = text.encode()
    except UnicodeEncodeError:
        usable = b""
    if not usable:
        raise PromptError(f"key returned {value!r}, which identifies nothing.")
    return text
