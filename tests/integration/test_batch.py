"""Batch mode through the front door, against a server that has files and batches."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from scaleinfer import (
    ConfigError,
    OpenAIBackend,
    Permanent,
    Prompt,
    Transient,
    map_sync,
    parallel_map,
    stream_map,
)
from scaleinfer.batch import Batch
from scaleinfer.errors import RunStopped
from scaleinfer.journal import Journal, Manifest, list_runs, read_attempts, read_results, verify
from scaleinfer.prices import Price
from scaleinfer.testing import BatchApi, Fault, RequestView, SimulatedServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from scaleinfer import MapResult

pytestmark = pytest.mark.anyio

ITEMS = [f"item {number}" for number in range(40)]
TEXTS = [f"echo: {item}" for item in ITEMS]
FAST: dict[str, Any] = {"poll_s": (0.02, 0.2), "settle_s": 0.3}


@asynccontextmanager
async def serving(faults: Any = (), **api: Any) -> AsyncIterator[SimulatedServer]:
    settings = {name: api.pop(name) for name in ("answer", "json_schema", "slots") if name in api}
    row_faults = tuple(api.pop("rows", ()))
    batches = BatchApi(faults=row_faults, **api)
    async with SimulatedServer(batches=batches, faults=faults, **settings) as server:
        yield server


async def mapped(
    server: SimulatedServer,
    items: Any = ITEMS,
    prompt: Any = "{}",
    *,
    mode: Any = None,
    **more: Any,
) -> MapResult:
    return await parallel_map(
        items, prompt, base_url=server.base_url, progress=False,
        mode=mode or Batch(max_rows=16, **FAST), **more,
    )  # fmt: skip


def once(server: SimulatedServer, items: Any = ITEMS) -> None:
    assert server.ledger.counts() == dict.fromkeys(items, 1)


def online_calls(server: SimulatedServer) -> int:
    """Rows of batches are in the ledger without headers; calls have them."""
    return sum(bool(record.headers) for record in server.ledger.requests)


def created(server: SimulatedServer) -> int:
    return server.ledger.other_paths["/v1/batches"]


async def until_created(server: SimulatedServer) -> None:
    """Wait until the server has a batch, and its client surely knows."""
    while not created(server):  # noqa: ASYNC110 - the server's ledger tells nobody
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)


async def test_answers_are_those_of_calls_at_half_a_dozen_requests(journal: Path) -> None:
    async with serving(seconds=0.1) as server:
        results = await mapped(server, journal=journal)
        assert results.texts == TEXTS
        assert [result.index for result in results] == list(range(40))
        assert online_calls(server) == 0
        once(server)
        assert (results.stats.batches, results.stats.calls) == (3, 0)
        assert {result.batch for result in results} == {f"batch_sim{n}" for n in (1, 2, 3)}
        assert results.usage.requests == 40
        assert results.usage.completion_tokens == server.ledger.completion_tokens
        assert results[0].endpoint == server.base_url
        assert results[0].model == "sim-model"
    assert verify(journal).batches == 9  # planned, submitted, closed
    assert len(list(read_attempts(journal))) == 40


@pytest.mark.parametrize("first", ["batch", "online"])
async def test_batch_and_online_runs_resume_each_other(journal: Path, first: str) -> None:
    modes = {"batch": Batch(**FAST), "online": "online"}
    second = "online" if first == "batch" else "batch"
    async with serving() as server:
        await mapped(server, ITEMS[:25], mode=modes[first], journal=journal)
        results = await mapped(server, mode=modes[second], journal=journal)
        assert results.texts == TEXTS
        assert results.stats.resumed == 25
        once(server)
    again = [row.payload for row in read_results(journal)]
    assert sum("batch" in payload for payload in again) == (25 if first == "batch" else 15)


async def test_what_a_batch_leaves_out_goes_into_another(journal: Path) -> None:
    rows = [
        Fault.drop(match=lambda view: view.prompt.endswith("1"), first=1),
        Fault.malformed(match=lambda view: view.prompt.endswith("2"), first=1),
        Fault.status(500, match=lambda view: view.prompt.endswith("3"), first=1),
        Fault.empty_choices(match=lambda view: view.prompt.endswith("4"), first=1),
    ]
    async with serving(rows=rows) as server:
        results = await mapped(server, journal=journal)
        assert results.texts == TEXTS
        assert online_calls(server) == 0
        once(server)
        assert results.stats.batches == 4
        failed_once = results[3]
        assert failed_once.attempts == 2
        assert [a.attempt.status for a in read_attempts(journal) if a.index == 3] == [
            "Transient", "ok",
        ]  # fmt: skip


async def test_what_two_batches_leave_out_is_asked_online() -> None:
    async with serving(rows=[Fault.drop(match="item 7")]) as server:
        results = await mapped(server)
        assert results.texts == TEXTS
        assert server.ledger.asked()["item 7"] == 3
        assert online_calls(server) == 1


async def test_leftovers_go_online_if_that_is_wanted() -> None:
    async with serving(rows=[Fault.drop(rate=0.3)]) as server:
        results = await mapped(server, mode=Batch(leftovers="online", **FAST))
        assert results.texts == TEXTS
        assert results.stats.batches == 1
        assert online_calls(server) == results.stats.calls > 0
        once(server)


async def test_a_row_that_is_refused_is_refused_for_good() -> None:
    async with serving() as server:
        prompt = lambda item: Prompt(item, model="other" if item == "item 3" else None)  # noqa: E731
        results = await mapped(server, prompt=prompt)
        # A batch holds one model only: the row's own batch fails it.
        assert [result.index for result in results.failed] == [3]
        assert isinstance(results[3].error, Permanent)
        assert "other" in results[3].error.message
        assert results.stats.batches == 4


@pytest.mark.parametrize("how", ["expired", "cancelled"])
async def test_partial_output_is_salvaged(how: str) -> None:
    seconds = {"expires_s": 0.4} if how == "expired" else {"seconds": 4.0}
    async with serving(**{"seconds": 0.8, **seconds}) as server:
        task = asyncio.create_task(mapped(server, mode=Batch(leftovers="online", **FAST)))
        if how == "cancelled":
            while not server.ledger.arrived:
                await asyncio.sleep(0.02)
                async with aclosing(await asyncio.to_thread(connect, server)):
                    pass
            await asyncio.to_thread(cancel_at_the_server, server, "batch_sim1")
        results = await task
        assert results.texts == TEXTS
        once(server)
        salvaged = sum(result.batch is not None for result in results)
        assert 0 < salvaged < 40
        assert online_calls(server) == 40 - salvaged


class connect:  # noqa: N801 - reads like the verb it is
    """A look at the server's batch from outside, which makes it go on."""

    def __init__(self, server: SimulatedServer) -> None:
        ask(server, "GET", "/v1/batches/batch_sim1")

    async def aclose(self) -> None: ...


