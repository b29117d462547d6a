"""The simulated server over real sockets, by hand-written HTTP and by the openai SDK."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from openai import APIStatusError, AsyncOpenAI, NotFoundError

from scaleinfer._loop import new_event_loop
from scaleinfer.errors import ConfigError
from scaleinfer.testing import Batching, Change, Fault, RequestView, SimulatedServer
from scaleinfer.testing import _server as server_module

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from scaleinfer.testing import ServerProcess

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module", autouse=True)
def libuv_has_started() -> None:
    """Make libuv's two pipes, which live as long as a process that once had such a loop."""
    new_event_loop().close()


def request(prompt: str = "p", *, extra: str = "", **body: Any) -> bytes:
    asked = {"model": "sim-model", "messages": [{"role": "user", "content": prompt}], **body}
    data = orjson.dumps(asked)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n{extra}\r\n"
    return head.encode() + data


async def read_response(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.strip().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return int(first.split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


@contextlib.asynccontextmanager
async def connection(
    server: SimulatedServer | ServerProcess,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def exchange(
    server: SimulatedServer | ServerProcess, data: bytes
) -> tuple[int, dict[str, str], bytes]:
    async with connection(server) as (reader, writer):
        writer.write(data)
        return await read_response(reader)


async def raw_exchange(server: SimulatedServer, data: bytes) -> bytes:
    """Return all bytes until the server closes the connection."""
    async with connection(server) as (reader, writer):
        writer.write(data)
        return await reader.read()


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds; the test's own timeout ends it."""
    while not condition():  # noqa: ASYNC110 - a ledger has no events
        await asyncio.sleep(0.002)


def post(base_url: str, prompt: str = "p") -> str:
    """Ask with the standard library's client; return the answer's text."""
    body = orjson.dumps({"messages": [{"role": "user", "content": prompt}]})
    with urllib.request.urlopen(f"{base_url}/chat/completions", body, timeout=10) as response:
        return str(orjson.loads(response.read())["choices"][0]["message"]["content"])


def slow_if_asked(view: RequestView) -> float:
    return 30.0 if "slow" in view.prompt else 0.0


async def test_a_connection_is_kept_for_many_requests() -> None:
    async with SimulatedServer() as server, connection(server) as (reader, writer):
        for i in range(5):
            writer.write(request(f"item {i}"))
            status, _, body = await read_response(reader)
            assert status == 200
            content = orjson.loads(body)["choices"][0]["message"]["content"]
            assert content == f"echo: item {i}"
        assert server.ledger.counts() == {f"item {i}": 1 for i in range(5)}


async def test_requests_in_pieces_and_in_a_row() -> None:
    async with SimulatedServer(latency=0.01) as server, connection(server) as (reader, writer):
        data = request("one") + request("two") + request("three")
        for i in range(0, len(data), 50):
            writer.write(data[i : i + 50])
            await asyncio.sleep(0)
        for prompt in ("one", "two", "three"):
            _, _, body = await read_response(reader)
            assert orjson.loads(body)["choices"][0]["message"]["content"] == f"echo: {prompt}"


def slow_at_first(view: RequestView) -> float:
    return 0.05 if view.prompt == "0" else 0.0


async def test_a_long_row_of_requests() -> None:
    async with (
        SimulatedServer(latency=slow_at_first) as server,
        connection(server) as (reader, writer),
    ):
        writer.write(b"".join(request(str(i)) for i in range(1500)))
        for i in range(1500):
            _, _, body = await read_response(reader)
            assert orjson.loads(body)["choices"][0]["message"]["content"] == f"echo: {i}"
        assert server.ledger.peak_in_flight == 1


async def test_the_client_may_ask_for_the_end_of_the_connection() -> None:
    async with SimulatedServer() as server:
        answer = await raw_exchange(server, request(extra="Connection: close\r\n"))
        assert b"\r\nconnection: close\r\n" in answer
        assert answer.endswith(b"}}")


async def test_expect_100_continue() -> None:
    async with SimulatedServer() as server, connection(server) as (reader, writer):
        head, _, body = request(extra="Expect: 100-continue\r\n").partition(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await read_response(reader))[0] == 200


async def test_what_is_not_http_is_refused() -> None:
    async with SimulatedServer() as server:
        assert (await raw_exchange(server, b"garbage\r\n\r\n")).startswith(b"HTTP/1.1 400")


async def test_an_upgrade_is_refused() -> None:
    offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    async with SimulatedServer() as server:
        assert (await raw_exchange(server, request(extra=offer))).startswith(b"HTTP/1.1 400")
        assert server.ledger.arrived == 0


async def test_a_head_that_came_before_is_understood_the_same() -> None:
    async with SimulatedServer(keep_bodies=True, api_key="k") as server:
        async with connection(server) as (reader, writer):
            for key in ("k", "k", "wrong", "k", "wrong"):
                data = request(key * 3, extra=f"Authorization: Bearer {key}\r\n")
                for piece in (data, data[:30], data[30:], data[:-2], data[-2:]):
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.005)
                for _ in range(3):
                    status, _, _ = await read_response(reader)
                    assert status == (200 if key == "k" else 401)
        requests = server.ledger.requests
        assert len(requests) == 15
        assert {r.body for r in requests if r.prompt == "kkk"} == {
            request("kkk").partition(b"\r\n\r\n")[2]
        }
        assert len({str(r.headers) for r in requests}) == 1


async def test_latency_is_kept() -> None:
    async with SimulatedServer(latency=0.05) as server:
        await asyncio.gather(*(exchange(server, request(str(i))) for i in range(20)))
        waits = [r.finished - r.arrived for r in server.ledger.requests if r.finished]
        assert len(waits) == 20
        assert min(waits) >= 0.05
        assert server.ledger.peak_in_flight > 1
        assert abs(server.ledger.requests[0].arrived - time.time()) < 30


async def test_slots_bound_what_is_served_at_once() -> None:
    async with SimulatedServer(latency=0.02, slots=2) as server:
        await asyncio.gather(*(exchange(server, request(str(i))) for i in range(10)))
        finished = sorted(r.finished for r in server.ledger.requests if r.finished)
        assert finished[-1] - server.ledger.requests[0].arrived >= 5 * 0.02
        assert server.ledger.answered == 10


async def test_a_client_that_goes_away_is_an_abort() -> None:
    async with SimulatedServer(latency=30, slots=1) as server:
        async with connection(server) as (_, first), connection(server) as (_, second):
            first.write(request("served"))
            await until(lambda: server.ledger.in_flight == 1)
            second.write(request("waiting"))
            await until(lambda: server.ledger.in_flight == 2)
        await until(lambda: server.ledger.in_flight == 0)
        assert [r.aborted for r in server.ledger.requests] == [True, True]
        assert server.ledger.counts() == {"served": 0, "waiting": 0}


async def test_the_server_ending_is_no_abort() -> None:
    async with SimulatedServer(latency=30) as server, connection(server) as (reader, writer):
        writer.write(request())
        await until(lambda: server.ledger.in_flight)
        await server.aclose()
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    (record,) = server.ledger.requests
    assert (record.aborted, record.status, record.ok) == (False, None, False)
    assert server.ledger.in_flight == 0


async def test_drop_is_an_end_without_a_byte() -> None:
    async with SimulatedServer(faults=[Fault.drop()]) as server:
        assert await raw_exchange(server, request()) == b""


async def test_reset_is_a_tcp_reset() -> None:
    async with SimulatedServer(faults=[Fault.reset()]) as server:
        with pytest.raises(ConnectionResetError):
            await raw_exchange(server, request())
        assert server.ledger.requests[0].fault == "reset"


async def test_stall_never_answers() -> None:
    async with SimulatedServer(faults=[Fault.stall()]) as server:
        async with connection(server) as (reader, writer):
            writer.write(request())
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.1)
            assert server.ledger.in_flight == 1
        await until(lambda: server.ledger.aborted)


async def test_truncate_ends_before_what_was_announced() -> None:
    async with SimulatedServer(faults=[Fault.truncate()]) as server:
        head, _, body = (await raw_exchange(server, request())).partition(b"\r\n\r\n")
        announced = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        assert 0 < len(body) < announced
        assert server.ledger.answered == 0


async def test_slow_drip_takes_its_time() -> None:
    faults = [Fault.slow_drip(size=100, seconds=0.02)]
    async with SimulatedServer(faults=faults) as server:
        status, _, body = await exchange(server, request())
        (record,) = server.ledger.requests
        assert status == 200
        assert record.finished is not None
        assert record.finished - record.arrived >= 0.02 * (len(body) // 100)
        assert record.ok


async def test_a_kept_connection_closes_under_the_next_request() -> None:
    faults = [Fault.keepalive_close(times=1)]
    async with SimulatedServer(faults=faults) as server:
        async with connection(server) as (reader, writer):
            writer.write(request("one"))
            status, headers, _ = await read_response(reader)
            assert status == 200
            assert "connection" not in headers
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.05)
            writer.write(request("two"))
            assert await reader.read() == b""
        assert (await exchange(server, request("two")))[0] == 200
        assert server.ledger.asked() == {"one": 1, "two": 1}


async def test_a_kept_connection_closes_after_the_answer() -> None:
    async with SimulatedServer(faults=[Fault.keepalive_close(on="response")]) as server:
        answer = await raw_exchange(server, request())
        assert b"connection: close" not in answer
        assert answer.endswith(b"}}")


async def test_the_sdk_retries_scripted_faults() -> None:
    faults = [
        Fault.status(429, retry_after=0.01, first=1),
        Fault.status(503, retry_after=0.01, retry_after_form="ms", first=2),
    ]
    async with SimulatedServer(faults=faults) as server:
        async with AsyncOpenAI(base_url=server.base_url, api_key="k", max_retries=3) as client:
            answer = await client.chat.completions.create(
                model="sim-model", messages=[{"role": "user", "content": "q"}]
            )
        assert answer.choices[0].message.content == "echo: q"
        assert [r.status for r in server.ledger.requests] == [429, 503, 200]
        assert server.ledger.requests[0].headers["x-stainless-retry-count"] == "0"
        assert "authorization" not in server.ledger.requests[0].headers


async def test_the_sdk_reads_errors_models_tools_and_streams() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}

    def answer(view: RequestView) -> dict[str, Any] | None:
        return {"tool_calls": [call]} if view.body.get("tools") else None

    async with SimulatedServer(answer=answer, tokens_per_second=2000) as server:
        async with AsyncOpenAI(base_url=server.base_url, api_key="k", max_retries=0) as client:
            with pytest.raises(NotFoundError) as caught:
                await client.completions.create(model="other", prompt="p")
            assert caught.value.code == "model_not_found"
            assert [m.id for m in (await client.models.list()).data] == ["sim-model"]
            plain = await client.completions.create(model="sim-model", prompt=["a", "b"], n=2)
            assert len(plain.choices) == 4
            tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
            messages: Any = [{"role": "user", "content": "q"}]
            called = await client.chat.completions.create(
                model="sim-model", messages=messages, tools=tools
            )
            assert called.choices[0].finish_reason == "tool_calls"
            assert called.choices[0].message.tool_calls is not None
            assert called.choices[0].message.tool_calls[0].id == "c"
            stream = await client.chat.completions.create(
                model="sim-model", messages=messages, stream=True,
                stream_options={"include_usage": True},
            )  # fmt: skip
            text, usage = "", None
            async for chunk in stream:
                text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
                usage = chunk.usage or usage
            assert text == "echo: q"
            assert usage is not None
            assert usage.completion_tokens == 2
        assert server.ledger.counts() == {"p": 0, "a": 1, "b": 1, "q": 2}
    await asyncio.sleep(0.05)  # the SDK closes its generators some turns later


