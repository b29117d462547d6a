"""Servers that refuse, fail, stall and lie: every item is accounted for, and nothing hangs."""

from __future__ import annotations

import asyncio
import resource
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from scaleinfer import (
    AuthError,
    ConfigError,
    EndpointError,
    OpenAIBackend,
    Permanent,
    RateLimited,
    Retry,
    Transient,
    parallel_map,
    stream_map,
)
from scaleinfer.testing import Fault, SimulatedServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from scaleinfer import Result

pytestmark = pytest.mark.anyio

QUIET: dict[str, Any] = {"progress": False}
FAST = Retry(initial=0.02, maximum=0.1, timeout=0.5)
ITEMS = [f"item {number}" for number in range(60)]


def nowhere() -> str:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{reserved.getsockname()[1]}/v1"


async def all_of(stream: AsyncIterator[Result]) -> list[Result]:
    return [result async for result in stream]


async def test_wrong_key_stops_the_run_and_says_what_to_do() -> None:
    async with SimulatedServer(api_key="right") as server:
        options = {"base_url": server.base_url, "model": "sim-model", "concurrency": 4, **QUIET}
        results = await parallel_map(ITEMS, "{}", api_key="wrong", **options)
        assert len(results.failed) == len(ITEMS)
        assert {type(result.error) for result in results} == {AuthError}
        assert "OPENAI_API_KEY" in str(results[0].error)
        assert str(results[59].error).startswith("item 59: HTTP 401")
        assert server.ledger.arrived <= 8
        assert "401" in results.stopped
        assert results.stats.not_asked > 0
        assert results.stats.ok == 0
        with pytest.raises(AuthError, match="Incorrect API key"):
            await all_of(stream_map(ITEMS, "{}", api_key="wrong", **options))
        assert (await parallel_map(ITEMS, "{}", api_key="right", **options)).stats.ok == 60


async def test_unknown_model_stops_the_run_and_says_what_to_do() -> None:
    async with SimulatedServer() as server:
        results = await parallel_map(
            ITEMS, "{}", base_url=server.base_url, model="gpt-17", concurrency=4, **QUIET
        )
        assert {type(result.error) for result in results} == {Permanent}
        assert "scaleinfer endpoints" in str(results[0].error)
        assert server.ledger.arrived <= 8


async def test_several_models_and_none_named() -> None:
    async with SimulatedServer(models=["small", "big"]) as server:
        with pytest.raises(ConfigError, match=r"offers small, big.*Pass model="):
            await parallel_map(ITEMS, "{}", base_url=server.base_url, **QUIET)
        assert server.ledger.arrived == 0


@pytest.mark.parametrize("model", [None, "m"])
async def test_no_server_at_all_is_said_within_seconds(model: str | None) -> None:
    url = nowhere()
    began = time.monotonic()
    results = await parallel_map(ITEMS, "{}", base_url=url, model=model, **QUIET)
    assert time.monotonic() - began < 8
    assert len(results.failed) == len(ITEMS)
    for result in results:
        assert isinstance(result.error, Transient)
        assert not result.error.reached
    assert f"cannot connect to {url}: Connection refused" in str(results[7].error)
    assert "item 7: " in str(results[7].error)
    with pytest.raises(Transient, match="cannot connect"):
        await all_of(stream_map(ITEMS, "{}", base_url=url, model=model, **QUIET))


@pytest.mark.parametrize("path", ["", "/v2", "/v1/chat/completions"])
async def test_wrong_path_says_what_to_do(path: str, server: SimulatedServer) -> None:
    url = server.base_url.removesuffix("/v1") + path
    for model in (None, "sim-model"):
        results = await parallel_map(ITEMS, "{}", base_url=url, model=model, **QUIET)
        assert len(results.failed) == len(ITEMS)
        assert "/v1" in str(results[0].error)
    assert server.ledger.arrived == 0


async def test_a_server_that_comes_up_in_time_is_waited_for() -> None:
    url = nowhere()
    server = SimulatedServer(port=int(url.rpartition(":")[2].removesuffix("/v1")))

    async def later() -> None:
        await asyncio.sleep(0.4)
        await server.open()

    starting = asyncio.create_task(later())
    try:
        results = await parallel_map(
            ITEMS, "{}", base_url=url, retry=Retry(initial=0.5), model="sim-model", **QUIET
        )
    finally:
        await starting
        await server.aclose()
    assert results.stats.ok == 60


@pytest.mark.parametrize(
    "fault",
    [
        Fault.status(503, times=2, everywhere=True, body='{"error":{"message":"Loading model"}}'),
        Fault.status(429, times=2, everywhere=True),
        Fault.status(500, times=2, everywhere=True),
        Fault.drop(times=2, everywhere=True),
    ],
    ids=lambda fault: fault.name,
)
async def test_a_hiccup_while_asking_for_the_model_does_not_end_the_run(fault: Fault) -> None:
    async with SimulatedServer(faults=[fault]) as server:
        results = await parallel_map(ITEMS, "{}", base_url=server.base_url, retry=FAST, **QUIET)
        assert results.stats.ok == 60, results.stopped


