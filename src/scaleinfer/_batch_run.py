"""A map whose questions are answered in batches; what these leave over is asked online."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from scaleinfer._answers import Answer, joint_result, single_result
from scaleinfer._asking import Keeper, ask
from scaleinfer._batch_question import Asked, Item
from scaleinfer._identity import identity_of, item_key, own_key
from scaleinfer._run import Run, placed, stored_answer
from scaleinfer.batch import BatchClient, Row, next_place
from scaleinfer.engine import Spend, item_purse
from scaleinfer.errors import BudgetExceeded, EndpointError, PromptError
from scaleinfer.results import Result

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from scaleinfer._batch_mode import BatchPlan
    from scaleinfer._intake import Work
    from scaleinfer.batch import Landed
    from scaleinfer.engine import Purse, Spender
    from scaleinfer.prompts import Question
    from scaleinfer.results import Attempt, Completion

__all__ = ["BatchRun"]

_FEEDERS = 16
"""Items whose async `prompt_fn` is awaited side by side."""
_BREATH = 64
"""Items taken in between two turns of the event loop."""
_ABANDON_S = 2.0
_UNREAD = 1000
"""Results that may wait for a slow consumer before no more items are pulled."""


class BatchRun(Run):
    """One map from its first item to its last result, by batches.

    Takes what `Run` takes, and:

    Args:
        plan: How batches are used.
    """

    def __init__(self, *arguments: Any, plan: BatchPlan, ordered: bool, **others: Any) -> None:
        self._plan = plan
        self._client: BatchClient | None = None
        self._pending: dict[int, Item] = {}
        self._ready: deque[Result] = deque()
        self._held: list[tuple[int, Result]] = []
        self._following = 0
        self._in_order = ordered
        self._todo: deque[Asked] = deque()
        self._keeps_up = asyncio.Event()
        self._keeps_up.set()
        self._consumed = asyncio.Event()
        self._consumed.set()
        self._lanes = 0
        self._claimed: set[tuple[bytes, int]] = set()
        self._occurrences: dict[bytes, int] = {}
        self._feeders = 0
        self._began = time.monotonic()
        super().__init__(*arguments, ordered=False, **others)

    @property
    def phase(self) -> str:
        """Where it stands, in words; empty while everything is asked online."""
        return "" if self._client is None else self._client.phase

    @property
    def batches(self) -> int:
        """Batches that this run has submitted."""
        return 0 if self._client is None else self._client.submitted

    async def results(self) -> AsyncGenerator[Result, None]:
        """Yield results as they become ready; see `Run.results`."""
        self._start()
        try:
            while self._tasks or self._ready:
                while self._ready:
                    yield self._ready.popleft()
                self._consumed.set()
                self._wake.clear()
                if self._tasks and not self._ready:
                    await self._wake.wait()
            while self._held:
                yield heapq.heappop(self._held)[1]
        finally:
            await self._end_lanes()
            await self._leave()
        raised = self._raised or self._intake.raised
        if raised is not None:
            raise raised
        if not self.stopped and self.counts.done != self._intake.pulled:
            raise RuntimeError(  # a defect of ours must not look like a complete run
                f"{self.counts.done} results for {self._intake.pulled} items: please report this."
            )

    def grow(self) -> None:
        """Have as many lanes as are useful for the questions that are asked online."""
        if self.stopped:
            return
        wanted = min(self._engine.lanes, self._lanes + len(self._todo))
        for _ in range(wanted - self._lanes):
            self._lanes += 1
            self._spawn(self._ask_online())

    def tick(self) -> None:
        """Let the engine look at what is due."""
        self._engine.tick()
        self.grow()

    def _start(self) -> None:
        plan = self._plan
        self._client = BatchClient(
            plan.backend,
            options=plan.options,
            journal=self._journal,
            taker=self,
            note=plan.note,
            patience=plan.patience,
            cancel_after=plan.cancel_after,
        )
        self._feeders = _FEEDERS if self._intake.waits else 1
        for _ in range(self._feeders):
            self._spawn(self._feed(self._client))
        self._spawn(self._watch(self._client))

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._lane_ended)

    async def _leave(self) -> None:
        """See to what is still at the server; and name the items that have no result."""
        client = self._client
        if client is not None and client.unfinished and self.stopped:
            if self._journal is None:
                self._plan.note("Cancelling the batches: without a journal nobody can fetch them.")
                with suppress(TimeoutError):
                    async with asyncio.timeout(_ABANDON_S):
                        await client.abandon()
            else:
                self._plan.note(
                    f"{client.unfinished} batches go on at {self._plan.backend.endpoint}; the same "
                    "call picks them up."
                )
        self._left += [(index, item.work.item) for index, item in sorted(self._pending.items())]
        self._pending.clear()

    # In.

    async def _feed(self, client: BatchClient) -> None:
        """Take items, look into the journal, and put what is to be asked into batches."""
        taken = 0
        try:
            while not self.stopped:
                await client.room()
                await self._keeps_up.wait()
                await self._consumed.wait()
                work = self._intake.take_nowait() or await self._intake.take()
                if work is None:
                    break
                try:
                    await self._begin(work, client)
                except BudgetExceeded:
                    break
                taken += 1
                if taken % _BREATH == 0:
                    await asyncio.sleep(0)
        except asyncio.CancelledError:
            if not self.stopped:
                raise
            return
        self._feeders -= 1
        if not self._feeders:
            client.end_input()

    async def _begin(self, work: Work, client: BatchClient) -> None:
        # Until it is known to be pending, a stopped run would lose it.
        item = self._pending[work.index] = Item(work)
        try:
            questions = work.questions
            if work.pending is not None:
                questions = await self._intake.finish(work)
            elif questions is None:
                assert work.error is not None
                raise work.error
            if self._policy is not None:
                self._audiences[work.index] = self._policy.audience(work.item)
            own = None if self._key is None else own_key(self._key, work.item)
            item.key = item_key(own, questions)
        except PromptError as error:
            error.index = work.index
            self._note_unrendered(work.index, item.key, error)
            self._finish(item, Result(key=item.key, index=work.index, item=work.item, error=error))
            return
        item.single = len(questions) == 1 and "" in questions
        item.missing = len(questions)
        item.answers = dict.fromkeys(questions)
        for name, question in questions.items():
            await self._begin_question(item, own, name, question, client)

    async def _begin_question(
        self, item: Item, own: str | None, name: str, question: Question, client: BatchClient
    ) -> None:
        journal, index = self._journal, item.work.index
        audience = self._audiences.get(index)
        label = "" if audience is None else audience.label
        identity = identity_of(own, question.request)
        claim = None
        if journal is None:
            occurrence = self._occurrences.get(identity, -1) + 1
            self._occurrences[identity] = occurrence
        else:
            claim = journal.claim_nowait(
                identity, key=item.key, question=name, index=index, label=label
            ) or await journal.claim(
                identity, key=item.key, question=name, index=index, label=label
            )
            if journal.open_batches:
                self._claimed.add((identity, claim.occurrence))
            stored = stored_answer(claim, question)
            if stored is not None:
                self._answered(item, name, stored)
                return
            occurrence = claim.occurrence
        asked = Asked(item, name, question, claim, time.monotonic())
        row = Row(identity, occurrence, item.key, name, index, question.request, asked)
        if audience is not None:
            asked.answer.label, asked.answer.restricted = audience.label, audience.restricted
            if not audience.admits(self._plan.backend.endpoint):
                self._ask_later(row)
                return
        if self._spender is not None and not client.awaits(row):
            try:
                await self._reserve_row(self._spender, row, client)
            except BudgetExceeded as error:
                if self.stopped:
                    raise
                asked.answer.error = error
                if journal is not None and claim is not None:
                    await journal.recorded(claim, asked.answer.to_payload(), ok=False)
                self._settle(asked)
                return
        self._send(row, client)

    async def _reserve_row(self, spender: Spender, row: Row, client: BatchClient) -> None:
        """Wait until the budget has room for a row.

        Raises:
            BudgetExceeded: It has not.
        """
        asked: Asked = row.owner
        backends, share = self._engine.adapters(), self._share
        model = row.request.model
        if not (account := self._account(asked)):
            asked.ticket = spender.reserve_nowait(row.request, model, backends, share=share)
        if asked.ticket is None:
            # Room comes only with what lands.
            client.flush()
            asked.ticket = await spender.reserve(row.request, model, backends, account, share=share)

    def _account(self, asked: Asked) -> Purse | None:
        """Return what an item may use, if that is capped."""
        usd = None if self._spender is None else self._spender.budget.per_item_usd
        if usd is None:
            return None
        return self._accounts.setdefault(asked.item.work.index, item_purse(usd))

    def _watching(self, asked: Asked) -> Callable[[Attempt], None] | None:
        """Return what is told of a question's calls."""
        if self.watch is None:
            return None
        return self.watch(asked.item.work.index, asked.item.key, asked.question.request)

    @property
    def _share(self) -> float:
        """The price of a token in a batch over its price online."""
        discount = self._plan.backend.discount
        return 1.0 if discount is None else discount

    def _book(self, asked: Asked, outcome: Completion | EndpointError | None) -> None:
        """Book what a row used, and settle what was reserved for it."""
        used, backend = Spend(), self._engine.adapters()[0]
        model = asked.question.request.model
        if isinstance(outcome, EndpointError):
            # A row that a server answers with an error costs nothing.
            used = self._bill.failed(backend, model, outcome, used)
        elif outcome is not None:
            used, cost = self._bill.answered(backend, model, outcome, share=self._share)
            if cost is not None:
                asked.answer.cost_usd = (asked.answer.cost_usd or 0.0) + cost
        ticket, asked.ticket = asked.ticket, None
        if self._spender is not None and ticket is not None:
            if outcome is not None and not isinstance(outcome, EndpointError):
                used = self._spender.observe(ticket, outcome, used)
            self._spender.settle(ticket, used)

    def _send(self, row: Row, client: BatchClient) -> None:
        """Put a row into a batch, or ask it online if none can hold it."""
        try:
            taken = client.add(row)
        except PromptError as error:
            asked: Asked = row.owner
            asked.answer.error = error
            self._note_unrendered(row.index, row.key, error)
            self._settle(asked)
        else:
            if not taken:
                self._ask_later(row)

    # Out: what batches bring.

    async def _watch(self, client: BatchClient) -> None:
        try:
            await client.run()
        except EndpointError as error:
            # Not from within this task, which `stop` cancels.
            asyncio.get_running_loop().call_soon(self.stop, str(error), error)

    async def landed(self, rows: list[Landed]) -> None:
        """Take what became of rows; return when the answers among it are on disk."""
        client = self._client
        assert client is not None
        answered: list[Asked] = []
        writing: list[asyncio.Future[None]] = []
        for one in rows:
            if one.row is None:
                await self._keep_orphan(one, writing)
                continue
            asked: Asked = one.row.owner
            if self._is_settled(asked, one, client):
                answered.append(asked)
                if self._journal is not None and asked.claim is not None:
                    ok = asked.answer.error is None
                    payload = asked.answer.to_payload(self._policy)
                    writing.append(self._journal.recorded(asked.claim, payload, ok=ok))
        if writing:
            # Not to be cancelled: what is written down is handed over too.
            task = asyncio.current_task()
            self._recording.add(task)
            try:
                await asyncio.gather(*writing)
            finally:
                self._recording.discard(task)
        for asked in answered:
            self._settle(asked)
        if self.stopped and not self._landing:
            raise asyncio.CancelledError

    def _is_settled(self, asked: Asked, one: Landed, client: BatchClient) -> bool:
        """Note what a row brought; if that is not its end, ask it again and return False."""
        row, plan = one.row, self._plan
        assert row is not None
        asked.repairs = row.repairs
        self._book(asked, one.outcome)
        if one.outcome is not None:
            attempt = asked.take(one.outcome, plan.backend.endpoint)
            watch = self._watching(asked)
            if watch is not None:
                watch(attempt)
            if self._journal is not None and asked.claim is not None:
                keeper = Keeper(self._journal, asked.claim, self._recording, self._policy)
                keeper.attempted(attempt)
            if asked.is_final(self._repairs):
                return True
        left = None
        if plan.deadline is not None:
            left = plan.deadline - (time.monotonic() - self._began)
        place = next_place(
            sent=row.sent,
            leftovers=plan.options.leftovers,
            attempts=plan.attempts,
            time_left=left,
            window_s=plan.backend.limits.window_s,
        )
        if place == "online" or not one.batch:
            self._ask_later(row)
            return False
        row.request = asked.next_request()
        row.repairs += asked.wrong is not None
        spender = self._spender
        if spender is not None:
            asked.ticket = spender.reserve_nowait(
                row.request, row.request.model, self._engine.adapters(), share=self._share
            )
            if asked.ticket is None:
                # The engine waits for room.
                self._ask_later(row)
                return False
        self._send(row, client)
        return False

    async def _keep_orphan(self, one: Landed, writing: list[asyncio.Future[None]]) -> None:
        """Record an answer that nobody asked for in this run, for the run that will."""
        member, outcome, journal = one.member, one.outcome, self._journal
        if journal is None or outcome is None or isinstance(outcome, EndpointError):
            return
        if (member.identity, member.occurrence) in self._claimed:
            return  # it was recorded before an earlier run was killed
        claim = await journal.claim(
            member.identity, key=member.key, question=member.question, index=member.index
        )
        if claim.stored is not None:
            return
        answer = Answer(attempts=1, endpoint=self._plan.backend.endpoint)
        answer.take(outcome)
        writing.append(journal.recorded(claim, answer.to_payload(self._policy), ok=True))

    # Out: what is asked online.

    def _ask_later(self, row: Row) -> None:
        asked: Asked = row.owner
        asked.repairs = row.repairs
        if asked.ticket is not None:
            self._book(asked, None)
        self._todo.append(asked)
        if len(self._todo) > self._engine.lanes:
            self._keeps_up.clear()
        self.grow()

    async def _ask_online(self) -> None:
        try:
            while self._todo and not self.stopped and self._lanes <= self._engine.lanes:
                asked = self._todo.popleft()
                if len(self._todo) <= self._engine.lanes:
                    self._keeps_up.set()
                await self._ask(asked)
        except asyncio.CancelledError:
            if not self.stopped:
                raise
        finally:
            self._lanes -= 1

    async def _ask(self, asked: Asked) -> None:
        keeper = None
        if self._journal is not None and asked.claim is not None:
            keeper = Keeper(self._journal, asked.claim, self._recording, self._policy)
        asked.answer.error = None
        asked.answer = await ask(
            self._engine,
            asked.question,
            repairs=self._repairs,
            keeper=keeper,
            affinity=asked.item.work.affinity,
            begun=asked.answer,
            wrong=asked.wrong,
            repaired=asked.repairs,
            account=self._account(asked),
            audience=self._audiences.get(asked.item.work.index),
            watch=self._watching(asked),
        )
        if self.stopped and isinstance(asked.answer.error, BudgetExceeded):
            return
        self._settle(asked)
        cause = self._engine.authority.cause
        if cause is not None and not self.stopped:
            asyncio.get_running_loop().call_soon(self.stop, cause.message, cause)

    # Results.

    def _settle(self, asked: Asked) -> None:
        """Take a question's final answer."""
        self.counts.usage = self.counts.usage.plus(asked.answer.usage)
        self._answered(asked.item, asked.name, asked.answer)

    def _answered(self, item: Item, name: str, answer: Answer) -> None:
        work, key = item.work, item.key
        item.answers[name] = placed(answer, work.index, key)
        item.missing -= 1
        if item.missing:
            return
        if item.single:
            result = single_result(work.index, key, work.item, answer)
        else:
            answers = {name: one for name, one in item.answers.items() if one is not None}
            result = joint_result(work.index, key, work.item, answers)
        self._finish(item, result)

    def _finish(self, item: Item, result: Result) -> None:
        del self._pending[item.work.index]
        self._accounts.pop(item.work.index, None)
        audience = self._audiences.pop(item.work.index, None)
        if audience is not None:
            result.label, result.restricted = audience.label, audience.restricted
        self._count(result)
        if len(self._ready) > _UNREAD:
            self._consumed.clear()
        if not self._in_order:
            self._ready.append(result)
        else:
            heapq.heappush(self._held, (result.index, result))
            while self._held and self._held[0][0] == self._following:
                self._ready.append(heapq.heappop(self._held)[1])
                self._following += 1
        self._wake.set()