async def test_the_sdk_meets_broken_answers() -> None:
    faults = [
        Fault.html(match="html"), Fault.malformed(match="malformed"),
        Fault.status(400, match="status"), Fault.empty_choices(match="empty"),
    ]  # fmt: skip
    async with SimulatedServer(faults=faults) as server:
        async with AsyncOpenAI(base_url=server.base_url, api_key="k", max_retries=0) as client:

            async def ask(prompt: str) -> Any:
                return await client.chat.completions.create(
                    model="sim-model", messages=[{"role": "user", "content": prompt}]
                )

            assert isinstance(await ask("html"), str)
            with pytest.raises(json.JSONDecodeError):
                await ask("malformed")
            with pytest.raises(APIStatusError):
                await ask("status")
            assert (await ask("empty")).choices == []
        assert server.ledger.answered == 0
        assert server.ledger.statistics()["by_fault"] == {
            "html": 1, "malformed": 1, "status 400": 1, "empty_choices": 1,
        }  # fmt: skip


async def test_bodies_and_headers_are_kept_if_told_so() -> None:
    async with SimulatedServer(keep_bodies=True, keep_headers=False) as server:
        await exchange(server, request("p", top_k=5, extra="X-Trace: 1\r\n"))
        (record,) = server.ledger.requests
        assert record.body is not None
        assert orjson.loads(record.body)["top_k"] == 5
        assert record.headers == {}
    async with SimulatedServer() as server:
        await exchange(server, request("p", extra="X-Trace: 1\r\nX-API-Key: secret\r\n"))
        (record,) = server.ledger.requests
        assert record.body is None
        assert record.headers == {"host": "x", "x-trace": "1"}


