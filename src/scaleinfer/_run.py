"""One map while it runs: lanes that each take an item from input to result.

A lane takes an item, looks into the journal, has the engine ask, records the answer and hands
the result over. There are as many lanes as calls may be in flight, and more if some of them
wait for something else: a retry, the journal, an async `prompt_fn`.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scaleinfer._answers import Answer, joint_result, single_result
from scaleinfer._asking import Keeper, ask
from scaleinfer._identity import content_key, identity_of, item_key, own_key
from scaleinfer.data import END
from scaleinfer.engine import Bill, Gate, Window, item_purse
from scaleinfer.errors import (
    BudgetExceeded,
    EndpointError,
    PromptError,
    RunStopped,
    ScaleInferError,
    SchemaError,
    error_from_dict,
)
from scaleinfer.policy import withheld
from scaleinfer.prices import Pricer
from scaleinfer.results import Result, Usage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping

    from scaleinfer._intake import Intake, Work
    from scaleinfer._program import LLM
    from scaleinfer._programs import Programs
    from scaleinfer._spending import Spending
    from scaleinfer.data import Source
    from scaleinfer.engine import Engine, Purse
    from scaleinfer.journal import Claim, Journal
    from scaleinfer.policy import Audience, Policy
    from scaleinfer.prompts import Question
    from scaleinfer.requests import Request
    from scaleinfer.results import Attempt

    Watch = Callable[[int, str, Request], Callable[[Attempt], None]]

__all__ = ["Counts", "Run", "placed", "stored_answer"]

_SETTLE = 2.0
_LATE = 0.5
_SPARE_LANES = 32
_MOST_PROGRAMS = 10_000
_GROW_EVERY = 16


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
        usage: Tokens used by this run; resumed items not counted.
        unrecorded: Failed items that the journal is not told of.
    """

    done: int = 0
    ok: int = 0
    failed: int = 0
    not_asked: int = 0
    resumed: int = 0
    cut: int = 0
    usage: Usage = Usage()  # noqa: RUF009 - an immutable tuple
    unrecorded: int = 0


