"""Several endpoints, rate limits, priority, hedging, packing and deduplication."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from pydantic import BaseModel

from scaleinfer import (
    Concurrency,
    OpenAIBackend,
    Permanent,
    Prompt,
    RateLimit,
    Retry,
    SchemaError,
    Transient,
    parallel_map,
)
from scaleinfer.engine import Dispatch
from scaleinfer.journal import read_results, verify
from scaleinfer.testing import Fault, SimulatedServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from scaleinfer import MapResult
    from scaleinfer.testing import RequestView

pytestmark = pytest.mark.anyio

QUIET: dict[str, Any] = {"progress": False}
FAST = Retry(initial=0.02, maximum=0.1, timeout=2.0)
ITEMS = [f"item {number};" for number in range(120)]
EXACT = {"temperature": 0.0}


def nowhere() -> str:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{reserved.getsockname()[1]}/v1"


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - a server has no event for it
            await asyncio.sleep(0.005)


def all_right(results: MapResult) -> None:
    assert [result.error for result in results.failed] == []
    assert results.texts == [f"echo: {result.item}" for result in results]
    assert [result.index for result in results] == list(range(len(results)))


# Several endpoints.


@pytest.mark.parametrize("model", [None, "sim-model"])
@pytest.mark.parametrize("dead_first", [False, True])
async def test_one_endpoint_that_was_never_there(
    model: str | None, dead_first: bool, server: SimulatedServer, capsys: Any
) -> None:
    backends = [server.base_url, nowhere()]
    if dead_first:
        backends.reverse()
    results = await parallel_map(
        ITEMS, "{}", backend=backends, model=model, retry=FAST, progress="log"
    )
    all_right(results)
    assert server.ledger.arrived == len(ITEMS)
    assert {result.endpoint for result in results} == {server.base_url}
    if model is None:
        assert "Going on without an endpoint: cannot connect" in capsys.readouterr().err


async def test_one_endpoint_that_dies_in_the_middle(journal: Path) -> None:
    items = [f"item {number};" for number in range(400)]
    async with SimulatedServer(latency=0.01) as stays, SimulatedServer(latency=0.01) as dies:
        running = asyncio.create_task(
            parallel_map(
                items,
                "{}",
                backend=[stays.base_url, dies.base_url],
                concurrency=8,
                retry=Retry(attempts=1),
                journal=journal,
                **QUIET,
            )
        )
        await until(lambda: dies.ledger.answered >= 40)
        dies.change(down=True)
        results = await running
    all_right(results)
    lost = dies.ledger.arrived - dies.ledger.answered
    assert stays.ledger.answered + dies.ledger.answered == len(items)
    assert lost <= 8
    # What is moved to another endpoint costs no attempt, of which there is only one.
    assert max(result.attempts for result in results) > 1
    assert verify(journal).ok
    assert sum(row.ok for row in read_results(journal)) == len(items)


async def test_a_slow_endpoint_gets_little_and_does_not_hold_the_tail() -> None:
    items = [f"item {number};" for number in range(600)]
    async with SimulatedServer(latency=0.02) as fast, SimulatedServer(latency=0.4) as slow:
        results = await parallel_map(
            items, "{}", backend=[slow.base_url, fast.base_url], concurrency=8, **QUIET
        )
    all_right(results)
    assert 0 < slow.ledger.answered < 0.1 * len(items)


@pytest.mark.parametrize(
    "weight",
    [1, 3],
)
async def test_weights_and_names_of_their_own(weight: int) -> None:
    async with (
        SimulatedServer(latency=0.01, models=["llama"]) as small,
        SimulatedServer(latency=0.01, models=["meta/llama"]) as large,
    ):
        backends = [
            OpenAIBackend(small.base_url, model="llama", weight=1),
            OpenAIBackend(large.base_url, model="meta/llama", weight=weight),
        ]
        results = await parallel_map(range(400), "{}", backend=backends, concurrency=16, **QUIET)
        assert results.stats.ok == 400
        assert {request.model for request in small.ledger.requests} == {"llama"}
        assert {request.model for request in large.ledger.requests} == {"meta/llama"}
        share = large.ledger.answered / small.ledger.answered
        assert 0.6 * weight < share < 1.7 * weight
        assert {(use.endpoint, use.calls) for use in results.stats.endpoints} == {
            (one.base_url, one.ledger.arrived) for one in (small, large)
        }


@pytest.mark.parametrize("model", [None, "m"])
async def test_all_endpoints_dead_is_said_within_seconds(model: str | None) -> None:
    urls = [nowhere(), nowhere()]
    began = time.monotonic()
    results = await parallel_map(ITEMS, "{}", backend=urls, model=model, **QUIET)
    assert time.monotonic() - began < 10
    assert len(results.failed) == len(ITEMS)
    assert "cannot connect to http://127.0.0.1" in results.stopped
    assert any(url in results.stopped for url in urls)
    assert all(isinstance(result.error, Transient) for result in results)


async def test_a_wrong_key_at_one_endpoint_is_not_the_others() -> None:
    async with SimulatedServer() as fine, SimulatedServer(api_key="right") as refuses:
        backends = [
            OpenAIBackend(refuses.base_url, api_key="wrong", model="sim-model"),
            OpenAIBackend(fine.base_url, model="sim-model"),
        ]
        results = await parallel_map(ITEMS, "{}", backend=backends, concurrency=4, **QUIET)
        all_right(results)
        assert {result.endpoint for result in results} == {fine.base_url}


async def test_an_endpoint_that_loads_its_model_does_not_hold_up_the_others() -> None:
    loading = Fault.status(503, everywhere=True, body='{"error":{"message":"Loading model"}}')
    async with SimulatedServer() as ready, SimulatedServer(faults=[loading]) as starts:
        async with asyncio.timeout(2):
            results = await parallel_map(
                ITEMS, "{}", backend=[ready.base_url, starts.base_url], **QUIET
            )
    all_right(results)


# Not an inference server at all.


@contextlib.asynccontextmanager
async def answering(answer: bytes, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server that says the same to everything."""

    class Talk(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self._transport = transport

        def data_received(self, data: bytes) -> None:
            self._transport.write(answer)
            self._transport.close()

    loop = asyncio.get_running_loop()
    server = await loop.create_server(Talk, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]
    await asyncio.sleep(0.01)


def page(status: str, *headers: str, body: str = "") -> bytes:
    lines = [
        f"HTTP/1.1 {status}",
        "Content-Type: text/html",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *headers,
    ]
    return "\r\n".join([*lines, "", body]).encode()


@pytest.mark.parametrize("model", [None, "m"])
async def test_a_certificate_that_does_not_verify_is_named(
    model: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    async with answering(page("200 OK"), context) as port, asyncio.timeout(10):
        url = f"https://localhost:{port}/v1"
        results = await parallel_map(ITEMS, "{}", base_url=url, model=model, **QUIET)
    assert len(results.failed) == len(ITEMS)
    error = results[5].error
    assert isinstance(error, Permanent)
    assert f"{url} has a certificate that is not trusted" in str(error)
    assert "SSL_CERT_FILE" in str(error)


@pytest.mark.parametrize("model", [None, "sim-model"])
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (page("307 X", "Location: https://elsewhere.example/v1"), "redirects to https://else"),
        (page("302 Found", "Location: https://sso.example/login?state=1"), "a login page"),
        (page("407 X", "Proxy-Authenticate: Basic"), "a proxy before"),
        (page("200 OK", body="<html><title>Sign in</title></html>"), "base_url"),
        (page("404 Not Found", body="<html>nginx</html>"), "usually ends in /v1"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "127.0.0.1"),
    ],
    ids=["redirect", "login redirect", "proxy", "login page", "other server", "no http"],
)
async def test_what_is_no_inference_server_is_named(
    answer: bytes, said: str, model: str | None
) -> None:
    async with answering(answer) as port, asyncio.timeout(10):
        url = f"http://127.0.0.1:{port}/v1"
        results = await parallel_map(
            ITEMS, "{}", base_url=url, model=model, concurrency=4, retry=FAST, **QUIET
        )
    assert len(results.failed) == len(ITEMS)
    assert f"127.0.0.1:{port}" in str(results[0].error)
    assert said in str(results[0].error)
    assert "state=1" not in str(results[0].error)
    assert results.stopped


