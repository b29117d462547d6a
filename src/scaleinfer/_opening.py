"""What a run needs, opened, and closed in the end."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from scaleinfer._batch_mode import batch_plan
from scaleinfer._program import is_program
from scaleinfer._programs import ProgramRenderer, no_batches
from scaleinfer._spending import Spending
from scaleinfer.data import source
from scaleinfer.observe import check_telemetry, open_progress
from scaleinfer.prompts import Renderer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from scaleinfer._program import LLM
    from scaleinfer.backends import Backend
    from scaleinfer.journal import Journal

from scaleinfer._endpoints import open_backends, say_what_caps
from scaleinfer._options import Options
from scaleinfer._session import Session

__all__ = ["open_calls", "opened"]


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
        backends, unreachable = await open_backends(options, progress, stack)
        say_what_caps(backends, options.concurrency, progress)
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


async def _open_journal(options: Options, backends: list[Backend]) -> Journal | None:
    if options.journal is None:
        return None
    # In a thread: the file system and git take their time.
    return await asyncio.to_thread(_opened_journal, options, backends)


def _opened_journal(options: Options, backends: list[Backend]) -> Journal:
    from scaleinfer.journal import Journal, Manifest

    fingerprint, facts = options.describe(backends)
    assert options.journal is not None
    return Journal.open(options.journal, Manifest(options.name, fingerprint, facts))