async def test_a_server_can_be_closed_and_opened_again() -> None:
    server = SimulatedServer()
    with pytest.raises(ConfigError, match="does not run"):
        _ = server.base_url
    for _ in range(2):
        async with server:
            assert (await exchange(server, request()))[0] == 200
            with pytest.raises(ConfigError, match="runs already"):
                await server.open()
    assert server.ledger.counts() == {"p": 2}


async def test_a_taken_port_is_a_config_error() -> None:
    async with SimulatedServer() as server:
        with pytest.raises(ConfigError, match="port=0"):
            await SimulatedServer(port=server.port).open()


def test_in_a_thread() -> None:
    threads = threading.active_count()
    with SimulatedServer(latency=0.005).in_thread() as server:
        assert post(server.base_url, "one") == "echo: one"
        assert server.ledger.counts() == {"one": 1}
    assert threading.active_count() == threads
    assert server.ledger.answered == 1


def test_the_ledger_can_be_read_while_a_thread_serves() -> None:
    with SimulatedServer().in_thread() as server:
        stop = threading.Event()

        def ask_on() -> None:
            i = 0
            while not stop.is_set():
                post(server.base_url, f"item {i}")
                i += 1

        clients = [threading.Thread(target=ask_on) for _ in range(2)]
        for client in clients:
            client.start()
        try:
            for _ in range(50):
                records = server.ledger.requests
                assert sum(len(found) for found in server.ledger.by_prompt().values()) >= len(
                    records
                )
                assert server.ledger.statistics()["arrived"] >= len(records)
        finally:
            stop.set()
            for client in clients:
                client.join()


