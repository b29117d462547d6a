"""A run with everything around it: backend, journal, progress, Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import AsyncExitStack, aclosing
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import anyio

from scaleinfer._batch_run import BatchRun
from scaleinfer._intake import Intake
from scaleinfer._interrupt import on_interrupt
from scaleinfer._programs import ProgramRenderer, Programs
from scaleinfer._run import Run
from scaleinfer._vitals import Vitals
from scaleinfer._watching import ReportFacts, Watching, phase_of, wait_in_words
from scaleinfer.backends import Backend, resolve_backends
from scaleinfer.engine import (
    Engine,
    pool_of,
)
from scaleinfer.errors import ConfigError
from scaleinfer.map_result import EndpointUse, RunStats
from scaleinfer.observe import Snapshot, summary_line
from scaleinfer.policy import withheld
from scaleinfer.prices import PICO, price_table

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from scaleinfer._batch_mode import BatchPlan
    from scaleinfer._options import Options
    from scaleinfer._program import LLM
    from scaleinfer._spending import Spending
    from scaleinfer.data import Source
    from scaleinfer.engine import EndpointStatistics
    from scaleinfer.journal import Journal
    from scaleinfer.observe import Progress
    from scaleinfer.prompts import Renderer
    from scaleinfer.results import Result

from scaleinfer._endpoints import open_backend

__all__ = ["Session"]

_TICK = 0.2
_TEXTS_PER_CALL = 64
_ENDINGS = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt)
_CTRL_C = "Ctrl-C was pressed."


class Session:
    """One run from its first call to its summary.

    Args:
        options: The front door's arguments.
        backends: The adapters, opened.
        items: The input.
        renderer: Items to requests.
        journal: Where everything is recorded, if anywhere.
        progress: What the user sees.
        spending: Its bill and budget.
        in_order: True if results are to come in input order.
        plan: How batches are used, if they are.

    Attributes:
        run: The run itself.
    """

    def __init__(  # noqa: PLR0917 - all that a run needs
        self,
        options: Options,
        backends: list[Backend],
        items: Source,
        renderer: Renderer,
        journal: Journal | None,
        progress: Progress,
        spending: Spending,
        *,
        in_order: bool,
        plan: BatchPlan | None = None,
    ) -> None:
        self._options = options
        self._items = items
        self._backends = backends
        self._backend = backends[0]
        self._journal = journal
        self._progress = progress
        self._spending = spending
        self._began = time.monotonic()
        self._interrupted = False
        self._timer: asyncio.TimerHandle | None = None
        self._renderer_model = renderer.model
        self._by_endpoint = {backend.endpoint: backend for backend in backends}
        self._members = any(backend.many for backend in backends)
        self._discounts: dict[Backend, float] = {}
        self._engine = self._engine_of(backends, renderer.model, options.packing)
        self._programs = None
        if isinstance(renderer, ProgramRenderer):
            self._programs = Programs(
                renderer,
                sampling=options.sampling,
                open_engine=self._open_engine,
                price=self._price,
            )
        self._intake = Intake(items, renderer, window=options.dispatch.prefix_window)
        self.run = (Run if plan is None else partial(BatchRun, plan=plan))(
            items,
            self._intake,
            self._engine,
            journal=journal,
            key=options.key,
            repairs=options.retry.repairs,
            ordered=in_order,
            programs=self._programs,
            spending=spending,
            policy=options.policy,
        )
        self._at_first = self._engine.endpoints()
        self._waits_for: dict[Backend, str] = {}
        self._vitals = Vitals(self._engine, self._intake, backends)
        self._watching = Watching(
            self._engine,
            journal,
            name=options.name or "",
            provider=self._backend.kind,
            model=renderer.model,
            items=items.total,
            # An error's text may quote the prompt, and nobody knows whose it is.
            quotes=options.policy is None or options.policy.tells_errors,
        )
        self.run.watch = self._watching.observer.watch

    def _engine_of(self, backends: list[Backend], model: str | None, packing: int | None) -> Engine:
        options = self._options
        return Engine(
            backends,
            pool=pool_of(backends, options.concurrency, options.rate_limit),
            retry=options.retry,
            dispatch=options.dispatch,
            model=model,
            priority=options.priority,
            packing=packing,
            bill=self._spending.bill,
            spender=self._spending.spender,
        )

    async def _open_engine(self, spec: Any, embeds: bool, stack: AsyncExitStack) -> Engine:
        """Return an engine for calls that the map's own cannot make.

        Args:
            spec: Where to ask; `None` for the map's own endpoints.
            embeds: True for embeddings.
            stack: What closes it in the end.
        """
        backends, model = self._backends, self._renderer_model
        if spec is not None:
            backends = [resolved.backend for resolved in resolve_backends(spec)]
        for backend in backends:
            if embeds and not backend.embeds:
                raise ConfigError(f"{backend.endpoint} makes no embeddings.")
        if spec is not None:
            for backend in backends:
                await open_backend(backend, self._options.retry, self._progress)
                stack.push_async_callback(backend.aclose)
                self._by_endpoint.setdefault(backend.endpoint, backend)
            model = backends[0].model
            self._spending.check(backends, model)
        engine = self._engine_of(backends, model, _TEXTS_PER_CALL if embeds else None)
        stack.push_async_callback(engine.aclose)
        return engine

    def outside(self) -> LLM:
        """Return what makes calls that belong to no item."""
        assert self._programs is not None
        self._tick_outside()
        return self._programs.outside(self._options.name or "")

    def _tick_outside(self) -> None:
        # Not a task: a loop that ends before this is closed would find it still running.
        self.run.tick()
        self._watching.tick(self.snapshot())
        self._spending.tick(self._engine)
        self._timer = asyncio.get_running_loop().call_later(_TICK, self._tick_outside)

    async def collect(self) -> list[Result]:
        """Return every result; those of a stopped run's other items say why it was stopped."""
        results: list[Result] = []
        async with aclosing(self._results()) as landed:
            async for result in landed:
                results.append(result)  # noqa: PERF401 - a comprehension cannot be closed
        if self.run.stopped:
            async with aclosing(self.run.not_asked()) as others:
                async for result in others:
                    results.append(result)  # noqa: PERF401
        if self.run.cause is not None and not results:
            raise self.run.cause
        if self._options.ordered:
            results.sort(key=lambda result: result.index)
        return results

    async def stream(self) -> AsyncGenerator[Result, None]:
        """Yield results as they are ready.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
            ScaleInferError: The run was stopped for this cause.
        """
        async with aclosing(self._results()) as landed:
            async for result in landed:
                yield result
        if self._interrupted:
            raise KeyboardInterrupt
        if self.run.cause is not None:
            raise self.run.cause

    def snapshot(self) -> Snapshot:
        """Return where the run stands, for displays."""
        counts, engine = self.run.counts, self._engine.statistics()
        waiting = self.run.last_error or self._engine.last_error
        return Snapshot(
            done=counts.done,
            ok=counts.ok,
            failed=counts.failed,
            resumed=counts.resumed,
            in_flight=engine.in_flight,
            waiting=engine.waiting,
            total=self._items.total,
            prompt_tokens=counts.usage.prompt_tokens,
            completion_tokens=counts.usage.completion_tokens,
            elapsed_s=time.monotonic() - self._began,
            phase=self._phase(),
            last_error=None if waiting is None else waiting.message,
            name=self._options.name or "",
            limit=engine.limit,
            cost_usd=self._spending.bill.cost_usd,
        )

    def _phase(self) -> str:
        if self.run.stopped:
            return "stopping"
        if self.run.phase:
            return self.run.phase
        waits = [backend.waits_for for backend in self._backends]
        # What some wait for, while others work, is told in lines of its own.
        return wait_in_words(waits) if all(waits) else phase_of(self._engine)

    def _note_waits(self) -> None:
        """Say it when what calls to an endpoint wait for becomes something else."""
        adapters = self._engine.adapters() if self._members else self._backends
        if len(adapters) == 1:
            return  # the run's phase is what it waits for
        for backend in adapters:
            before, now = self._waits_for.get(backend, ""), backend.waits_for
            if now != before:
                self._waits_for[backend] = now
                self._progress.note(now or f"{backend.endpoint} is ready.", kind=now or "ready")

    def summary(self) -> str:
        """Return the line the run leaves behind."""
        line = summary_line(self.snapshot(), stopped=self.run.stopped or None)
        cut = self.run.counts.cut
        if cut:
            line += f"; {cut:,} cut off at max_tokens"
        time_went = self._vitals.shares(time.monotonic() - self._began)
        if time_went.ours and not self.run.stopped:
            line += f"; held back by {time_went.held_back_by}"
        if self._options.journal is not None:
            line += f"; journal {self._options.journal}"
        return line

    def stats(self) -> RunStats:
        """Return what the run came to."""
        counts, engine = self.run.counts, self._engine.statistics()
        elapsed = time.monotonic() - self._began
        return RunStats(
            name=self._options.name,
            items=counts.done,
            ok=counts.ok,
            failed=counts.failed,
            not_asked=counts.not_asked,
            resumed=counts.resumed,
            cut=counts.cut,
            calls=engine.calls,
            hedged=engine.hedged,
            shared=engine.shared,
            retries=engine.retry.retries,
            batches=self.run.batches,
            elapsed_s=elapsed,
            usage=counts.usage,
            cost_usd=self._spending.bill.cost_usd,
            costs=self._spending.bill.lines(),
            node_hours=self._spending.node_hours,
            allocation_units=self._spending.allocation_units,
            price_table=price_table() if self._spending.bill.uses_table else None,
            endpoint=self._where(),
            model=self._renderer_model,
            journal=None if self._options.journal is None else os.fspath(self._options.journal),
            journal_head=None if self._journal is None else self._journal.head,
            stopped=self.run.stopped,
            peak_in_flight=engine.peak_in_flight,
            time=self._vitals.shares(elapsed),
            endpoints=tuple(
                _use(now, before, elapsed)
                for now, before in zip_longest(self._engine.endpoints(), self._at_first)
            ),
        )

    def _where(self) -> str:
        more = len(self._backends) - 1
        return f"{self._backend.endpoint} and {more} more" if more else self._backend.endpoint

    def report_facts(self) -> ReportFacts:
        """Return what a report says beyond results and statistics."""
        options, backends = self._options, self._backends
        record = self._watching.observer.record
        return ReportFacts(record, lambda: options.describe(backends)[1])

    async def close(self, kind: type[BaseException] | None, *rest: object) -> None:
        """End what is still in flight and settle the journal; also while being cancelled."""
        if self._timer is not None:
            self._timer.cancel()
        try:
            await self._engine.aclose()
            if self._programs is not None:
                await self._programs.aclose()
        finally:
            with anyio.CancelScope(shield=True):
                await self._watching.close(self.snapshot(), self.run.stopped)
            await self.close_journal(kind, *rest)

    async def close_journal(self, kind: type[BaseException] | None, *_: object) -> None:
        """Settle the journal; also while the run is being cancelled."""
        if self._journal is None:
            return
        if self.run.stopped or (kind is not None and issubclass(kind, _ENDINGS)):
            state = "stopped"
        else:
            state = "complete" if kind is None else "failed"
        counts = self.run.counts
        with anyio.CancelScope(shield=True):
            await self._journal.aclose(
                state=state,
                counts={
                    "items": counts.done,
                    "ok": counts.ok,
                    "failed": counts.failed,
                    "resumed": counts.resumed,
                    "not_asked": self._not_asked(),
                    "unrecorded": counts.unrecorded,
                    **self._spending.counts(),
                },
                limits=self._watching.observer.record.limits_to_data(),
            )

    def _not_asked(self) -> int:
        """Return how many items the run leaves of those that are known."""
        known = max(self._items.total or 0, self._intake.pulled)
        return max(0, known - self.run.counts.done)

    async def _results(self) -> AsyncGenerator[Result, None]:
        ticker = asyncio.create_task(self._tick())
        watch = asyncio.create_task(self._vitals.watch())
        try:
            with on_interrupt(self._interrupt):
                async with aclosing(self.run.results()) as results:
                    async for result in results:
                        self._finish(result)
                        yield result
        finally:
            ticker.cancel()
            watch.cancel()

    def _price(self, result: Result) -> None:
        """Fill in what an answer cost, where its calls do not say: in a batch, or long ago."""
        fresh = result.attempts and not result.resumed and result.batch is None
        if fresh or result.cost_usd is not None:
            return
        backend = self._backend_of(result.endpoint or "")
        pricer = self._spending.bill.pricer
        pico = pricer.cost(backend, self._renderer_model, result.model, result.usage)
        if pico is not None:
            share = self._discount(backend) if result.batch is not None else 1.0
            result.cost_usd = pico * share / PICO

    def _finish(self, result: Result) -> None:
        if self._programs is None:  # else each of its calls has its price
            self._price(result)
        if result.error is None:
            return
        if self._options.on_error == "raise":
            raise result.error
        if not self.run.stopped:
            kind = type(result.error).__name__
            error = withheld(result.error) if result.restricted else result.error
            self._progress.note(f"{kind}: {error}", kind=kind)

    def _backend_of(self, endpoint: str) -> Backend:
        """Return the adapter to an endpoint, which may be one that has joined since."""
        backend = self._by_endpoint.get(endpoint)
        if backend is None and self._members:
            self._by_endpoint |= {one.endpoint: one for one in self._engine.adapters()}
            backend = self._by_endpoint.setdefault(endpoint, self._backend)
        return backend or self._backend

    def _discount(self, backend: Backend) -> float:
        """Return the price of a token in a batch over its price online."""
        known = self._discounts.get(backend)
        if known is None:
            batches = backend.batches()
            known = 1.0 if batches is None or batches.discount is None else batches.discount
            self._discounts[backend] = known
        return known

    def _interrupt(self) -> None:
        self._interrupted = True
        self._progress.note("Stopping: calls in flight are ended, what has landed is kept.")
        self.run.stop(_CTRL_C)

    async def _tick(self) -> None:
        while True:
            self.run.tick()
            self._spending.tick(self._engine)
            self._note_waits()
            snapshot = self.snapshot()
            self._progress.update(snapshot)
            self._watching.tick(snapshot)
            await asyncio.sleep(_TICK)


def _use(
    endpoint: EndpointStatistics, before: EndpointStatistics | None, elapsed: float
) -> EndpointUse:
    """Return what an endpoint did between two looks at it; it may have come between them."""
    limiter = endpoint.limiter
    calls, tokens = (0, 0) if before is None else (before.started, before.tokens)
    return EndpointUse(
        endpoint=endpoint.name,
        limit=limiter.limit,
        reason=limiter.reason,
        peak_in_flight=limiter.peak_in_flight,
        calls=endpoint.started - calls,
        goodput=(endpoint.tokens - tokens) / elapsed if elapsed else 0.0,
        state="left" if endpoint.left else endpoint.breaker.state,
    )
