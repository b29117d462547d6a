"""The journal through the front door: what is done is not asked again, and nothing leaks."""

from __future__ import annotations

import asyncio
import itertools
import logging
import subprocess
import sys
import urllib.request
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel, field_validator

from scaleinfer import JournalError, OpenAIBackend, PromptError, Retry, parallel_map, stream_map
from scaleinfer.journal import list_runs, read_results, verify
from scaleinfer.testing import Fault, SimulatedServer

if TYPE_CHECKING:
    from pathlib import Path

    from scaleinfer import MapResult

pytestmark = pytest.mark.anyio

QUIET: dict[str, Any] = {"progress": False}
CANARY = "sk-CANARY-4711"
ITEMS = [f"item {number}" for number in range(30)]


class Soluble(BaseModel):
    soluble: bool
    parts: list[int] = []


async def mapped(
    server: SimulatedServer, journal: Path, items: Any = ITEMS, prompt: Any = "{}", **more: Any
) -> MapResult:
    return await parallel_map(
        items, prompt, base_url=server.base_url, journal=journal, **QUIET, **more
    )


async def test_the_same_call_again_asks_nothing(server: SimulatedServer, journal: Path) -> None:
    first = await mapped(server, journal)
    again = await mapped(server, journal)
    assert server.ledger.arrived == 30
    assert again.texts == first.texts
    assert [result.key for result in again] == [result.key for result in first]
    assert all(result.resumed for result in again)
    assert not any(result.resumed for result in first)
    assert again.usage == first.usage
    assert again.stats.usage.requests == 0
    assert again.stats.resumed == 30
    assert verify(journal).ok
    assert [info.state for info in list_runs(journal)] == ["complete", "complete"]


async def test_reordered_appended_and_shrunk_lists(server: SimulatedServer, journal: Path) -> None:
    await mapped(server, journal)
    longer = [*reversed(ITEMS), "new 1", "new 2"]
    results = await mapped(server, journal, longer)
    assert server.ledger.arrived == 32
    assert results.texts == [f"echo: {item}" for item in longer]
    assert [result.resumed for result in results] == [True] * 30 + [False] * 2
    assert (await mapped(server, journal, ITEMS[3:5])).stats.resumed == 2
    assert server.ledger.arrived == 32


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "About {}"},
        {"system": "Be brief."},
        {"sampling": {"temperature": 0.5}},
        {"schema": Soluble},
        {"model": "other"},
    ],
)
async def test_a_changed_question_is_a_new_one(change: dict[str, Any], journal: Path) -> None:
    async with SimulatedServer(models=["sim-model", "other"]) as server:
        await mapped(server, journal, **({"model": "sim-model"}))
        changed = await mapped(server, journal, **({"model": "sim-model"} | change))
        assert changed.stats.resumed == 0
        assert server.ledger.arrived == 60
        back = await mapped(server, journal, model="sim-model")
        assert back.stats.resumed == 30


async def test_duplicates_get_an_answer_each(journal: Path) -> None:
    numbers = itertools.count()
    async with SimulatedServer(answer=lambda view: f"answer {next(numbers)}") as server:
        first = await mapped(server, journal, ["same"] * 5)
        assert len(set(first.texts)) == 5
        again = await mapped(server, journal, ["same"] * 7)
        assert server.ledger.arrived == 7
        assert sorted(str(text) for text in again.texts)[:5] == sorted(map(str, first.texts))
        assert again.stats.resumed == 5


async def test_keys_of_the_users_own(server: SimulatedServer, journal: Path) -> None:
    rows = [{"id": number, "text": "same"} for number in range(5)]
    options: dict[str, Any] = {"prompt": "{text}", "key": lambda row: row["id"]}
    first = await mapped(server, journal, rows, **options)
    assert [result.key for result in first] == ["0", "1", "2", "3", "4"]
    again = await mapped(server, journal, list(reversed(rows)), **options)
    assert again.stats.resumed == 5
    assert [result.key for result in again] == ["4", "3", "2", "1", "0"]
    rows[2]["text"] = "changed"
    assert (await mapped(server, journal, rows, **options)).stats.resumed == 4
    assert server.ledger.arrived == 6


