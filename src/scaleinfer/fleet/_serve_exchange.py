"""An HTTP exchange of our own, in a child process that ends with its parent.

It is Academy's exchange with what a fleet needs around it: a token that every request must carry,
keepalive on its sockets, and streams that end with their connection, so that no message is taken
for a reader that has gone. Its mailboxes are in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
import secrets
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scaleinfer.errors import ConfigError
from scaleinfer.fleet._keepalive import set_keepalive

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aiohttp.web import Request, StreamResponse

__all__ = ["serve_exchange"]

_logger = logging.getLogger("scaleinfer.fleet")

_TOKEN_VARIABLE = "SCALEINFER_EXCHANGE_TOKEN"
_READY = "exchange at "
_START_S = 30.0
_STOP_S = 5.0
_LOOK_S = 1.0
_MESSAGE_KB = 512  # the most that Academy's exchange allows
_BODY_BYTES = 4 * 2**20  # a message is text within text, which escapes it twice


@contextlib.asynccontextmanager
async def serve_exchange(
    *,
    log: str | Path,
    host: str = "127.0.0.1",
    port: int = 0,
    token: str | None = None,
) -> AsyncIterator[str]:
    """Run an HTTP exchange in a child process while the context is open.

    The child ends with the context, and within seconds of this process's death. One that dies by
    itself is started again on its port; what was on the way is lost with it.

    Args:
        log: File the child writes its log to.
        host: Address to listen on, which others use too.
        port: Port to listen on; 0 takes a free one.
        token: What every request must carry; made up if not given, none if `""`.

    Yields:
        The URL for `exchange_factory`, token included.

    Raises:
        ConfigError: It did not start; the message names the log.
    """
    token = secrets.token_urlsafe(32) if token is None else token
    log = Path(log)
    log.parent.mkdir(parents=True, exist_ok=True)
    child = _Child(host, token, log)
    keeping: asyncio.Task[None] | None = None
    try:
        address = await child.start(port)
        keeping = asyncio.create_task(child.keep_running(int(address.rpartition(":")[2])))
        yield f"http://{f':{token}@' if token else ''}{address}"
    finally:
        if keeping is not None:
            keeping.cancel()
        await asyncio.shield(child.stop(keeping))


class _Child:
    """The exchange's process.

    Args:
        host: Address to listen on.
        token: What every request must carry.
        log: File it writes its log to.
    """

    def __init__(self, host: str, token: str, log: Path) -> None:
        self._host = host
        self._token = token
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, port: int) -> str:
        """Start it; return where it listens once it does.

        Raises:
            ConfigError: It did not start; the message names the log.
        """
        where = f"--host={self._host}", f"--port={port}", f"--parent={os.getpid()}"
        # Opening a log does not block for long enough to matter.
        with self._log.open("ab") as out:
            self._process = process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "scaleinfer.fleet._serve_exchange", *where),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=out,
                env=os.environ | {_TOKEN_VARIABLE: self._token},
                start_new_session=True,  # a Ctrl-C is the parent's to handle
            )
        assert process.stdout is not None
        line = ""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_S):
                line = (await process.stdout.readline()).decode()
        if line.startswith(_READY):
            return line.removeprefix(_READY).strip()
        log = self._log
        said = (await asyncio.to_thread(log.read_text, "utf-8", "replace")).strip().splitlines()
        why = said[-1] if said else "it said nothing"
        raise ConfigError(f"the exchange did not start: {why}.", hint=f"Its log is {log}.")

    async def keep_running(self, port: int) -> None:
        """Start it again, where its clients look for it, whenever it dies; until cancelled."""
        while True:
            assert self._process is not None
            status = await self._process.wait()
            _logger.warning("the exchange ended with status %s; it is started again", status)
            await self._end()
            try:
                await self.start(port)
            except ConfigError as error:
                _logger.warning("%s", error)
                await self._end()
                await asyncio.sleep(_LOOK_S)

    async def stop(self, keeping: asyncio.Task[None] | None) -> None:
        """End it."""
        if keeping is not None:
            await asyncio.wait({keeping})
        await self._end()

    async def _end(self) -> None:
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()  # which is what the child waits for
        try:
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        with contextlib.suppress(ConnectionError):
            await process.stdin.wait_closed()


def _guard(token: str) -> Any:
    """Return a middleware that turns away what does not carry the token."""
    from aiohttp import web

    expected = f"Bearer {token}".encode()

    @web.middleware
    async def check(
        request: Request, handler: Callable[[Request], Awaitable[StreamResponse]]
    ) -> StreamResponse:
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, expected):
            return web.Response(status=401, text="wrong or missing token")
        return await handler(request)

    return check


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    set_keepalive(listening)
    listening.bind((host, port))
    listening.listen(4096)
    return listening


async def _parent_gone(parent: int) -> None:
    """Wait until stdin ends, or until another process is our parent.

    A fork of the parent holds the other end of the pipe too, so the pipe alone is not enough.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def read() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            ended.set()

    loop.add_reader(0, read)
    while not ended.is_set() and (not parent or os.getppid() == parent):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                await ended.wait()


async def _serve(host: str, port: int, parent: int, token: str) -> None:
    from academy.exchange.cloud.app import create_app
    from academy.exchange.cloud.config import ExchangeServingConfig, PythonBackendConfig
    from aiohttp import web

    listening = _listen(host, port)
    backend = PythonBackendConfig(message_size_limit_kb=_MESSAGE_KB)
    app = create_app(ExchangeServingConfig(backend=backend))
    app._client_max_size = _BODY_BYTES  # Academy's function has no argument for it
    if token:
        app.middlewares.insert(0, _guard(token))
    runner = web.AppRunner(
        app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5, handle_signals=True
    )
    await runner.setup()
    await web.SockSite(runner, listening, backlog=4096).start()
    bound = listening.getsockname()
    shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
    print(f"{_READY}{shown}:{bound[1]}", flush=True)
    try:
        await _parent_gone(parent)
    finally:
        await runner.cleanup()


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=0, show_default="a free one")
@click.option("--parent", default=0, help="Process whose end ends this one.")
def main(host: str, port: int, parent: int) -> None:
    """Serve an HTTP exchange until stdin ends."""
    logging.basicConfig(level=logging.ERROR, format="%(asctime)s %(levelname)s %(message)s")
    # Academy logs every lost mailbox with its traceback.
    logging.getLogger("academy").setLevel(logging.CRITICAL)
    try:
        import uvloop

        run: Callable[..., None] = uvloop.run
    except ImportError:
        run = asyncio.run
    try:
        run(_serve(host, port, parent, os.environ.pop(_TOKEN_VARIABLE, "")))
    except OSError as error:
        sys.exit(f"cannot listen on {host}:{port}: {error.strerror}")


if __name__ == "__main__":
    main()