def ask(server: SimulatedServer, method: str, path: str) -> int:
    from http.client import HTTPConnection

    connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(method, path, b"{}" if method == "POST" else None)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def cancel_at_the_server(server: SimulatedServer, batch: str) -> None:
    assert ask(server, "POST", f"/v1/batches/{batch}/cancel") == 200


async def test_a_file_that_is_too_large_is_split() -> None:
    async with serving(max_bytes=2000) as server:
        results = await mapped(server, mode=Batch(**FAST))
        assert results.texts == TEXTS
        once(server)
        assert results.stats.batches >= 4
        assert online_calls(server) == 0


async def test_a_batch_of_too_many_rows_is_split() -> None:
    async with serving(max_rows=9) as server:
        results = await mapped(server, mode=Batch(**FAST))
        assert results.texts == TEXTS
        once(server)
        assert online_calls(server) == 0


async def test_a_row_that_no_batch_can_hold_is_asked_online() -> None:
    items = ["short", "long " * 400, "brief"]
    async with serving(max_bytes=1000) as server:
        by_the_server = await mapped(server, items, mode=Batch(**FAST))
        assert by_the_server.texts == [f"echo: {item}" for item in items]
        assert online_calls(server) == 1
        by_us = await mapped(server, items, mode=Batch(max_bytes=1000, **FAST))
        assert by_us.texts == by_the_server.texts
        assert online_calls(server) == 2


