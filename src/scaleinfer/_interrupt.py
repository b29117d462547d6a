"""Ctrl-C while maps run: the first stops them with what has landed, the second goes through."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from scaleinfer._loop import run

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from types import FrameType

__all__ = ["on_interrupt", "run_in_thread"]

T = TypeVar("T")

_stops: list[tuple[asyncio.AbstractEventLoop, Callable[[], None]]] = []
_installed = 0
_before: Any = None


@contextmanager
def on_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` in the running loop when Ctrl-C is pressed.

    Several maps may run at once: all are stopped. Python delivers signals in the main thread
    only; a map in another thread is stopped by `run_in_thread`, which waits in the main one.
    """
    entry = (asyncio.get_running_loop(), stop)
    _stops.append(entry)
    try:
        with _handler():
            yield
    finally:
        _stops.remove(entry)


def run_in_thread(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end on a loop of its own in another thread.

    Ctrl-C stops the maps in it and waits for what they return; the second one, or one that
    finds no map yet, cancels it and goes through.
    """
    context = contextvars.copy_context()
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = []

    async def main() -> T:
        running.append((asyncio.get_running_loop(), asyncio.current_task()))
        return await make()

    pool = ThreadPoolExecutor(1, thread_name_prefix="scaleinfer-map")
    try:
        # Another loop in this thread may have taken Ctrl-C for a loop that does not turn now.
        with _handler():
            return pool.submit(context.run, lambda: run(main())).result()
    except KeyboardInterrupt:
        for loop, task in running:
            if task is not None and not loop.is_closed():
                loop.call_soon_threadsafe(task.cancel)
        raise
    finally:
        pool.shutdown(wait=False)


@contextmanager
def _handler() -> Iterator[None]:
    """Take Ctrl-C over, if this is the thread that gets it."""
    global _installed, _before  # noqa: PLW0603 - there is one SIGINT per process
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if not _installed:
        # None stands for a handler that was not set from Python.
        _before = signal.signal(signal.SIGINT, _interrupted) or signal.SIG_DFL
    _installed += 1
    try:
        yield
    finally:
        _installed -= 1
        if not _installed and signal.getsignal(signal.SIGINT) in _OURS:
            signal.signal(signal.SIGINT, _before)


def _interrupted(number: int, frame: FrameType | None) -> None:
    # The next one must get through even if a loop no longer turns.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not _stops:
        raise KeyboardInterrupt
    _stop_all()


_OURS = (_interrupted, signal.default_int_handler)


def _stop_all() -> None:
    for loop, stop in _stops:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop)
