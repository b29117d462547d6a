"""What a call costs: `DirectWire`, `AiohttpWire` and pyreqwest (Rust), side by side.

Run it on an idle machine: `nox -s bench -- wire`. The server is a process of its own and so is
each measurement. CPU time is the client process's, threads included.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from scaleinfer.backends._wire import WireError, open_wire
from scaleinfer.testing import SimulatedServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer " + "k" * 40}
CLIENTS = ("pyreqwest", "direct", "aiohttp")


def pyreqwest_post(url: str) -> tuple[Callable[[bytes], Awaitable[bytes]], Any]:
    from datetime import timedelta

    from pyreqwest.client import ClientBuilder

    builder = ClientBuilder().follow_redirects(False).no_proxy().default_headers(HEADERS)
    builder = builder.timeout(timedelta(seconds=600))
    if bundle := os.environ.get("SSL_CERT_FILE"):
        builder = builder.add_root_certificate_pem(Path(bundle).read_bytes())
    client = builder.build()

    async def post(body: bytes) -> bytes:
        response = await client.post(url).body_bytes(body).build().send()
        return bytes(await response.bytes())

    return post, client.close


def wire_post(url: str, kind: str) -> tuple[Callable[[bytes], Awaitable[bytes]], Any]:
    wire = open_wire(url, kind=kind)

    async def post(body: bytes) -> bytes:
        return (await wire.post(url, body, HEADERS, 600)).body

    return post, wire.aclose


async def measure(client: str, url: str, items: int, wide: int, size: int) -> dict[str, Any]:
    """Return items a second and CPU microseconds an item, connections made before."""
    maker = pyreqwest_post(url) if client == "pyreqwest" else wire_post(url, client)
    post, close = maker
    filler = "x" * size

    async def slots(count: int) -> None:
        numbers = iter(range(count))

        async def slot() -> None:
            for number in numbers:
                message = {"role": "user", "content": f"{number} {filler}"}
                body = orjson.dumps({"model": "sim-model", "messages": [message]})
                assert "choices" in orjson.loads(await post(body))

        await asyncio.gather(*(slot() for _ in range(wide)))

    try:
        await slots(2 * wide)
    except WireError as error:
        await close()
        return {"failed": str(error)}
    began, busy = time.perf_counter(), time.process_time()
    await slots(items)
    elapsed, busy = time.perf_counter() - began, time.process_time() - busy
    await close()
    return {"rate": items / elapsed, "cpu": busy / items * 1e6}


def run_one(options: argparse.Namespace) -> None:
    """Measure in this process and print what came out."""
    from scaleinfer.backends._wire import max_connections

    max_connections()
    job = measure(options.client, options.url, options.items, options.wide, options.size)
    if options.loop == "uvloop":
        import uvloop

        print(json.dumps(uvloop.run(job)))
    else:
        print(json.dumps(asyncio.run(job)))


def measured(env: dict[str, str], **options: Any) -> dict[str, Any]:
    arguments = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, __file__, *arguments]
    output = subprocess.run(command, env=os.environ | env, stdout=subprocess.PIPE, check=True)
    return dict(orjson.loads(output.stdout))


def table(title: str, url: str, env: dict[str, str], rounds: int, **options: Any) -> None:
    print(f"\n{title}\n\n| client | loop | items/s | CPU us/item |\n|---|---|---|---|")
    cases = [(client, loop) for loop in ("asyncio", "uvloop") for client in CLIENTS]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {case: [] for case in cases}
    for number in range(rounds):
        for client, loop in cases:
            print(f"round {number + 1}: {client}, {loop}", file=sys.stderr, flush=True)
            found[client, loop].append(measured(env, client=client, loop=loop, url=url, **options))
    for (client, loop), runs in found.items():
        if failed := [run["failed"] for run in runs if "failed" in run]:
            print(f"| {client} | {loop} | fails: {failed[0]} | |", flush=True)
            continue
        rate = statistics.median(run["rate"] for run in runs)
        cpu = statistics.median(run["cpu"] for run in runs)
        print(f"| {client} | {loop} | {rate:,.0f} | {cpu:.0f} |", flush=True)


class TlsFront:
    """TLS in front of a server, in a thread of a process of its own: bytes in, bytes out."""

    def __init__(self, port: int, folder: str) -> None:
        import trustme

        authority = trustme.CA()
        self.bundle = f"{folder}/authority.pem"
        authority.cert_pem.write_to_path(self.bundle)
        pair = f"{folder}/pair.pem"
        authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
            pair
        )
        command = [sys.executable, __file__, "--front", pair, "--url", str(port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def __enter__(self) -> TlsFront:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.terminate()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


async def front(pair: str, port: int) -> None:
    """Take TLS off and pass on to a port of this machine."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair)
    loop = asyncio.get_running_loop()

    class Side(asyncio.Protocol):
        def __init__(self, other: Side | None = None) -> None:
            self.other = other
            self.transport: Any = None
            self.held: list[bytes] = []

        def connection_made(self, transport: Any) -> None:
            self.transport = transport
            if self.other is None:
                self.task = loop.create_task(self.connect())

        async def connect(self) -> None:
            _, self.other = await loop.create_connection(lambda: Side(self), "127.0.0.1", port)
            self.other.transport.write(b"".join(self.held))

        def data_received(self, data: bytes) -> None:
            if self.other is None:
                self.held.append(data)
            else:
                self.other.transport.write(data)

        def connection_lost(self, exc: Exception | None) -> None:
            if self.other is not None and self.other.transport is not None:
                self.other.transport.close()

    server = await loop.create_server(Side, "127.0.0.1", 0, ssl=context, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--client", choices=CLIENTS)
    parser.add_argument("--front")
    parser.add_argument("--loop")
    parser.add_argument("--url")
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--wide", type=int)
    parser.add_argument("--size", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="64,1000,10000,tls,long")
    options = parser.parse_args()
    if options.front:
        import uvloop

        uvloop.run(front(options.front, int(options.url)))
        return
    if options.client:
        run_one(options)
        return
    path, some, rounds = "/v1/chat/completions", options.items, options.rounds
    only = set(options.only.split(","))
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, median of {rounds}")
    for wide, latency in ((64, 0.0), (1000, 0.5), (10_000, 0.5)):
        if str(wide) not in only:
            continue
        with SimulatedServer(latency=latency, ledger="counts").in_process() as server:
            url = f"http://127.0.0.1:{server.port}{path}"
            title = f"{wide:,} in flight, {latency:g} s answers, 80-character prompts"
            table(title, url, {}, rounds, items=max(some, 2 * wide), wide=wide, size=70)
    with (
        SimulatedServer(ledger="counts").in_process() as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        if "tls" in only:
            with TlsFront(server.port, folder) as tls:
                url = f"https://localhost:{tls.port}{path}"
                title = "64 in flight, TLS, 80-character prompts"
                env = {"SSL_CERT_FILE": tls.bundle}
                table(title, url, env, rounds, items=some // 2, wide=64, size=70)
        if "long" in only:
            url = f"http://127.0.0.1:{server.port}{path}"
            title = "64 in flight, 30 KB prompts"
            table(title, url, {}, rounds, items=some // 2, wide=64, size=30_000)


if __name__ == "__main__":
    main()
