"""A simulated server in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from scaleinfer._loop import new_event_loop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scaleinfer.testing._server import SimulatedServer

__all__ = ["run_in_thread"]

S = TypeVar("S", bound="SimulatedServer")


@contextmanager
def run_in_thread(server: S) -> Iterator[S]:
    """Serve in a thread while the block runs.

    Raises:
        ConfigError: The server cannot start.
    """
    opened: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        stop = asyncio.Event()
        async with server:
            opened.set_result((asyncio.get_running_loop(), stop))
            await stop.wait()

    def run() -> None:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            try:
                runner.run(serve())
            except BaseException as error:
                if opened.done():
                    raise
                opened.set_exception(error)

    thread = threading.Thread(target=run, name="simulated-server", daemon=True)
    thread.start()
    try:
        loop, stop = opened.result()
        try:
            yield server
        finally:
            loop.call_soon_threadsafe(stop.set)
    finally:
        thread.join()