PASSING = [
    Fault.status(429, rate=0.5, retry_after=0.05),
    Fault.status(500, rate=0.5),
    Fault.status(502, rate=0.5, body="<html>Bad Gateway</html>"),
    Fault.status(503, rate=0.5),
    Fault.status(503, first=1, body='{"error": {"message": "Loading model", "code": 503}}'),
    Fault.status(529, rate=0.5),
    Fault.drop(rate=0.5),
    Fault.reset(rate=0.5),
    Fault.stall(first=1, rate=0.3),
    Fault.stall(at=0.5, first=1, rate=0.3),
    Fault.truncate(rate=0.5),
    Fault.malformed(rate=0.5),
    Fault.html(rate=0.5),
    Fault.empty_choices(rate=0.5),
    Fault.wrong_content_type(),
    Fault.slow_drip(size=64, seconds=0.001),
    Fault.delay(0.05),
    Fault.keepalive_close(rate=0.5),
    Fault.keepalive_close(on="response", rate=0.5),
]


@pytest.mark.parametrize(
    "fault", PASSING, ids=lambda fault: f"{fault.name} {fault.on[0]}{fault.at}"
)
async def test_each_fault_alone_passes(fault: Fault) -> None:
    retry = Retry(attempts=20, initial=0.01, maximum=0.02, timeout=0.5)
    async with SimulatedServer(faults=[fault]) as server:
        results = await parallel_map(
            ITEMS, "{}", base_url=server.base_url, concurrency=16, retry=retry, **QUIET
        )
    assert [result.error for result in results.failed] == []
    assert results.texts == [f"echo: {item}" for item in ITEMS]
    for prompt, answered in server.ledger.counts().items():
        assert answered == 1, prompt


async def test_all_faults_mixed_at_twenty_percent() -> None:
    share = 0.02
    faults = [
        *(Fault.status(code, rate=share) for code in (408, 429, 500, 502, 503, 504)),
        Fault.status(429, rate=share, retry_after=0.1, retry_after_form="ms"),
        Fault.drop(rate=share),
        Fault.reset(rate=share),
        Fault.stall(rate=share),
        Fault.truncate(rate=share),
        Fault.malformed(rate=share),
        Fault.html(rate=share),
        Fault.empty_choices(rate=share),
        Fault.status(400, match="item 13"),
    ]
    items = [f"item {number};" for number in range(1000)]
    async with SimulatedServer(faults=faults, latency=(0.005, 0.004)) as server:
        results = await parallel_map(
            items, "{}", base_url=server.base_url, retry=FAST, concurrency=64, **QUIET
        )
        assert server.ledger.in_flight == 0
    bad = [index for index, item in enumerate(items) if "item 13" in item]
    assert [result.index for result in results.failed] == bad
    assert all(isinstance(result.error, Permanent) for result in results.failed)
    assert all(result.text == f"echo: {result.item}" for result in results.ok)
    assert results.stats.ok + results.stats.failed == 1000
    asked = server.ledger.asked()
    for result in results:
        # A request lost on an idle connection is sent once more within its attempt.
        assert result.attempts <= asked[result.item] <= 2 * result.attempts
    assert all(answered <= 1 for answered in server.ledger.counts().values())


@pytest.mark.parametrize("form", ["seconds", "date", "ms"])
async def test_retry_after_is_honoured(form: Any) -> None:
    fault = Fault.status(429, first=1, retry_after=1, retry_after_form=form)
    async with SimulatedServer(faults=[fault]) as server:
        results = await parallel_map(
            ITEMS[:5], "{}", base_url=server.base_url, retry=Retry(initial=0.01), **QUIET
        )
        assert results.stats.ok == 5
        for first, second in server.ledger.by_prompt().values():
            assert first.finished is not None
            # A date has whole seconds: it may come up to one early.
            assert second.arrived - first.finished >= (0.0 if form == "date" else 0.99)
            assert second.arrived - first.finished < 3


async def test_retry_after_beyond_patience_is_a_failure_not_a_wait() -> None:
    faults = [Fault.status(429, retry_after=9999), Fault.status(500, retry_after=9999)]
    for fault in faults:
        async with SimulatedServer(faults=[fault]) as server:
            began = time.monotonic()
            (result,) = await parallel_map(["x"], "{}", base_url=server.base_url, **QUIET)
        assert time.monotonic() - began < 2
        assert isinstance(result.error, EndpointError)
        assert result.error.retry_after == 9999


async def test_waiting_items_hold_no_place() -> None:
    fault = Fault.status(500, first=1, match="even")
    items = [f"{'even' if number % 2 == 0 else 'odd'} {number}" for number in range(20)]
    async with SimulatedServer(faults=[fault]) as server:
        options = {"concurrency": 1, "retry": Retry(initial=1.0), **QUIET}
        results = await parallel_map(items, "{}", base_url=server.base_url, **options)
        assert results.stats.ok == 20
        requests = server.ledger.requests
        last_odd = max(request.arrived for request in requests if "odd" in request.prompt)
        assert last_odd - requests[0].arrived < 0.9
        assert server.ledger.peak_in_flight == 1


