"""A run with everything around it: backend, journal, progress, Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import anyio

from scaleinfer._interrupt import on_interrupt
from scaleinfer._manifest import describe_run
from scaleinfer._run import Run
from scaleinfer.backends import resolve_backend
from scaleinfer.data import source
from scaleinfer.engine import COME_BACK_LATER, Engine, GiveUp, Limiter, Retry, RetryAuthority
from scaleinfer.errors import ConfigError, EndpointError
from scaleinfer.map_result import RunStats
from scaleinfer.observe import Snapshot, open_progress, summary_line
from scaleinfer.prices import cost_usd
from scaleinfer.prompts import Renderer
from scaleinfer.requests import Sampling

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from pydantic import BaseModel

    from scaleinfer.backends import Backend, Resolved
    from scaleinfer.data import Source
    from scaleinfer.journal import Journal
    from scaleinfer.observe import Progress
    from scaleinfer.results import Result

__all__ = ["Options", "ProgressMode", "PromptFn", "Session", "opened"]

ProgressMode = bool | Literal["auto", "bar", "notebook", "log", "none"]
PromptFn = str | Callable[[Any], Any]

_TICK = 0.2
_SPARE_LANES = 32
_ENDINGS = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt)
_CTRL_C = "Ctrl-C was pressed."


@dataclass(frozen=True, slots=True)
class Options:
    """The front door's arguments, checked; their meaning is documented there."""

    items: Any
    prompt_fn: PromptFn
    resolved: Resolved
    system: str | None
    schema: type[BaseModel] | None
    sampling: Sampling
    concurrency: int
    retry: Retry
    journal: str | os.PathLike[str] | None
    key: Callable[[Any], Any] | None
    ordered: bool
    on_error: Literal["return", "raise"]
    progress: ProgressMode
    name: str | None

    @classmethod
    def of(
        cls,
        *,
        backend: Backend | str | None,
        model: str | None,
        base_url: str | None,
        api_key: str | None,
        sampling: Sampling | Mapping[str, Any] | None,
        concurrency: int | Literal["auto"],
        retry: Retry | None,
        **others: Any,
    ) -> Options:
        """Check the arguments.

        Raises:
            ConfigError: One of them cannot be used.
        """
        resolved = resolve_backend(backend, base_url=base_url, model=model, api_key=api_key)
        if concurrency == "auto":
            concurrency = resolved.backend.concurrency
        if not isinstance(concurrency, int) or isinstance(concurrency, bool) or concurrency < 1:
            raise ConfigError(
                f"concurrency must be 'auto' or a positive integer, not {concurrency!r}."
            )
        if others["on_error"] not in {"return", "raise"}:
            raise ConfigError(f"on_error must be 'return' or 'raise', not {others['on_error']!r}.")
        if others["key"] is not None and not callable(others["key"]):
            raise ConfigError("key must be a function, e.g. key=lambda item: item['id'].")
        if retry is not None and not isinstance(retry, Retry):
            raise ConfigError(f"retry must be a Retry, not {retry!r}.")
        return cls(
            resolved=resolved,
            sampling=Sampling.of(sampling),
            concurrency=concurrency,
            retry=retry or Retry(),
            **others,
        )


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
    backend = options.resolved.backend
    async with AsyncExitStack() as stack:
        stack.push_async_callback(items.aclose)
        # Complains about the template or the schema before anything is opened.
        renderer = Renderer(
            options.prompt_fn,
            system=options.system,
            schema=options.schema,
            sampling=options.sampling,
        )
        progress = stack.enter_context(open_progress(options.progress, options.name or ""))
        if options.resolved.by_default:
            progress.note(f"Using the embedded model: {options.resolved.reason}.")
        unreachable: EndpointError | None = None
        try:
            await _open_backend(backend, options.retry, progress)
            stack.push_async_callback(backend.aclose)
        except EndpointError as error:
            unreachable = error
        renderer.model = backend.model
        journal = None if unreachable else await _open_journal(options)
        session = Session(options, items, renderer, journal, progress, in_order=in_order)
        stack.push_async_exit(session.close_journal)
        if unreachable is not None:
            session.run.stop(str(unreachable), unreachable)
        try:
            yield session
        finally:
            progress.close(session.snapshot(), session.summary())