# Rate limits.


async def test_requests_per_minute_are_kept_to_as_the_server_counts() -> None:
    # A burst of one second's worth and then the pace: 10 + 10 a second.
    async with SimulatedServer(requests_per_minute=600, burst_s=1.5) as server:
        results = await parallel_map(
            range(25),
            "{}",
            base_url=server.base_url,
            rate_limit=RateLimit(requests_per_minute=600),
            **QUIET,
        )
        assert results.stats.ok == 25
        assert server.ledger.arrived == 25
        assert server.ledger.rejected_share() == 0


async def test_a_backends_own_rate_limit_goes_before_the_maps() -> None:
    async with SimulatedServer(requests_per_minute=600, burst_s=1.5) as server:
        backend = OpenAIBackend(server.base_url, rate_limit=RateLimit(requests_per_minute=600))
        results = await parallel_map(
            range(20),
            "{}",
            backend=backend,
            rate_limit=RateLimit(requests_per_minute=1e6),
            **QUIET,
        )
        assert results.stats.ok == 20
        assert server.ledger.rejected_share() == 0


@pytest.mark.parametrize(
    "by",
    [
        "map",
        "backend",
    ],
)
async def test_tokens_are_reserved_before_they_are_spent(by: str) -> None:
    limit = RateLimit(tokens_per_minute=60_000)
    async with SimulatedServer(latency=0.3) as server:
        options: dict[str, Any] = (
            {"base_url": server.base_url, "rate_limit": limit}
            if by == "map"
            else {"backend": OpenAIBackend(server.base_url, rate_limit=limit)}
        )
        running = asyncio.create_task(
            parallel_map(
                ITEMS, "{}", concurrency=50, sampling={"max_tokens": 500}, **options, **QUIET
            )
        )
        await until(lambda: server.ledger.arrived)
        await asyncio.sleep(0.2)
        # 1,000 tokens a second: two calls of 500, not fifty.
        assert server.ledger.arrived <= 4
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_limits_are_learned_from_headers() -> None:
    async with SimulatedServer(requests_per_minute=1200, rate_limit_headers=True) as server:
        backend = OpenAIBackend(server.base_url)
        running = asyncio.create_task(
            parallel_map(range(2000), "{}", backend=backend, concurrency=8, **QUIET)
        )
        await until(lambda: server.ledger.answered)
        await asyncio.sleep(1.5)
        # 20 a second after a burst; without the headers it would be thousands.
        assert server.ledger.arrived <= 80
        assert server.ledger.rejected_share() == 0
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


