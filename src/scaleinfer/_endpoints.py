"""A run's endpoints, opened."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from scaleinfer.engine import (
    Concurrency,
    GiveUp,
    Retry,
    RetryAuthority,
)
from scaleinfer.errors import EndpointError

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from scaleinfer._options import Options
    from scaleinfer.backends import Backend
    from scaleinfer.observe import Progress

__all__ = ["open_backend", "open_backends", "say_what_caps"]

_OTHERS_MAY_OPEN = 1.0
"""Seconds that endpoints get to become ready once one of them is."""


async def open_backends(
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
            await open_backend(backend, options.retry, progress)
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


async def open_backend(backend: Backend, retry: Retry, progress: Progress) -> None:
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


def say_what_caps(
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