async def test_failed_items_are_asked_again(journal: Path) -> None:
    fault = Fault.status(400, first=1, match="item 1")
    async with SimulatedServer(faults=[fault]) as server:
        first = await mapped(server, journal)
        assert first.stats.failed == 11
        again = await mapped(server, journal)
        assert again.stats.failed == 0
        assert again.stats.resumed == 19
        assert all(answered == 1 for answered in server.ledger.counts().values())
        rows = list(read_results(journal))
    assert len(rows) == 30
    assert all(row.ok for row in rows)


async def test_values_come_typed_again(server: SimulatedServer, journal: Path) -> None:
    first = await mapped(server, journal, schema=Soluble)
    again = await mapped(server, journal, schema=Soluble)
    assert again.values == first.values
    assert all(isinstance(value, Soluble) for value in again.values)
    assert again.stats.resumed == 30


async def test_validators_that_have_changed_ask_again(
    server: SimulatedServer, journal: Path
) -> None:
    seen: list[bool] = []

    class Checked(BaseModel):
        n: int

        @field_validator("n")
        @classmethod
        def check(cls, value: int) -> int:
            if seen:
                raise ValueError("no longer good enough")
            return value

    await mapped(server, journal, ["a"], schema=Checked)
    seen.append(True)
    (result,) = await mapped(server, journal, ["a"], schema=Checked, retry=Retry(repairs=0))
    assert not result.ok
    assert not result.resumed
    assert server.ledger.arrived == 2


async def test_several_questions_resume_one_by_one(journal: Path) -> None:
    def prompt(item: str) -> dict[str, str]:
        return {"a": f"A {item}", "b": f"B {item}"}

    fault = Fault.status(400, first=1, match="B item 1")
    async with SimulatedServer(faults=[fault]) as server:
        first = await mapped(server, journal, prompt=prompt)
        assert first.stats.failed == 11
        again = await mapped(server, journal, prompt=prompt)
        assert again.stats.failed == 0
        assert server.ledger.arrived == 60 + 11
        assert again.values[1] == {"a": "echo: A item 1", "b": "echo: B item 1"}


async def test_stream_map_lands_as_it_goes(server: SimulatedServer, journal: Path) -> None:
    options: dict[str, Any] = {"base_url": server.base_url, "journal": journal, **QUIET}
    seen = []
    stream = stream_map(itertools.count(), "{}", concurrency=4, ordered=True, **options)
    async with aclosing(stream):
        async for result in stream:
            seen.append(result.text)
            if len(seen) == 100:
                break
    recorded = {row.index for row in read_results(journal) if row.ok}
    assert recorded >= set(range(100))
    assert [info.state for info in list_runs(journal)] == ["stopped"]
    assert server.ledger.arrived <= len(recorded) + 4
    again = stream_map(range(100), "{}", ordered=True, **options)
    assert [result.resumed async for result in again] == [True] * 100


async def test_a_second_writer_is_refused_at_once(server: SimulatedServer, journal: Path) -> None:
    options: dict[str, Any] = {"base_url": server.base_url, "journal": journal, **QUIET}
    stream = stream_map(itertools.count(), "{}", **options)
    async with aclosing(stream):
        await anext(stream)
        with pytest.raises(JournalError) as caught:
            await parallel_map(ITEMS, "{}", **options)
        assert caught.value.reason == "locked"
        assert str(journal) in str(caught.value)
        await anext(stream)
    assert (await parallel_map(ITEMS, "{}", **options)).stats.ok == 30


@pytest.mark.parametrize("content", [b"hello, I am a text file\n" * 100, b"SQLite format 3\0xx"])
async def test_a_file_that_is_no_journal_is_left_alone(
    content: bytes, server: SimulatedServer, journal: Path
) -> None:
    journal.write_bytes(content)  # noqa: ASYNC240 - a moment
    with pytest.raises(JournalError):
        await mapped(server, journal)
    assert journal.read_bytes() == content  # noqa: ASYNC240 - a moment
    assert server.ledger.arrived == 0