# Concurrency and priority.


async def test_bounds_that_change_during_a_run_are_followed() -> None:
    async with SimulatedServer(latency=0.02) as server:
        bounds = Concurrency(min=2, start=2, max=2)
        running = asyncio.create_task(
            parallel_map(
                (number for number in range(1500)),
                "{}",
                base_url=server.base_url,
                concurrency=bounds,
                **QUIET,
            )
        )
        await until(lambda: server.ledger.answered >= 20)
        assert server.ledger.peak_in_flight == 2
        bounds.max = bounds.min = 30
        await until(lambda: server.ledger.in_flight == 30)
        bounds.min, bounds.max = 1, 3
        await until(lambda: server.ledger.in_flight <= 3)
        for _ in range(5):
            await asyncio.sleep(0.01)
            assert server.ledger.in_flight <= 3
        bounds.max = bounds.min = 40
        assert (await running).stats.ok == 1500
        assert server.ledger.peak_in_flight == 40


async def test_a_small_map_with_priority_overtakes_a_big_one() -> None:
    async with SimulatedServer(latency=0.02) as server:
        backend = OpenAIBackend(server.base_url)
        big = asyncio.create_task(
            parallel_map(range(400), "batch {}", backend=backend, concurrency=4, **QUIET)
        )
        await until(lambda: server.ledger.answered >= 20)
        small = await parallel_map(
            range(16), "now {}", backend=backend, concurrency=4, priority=1, **QUIET
        )
        assert small.stats.ok == 16
        asked = [request.prompt.split()[0] for request in server.ledger.requests]
        last = len(asked) - asked[::-1].index("now")
        # In turns there would be one of the batch to each of them.
        assert asked[asked.index("now") : last].count("batch") <= 6
        assert (await big).stats.ok == 400
        assert server.ledger.peak_in_flight <= 4


# Deduplication.


@pytest.mark.parametrize("with_journal", [False, True], ids=["", "journal"])
async def test_duplicates_in_flight_are_one_call(with_journal: bool, journal: Path) -> None:
    async with SimulatedServer(latency=0.1) as server:
        results = await parallel_map(
            ["same"] * 30 + ["other"],
            "{}",
            base_url=server.base_url,
            sampling=EXACT,
            concurrency=40,
            journal=journal if with_journal else None,
            **QUIET,
        )
        assert server.ledger.asked() == {"same": 1, "other": 1}
        assert results.texts == ["echo: same"] * 30 + ["echo: other"]
        assert results.stats.calls == 2
        assert results.stats.shared == 29
        for usage in (results.usage, results.stats.usage):
            assert usage.completion_tokens == server.ledger.completion_tokens
            assert usage.requests == 2
    if with_journal:
        assert verify(journal).ok
        rows = list(read_results(journal))
        assert [row.ok for row in rows] == [True] * 31
        assert {row.payload["text"] for row in rows} == {"echo: same", "echo: other"}