@pytest.mark.parametrize("quota", [{"max_open": 1}, {"max_enqueued_tokens": 60}])
async def test_a_full_quota_is_waited_for(quota: dict[str, int]) -> None:
    async with serving(seconds=0.1, **quota) as server:
        results = await mapped(server)
        assert results.texts == TEXTS
        once(server)
        assert online_calls(server) == 0


async def test_what_is_too_much_for_the_quota_by_itself_is_split() -> None:
    async with serving(max_enqueued_tokens=30) as server:
        results = await mapped(server, mode=Batch(**FAST))
        assert results.texts == TEXTS
        once(server)


class Answer(BaseModel):
    city: str
    known: bool


def wrong_at_first(view: RequestView) -> str:
    return '{"city": "x", "known": true}' if view.attempt > 1 else '{"city": "x"}'


@pytest.mark.parametrize("leftovers", ["batch", "online"])
async def test_answers_that_do_not_fit_are_shown_to_the_model_again(
    journal: Path, leftovers: Any
) -> None:
    async with serving(answer=wrong_at_first) as server:
        mode = Batch(leftovers=leftovers, **FAST)
        results = await mapped(server, mode=mode, schema=Answer, journal=journal)
        assert not results.failed
        assert all(result.value == Answer(city="x", known=True) for result in results)
        assert all(result.attempts == 2 for result in results)
        assert set(server.ledger.asked().values()) == {2}
        assert online_calls(server) == (40 if leftovers == "online" else 0)
        assert results.usage.requests == 80
        again = await mapped(server, mode=mode, schema=Answer, journal=journal)
        assert again.stats.resumed == 40


async def test_a_model_that_never_learns_fails_with_its_last_answer() -> None:
    async with serving(answer=lambda view: '{"city": "x"}') as server:
        results = await mapped(server, ITEMS[:3], schema=Answer)
        assert len(results.failed) == 3
        assert "after 2 repairs" in str(results[0].error)
        assert set(server.ledger.asked().values()) == {3}


async def test_a_deadline_ends_batches_early_and_asks_the_rest_online() -> None:
    async with serving(seconds=12.0) as server:
        results = await mapped(server, mode=Batch(**FAST), deadline=4.0)
        assert results.texts == TEXTS
        once(server)
        batched = sum(result.batch is not None for result in results)
        assert 0 < batched < 40


async def leave_a_batch_behind(server: SimulatedServer, journal: Path, **more: Any) -> None:
    """Stop a run as Ctrl-C does, once its batch is at the server."""
    task = asyncio.create_task(mapped(server, mode=Batch(**FAST), journal=journal, **more))
    await until_created(server)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_stopped_runs_batch_is_picked_up(journal: Path) -> None:
    async with serving(seconds=1.0) as server:
        await leave_a_batch_behind(server, journal)
        assert list_runs(journal)[-1].state == "stopped"
        results = await mapped(server, mode=Batch(**FAST), journal=journal)
        assert results.texts == TEXTS
        once(server)
        assert created(server) == 1
        assert results.stats.batches == 0
        assert {result.batch for result in results} == {"batch_sim1"}


