"""What runs on a node: one worker, from its start to its end.

Launchers call `run_worker`; `python -m scaleinfer.fleet._entry` reads a spec from its standard
input and ends when that is closed, which tells a worker that its launcher has died.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson

from scaleinfer._loop import run
from scaleinfer.errors import ScaleInferError
from scaleinfer.fleet._launch import FAILED
from scaleinfer.fleet._spec import WorkerSpec

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["run_worker"]

_HEARTBEAT_S = 30.0
"""To the exchange, which nobody of ours looks at: a worker's messages are its sign of life, and
2,000 workers that beat every 2 s would be more work than theirs."""
_EXCHANGE_S = 20.0
"""A worker that starts while the exchange restarts waits for it."""


def run_worker(spec: str) -> str:
    """Run a worker until it has ended.

    Args:
        spec: What `WorkerSpec.to_json` returned.

    Returns:
        A summary as JSON.

    Raises:
        ScaleInferError: It could not work, or lost its coordinator; the message names the node.
    """
    read = WorkerSpec.from_json(spec)
    # Every worker has a name of its own, and its log has it too.
    name = read.name or f"{socket.gethostname()}-{secrets.token_hex(4)}"
    return run(_worker(replace(read, name=name)))


async def _worker(spec: WorkerSpec) -> str:
    from academy.runtime import Runtime

    from scaleinfer.fleet._hosting import json_runtime_config
    from scaleinfer.fleet.exchange import check_exchange, exchange_factory, json_only
    from scaleinfer.fleet.worker import InferenceWorker

    _write_log(spec)
    factory = exchange_factory(spec.exchange, heartbeat_s=_HEARTBEAT_S)
    await check_exchange(factory, patience_s=_EXCHANGE_S)
    client = await factory.create_user_client(start_listener=False)
    try:
        registration = await client.register_agent(InferenceWorker, name=spec.name or None)
        agent = InferenceWorker(spec=spec)
        with json_only():
            runtime = Runtime(
                agent,
                exchange_factory=factory,
                registration=registration,
                config=json_runtime_config(),
            )
        async with runtime:
            with _signals(runtime.signal_shutdown):
                await runtime.wait_shutdown()
    finally:
        with contextlib.suppress(Exception):
            await client.close()
    if agent.problem is not None:
        raise agent.problem
    return orjson.dumps(agent.summary).decode()


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Any:
    """Stop when the batch system says that the job ends."""
    loop, names = asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    for name in names:
        loop.add_signal_handler(name, stop)
    try:
        yield
    finally:
        for name in names:
            loop.remove_signal_handler(name)


def _write_log(spec: WorkerSpec) -> None:
    handlers: list[logging.Handler] | None = None
    if spec.log:
        path = spec.log.format(name=spec.name, node=socket.gethostname())
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        handlers = [logging.FileHandler(path)]
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", handlers=handlers)
    logging.getLogger("scaleinfer").setLevel(logging.INFO)


def main() -> None:
    """Run the worker whose spec is on standard input; its end is the launcher's."""
    spec = sys.stdin.readline()

    def watch_launcher() -> None:
        with contextlib.suppress(OSError, ValueError):
            os.read(sys.stdin.fileno(), 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch_launcher, daemon=True).start()
    try:
        summary = run_worker(spec)
    except ScaleInferError as error:
        print(orjson.dumps(error.to_dict()).decode())
        print(error, file=sys.stderr)
        sys.exit(FAILED)
    print(summary)


if __name__ == "__main__":
    main()
