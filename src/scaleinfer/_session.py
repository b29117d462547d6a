"""A run with everything around it: backend, journal, progress, Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal

import anyio

from scaleinfer._batch_mode import batch_plan, checked_deadline, checked_mode
from scaleinfer._batch_run import BatchRun
from scaleinfer._intake import Intake
from scaleinfer._interrupt import on_interrupt
from scaleinfer._manifest import describe_run
from scaleinfer._program import Graph, Program, is_program
from scaleinfer._programs import ProgramRenderer, Programs, no_batches
from scaleinfer._run import Run
from scaleinfer._spending import Spending
from scaleinfer._vitals import Vitals
from scaleinfer._watching import ReportFacts, Watching, phase_of, wait_in_words
from scaleinfer.backends import Backend, resolve_backends
from scaleinfer.data import source
from scaleinfer.engine import (
    Budget,
    Concurrency,
    Dispatch,
    Engine,
    GiveUp,
    RateLimit,
    Retry,
    RetryAuthority,
    pool_of,
)
from scaleinfer.errors import ConfigError, EndpointError
from scaleinfer.map_result import EndpointUse, RunStats
from scaleinfer.observe import Snapshot, check_telemetry, open_progress, summary_line
from scaleinfer.policy import Policy, withheld
from scaleinfer.prices import PICO, Prices, price_table
from scaleinfer.prompts import Renderer
from scaleinfer.requests import Sampling

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
    from datetime import timedelta

    from pydantic import BaseModel

    from scaleinfer._batch_mode import BatchPlan, Mode
    from scaleinfer._program import LLM
    from scaleinfer.backends import Resolved
    from scaleinfer.data import Source
    from scaleinfer.engine import EndpointStatistics
    from scaleinfer.fleet import Fleet
    from scaleinfer.journal import Journal
    from scaleinfer.observe import Progress
    from scaleinfer.prices import Price
    from scaleinfer.results import Result

__all__ = ["BackendSpec", "Options", "ProgressMode", "PromptFn", "Session", "open_calls", "opened"]

ProgressMode = bool | Literal["auto", "bar", "notebook", "log", "none"]
BackendSpec = Any
"""A `Backend`, a spec string, a URL, or a configured client of the openai package."""
PromptFn = str | Callable[[Any], Any] | Program | Graph

_TICK = 0.2
_OTHERS_MAY_OPEN = 1.0
"""Seconds that endpoints get to become ready once one of them is."""
_TEXTS_PER_CALL = 64
_ENDINGS = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt)
_CTRL_C = "Ctrl-C was pressed."


@dataclass(frozen=True, slots=True)
class Options:
    """The front door's arguments, checked; their meaning is documented there."""

    items: Any
    prompt_fn: PromptFn
    chosen: tuple[Resolved, ...]
    system: str | None
    schema: type[BaseModel] | None
    sampling: Sampling
    concurrency: int | Concurrency | None
    rate_limit: RateLimit | None
    dispatch: Dispatch
    priority: int
    retry: Retry
    journal: str | os.PathLike[str] | None
    key: Callable[[Any], Any] | None
    ordered: bool
    on_error: Literal["return", "raise"]
    progress: ProgressMode
    name: str | None
    packing: int | None = None
    renderer: type[Renderer] = Renderer
    mode: Mode = "online"
    deadline: float | None = None
    budget: Budget | None = None
    prices: Prices = Prices()  # noqa: RUF009 - it is frozen
    policy: Policy | None = None

    @classmethod
    def of(
        cls,
        *,
        backend: BackendSpec | Sequence[BackendSpec] | None,
        model: str | None,
        base_url: str | None,
        api_key: str | None,
        sampling: Sampling | Mapping[str, Any] | None,
        concurrency: int | Concurrency | Literal["auto"],
        rate_limit: RateLimit | None,
        dispatch: Dispatch | None,
        retry: Retry | None,
        fleet: Fleet | None,
        mode: Mode = "online",
        deadline: float | timedelta | None = None,
        budget: Budget | None = None,
        prices: Prices | Mapping[str, Price] | None = None,
        **others: Any,
    ) -> Options:
        """Check the arguments.

        Raises:
            ConfigError: One of them cannot be used.
        """
        given = backend if isinstance(backend, list | tuple) else [backend]
        if not given:
            raise ConfigError("backend=[] names no endpoint.")
        if fleet is not None:
            elsewhere = {"backend": backend, "base_url": base_url, "api_key": api_key}
            _not_with_a_fleet(elsewhere | {"rate_limit": rate_limit, "model": model})
            given = [fleet.backend(priority=others["priority"], once=budget is not None)]
            # Its workers have tried all there is to try, except what may have been paid for.
            attempts = (retry or Retry()).attempts if budget is not None else 1
            retry = replace(retry or Retry(), attempts=attempts, patience=0.0)
        chosen = tuple(
            resolved
            for one in given
            for resolved in resolve_backends(one, base_url=base_url, model=model, api_key=api_key)
        )
        if len({id(one.backend) for one in chosen}) < len(chosen):
            raise ConfigError("backend= names the same adapter twice.")
        _check("rate_limit", rate_limit, RateLimit)
        _check("dispatch", dispatch, Dispatch)
        _check("retry", retry, Retry)
        _check("budget", budget, Budget)
        _check("policy", others.get("policy"), Policy)
        if not isinstance(others["priority"], int):
            raise ConfigError(f"priority must be an integer, not {others['priority']!r}.")
        if others["on_error"] not in {"return", "raise"}:
            raise ConfigError(f"on_error must be 'return' or 'raise', not {others['on_error']!r}.")
        if others["key"] is not None and not callable(others["key"]):
            raise ConfigError("key must be a function, e.g. key=lambda item: item['id'].")
        return cls(
            chosen=chosen,
            mode=checked_mode(mode, fleet=fleet is not None),
            deadline=checked_deadline(deadline),
            budget=budget,
            prices=Prices.of(prices),
            sampling=Sampling.of(sampling),
            concurrency=_concurrency(concurrency),
            rate_limit=rate_limit,
            dispatch=dispatch or Dispatch(),
            retry=retry or Retry(),
            **others,
        )