async def test_an_online_run_cancels_what_is_left_and_takes_what_was_answered(
    journal: Path,
) -> None:
    async with serving(seconds=60.0) as server:
        await leave_a_batch_behind(server, journal)
        results = await mapped(server, mode="online", journal=journal)
        assert results.texts == TEXTS
        once(server)
        batched = sum(result.batch is not None for result in results)
        assert batched < 40
        assert online_calls(server) == 40 - batched
    assert open_batches(journal) == []


def open_batches(journal: Path) -> list[Any]:
    """Which batches a run that is opened now would find."""

    async def look() -> list[Any]:
        opened = Journal.open(journal, Manifest(None, "", {}))
        found = list(opened.open_batches)
        await opened.aclose(state="complete", counts={})
        return found

    from scaleinfer._interrupt import run_in_thread

    return run_in_thread(look)


async def test_answers_to_items_that_are_gone_are_kept_for_later(journal: Path) -> None:
    async with serving(seconds=0.5) as server:
        await leave_a_batch_behind(server, journal)
        fewer = await mapped(server, ITEMS[:10], mode=Batch(**FAST), journal=journal)
        assert fewer.texts == TEXTS[:10]
        all_again = await mapped(server, mode="online", journal=journal)
        assert all_again.texts == TEXTS
        once(server)
        assert online_calls(server) == 0
    assert verify(journal).ok


async def test_without_a_journal_a_stopped_run_cancels_its_batches() -> None:
    async with serving(seconds=30.0) as server:
        async with aclosing(
            stream_map(ITEMS, "{}", base_url=server.base_url, mode=Batch(**FAST), progress=False)
        ) as results:
            task = asyncio.ensure_future(anext(results))
            await until_created(server)
            task.cancel()
            await asyncio.wait([task])
        assert server.ledger.other_paths["/v1/batches/batch_sim1/cancel"] == 1


async def test_the_servers_hiccups_cost_nothing(journal: Path) -> None:
    faults = [
        Fault.status(500, times=2, everywhere=True, match=at("/v1/files")),
        Fault.status(503, times=2, everywhere=True, match=at("/v1/batches")),
        Fault.status(500, times=3, everywhere=True, match=at("/v1/batches/")),
        Fault.drop(times=2, everywhere=True, match=at("/content")),
    ]
    async with serving(faults) as server:
        results = await mapped(server, journal=journal)
        assert results.texts == TEXTS
        once(server)
    assert open_batches(journal) == []


def at(path: str) -> Any:
    if path.endswith("/"):
        return lambda view: view.path.startswith(path)
    return lambda view: view.path == path or (path == "/content" and view.path.endswith(path))


async def test_a_batch_whose_acceptance_was_lost_on_the_way_is_found() -> None:
    # The server makes the batch and the connection breaks before its answer is there.
    faults = [Fault.truncate(times=3, everywhere=True, match=at("/v1/batches"))]
    async with serving(faults) as server:
        results = await mapped(server)
        assert results.texts == TEXTS
        once(server)


async def test_a_create_is_never_sent_twice_by_itself() -> None:
    # Over a connection that has served before, an ordinary call would be sent again.
    faults = [Fault.drop(everywhere=True, match=lambda view: view.elapsed > 0.2)]
    async with serving(faults) as server, OpenAIBackend(server.base_url) as backend:
        batches = backend.batches()
        assert batches is not None
        assert await batches.available()
        await asyncio.sleep(0.3)
        seen = created(server)
        with pytest.raises(Transient):
            await batches.create("t", "/v1/chat/completions sim-model", "file-sim1")
        assert created(server) == seen + 1


async def test_an_endpoint_without_a_batch_api() -> None:
    async with SimulatedServer() as server:
        with pytest.raises(ConfigError, match="no batch API"):
            await mapped(server)
        with pytest.raises(ConfigError, match="no batch API"):
            await parallel_map(ITEMS, "{}", backend="local", mode="batch", progress=False)