async def test_items_without_a_prompt_are_noted_and_asked_again(
    server: SimulatedServer, journal: Path
) -> None:
    broken = True

    def prompt(item: str) -> str:
        if broken and item == "item 3":
            raise KeyError("smiles")
        return item

    first = await mapped(server, journal, prompt=prompt)
    assert isinstance(first[3].error, PromptError)
    broken = False
    again = await mapped(server, journal, prompt=prompt)
    assert again.stats.ok == 30
    assert again.stats.resumed == 29


async def test_a_full_disk_stops_the_run_with_words(
    server: SimulatedServer, journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await mapped(server, journal, ITEMS[:3])
    from scaleinfer.journal import Journal

    def refuse(self: Journal, *args: Any, **more: Any) -> None:
        raise JournalError("the disk is full.", path=str(journal), reason="full")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "record", refuse)
        for prompt in ("{}", lambda item: {"a": item, "b": f"{item}!"}):
            with pytest.raises(JournalError, match="disk is full"):
                await mapped(server, journal, prompt=prompt)
    assert (await mapped(server, journal)).stats.resumed == 3


async def test_no_secret_gets_anywhere(
    journal: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    faults = [
        Fault.status(500, first=1, match="item 2"),
        Fault.status(400, match="item 3", body=f'{{"error": "bad key {CANARY}"}}'),
    ]
    async with SimulatedServer(api_key=CANARY, faults=faults) as server:
        backend = OpenAIBackend(server.base_url, api_key=CANARY, headers={"X-Secret": CANARY})
        for progress in ("log", "none"):
            results = await parallel_map(
                ITEMS,
                "{}",
                backend=backend,
                journal=journal,
                progress=progress,
                retry=Retry(initial=0.01),
            )
        asyncio.get_running_loop().set_debug(False)
        clean = [result for result in results if result.item != "item 3"]
        shown = repr(results.stats) + repr(results) + repr(backend) + repr(clean)
        assert results.stats.ok == 29
    files = b"".join(path.read_bytes() for path in journal.parent.iterdir() if path.is_file())
    out, err = capfd.readouterr()
    assert CANARY.encode() not in files
    for text in (shown, out, err, caplog.text, str(results[3].error), results[3].error.body):  # type: ignore[union-attr] # it failed
        assert CANARY not in text


async def test_an_answer_keeps_the_words_that_headers_hold() -> None:
    async with SimulatedServer(answer=lambda view: "organic chemistry") as server:
        backend = OpenAIBackend(server.base_url, headers={"X-Project": "chemistry"})
        results = await parallel_map(["q"], "{}", backend=backend, progress="none")
    assert results.texts == ["organic chemistry"]


def test_a_journal_left_open_by_a_crash_goes_on(journal: Path) -> None:
    script = """
import os, sys
from scaleinfer import stream_map
import asyncio
async def main():
    n = 0
    async for result in stream_map(range(1000), "{}", base_url=sys.argv[1], journal=sys.argv[2],
                                   concurrency=4, progress=False):
        n += 1
        if n == 100:
            os._exit(7)
asyncio.run(main())
"""
    with SimulatedServer().in_thread() as server:
        done = subprocess.run(
            [sys.executable, "-c", script, server.base_url, str(journal)], check=False, timeout=30
        )
        assert done.returncode == 7
        # What the dead process had sent is read before this: the ledger has it from then on.
        with urllib.request.urlopen(f"{server.base_url}/models", timeout=10):
            before = server.ledger.arrived
        results = asyncio.run(mapped(server, journal, range(1000)))
        assert results.stats.ok == 1000
        assert results.stats.resumed >= 100
        assert server.ledger.arrived - before == 1000 - results.stats.resumed
        assert sum(server.ledger.asked().values()) <= 1000 + 4