def _not_with_a_fleet(arguments: dict[str, Any]) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise ConfigError(
                f"{name}= is for a map without a fleet.", hint=f"Fleet.local(n, {name}=...)"
            )


def _check(name: str, value: Any, kind: type) -> None:
    if value is not None and not isinstance(value, kind):
        raise ConfigError(f"{name} must be a {kind.__name__}, not {value!r}.")


def _concurrency(value: Any) -> int | Concurrency | None:
    if value == "auto":
        return None
    if isinstance(value, Concurrency):
        return value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(
            f"concurrency must be 'auto', a positive integer or a Concurrency, not {value!r}."
        )
    return value


@asynccontextmanager
async def opened(options: Options, *, in_order: bool) -> AsyncIterator[Session]:
    """Open what a run needs; close it in the end, whatever happens.

    Args:
        options: The front door's arguments.
        in_order: True if results are to come in input order.

    Raises:
        ConfigError: Something needed is missing; nothing was sent.
        JournalError: The journal cannot be opened.
    """
    items = source(options.items)
    check_telemetry()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(items.aclose)
        # Complains about the template or the schema before anything is opened.
        renderer = _renderer(options)
        progress = stack.enter_context(open_progress(options.progress, options.name or ""))
        if options.chosen[0].by_default:
            progress.note(f"Using the embedded model: {options.chosen[0].reason}.")
        backends, unreachable = await _open_backends(options, progress, stack)
        _say_what_caps(backends, options.concurrency, progress)
        # The first one named, up or not: a journal's identities must not depend on who answers.
        renderer.model = options.chosen[0].backend.model or backends[0].model
        journal = None if unreachable else await _open_journal(options, backends)
        plan = None
        if unreachable is None and not isinstance(renderer, ProgramRenderer):
            try:
                plan = await batch_plan(
                    options.mode, options.deadline, backends=backends, retry=options.retry,
                    journal=journal, items=items.total, progress=progress,
                )  # fmt: skip
                if plan is not None:
                    await plan.backend.open()
                    stack.push_async_callback(plan.backend.aclose)
            except BaseException:
                if journal is not None:
                    await journal.aclose(state="failed", counts={})
                raise
        try:
            spending = Spending(
                options.budget,
                options.prices,
                backends=backends,
                model=renderer.model,
                journal=journal,
            )
        except BaseException:
            if journal is not None:
                await journal.aclose(state="failed", counts={})
            raise
        stack.callback(spending.close)
        session = Session(
            options, backends, items, renderer, journal, progress, spending,
            in_order=in_order, plan=plan,
        )  # fmt: skip
        stack.push_async_exit(session.close)
        if unreachable is not None:
            session.run.stop(str(unreachable), unreachable)
        try:
            yield session
        finally:
            progress.close(session.snapshot(), session.summary())


@asynccontextmanager
async def open_calls(**arguments: Any) -> AsyncIterator[LLM]:
    """Open what single calls need; see `scaleinfer.program.open_llm`."""
    options = Options.of(**_OUTSIDE | arguments)
    async with opened(options, in_order=False) as session:
        if session.run.cause is not None:
            raise session.run.cause
        yield session.outside()


async def _no_program(item: Any, llm: LLM) -> None:
    """Stand for the program that a map would have."""


_OUTSIDE: dict[str, Any] = {
    "items": (), "prompt_fn": _no_program, "key": None, "ordered": True, "on_error": "return",
    "backend": None, "model": None, "base_url": None, "api_key": None, "system": None,
    "schema": None, "sampling": None, "concurrency": "auto", "rate_limit": None, "dispatch": None,
    "retry": None, "priority": 0, "fleet": None, "journal": None, "name": None,
}  # fmt: skip