async def test_auto_says_what_it_chose_and_why(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "scaleinfer")
    async with serving() as server:
        results = await mapped(server, mode="auto")
        assert results.texts == TEXTS
        assert online_calls(server) == 40
    assert "mode='auto' chose online: 40 items are too few" in caplog.text


async def test_auto_takes_a_batch_where_that_is_known_to_be_cheaper(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "scaleinfer")
    items = [f"item {number}" for number in range(120)]
    async with serving() as server:
        # As if this were OpenAI's own service, with a dollar for each answer.
        monkeypatch.setattr("scaleinfer.backends._batch_openai._OFFICIAL", server.base_url)
        prices = {"*": Price(request=1.0)}
        results = await mapped(server, items, mode="auto", prices=prices)
        assert online_calls(server) == 0
        assert results.cost_usd == 60.0
        online = await mapped(server, items, mode="auto", deadline=3600, prices=prices)
        assert online_calls(server) == 120
        assert online.cost_usd == 120.0
    assert "chose batch: it costs 50 % less and may take up to 24 h" in caplog.text
    assert "chose online: answers are wanted within 1 h 00 min" in caplog.text


async def test_another_programs_batch_is_left_alone(journal: Path) -> None:
    async with serving(seconds=1.5) as server:
        await leave_a_batch_behind(server, journal)
        for mode in (Batch(**FAST), "online"):
            other = await mapped(server, ITEMS[:3], "other {}", mode=mode, journal=journal)
            assert [result.text for result in other] == [f"echo: other {n}" for n in ITEMS[:3]]
        assert "/v1/batches/batch_sim1/cancel" not in server.ledger.other_paths
        results = await mapped(server, mode=Batch(**FAST), journal=journal)
        assert results.texts == TEXTS
        assert set(server.ledger.counts().values()) == {1}


@pytest.mark.parametrize(
    "wrong",
    [{"mode": "later"}, {"mode": "batch", "deadline": -1}, {"mode": "auto", "deadline": "soon"}],
)
async def test_arguments_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        await parallel_map(ITEMS, "{}", base_url="http://127.0.0.1:1/v1", progress=False, **wrong)


async def test_a_batch_that_the_server_refuses_stops_the_run(journal: Path) -> None:
    body = '{"error": {"message": "no batches today"}}'
    faults = [Fault.status(400, times=1, everywhere=True, match=at("/v1/batches"), body=body)]
    async with serving(faults) as server:
        results = await mapped(server, journal=journal)
        assert "no batches today" in results.stats.stopped
        assert len(results.failed) == 40
        assert server.ledger.arrived == 0
        assert list_runs(journal)[-1].state == "stopped"
        # The next run finds that the server has no such batch, and submits one.
        again = await mapped(server, journal=journal)
        assert again.texts == TEXTS
        once(server)


async def test_all_kinds_of_prompts_share_a_run(journal: Path) -> None:
    async def prompt(item: str) -> Any:
        await asyncio.sleep(0)
        match int(item.removeprefix("item ")) % 4:
            case 0:
                return Prompt(item, completion=True)
            case 1:
                return {"a": f"a {item}", "b": f"b {item}"}
            case 2:
                raise ValueError(item)
        return item

    async with serving() as server:
        results = await mapped(server, prompt=prompt, journal=journal)
        assert [result.ok for result in results] == [n % 4 != 2 for n in range(40)]
        assert results[0].text == "echo: item 0"
        assert results[1].value == {"a": "echo: a item 1", "b": "echo: b item 1"}
        assert set(server.ledger.counts().values()) == {1}
        again = await mapped(server, prompt=prompt, journal=journal)
        assert again.stats.resumed == 30


async def test_equal_items_are_asked_as_often_as_they_occur(journal: Path) -> None:
    async with serving(seconds=0.5) as server:
        items = ["same"] * 10
        task = asyncio.create_task(mapped(server, items, mode=Batch(**FAST), journal=journal))
        await until_created(server)
        task.cancel()
        await asyncio.wait([task])
        results = await mapped(server, items, mode=Batch(**FAST), journal=journal)
        assert results.texts == ["echo: same"] * 10
        assert server.ledger.counts() == {"same": 10}


