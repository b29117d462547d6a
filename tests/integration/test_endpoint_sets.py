"""Sets of endpoints against servers: joining, leaving, dying and coming back during a map."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from scaleinfer import parallel_map, stream_map
from scaleinfer.backends import EndpointSet, resolve_backend
from scaleinfer.engine import Retry
from scaleinfer.errors import ConfigError, EndpointError, Starting
from scaleinfer.testing import SimulatedServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = pytest.mark.anyio

PROMPT = "Is {} prime?"
NOBODY = "127.0.0.1\t9"


@asynccontextmanager
async def servers(count: int, **settings: Any) -> AsyncIterator[list[SimulatedServer]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(SimulatedServer(**({"latency": 0.005} | settings)))
            for _ in range(count)
        ]


def lines(*found: SimulatedServer, tags: str = "") -> str:
    return "".join(f"127.0.0.1\t{server.port}{tags}\n" for server in found)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 - it is another party's state
            await asyncio.sleep(0.02)


async def test_endpoints_join_and_leave_during_a_map(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    async with servers(3) as (one, two, three):
        path.write_text(lines(one, two))
        backend = EndpointSet.hosts(path, model="sim-model", every=0.05)
        gone_after = 0
        done = 0
        async for result in stream_map(
            range(3_000), PROMPT, backend=backend, concurrency=4, progress="none"
        ):
            assert result.ok, result.error
            done += 1
            if done == 300:
                path.write_text(lines(two, three))
            if done == 2_000:
                gone_after = len(one.ledger.requests)
        assert done == 3_000
        assert len(three.ledger.requests) > 300
        # It left long before, and calls in flight there were answered.
        assert len(one.ledger.requests) == gone_after
        assert all(request.ok for request in one.ledger.requests)
        counts = [len(server.ledger.requests) for server in (one, two, three)]
        assert sum(counts) == 3_000


async def test_statistics_of_one_that_came_and_one_that_went(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    async with servers(2) as (one, two):
        path.write_text(lines(one))

        async def items() -> AsyncIterator[int]:
            for number in range(400):
                if number == 50:
                    path.write_text(lines(two))
                if number == 200:
                    await until(lambda: len(two.ledger.requests) > 5)
                await asyncio.sleep(0.001)
                yield number

        results = await parallel_map(
            items(),
            PROMPT,
            backend=EndpointSet.hosts(path, model="sim-model", every=0.05),
            concurrency=4,
            progress="none",
        )
        assert len(results.ok) == 400
        first, second = results.stats.endpoints
        assert (first.endpoint, first.state) == (one.base_url, "left")
        assert (second.endpoint, second.state) == (two.base_url, "closed")
        assert first.calls + second.calls == 400
        assert results.stats.endpoint == f"hosts:{path}"


async def test_tags_and_models_choose(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    async with servers(3) as (worker, judge, other):
        path.write_text(
            lines(worker, tags="\trole=worker\tmodel=lab/sim-model")
            + lines(judge, tags="\trole=judge\tmodel=sim-model")
            + lines(other, tags="\trole=worker\tmodel=another")
        )
        backend = EndpointSet.hosts(path, model="sim-model", tags={"role": "judge"})
        results = await parallel_map(range(20), PROMPT, backend=backend, progress="none")
        assert len(results.ok) == 20
        assert len(judge.ledger.requests) == 20
        async with EndpointSet.hosts(path, model="sim-model") as both:
            assert [member.model for member in both.members] == ["lab/sim-model", "sim-model"]
        none = EndpointSet.hosts(path, tags={"role": "cook"})
        with pytest.raises(Starting, match="no endpoint yet"):
            await none.open()


async def test_members_are_asked_for_their_model_and_dead_ones_stay_out(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    async with (
        servers(2, models=["left-model"]) as (one, two),
        servers(1, models=["right-model"]) as (three,),
    ):
        path.write_text(lines(one, two, three) + NOBODY + "\n")
        backend = resolve_backend(f"hosts:{path}").backend
        results = await parallel_map(
            range(200), PROMPT, backend=backend, concurrency=4, progress="none"
        )
        assert len(results.ok) == 200
        assert {result.model for result in results} == {"left-model", "right-model"}
        assert len(results.stats.endpoints) == 3
        assert results.stats.model == "left-model"


async def test_nobody_there_is_said_within_seconds(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text(f"{NOBODY}\n127.0.0.1:10\n")
    results = await parallel_map(
        range(5), PROMPT, backend=f"hosts:{path}", retry=Retry(initial=0.05), progress="none"
    )
    assert not results.ok
    assert "cannot connect" in results.stopped
    with pytest.raises(ConfigError, match="cannot be read"):
        await parallel_map(range(5), PROMPT, backend=f"hosts:{path}.not", progress="none")


async def test_an_empty_host_file_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.touch()
    async with servers(1) as (one,):
        run = asyncio.create_task(
            parallel_map(
                range(10),
                PROMPT,
                backend=EndpointSet.hosts(path, every=0.05),
                retry=Retry(initial=0.02),
                progress="none",
            )
        )
        await asyncio.sleep(0.1)
        path.write_text(lines(one))
        assert len((await run).ok) == 10


async def test_one_that_dies_costs_no_item_and_is_asked_again_when_it_is_back(
    tmp_path: Path,
) -> None:
    path = tmp_path / "hosts"
    async with servers(3, latency=0.01) as (one, two, three):
        path.write_text(lines(one, two, three))
        backend = EndpointSet.hosts(path, model="sim-model", every=0.1)
        back = asyncio.Event()

        async def items() -> AsyncIterator[int]:
            for number in range(100_000):
                if back.is_set():
                    return
                yield number

        async def die_and_return() -> None:
            await until(lambda: len(one.ledger.requests) > 50)
            one.change(down="refuse")
            await asyncio.sleep(1.5)
            one.change(down=False)
            asked = len(one.ledger.requests)
            await until(lambda: len(one.ledger.requests) > asked + 50)
            back.set()

        trouble = asyncio.create_task(die_and_return())
        results = await parallel_map(
            items(), PROMPT, backend=backend, concurrency=4, progress="none"
        )
        await trouble
        assert not results.failed
        by_endpoint = {use.endpoint: use for use in results.stats.endpoints}
        assert by_endpoint[one.base_url].state in {"closed", "trial"}


async def test_health_checks_are_a_small_share_of_the_calls(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    async with servers(2, latency=0.002) as (one, two):
        path.write_text(lines(one, two) + "".join(f"127.0.0.1:{port}\n" for port in range(1, 20)))
        backend = EndpointSet.hosts(path, model="sim-model")
        async with backend:
            results = await parallel_map(
                range(4_000), PROMPT, backend=backend, concurrency=8, progress="none"
            )
            assert len(results.ok) == 4_000
            (roster,) = backend._open.values()
            assert roster._membership.checks <= 0.01 * results.stats.calls
        dead = [use for use in results.stats.endpoints if use.state == "open"]
        assert len(dead) == 19
        assert sum(use.calls for use in dead) < 0.1 * results.stats.calls


@asynccontextmanager
async def registry(services: list[Any]) -> AsyncIterator[tuple[str, list[int]]]:
    """Serve a list of services; the second value is the status of its answers."""
    status = [200]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = json.dumps({"services": services}).encode()
        writer.write(
            f"HTTP/1.1 {status[0]} X\r\ncontent-length: {len(body)}\r\n"
            f"connection: close\r\n\r\n".encode()
            + body
        )
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/services", status


def service(server: SimulatedServer, **more: Any) -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": server.port, "model": "sim-model", **more}


async def test_a_registry_that_changes_and_then_fails() -> None:
    async with servers(3) as (one, two, three):
        services = [service(one), service(two, healthy=False)]
        async with registry(services) as (url, status):
            backend = EndpointSet.registry(url, every=0.05)
            async with backend:
                assert [member.endpoint for member in backend.members] == [one.base_url]
                services[1]["healthy"] = True
                await until(lambda: len(backend.members) == 2)
                status[0] = 500  # what was known holds
                services.clear()
                await asyncio.sleep(0.3)
                results = await parallel_map(
                    range(100), PROMPT, backend=backend, concurrency=2, progress="none"
                )
                assert len(results.ok) == 100
                status[0] = 200
                services.append(service(three))
                names = [three.base_url]
                await until(lambda: [member.endpoint for member in backend.members] == names)
        with pytest.raises(EndpointError, match="does not answer"):
            await EndpointSet.registry(url).open()


async def test_two_maps_share_an_open_set_and_it_closes_with_the_last(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    async with servers(2) as (one, two):
        path.write_text(lines(one, two))
        backend = EndpointSet.hosts(path)
        found = await asyncio.gather(
            *(
                parallel_map(range(100), PROMPT, backend=backend, concurrency=4, progress="none")
                for _ in range(2)
            )
        )
        assert all(len(results.ok) == 100 for results in found)
        assert backend._open == {}
        # And again, by the same places.
        again = await parallel_map(range(100), PROMPT, backend=backend, progress="none")
        assert len(again.stats.endpoints) == 2


async def test_a_set_beside_a_server(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    async with servers(3) as (one, two, three):
        path.write_text(lines(two, three))
        results = await parallel_map(
            range(300),
            PROMPT,
            backend=[one.base_url, f"hosts:{path}"],
            model="sim-model",
            concurrency=4,
            progress="none",
        )
        assert len(results.ok) == 300
        assert all(server.ledger.requests for server in (one, two, three))
        assert sum(use.calls for use in results.stats.endpoints) == 300


async def test_what_a_check_of_a_set_says(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    async with servers(2) as (one, two):
        path.write_text(lines(one, two) + NOBODY + "\n")
        status = await EndpointSet.hosts(path).check()
        assert status.ok
        assert status.detail.startswith("2 of 3 endpoints answer; http://127.0.0.1:9/v1:")
        assert status.models == ("sim-model",)
        missing = await EndpointSet.hosts(tmp_path / "not").check()
        assert not missing.ok