class Run:
    """One map from its first item to its last result.

    Args:
        source: The items.
        intake: Takes items from it and renders them.
        engine: Makes the calls.
        journal: Where everything is recorded, if anywhere.
        key: The user's identity of an item.
        repairs: How often a bad answer is shown to the model again.
        ordered: True to deliver results in input order.
        programs: Runs a program for each item, if `prompt_fn` is one.
        spending: The run's bill and budget.
        policy: Says where items may go, and what is not recorded.

    Attributes:
        counts: What the run has come to.
        stopped: Why the run was stopped early; empty if it was not.
        cause: The error that stopped it, if one did.
        last_error: The latest failure, for progress displays.
        watch: Returns what is to be told of the calls for a request, given the item's number
            and key; set by the session.
    """

    def __init__(
        self,
        source: Source,
        intake: Intake,
        engine: Engine,
        *,
        journal: Journal | None,
        key: Callable[[Any], Any] | None,
        repairs: int,
        ordered: bool,
        programs: Programs | None = None,
        spending: Spending | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.counts = Counts()
        self.stopped = ""
        self.cause: ScaleInferError | None = None
        self.last_error: ScaleInferError | None = None
        self.watch: Watch | None = None
        self._source = source
        self._intake = intake
        self._engine = engine
        self._journal = journal
        self._key = key
        self._repairs = repairs
        self._programs = programs
        if programs is not None:
            programs.ask_question = self._asked_by_program
            programs.recorded = journal is not None
        self._spender = None if spending is None else spending.spender
        self._bill = Bill(Pricer()) if spending is None else spending.bill
        self._accounts: dict[int, Purse] = {}
        self._policy = policy
        self._audiences: dict[int, Audience] = {}
        if self._spender is not None:
            self._spender.on_close = self._reached_budget
        self._landing = False
        self._idle_lanes: set[asyncio.Task[Any] | None] = set()
        self._most_lanes = 0
        self._taken = 0
        self._spare = 0
        self._idle = False
        self._window: Window[Result] = Window(0, ordered=ordered)
        engine.on_wait = self.grow
        self._room: Gate[None, bool] = Gate(self._reserve, has_room=lambda: self._window.has_room)
        self._tasks: set[asyncio.Task[None]] = set()
        self._recording: set[asyncio.Task[Any] | None] = set()
        self._wake = asyncio.Event()
        self._left: list[tuple[int, Any]] = []
        self._raised: BaseException | None = None

    @property
    def phase(self) -> str:
        """What is going on, in words, if it is not simply running."""
        return ""

    @property
    def batches(self) -> int:
        """Batches that were submitted."""
        return 0

    async def results(self) -> AsyncGenerator[Result, None]:
        """Yield results as they become ready; ends every lane before it ends itself.

        Raises:
            JournalError: An answer could not be recorded.
            Exception: Whatever the input's iterator raised.
        """
        self.grow()
        try:
            while self._tasks or self._window.ready or not (self._intake.ended or self.stopped):
                while self._window.ready:
                    result = self._window.take()
                    if self._room.waiting:
                        self._room.wake()
                    yield result
                self._wake.clear()
                if not self._tasks:
                    self.grow()
                if self._tasks and not self._window.ready:
                    await self._wake.wait()
            for result in self._window.drain():
                yield result
        finally:
            await self._end_lanes()
        raised = self._raised or self._intake.raised
        if raised is not None:
            raise raised
        if not self.stopped and self.counts.done != self._intake.pulled:
            raise RuntimeError(  # a defect of ours must not look like a complete run
                f"{self.counts.done} results for {self._intake.pulled} items: please report this."
            )

    def grow(self) -> None:
        """Have as many lanes as the engine's limit asks for; too many end by themselves."""
        if self._intake.ended or self.stopped:
            return
        engine = self._engine
        limit = engine.lanes
        # As many as there are places: a lane that comes back finds the one it has just left.
        wanted = limit + self._spare + min(engine.waiting, limit + _SPARE_LANES)
        self._window.size = 3 * wanted + self._intake.ahead + _SPARE_LANES
        total = self._source.total
        if total is not None:
            wanted = max(1, min(wanted, total - self._taken + len(self._tasks)))
        self._most_lanes = wanted + wanted // 4
        for _ in range(wanted - len(self._tasks)):
            task = asyncio.create_task(self._lane())
            self._tasks.add(task)
            task.add_done_callback(self._lane_ended)
        if self._room.waiting:
            self._room.wake()

    def tick(self) -> None:
        """Look whether places stay empty because lanes wait for something else."""
        engine = self._engine
        engine.tick()
        if self._programs is not None:
            self._programs.tick()
        # Under a policy some may wait for endpoints of their own, while others stand idle.
        queued = engine.queued if self._policy is None else 0
        idle = engine.in_flight < engine.limit * 15 // 16 and not queued
        if self._spare and engine.queued and not idle:
            self._spare -= max(1, self._spare // 8)
        elif idle and self._idle and len(self._tasks) >= engine.lanes:
            self._spare = min(self._most_spare(), self._spare + self._spare_step())
        self._idle = idle
        self.grow()

    def _most_spare(self) -> int:
        # A program may wait for its tools most of the time.
        if self._programs is not None:
            return _MOST_PROGRAMS
        lanes = self._engine.lanes
        return (lanes if self._policy is None else 4 * lanes) + _SPARE_LANES

    def _spare_step(self) -> int:
        step = 1 + self._engine.lanes // 8
        plain = self._programs is None and self._policy is None
        return step if plain else step + self._spare // 2

    def stop(self, reason: str, cause: ScaleInferError | None = None) -> None:
        """Stop the run: calls in flight are ended, answers being recorded are kept."""
        if self.stopped and not self._landing:
            return
        if not self._landing:
            self.stopped, self.cause = reason, cause
        self._landing = False
        for task in self._tasks - self._recording:
            task.cancel()

    def _reached_budget(self, error: BudgetExceeded) -> None:
        """Stop the run, but let what is in flight land."""
        if self.stopped:
            return
        self.stopped, self.cause, self._landing = error.message, error, True
        for lane in self._idle_lanes:
            if lane is not None:
                lane.cancel()
        self._wake.set()

    async def not_asked(self) -> AsyncGenerator[Result, None]:
        """Yield a result for each item that the stopped run left.

        An input of unknown length may be endless: of it, only what was pulled. One that is
        slow must not hold up Ctrl-C: results whose items would come late are without them.
        """
        for index, item in self._left:
            yield self._unanswered(index, item)
        for work in self._intake.left():
            yield self._unanswered(work.index, work.item)
        total, deadline = self._source.total or 0, time.monotonic() + _LATE
        while self._intake.pulled < total:
            item = await self._source.next() if time.monotonic() < deadline else None
            if item is END:
                return
            yield self._unanswered(self._intake.pulled, item)
            self._intake.pulled += 1

    def _unanswered(self, index: int, item: Any) -> Result:
        self.counts.not_asked += 1
        cause = self.cause
        error: ScaleInferError
        fatal = isinstance(cause, EndpointError) and (cause.fatal or not cause.reached)
        if cause is not None and (fatal or isinstance(cause, BudgetExceeded)):
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

    def _reserve(self, _: None) -> bool | None:
        if not self._window.has_room:
            return None
        self._window.reserve()
        return True

    async def _lane(self) -> None:
        while not self.stopped:
            if len(self._tasks) > self._most_lanes:
                # At once, so that others who look in this turn of the loop do not go as well.
                self._tasks.discard(asyncio.current_task())
                return
            work = None
            if self._room.enter_nowait(None) is not None:
                work = self._intake.take_nowait()
                entered = True
            else:
                entered = False
            if work is None:
                work = await self._waited_for(entered=entered)
            if work is None:
                self._window.unreserve()
                self._room.wake()
                return
            if self._source.total is not None:
                self._engine.unasked = self._source.total - self._taken
            self._taken += 1
            try:
                result = await self._result(work)
            except asyncio.CancelledError:
                if not self.stopped:
                    raise
                self._left.append((work.index, work.item))
                return
            if self.stopped and isinstance(result.error, BudgetExceeded):
                self._left.append((work.index, work.item))
                return
            self._count(result)
            if self._source.total is not None:
                self._engine.remaining = self._source.total - self.counts.done
            self._window.finish(result.index, result)
            self._wake.set()
            if self.counts.done % _GROW_EVERY == 0:
                self.grow()

    async def _waited_for(self, *, entered: bool) -> Work | None:
        """Wait for room and the next item; may be cancelled without losing any."""
        lane = asyncio.current_task()
        self._idle_lanes.add(lane)
        try:
            if not entered:
                await self._room.enter(None, leave=lambda _: self._window.unreserve())
            return self._intake.take_nowait() or await self._intake.take()
        finally:
            self._idle_lanes.discard(lane)

    def _result(self, work: Work) -> Awaitable[Result]:
        # Every `async def` between a lane and its answer costs each item a little.
        if self._policy is None:
            return self._within_budget(work)
        return self._labelled(self._policy, work)

    async def _labelled(self, policy: Policy, work: Work) -> Result:
        index = work.index
        try:
            audience = self._audiences[index] = policy.audience(work.item)
        except PromptError as error:
            error.index = index
            self._note_unrendered(index, "", error)
            return Result(key="", index=index, item=work.item, error=error, restricted=True)
        try:
            result = await self._within_budget(work)
        finally:
            del self._audiences[index]
        result.label, result.restricted = audience.label, audience.restricted
        return result

    def _note_unrendered(self, index: int, key: str, error: PromptError) -> None:
        """Have the journal know that an item has no prompt."""
        if self._journal is None:
            return
        told = self._policy is None or self._policy.keeps_prompts
        data = (error if told else withheld(error)).to_dict()
        self._journal.unrendered(index=index, key=key, error=data)

    def _within_budget(self, work: Work) -> Awaitable[Result]:
        usd = None if self._spender is None else self._spender.budget.per_item_usd
        return self._asked_for(work) if usd is None else self._within_own_budget(usd, work)

    async def _within_own_budget(self, usd: float, work: Work) -> Result:
        self._accounts[work.index] = item_purse(usd)
        try:
            return await self._asked_for(work)
        finally:
            del self._accounts[work.index]

    async def _asked_for(self, work: Work) -> Result:
        index, item, questions = work.index, work.item, work.questions
        key = ""
        try:
            if work.pending is not None:
                questions = await self._intake.finish(work)
            elif questions is None:
                assert work.error is not None
                raise work.error
            own = None if self._key is None else own_key(self._key, item)
            if self._programs is not None:
                key = content_key(item) if own is None else own
            else:
                key = item_key(own, questions)
        except PromptError as error:
            error.index = index
            self._note_unrendered(index, key, error)
            return Result(key=key, index=index, item=item, error=error)
        if self._programs is not None:
            return await self._programmed(self._programs, work, key)
        if len(questions) == 1 and "" in questions:
            answer = await self._own_answer(work, key, own, "", questions[""])
            return single_result(index, key, item, answer)
        return await self._joint(work, key, own, questions)

    async def _joint(
        self, work: Work, key: str, own: str | None, questions: Mapping[str, Question]
    ) -> Result:
        names = list(questions)
        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(self._own_answer(work, key, own, name, questions[name]))
                for name in names
            ]
        answers = {name: task.result() for name, task in zip(names, asked, strict=True)}
        return joint_result(work.index, key, work.item, answers)

    async def _programmed(self, programs: Programs, work: Work, key: str) -> Result:
        result = await programs.result(work.item, work.index, key)
        if isinstance(result.error, PromptError):
            self._note_unrendered(work.index, key, result.error)
        return result

    def _asked_by_program(
        self, question: Question, identity: bytes, name: str, llm: LLM, engine: Engine | None
    ) -> Awaitable[Answer]:
        return self._answer(
            question, identity, index=llm.index, key=llm.key, name=name, engine=engine
        )

    def _own_answer(
        self, work: Work, key: str, own: str | None, name: str, question: Question
    ) -> Coroutine[Any, Any, Answer]:
        identity = b"" if self._journal is None else identity_of(own, question.request)
        return self._answer(
            question, identity, index=work.index, key=key, name=name, affinity=work.affinity
        )

    async def _answer(
        self,
        question: Question,
        identity: bytes,
        *,
        index: int,
        key: str,
        name: str,
        affinity: int | None = None,
        engine: Engine | None = None,
    ) -> Answer:
        journal, keeper = self._journal, None
        audience = self._audiences.get(index) if self._audiences else None
        label = "" if audience is None else audience.label
        if journal is not None:
            claim = journal.claim_nowait(
                identity, key=key, question=name, index=index, label=label
            ) or await journal.claim(identity, key=key, question=name, index=index, label=label)
            stored = stored_answer(claim, question)
            if stored is not None:
                return placed(stored, index, key)
            keeper = Keeper(journal, claim, self._recording, self._policy)
        try:
            answer = await ask(
                engine or self._engine,
                question,
                repairs=self._repairs,
                keeper=keeper,
                affinity=affinity,
                account=self._accounts.get(index) if self._accounts else None,
                audience=audience,
                watch=None if self.watch is None else self.watch(index, key, question.request),
            )
        except asyncio.CancelledError:
            if keeper is not None:
                keeper.release()
            raise
        self.counts.usage = self.counts.usage.plus(answer.usage)
        cause = self._engine.authority.cause
        if cause is not None and not self.stopped:
            # Not from within this lane's own task: it has an answer to hand over first.
            asyncio.get_running_loop().call_soon(self.stop, cause.message, cause)
        return placed(answer, index, key)

    def _count(self, result: Result) -> None:
        counts = self.counts
        counts.done += 1
        if result.ok:
            counts.ok += 1
            counts.resumed += result.resumed
            counts.cut += result.finish_reason == "length"
        else:
            counts.failed += 1
            assert result.error is not None
            # Displays show it; and of what is over its own budget the journal has no row.
            self.last_error = withheld(result.error) if result.restricted else result.error
            counts.unrecorded += isinstance(result.error, BudgetExceeded)


def stored_answer(claim: Claim, question: Question) -> Answer | None:
    """Return the answer that the journal has; `None` if it must be asked."""
    if claim.stored is None:
        return None
    try:
        return Answer.from_payload(claim.stored, question.schema)
    except SchemaError:
        return None  # the schema's validators have changed


def placed(answer: Answer, index: int, key: str) -> Answer:
    if answer.error is not None:
        answer.error.index, answer.error.key = index, key
    return answer