async def test_the_timeout_is_for_each_attempt_and_the_server_is_told() -> None:
    async with SimulatedServer(faults=[Fault.stall(first=2, match="item 3")]) as server:
        retry = Retry(initial=0.01, maximum=0.02, timeout=0.3)
        began = time.monotonic()
        results = await parallel_map(
            ITEMS[:10], "{}", base_url=server.base_url, retry=retry, **QUIET
        )
        assert 0.6 <= time.monotonic() - began < 3
        assert results.stats.ok == 10
        assert results[3].attempts == 3
        assert results[3].latency_s >= 0.6
        assert server.ledger.aborted == 2


async def test_attempts_end_and_say_why() -> None:
    async with SimulatedServer(faults=[Fault.status(500, match="item 3")]) as server:
        retry = Retry(attempts=3, initial=0.01, maximum=0.02)
        results = await parallel_map(
            ITEMS[:5], "{}", base_url=server.base_url, retry=retry, **QUIET
        )
        assert results[3].attempts == server.ledger.asked()["item 3"] == 3
        assert "HTTP 500" in str(results[3].error)
        assert results.stats.ok == 4


async def test_fifty_failures_in_a_row_stop_the_run() -> None:
    async with SimulatedServer(faults=[Fault.status(400)]) as server:
        options = {"base_url": server.base_url, "concurrency": 4, **QUIET}
        results = await parallel_map(range(500), "{}", **options)
        assert 50 <= server.ledger.arrived < 70
        assert len(results) == 500
        assert results.stats.not_asked > 400
        assert "HTTP 400" in results.stopped
        assert "not answered" in str(results[499].error)
        results = await parallel_map(range(200), "{}", retry=Retry(stop_after=None), **options)
        assert results.stopped == ""
        assert results.stats.failed == 200


async def test_a_login_page_is_recognised() -> None:
    async with SimulatedServer(faults=[Fault.html("<html>Sign in</html>")]) as server:
        results = await parallel_map(
            ITEMS, "{}", base_url=server.base_url, retry=FAST, concurrency=2, **QUIET
        )
        assert len(results.failed) == 60
        assert "a web page" in str(results[0].error)
        assert server.ledger.arrived < 30


async def test_an_outage_in_the_middle_is_survived() -> None:
    faults = [Fault.status(503, after=0.1, until=0.6)]
    async with SimulatedServer(faults=faults, latency=0.01) as server:
        results = await parallel_map(
            range(300), "{}", base_url=server.base_url, retry=FAST, concurrency=8, **QUIET
        )
    assert results.stats.ok == 300


@pytest.mark.alone
async def test_a_storm_of_errors_does_not_hold_the_loop() -> None:
    late = []

    async def watch() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            late.append(time.monotonic() - before - 0.01)

    async with SimulatedServer(faults=[Fault.status(400)], ledger="counts") as server:
        watching = asyncio.create_task(watch())
        results = await parallel_map(
            range(2000),
            "{}",
            base_url=server.base_url,
            retry=Retry(stop_after=None),
            progress="log",
        )
        watching.cancel()
    assert results.stats.failed == 2000
    assert max(late) < 0.5


async def test_one_client_refused_is_told_apart_from_rate_limits() -> None:
    fault = Fault.status(429, body='{"error":{"message":"none","code":"insufficient_quota"}}')
    async with SimulatedServer(faults=[fault]) as server:
        results = await parallel_map(ITEMS, "{}", base_url=server.base_url, **QUIET)
    assert not any(isinstance(result.error, RateLimited) for result in results)
    assert "no credit" in str(results[0].error)


FEW_FILES = """
import resource, sys
soft, hard = 64, int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from scaleinfer import map_sync
results = map_sync(range(300), "{}", base_url=sys.argv[1], concurrency=200, progress=False)
print(results.stats.ok, results.stats.failed, results.stopped)
"""


@pytest.mark.parametrize("hard", [64, 4096])
async def test_too_few_file_descriptors_are_made_do_with(hard: int) -> None:
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= hard
    with SimulatedServer(latency=0.05).in_process() as server:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", FEW_FILES, server.base_url, str(hard)],
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        peak = server.ledger.peak_in_flight
    assert done.stdout == "300 0 \n", done.stderr
    assert peak >= 150 if hard > 64 else peak <= 16


async def test_a_backend_that_was_pointed_elsewhere_recovers(server: SimulatedServer) -> None:
    backend = OpenAIBackend(nowhere(), model="sim-model")
    results = await parallel_map(ITEMS[:3], "{}", backend=backend, **QUIET)
    assert len(results.failed) == 3
    results = await parallel_map(ITEMS[:3], "{}", base_url=server.base_url, **QUIET)
    assert results.stats.ok == 3