def test_a_thread_that_cannot_start_says_so() -> None:
    with SimulatedServer().in_thread() as server:
        again = SimulatedServer(port=server.port)
        with pytest.raises(ConfigError), again.in_thread():
            pytest.fail("the port is taken")


def test_in_a_process() -> None:
    simulated = SimulatedServer(latency=slow_if_asked, faults=[Fault.status(503, match="bad")])
    process = simulated.in_process()
    with pytest.raises(ConfigError, match="not run yet"):
        _ = process.ledger
    with process as server:
        assert post(server.base_url, "one") == "echo: one"
        with pytest.raises(urllib.error.HTTPError) as caught:
            post(server.base_url, "bad")
        caught.value.close()
        assert server.ledger.counts() == {"one": 1, "bad": 0}
        assert server.statistics()["by_status"] == {"200": 1, "503": 1}
        pid = server.pid
        assert pid is not None
    assert process.pid is None
    assert [r.prompt for r in process.ledger.requests] == ["one", "bad"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_process_outlives_its_clients() -> None:
    with SimulatedServer(latency=slow_if_asked).in_process() as server:
        script = f"import urllib.request as u; u.urlopen('{server.base_url}/chat/completions', " + (
            """b'{"messages": [{"role": "user", "content": "slow"}]}')"""
        )
        with subprocess.Popen([sys.executable, "-c", script]) as client:
            while server.ledger.in_flight == 0:
                time.sleep(0.01)
            client.kill()
        while server.ledger.in_flight:
            time.sleep(0.01)
        assert server.ledger.aborted == 1
        assert post(server.base_url, "two") == "echo: two"


def test_a_process_ends_with_its_parent() -> None:
    script = (
        "from scaleinfer.testing import SimulatedServer; import time\n"
        "server = SimulatedServer().in_process(); server.start()\n"
        "print(server.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.kill()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _runs(pid):
        time.sleep(0.02)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("server", "words"),
    [
        (SimulatedServer(latency=lambda _: 0.0), "lambda"),
        (SimulatedServer(faults=[Fault.drop(match=lambda _: True)]), "lambda"),
        (SimulatedServer(answer=lambda view: view.text), "lambda"),
    ],
)
def test_a_callable_that_cannot_travel_is_named(server: SimulatedServer, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        server.in_process().start()


def test_a_process_that_cannot_start_says_why() -> None:
    with SimulatedServer().in_thread() as server:
        process = SimulatedServer(port=server.port).in_process()
        with pytest.raises(ConfigError, match="cannot listen"):
            process.start()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "scaleinfer.testing", "--latency", "0.001", "--model", "m"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        base_url = process.stdout.readline().decode().strip()
        assert post(base_url, "one") == "echo: one"
        process.send_signal(number)
        assert process.wait(10) == 0


async def refused(server: SimulatedServer | ServerProcess) -> bool:
    try:
        async with connection(server):
            return False
    except ConnectionRefusedError:
        return True
    except ConnectionError:  # a listening socket that closes resets what came in meanwhile
        return False


async def until_refused(server: SimulatedServer | ServerProcess, wanted: bool) -> None:
    while await refused(server) is not wanted:  # noqa: ASYNC110 - a port has no events
        await asyncio.sleep(0.002)


async def test_a_batch_over_sockets() -> None:
    batching = Batching(slots=4, step_s=0.002, prefix_cache_tokens=1000)
    ask = "endpoint-load-metrics-format: TEXT\r\nX-Client: {}\r\n"
    async with SimulatedServer(batching=batching, answer_tokens=10) as server:
        prompts = ["x" * 200 + str(i) for i in range(20)]
        answers = await asyncio.gather(
            *(
                exchange(server, request(prompt, extra=ask.format("ab"[i % 2])))
                for i, prompt in enumerate(prompts)
            )
        )
        assert all(status == 200 for status, _, _ in answers)
        reports = [headers["endpoint-load-metrics"] for _, headers, _ in answers]
        assert all(report.startswith("TEXT named_metrics.kv_cache") for report in reports)
        assert len(set(reports)) > 1
        ledger = server.ledger
        waits = [r.finished - r.started for r in ledger if r.finished and r.started]
        assert min(waits) >= 0.019
        assert ledger.seconds >= 0.099  # 20 answers of 10 steps, 4 at a time
        assert ledger.cached_tokens >= 16 * 48
        assert ledger.shares() == {"a": 0.5, "b": 0.5}
        data = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
        _, headers, body = await exchange(server, data)
        assert headers["content-type"].startswith("text/plain")
        assert b'vllm:num_requests_running{engine="0",model_name="sim-model"} 0.0' in body


async def test_a_stream_of_the_batch_is_read_by_the_sdk() -> None:
    async with SimulatedServer(batching=Batching(step_s=0.001), answer_tokens=30) as server:
        async with AsyncOpenAI(base_url=server.base_url, api_key="k", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="sim-model", messages=[{"role": "user", "content": "q"}], stream=True
            )
            chunks = [chunk async for chunk in stream]
        assert len(chunks) == 32
        assert server.ledger.answered == 1
    await asyncio.sleep(0.05)  # the SDK closes its generators some turns later


async def test_an_outage_refuses_connections_and_ends() -> None:
    async with SimulatedServer(latency=30, answer_tokens=1) as server:
        async with connection(server) as (reader, writer):
            writer.write(request("lost"))
            await until(lambda: server.ledger.in_flight)
            server.change(down=True)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        await until_refused(server, True)
        (record,) = server.ledger.requests
        assert (record.aborted, record.ok, record.finished is None) == (False, False, False)
        server.change(down=False)
        await until_refused(server, False)
        server.change(down="503", slowdown=0.001)
        assert (await exchange(server, request("early")))[0] == 503
        server.change(down=False)
        assert (await exchange(server, request("late")))[0] == 200


async def test_an_outage_by_script_and_a_server_closed_during_one() -> None:
    async with SimulatedServer(changes=[Change(at=0.1, until=0.6, down=True)]) as server:
        port = server.port
        assert (await exchange(server, request("first")))[0] == 200
        await until_refused(server, True)
        await until_refused(server, False)
        assert (await exchange(server, request("second")))[0] == 200
        server.change(down=True)
        await until_refused(server, True)
    assert server.ledger.counts() == {"first": 1, "second": 1}
    async with SimulatedServer(port=port) as again:
        assert (await exchange(again, request()))[0] == 200


async def test_a_503_outage_cuts_what_is_in_flight_alone() -> None:
    async with (
        SimulatedServer(latency=slow_if_asked) as server,
        connection(server) as idle,
        connection(server) as (reader, writer),
    ):
        idle[1].write(request("quick"))
        assert (await read_response(idle[0]))[0] == 200
        writer.write(request("slow"))
        await until(lambda: server.ledger.in_flight)
        server.change(down="503")
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        idle[1].write(request("quick"))
        assert (await read_response(idle[0]))[0] == 503


async def test_a_hang_keeps_connections_until_it_ends() -> None:
    async with SimulatedServer() as server, connection(server) as (reader, writer):
        server.change(down="hang")
        writer.write(request("p"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.1)
        server.change(down=False)
        assert (await read_response(reader))[0] == 200


def test_a_server_in_a_thread_is_changed_from_outside() -> None:
    with SimulatedServer().in_thread() as server:
        server.change(down="503")
        with pytest.raises(urllib.error.HTTPError) as caught:
            post(server.base_url)
        caught.value.close()
        server.change(down=False)
        assert post(server.base_url) == "echo: p"
        with pytest.raises(ConfigError, match="slots"):
            server.change(slots=0)
    with pytest.raises(ConfigError, match="does not run"):
        server.change(slots=1)


def test_a_server_in_a_process_is_changed_and_read_during_an_outage() -> None:
    simulated = SimulatedServer(slots=1, batching=None, requests_per_second=1)
    with simulated.in_process() as server:
        server.change(requests_per_second=float("inf"), slots=float("inf"))
        for _ in range(3):
            post(server.base_url)
        server.change(down=True)
        error: object = None
        while not isinstance(error, ConnectionRefusedError):
            try:
                post(server.base_url)
            except OSError as raised:  # reset at first: a listening socket closes a little later
                error = getattr(raised, "reason", raised)
        assert server.ledger.counts() == {"p": 3}
        with pytest.raises(ConfigError):
            server.change(slots=0)
        server.change(down=False)
        while server.ledger.counts() == {"p": 3}:
            with contextlib.suppress(OSError):
                post(server.base_url)
        assert server.statistics()["completion_tokens"] == 8


async def test_rate_limits_over_sockets() -> None:
    async with SimulatedServer(requests_per_second=0.001, retry_after="date") as server:
        assert (await exchange(server, request()))[0] == 200
        status, headers, _ = await exchange(server, request())
        assert status == 429
        assert headers["retry-after"].endswith("GMT")


MIXED = [
    Fault.status(503, rate=0.02), Fault.status(429, retry_after=0.01, rate=0.02),
    Fault.drop(rate=0.02), Fault.reset(rate=0.02), Fault.truncate(rate=0.02),
    Fault.malformed(rate=0.02), Fault.html(rate=0.02), Fault.empty_choices(rate=0.02),
    Fault.stall(rate=0.01), Fault.stall(at=0.5, rate=0.01),
    Fault.wrong_content_type(rate=0.02), Fault.slow_drip(size=64, seconds=0.001, rate=0.02),
    Fault.keepalive_close(rate=0.02), Fault.keepalive_close(on="response", rate=0.02),
    Fault.delay(0.01, rate=0.05),
]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("batching", [None, Batching(slots=8, step_s=0.0005)])
async def test_all_faults_mixed_leave_every_request_with_one_end(
    batching: Batching | None, stream: bool
) -> None:
    async with SimulatedServer(faults=MIXED, batching=batching, seed=3) as server:

        async def ask(prompt: str) -> None:
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with connection(server) as (reader, writer):
                    writer.write(request(prompt, stream=stream, extra="Connection: close\r\n"))
                    await asyncio.wait_for(reader.read(), 1)

        for start in range(0, 600, 100):
            await asyncio.gather(*(ask(f"item {i}") for i in range(start, start + 100)))
        await until(lambda: server.ledger.in_flight == 0)
        statistics = server.ledger.statistics()
        assert statistics["arrived"] == 600
        names = {name for joined in statistics["by_fault"] for name in joined.split("+")}
        assert names == {fault.name for fault in MIXED}
        spoiled = {
            "status 503", "status 429", "drop", "reset", "truncate", "malformed", "html",
            "empty_choices", "stall",
        }  # fmt: skip
        for record in server.ledger:
            assert record.ok != bool(spoiled & set(record.fault.split("+"))) or record.aborted


@pytest.mark.parametrize("fault", MIXED, ids=lambda fault: fault.name)
async def test_each_fault_alone_leaves_the_server_well(fault: Fault) -> None:
    once = dataclasses.replace(fault, rate=1.0, times=3)
    async with SimulatedServer(faults=[once]) as server:
        for prompt in ("a", "b", "c"):
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with connection(server) as (reader, writer):
                    writer.write(request(prompt, extra="Connection: close\r\n"))
                    await asyncio.wait_for(reader.read(), 0.2)
        assert (await exchange(server, request("d")))[0] == 200
        assert server.ledger.counts()["d"] == 1
        assert (
            server.ledger.statistics()["by_fault"].get(fault.name, 0) + (server.ledger.in_flight)
            == 3
        )


def test_the_command_serves_several_that_batch() -> None:
    command = [
        sys.executable, "-m", "scaleinfer.testing", "--count", "3", "--slots", "2", "--step",
        "0.001", "--change", "at=0,down=503,until=0",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        urls = [process.stdout.readline().decode().strip() for _ in range(3)]
        assert len(set(urls)) == 3
        assert [post(url, "one") for url in urls] == ["echo: one"] * 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_the_documented_example_runs() -> None:
    text = server_module.SimulatedServer.__doc__ or ""
    code = text.split("```python\n")[1].split("```")[0]
    source = "\n".join(line.removeprefix("    ") for line in code.splitlines())
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