async def test_duplicates_can_be_asked_each() -> None:
    async with SimulatedServer(latency=0.02) as server:
        results = await parallel_map(
            ["same"] * 10,
            "{}",
            base_url=server.base_url,
            sampling=EXACT,
            dispatch=Dispatch(deduplicate=False),
            **QUIET,
        )
        assert results.stats.ok == 10
        assert server.ledger.arrived == 10


async def test_what_refuses_one_duplicate_refuses_all_each_by_its_own_name() -> None:
    async with SimulatedServer(latency=0.05, faults=[Fault.status(400)]) as server:
        results = await parallel_map(
            ["same"] * 10, "{}", base_url=server.base_url, sampling=EXACT, **QUIET
        )
        assert server.ledger.arrived == 1
        assert [result.error.index for result in results if result.error] == list(range(10))


class Number(BaseModel):
    number: int


async def test_an_answer_that_does_not_fit_is_not_asked_for_by_each_duplicate() -> None:
    async with SimulatedServer(latency=0.02, json_schema="ignore") as server:
        results = await parallel_map(
            ["same"] * 20,
            "{}",
            base_url=server.base_url,
            sampling=EXACT,
            schema=Number,
            retry=Retry(repairs=0),
            **QUIET,
        )
        assert all(isinstance(result.error, SchemaError) for result in results)
        assert server.ledger.arrived <= 3


# Packing and hedging.


async def test_plain_completions_go_in_packs_with_outcomes_of_their_own() -> None:
    async with SimulatedServer(latency=0.01, max_prompt_tokens=20) as server:
        items = [f"item {number};" for number in range(64)]
        items[30] = "far too long " * 50
        results = await parallel_map(
            items,
            lambda item: Prompt(item, completion=True),
            backend=OpenAIBackend(server.base_url, packing=8),
            concurrency=2,
            **QUIET,
        )
        assert [result.index for result in results.failed] == [30]
        assert isinstance(results[30].error, Permanent)
        assert all(str(result.text).endswith(f": {result.item}") for result in results.ok)
        sizes = [len(request.prompts) for request in server.ledger.requests]
        assert max(sizes) == 8
        # 8 packs, and the one with the culprit again one by one.
        assert len(sizes) <= 8 + 8
        assert results.stats.ok == 63


async def test_packs_survive_faults() -> None:
    faults = [Fault.drop(rate=0.2), Fault.status(500, rate=0.2), Fault.truncate(rate=0.1)]
    async with SimulatedServer(faults=faults) as server:
        results = await parallel_map(
            ITEMS,
            lambda item: Prompt(item, completion=True),
            backend=OpenAIBackend(server.base_url, packing=4),
            retry=Retry(attempts=20, initial=0.01, maximum=0.02),
            **QUIET,
        )
        assert [result.index for result in results.ok] == list(range(len(ITEMS)))
        assert all(str(result.text).endswith(f": {result.item}") for result in results)
        assert set(server.ledger.counts().values()) == {1}


def stragglers(view: RequestView) -> float:
    late = view.attempt == 1 and int(view.prompt.split()[1].strip(";")) in {595, 598}
    return 30.0 if late else 0.005


@pytest.mark.parametrize("hedging", [True, False])
async def test_what_straggles_in_the_tail_is_asked_again(hedging: bool, journal: Path) -> None:
    items = [f"item {number};" for number in range(600)]
    async with SimulatedServer(latency=stragglers) as server:
        running = asyncio.create_task(
            parallel_map(
                items,
                "{}",
                base_url=server.base_url,
                concurrency=8,
                dispatch=Dispatch(hedging=hedging, prefix_window=0),
                journal=journal,
                **QUIET,
            )
        )
        await until(lambda: server.ledger.answered >= 598)
        if not hedging:
            await asyncio.sleep(0.3)
            assert server.ledger.arrived == 600
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            return
        async with asyncio.timeout(10):
            results = await running
        all_right(results)
        assert 2 <= results.stats.hedged <= 0.03 * len(items)
        assert results.stats.calls == server.ledger.arrived
        await until(lambda: server.ledger.in_flight == 0)
        assert server.ledger.aborted == results.stats.hedged
        assert set(server.ledger.counts().values()) == {1}
    assert verify(journal).ok
    assert sum(row.ok for row in read_results(journal)) == 600