async def test_results_stream_as_batches_end() -> None:
    seen = []
    async with serving(seconds=0.2) as server:
        stream = stream_map(
            ITEMS, "{}", base_url=server.base_url, ordered=True, progress=False,
            mode=Batch(max_rows=8, max_open=1, **FAST),
        )  # fmt: skip
        async with aclosing(stream) as results:
            async for result in results:
                if result.index == 0:
                    assert server.ledger.answered < 40  # later batches are not there yet
                seen.append(result.text)
    assert seen == TEXTS


async def test_an_endless_input_is_pulled_as_batches_have_room() -> None:
    pulled = 0

    async def endless() -> AsyncIterator[str]:
        nonlocal pulled
        while True:
            yield f"item {pulled}"
            pulled += 1
            await asyncio.sleep(0)

    async with serving(seconds=0.05) as server:
        stream = stream_map(
            endless(), "{}", base_url=server.base_url, progress=False,
            mode=Batch(max_rows=10, max_open=2, **FAST),
        )  # fmt: skip
        async with aclosing(stream) as results:
            for _ in range(100):
                assert (await anext(results)).ok
        assert pulled < 400


async def test_a_slow_consumer_is_not_outrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaleinfer._batch_run._UNREAD", 20)
    pulled = 0

    async def endless() -> AsyncIterator[str]:
        nonlocal pulled
        while True:
            yield f"item {pulled}"
            pulled += 1

    async with serving() as server:
        stream = stream_map(
            endless(), "{}", base_url=server.base_url, progress=False,
            mode=Batch(max_rows=10, max_open=2, **FAST),
        )  # fmt: skip
        async with aclosing(stream) as results:
            assert (await anext(results)).ok
            await asyncio.sleep(1.0)
            before = pulled
            await asyncio.sleep(0.5)
            assert pulled == before < 200


def test_map_sync_takes_the_same_mode() -> None:
    with SimulatedServer(batches=BatchApi()).in_thread() as server:
        results = map_sync(
            ITEMS, "{}", base_url=server.base_url, mode=Batch(**FAST), progress=False
        )
        assert results.texts == TEXTS


def test_the_command_takes_the_same_mode(tmp_path: Path) -> None:
    out, journal = tmp_path / "out.jsonl", tmp_path / "run.db"
    (tmp_path / "in.txt").write_text("\n".join(ITEMS))
    with SimulatedServer(batches=BatchApi()).in_thread() as server:
        command = [sys.executable, "-m", "scaleinfer.cli", "map", str(tmp_path / "in.txt")]
        command += ["--prompt", "{text}", "--base-url", server.base_url, "--out", str(out)]
        command += ["--mode", "batch", "--within", "600", "--journal", str(journal)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert online_calls(server) == 0
        once(server)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["text"] for row in rows] == TEXTS


async def test_progress_says_where_the_batch_is(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scaleinfer.observe._log._FIRST_S", (0.5, 1.0, 1.5, 2.0, 2.5, 3.0))
    async with serving(seconds=3.0) as server:
        await parallel_map(
            ITEMS, "{}", base_url=server.base_url, mode=Batch(**FAST), progress="log"
        )
    assert "batch 1 of 1: " in (err := capfd.readouterr().err)
    assert "% done" in err


async def test_items_without_an_answer_say_so_when_the_run_is_stopped() -> None:
    # A wrong key is refused at the first upload.
    async with SimulatedServer(batches=BatchApi(), api_key="right") as server:
        results = await mapped(server, api_key="wrong", model="sim-model")
        assert len(results.failed) == 40
        assert results.stats.stopped
        assert not isinstance(results[0].error, RunStopped)  # it says what is wrong
        assert "key" in str(results[0].error)
