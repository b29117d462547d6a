"""Ctrl-C while maps run: the first stops them with what has landed, the second goes through."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

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
    global _installed, _before  # noqa: PLW0603 - there is one SIGINT per process
    entry = (asyncio.get_running_loop(), stop)
    _stops.append(entry)
    main = threading.current_thread() is threading.main_thread()
    if main:
        if not _installed:
            # None stands for a handler that was not set from Python.
            _before = signal.signal(signal.SIGINT, _interrupted) or signal.SIG_DFL
        _installed += 1
    try:
        yield
    finally:
        _stops.remove(entry)
        if main:
            _installed -= 1
            if not _installed and signal.getsignal(signal.SIGINT) is _interrupted:
                signal.signal(signal.SIGINT, _before)


def run_in_thread(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end on a loop of its own in another thread.

    Ctrl-C stops the maps in it and waits for what they return.
    """
    context = contextvars.copy_context()
    pool = ThreadPoolExecutor(1, thread_name_prefix="scaleinfer-map")
    try:
        running = pool.submit(context.run, lambda: asyncio.run(make()))
        try:
            return running.result()
        except KeyboardInterrupt:
            _stop_all()
            return running.result()
    finally:
        pool.shutdown(wait=False)


def _interrupted(number: int, frame: FrameType | None) -> None:
    # The next one must get through even if a loop no longer turns.
    signal.signal(signal.SIGINT, _before)
    _stop_all()


def _stop_all() -> None:
    for loop, stop in _stops:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop)