async def _open_backend(backend: Backend, retry: Retry, progress: Progress) -> None:
    """Open the backend; a server that starts, or hiccups, is no reason to give up a run."""
    authority, began = RetryAuthority(retry), time.monotonic()
    failures = later = 0
    while True:
        try:
            return await backend.open()
        except EndpointError as error:
            if isinstance(error, COME_BACK_LATER):
                later += 1
            else:
                failures += 1
            decision = authority.failed(
                error, attempt=failures, later=later, first_failure=began, now=time.monotonic()
            )
            if isinstance(decision, GiveUp):
                raise
            progress.note(f"{type(error).__name__}: {error}", kind=type(error).__name__)
        await asyncio.sleep(decision.seconds)


async def _open_journal(options: Options) -> Journal | None:
    if options.journal is None:
        return None
    from scaleinfer.journal import Journal, Manifest

    fingerprint, facts = describe_run(
        backend=options.resolved.backend,
        prompt_fn=options.prompt_fn,
        system=options.system,
        schema=options.schema,
        sampling=options.sampling,
    )
    manifest = Manifest(options.name, fingerprint, facts)
    return await asyncio.to_thread(Journal.open, options.journal, manifest)


class Session:
    """One run from its first call to its summary.

    Args:
        options: The front door's arguments.
        items: The input.
        renderer: Items to requests.
        journal: Where everything is recorded, if anywhere.
        progress: What the user sees.
        in_order: True if results are to come in input order.

    Attributes:
        run: The run itself.
    """

    def __init__(
        self,
        options: Options,
        items: Source,
        renderer: Renderer,
        journal: Journal | None,
        progress: Progress,
        *,
        in_order: bool,
    ) -> None:
        self._options = options
        self._items = items
        self._backend = options.resolved.backend
        self._journal = journal
        self._progress = progress
        self._began = time.monotonic()
        self._interrupted = False
        self._engine = Engine(
            self._backend, limiter=Limiter(options.concurrency), retry=options.retry
        )
        self.run = Run(
            items,
            renderer,
            self._engine,
            journal=journal,
            key=options.key,
            repairs=options.retry.repairs,
            lanes=2 * options.concurrency + _SPARE_LANES,
            ordered=in_order,
        )

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
            in_flight=engine.limiter.in_flight,
            waiting=engine.waiting,
            total=self._items.total,
            prompt_tokens=counts.usage.prompt_tokens,
            completion_tokens=counts.usage.completion_tokens,
            elapsed_s=time.monotonic() - self._began,
            phase=self._phase(),
            last_error=None if waiting is None else waiting.message,
            name=self._options.name or "",
        )

    def _phase(self) -> str:
        if self.run.stopped:
            return "stopping"
        return "starting the model" if self._backend.starting else "running"

    def summary(self) -> str:
        """Return the line the run leaves behind."""
        line = summary_line(self.snapshot(), stopped=self.run.stopped or None)
        cut = self.run.counts.cut
        if cut:
            line += f"; {cut:,} cut off at max_tokens"
        if self._options.journal is not None:
            line += f"; journal {self._options.journal}"
        return line

    def stats(self) -> RunStats:
        """Return what the run came to."""
        counts, engine = self.run.counts, self._engine.statistics()
        return RunStats(
            name=self._options.name,
            items=counts.done,
            ok=counts.ok,
            failed=counts.failed,
            not_asked=counts.not_asked,
            resumed=counts.resumed,
            cut=counts.cut,
            calls=counts.calls,
            retries=engine.retry.retries,
            elapsed_s=time.monotonic() - self._began,
            usage=counts.usage,
            cost_usd=cost_usd(self._backend, self._backend.model, counts.usage),
            endpoint=self._backend.endpoint,
            model=self._backend.model,
            journal=None if self._options.journal is None else os.fspath(self._options.journal),
            stopped=self.run.stopped,
            peak_in_flight=engine.limiter.peak_in_flight,
        )

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
                },
            )

    async def _results(self) -> AsyncGenerator[Result, None]:
        ticker = asyncio.create_task(self._tick())
        try:
            with on_interrupt(self._interrupt):
                async with aclosing(self.run.results()) as results:
                    async for result in results:
                        self._finish(result)
                        yield result
        finally:
            ticker.cancel()

    def _finish(self, result: Result) -> None:
        result.cost_usd = cost_usd(self._backend, result.model, result.usage)
        if result.error is None:
            return
        if self._options.on_error == "raise":
            raise result.error
        if not self.run.stopped:
            kind = type(result.error).__name__
            self._progress.note(f"{kind}: {result.error}", kind=kind)

    def _interrupt(self) -> None:
        self._interrupted = True
        self._progress.note("Stopping: calls in flight are ended, what has landed is kept.")
        self.run.stop(_CTRL_C)

    async def _tick(self) -> None:
        while True:
            self._progress.update(self.snapshot())
            await asyncio.sleep(_TICK)