def _renderer(options: Options) -> Renderer:
    prompt_fn: Any = options.prompt_fn
    kind = options.renderer
    if kind is Renderer and is_program(prompt_fn):
        if options.mode != "online":
            raise no_batches()
        kind = ProgramRenderer
    return kind(prompt_fn, system=options.system, schema=options.schema, sampling=options.sampling)


async def _open_backends(
    options: Options, progress: Progress, stack: AsyncExitStack
) -> tuple[list[Backend], EndpointError | None]:
    """Open every backend; of several, those that cannot be opened are left out with a word.

    Returns:
        The opened ones, or all of them and what is wrong if none could be opened.
    """
    backends = [resolved.backend for resolved in options.chosen]
    opened: list[Backend] = []
    failures: dict[int, BaseException] = {}

    async def open_one(number: int, backend: Backend) -> None:
        try:
            await _open_backend(backend, options.retry, progress)
        except Exception as error:
            failures[number] = error
            return
        # At once: whatever happens to the others, this one is closed in the end.
        stack.push_async_callback(backend.aclose)
        opened.append(backend)

    tasks = {asyncio.create_task(open_one(*numbered)) for numbered in enumerate(backends)}
    try:
        waiting = tasks
        while waiting and not opened:
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if waiting:
            _, waiting = await asyncio.wait(waiting, timeout=_OTHERS_MAY_OPEN)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for number, backend in enumerate(backends):
        failure = failures.get(number)
        if failure is not None and not isinstance(failure, EndpointError):
            raise failure
        if opened and backend not in opened:
            why = str(failure) if failure is not None else f"{backend.endpoint} is not ready."
            progress.note(f"Going on without an endpoint: {why}")
    if opened:
        return [backend for backend in backends if backend in opened], None
    first = failures[min(failures)]
    assert isinstance(first, EndpointError)
    return backends, first


async def _open_backend(backend: Backend, retry: Retry, progress: Progress) -> None:
    """Open the backend; a server that starts, or hiccups, is no reason to give up a run."""
    track = RetryAuthority(retry).track(time.monotonic())
    while True:
        try:
            return await backend.open()
        except EndpointError as error:
            decision = track.failed(error, time.monotonic())
            if isinstance(decision, GiveUp):
                raise
            progress.note(f"{type(error).__name__}: {error}", kind=type(error).__name__)
        await asyncio.sleep(decision.seconds)


def _say_what_caps(
    backends: list[Backend], concurrency: int | Concurrency | None, progress: Progress
) -> None:
    """Tell the user if this process cannot hold as many connections as were asked for."""
    wanted = concurrency.max if isinstance(concurrency, Concurrency) else concurrency
    for backend in backends:
        most = backend.most_in_flight
        if most is not None and wanted is not None and most < wanted:
            progress.note(
                f"At most {most:,} calls in flight to {backend.endpoint}, not {wanted:,}: this "
                "process may not open more files. Raise the hard limit (ulimit -Hn).",
                kind="files",
            )


async def _open_journal(options: Options, backends: list[Backend]) -> Journal | None:
    if options.journal is None:
        return None
    # In a thread: the file system and git take their time.
    return await asyncio.to_thread(_opened_journal, options, backends)


def _opened_journal(options: Options, backends: list[Backend]) -> Journal:
    from scaleinfer.journal import Journal, Manifest

    fingerprint, facts = _described(options, backends)
    assert options.journal is not None
    return Journal.open(options.journal, Manifest(options.name, fingerprint, facts))


def _described(options: Options, backends: list[Backend]) -> tuple[str, dict[str, Any]]:
    policy = options.policy
    return describe_run(
        backends=backends,
        prompt_fn=options.prompt_fn,
        system=options.system,
        schema=options.schema,
        sampling=options.sampling,
        program=is_program(options.prompt_fn),
        parameters=_parameters(options),
        keep_prompts=policy is None or policy.keeps_prompts,
    )


def _parameters(options: Options) -> dict[str, Any]:
    """Return the arguments that a journal's manifest names besides the program."""
    policy = options.policy
    named = {name: getattr(options, name) for name in _IN_MANIFEST}
    return {
        **{name: value for name, value in named.items() if value is not None},
        "mode": options.mode if isinstance(options.mode, str) else type(options.mode).__name__,
        "key": getattr(options.key, "__qualname__", None),
        "policy": None if policy is None else policy.describe(),
    }


_IN_MANIFEST = (
    "concurrency", "rate_limit", "dispatch", "priority", "retry", "ordered", "on_error", "packing",
    "deadline", "budget",
)  # fmt: skip


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
            quotes=options.policy is None or options.policy.keeps_prompts,
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
                await _open_backend(backend, self._options.retry, self._progress)
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
        return ReportFacts(record, lambda: _described(options, backends)[1])

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
        if result.cost_usd is not None:
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
