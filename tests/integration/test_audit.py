"""What a journal proves: who ran what, that nothing was changed, what came of every item."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from click.testing import CliRunner
from pydantic import BaseModel

from scaleinfer import PromptError, Retry, parallel_map
from scaleinfer._git import git_state
from scaleinfer.audit import diff, replay, who_saw
from scaleinfer.cli import cli
from scaleinfer.embedding import parallel_embed
from scaleinfer.engine import Budget
from scaleinfer.errors import JournalError
from scaleinfer.journal import list_runs, read_attempts, read_results, read_run, upgrade, verify
from scaleinfer.journal._format import (
    APPLICATION_ID,
    attempt_digest,
    place_checksum,
    result_digest,
    row_digest,
)
from scaleinfer.testing import Fault, SimulatedServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scaleinfer import MapResult

pytestmark = pytest.mark.anyio

ITEMS = [f"item {number}" for number in range(20)]
ONCE = Retry(attempts=1, patience=0.0)


class Soluble(BaseModel):
    soluble: bool


async def mapped(
    server: SimulatedServer, journal: Path, items: Any = ITEMS, prompt: Any = "{}", **more: Any
) -> MapResult:
    return await parallel_map(
        items, prompt, base_url=server.base_url, journal=journal, progress=False, **more
    )


def picky(item: str) -> str:
    if item.endswith("7"):
        raise ValueError(item)
    return item


@pytest.fixture
async def faulty(journal: Path) -> Path:
    """A journal of two runs: answers, failures, an item without a prompt, then most resumed."""
    faults = [Fault.status(400, match="3")]
    async with SimulatedServer(faults=faults) as server:
        await mapped(server, journal, prompt=picky)
        await mapped(server, journal, [*ITEMS[:15], "item new"], prompt=picky)
    assert verify(journal).problems == []
    return journal


def found(journal: Path, **more: Any) -> list[str]:
    return verify(journal, **more).problems


def changed(journal: Path, *statements: str, arguments: tuple[Any, ...] = ()) -> None:
    with closing(sqlite3.connect(journal)) as connection:
        for statement in statements:
            connection.execute(statement, arguments)
        connection.commit()


def row(journal: Path, query: str) -> tuple[Any, ...]:
    with closing(sqlite3.connect(journal)) as connection:
        found: tuple[Any, ...] = connection.execute(query).fetchone()
    return found


async def test_the_manifest_says_who_when_what_and_where(
    server: SimulatedServer, journal: Path
) -> None:
    await mapped(server, journal, ITEMS[:2], name="named", concurrency=3, retry=ONCE)
    (info,) = list_runs(journal)
    data = info.data
    assert data["user"]
    assert data["host"]
    assert data["endpoints"] == [server.base_url]
    assert data["parameters"]["concurrency"] == 3
    assert data["parameters"]["retry"]["attempts"] == 1
    assert set(data["packages"]) >= {"scaleinfer", "orjson"}
    assert len(data["program"]["prompt_fn"]) == 32
    assert set(data["git"] or {"commit", "branch", "dirty"}) == {"commit", "branch", "dirty"}
    assert info.counts["items"] == info.counts["ok"] == 2
    assert info.counts["not_asked"] == 0


def test_the_state_of_a_repository(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", *who, *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q", "-b", "work")
    (tmp_path / "a.py").write_text("1")
    assert git_state(tmp_path) == {"commit": None, "branch": "work", "dirty": False}
    git("add", "a.py")
    git("commit", "-q", "-m", "a")
    (tmp_path / "deep").mkdir()
    commit = git("rev-parse", "HEAD")
    clean = {"commit": commit, "branch": "work", "dirty": False}
    assert git_state(tmp_path / "deep") == clean
    git("pack-refs", "--all")
    assert git_state(tmp_path) == clean
    (tmp_path / "a.py").write_text("2")
    assert git_state(tmp_path) == clean | {"dirty": True}
    git("checkout", "-q", "--detach")
    assert git_state(tmp_path) == {"commit": commit, "branch": None, "dirty": True}


# What verify finds. Whoever changes these rows knows how their own digests are made.


def forged_payload(journal: Path) -> None:
    number, identity, occurrence, ok, key, question = row(
        journal, "SELECT id, identity, occurrence, ok, key, question FROM results WHERE ok = 1"
    )
    payload = b'{"text":"forged"}'
    digest = result_digest(identity, occurrence, ok=ok, key=key, question=question, payload=payload)
    changed(
        journal,
        "UPDATE results SET payload = CAST(? AS TEXT), digest = ? WHERE id = ?",
        arguments=(payload, digest, number),
    )


def forged_place(journal: Path) -> None:
    number, identity, occurrence, run, idx = row(
        journal, "SELECT id, identity, occurrence, run, idx FROM results WHERE run = 2"
    )
    place = place_checksum(identity, occurrence, run, idx + 40)
    changed(
        journal,
        "UPDATE results SET idx = ?, place = ? WHERE id = ?",
        arguments=(idx + 40, place, number),
    )


def forged_attempt(journal: Path) -> None:
    columns = (
        "run, identity, occurrence, number, endpoint, started, latency_s, status, http_status,"
        " prompt_tokens, completion_tokens, error, more"
    )
    *values, more = row(journal, f"SELECT {columns} FROM attempts WHERE id = 4")
    values[4] = "http://elsewhere/v1"
    told = tuple(values) if more is None else (*values, more)
    changed(
        journal,
        "UPDATE attempts SET endpoint = ?, digest = ? WHERE id = 4",
        arguments=(values[4], attempt_digest(told)),
    )


def forged_manifest(journal: Path) -> None:
    values = list(row(journal, "SELECT id, name, started, fingerprint, data FROM runs LIMIT 1"))
    values[4] = values[4].replace('"user":"', '"user":"not ')
    digest = row_digest("runs", tuple(values))
    changed(
        journal, "UPDATE runs SET data = ?, digest = ? WHERE id = 1", arguments=(values[4], digest)
    )


def forged_state(journal: Path) -> None:
    values = list(row(journal, "SELECT * FROM run_states WHERE run = 1"))[:-1]
    values[3] = orjson.dumps(orjson.loads(values[3]) | {"items": 19, "ok": 16}).decode()
    digest = row_digest("run_states", tuple(values))
    changed(
        journal,
        "UPDATE run_states SET counts = ?, digest = ? WHERE run = 1",
        arguments=(values[3], digest),
    )


def swapped_attempts(journal: Path) -> None:
    changed(
        journal,
        "UPDATE attempts SET id = -1 WHERE id = 2",
        "UPDATE attempts SET id = 2 WHERE id = 3",
        "UPDATE attempts SET id = 3 WHERE id = -1",
    )


def removed_attempt(journal: Path) -> None:
    changed(
        journal,
        "DELETE FROM attempts WHERE id = 5",
        "UPDATE attempts SET id = id - 1 WHERE id > 5",
    )


def removed_last_attempt(journal: Path) -> None:
    changed(journal, "DELETE FROM attempts WHERE id = (SELECT max(id) FROM attempts)")


def removed_result(journal: Path) -> None:
    """The last row, so that numbers and counts stay without a gap."""
    changed(journal, "DELETE FROM results WHERE id = (SELECT max(id) FROM results)")
    states = "SELECT run, state, ended, counts, ok, failed, reused, unrendered, attempts, rows"
    values = list(row(journal, f"{states} FROM run_states WHERE run = 2"))
    values[9] -= 1
    digest = row_digest("run_states", tuple(values))
    changed(
        journal,
        "UPDATE run_states SET rows = ?, digest = ? WHERE run = 2",
        arguments=(values[9], digest),
    )


def removed_unrendered(journal: Path) -> None:
    changed(journal, "DELETE FROM unrendered WHERE id = 1")


def removed_link(journal: Path) -> None:
    changed(journal, "DELETE FROM chain WHERE id = 2", "UPDATE chain SET id = id - 1 WHERE id > 2")


def forged_link(journal: Path) -> None:
    changed(journal, "UPDATE chain SET noted = noted + 1 WHERE id = 2")


def added_attempt(journal: Path) -> None:
    """A call that was never made, copied from another."""
    columns = (
        "run, identity, occurrence, number, endpoint, started, latency_s, status, http_status,"
        " prompt_tokens, completion_tokens, error, digest, more"
    )
    changed(
        journal, f"INSERT INTO attempts ({columns}) SELECT {columns} FROM attempts WHERE id = 1"
    )


CHANGES: list[Callable[[Path], None]] = [
    forged_payload, forged_place, forged_attempt, forged_manifest, forged_state, swapped_attempts,
    removed_attempt, removed_last_attempt, removed_result, removed_unrendered, removed_link,
    forged_link, added_attempt,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
async def test_every_kind_of_change_is_found(faulty: Path, change: Callable[[Path], None]) -> None:
    change(faulty)
    assert found(faulty)


async def test_a_row_of_another_journal_is_found(
    server: SimulatedServer, faulty: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.db"
    await mapped(server, other, ["item 1", "stranger"])
    columns = "identity, occurrence, run, idx, ok, key, question, payload, digest, place"
    with closing(sqlite3.connect(faulty)) as connection:
        connection.execute("ATTACH ? AS other", (str(other),))
        connection.execute(
            f"UPDATE results SET ({columns}) = (SELECT {columns} FROM other.results WHERE idx = 1)"
            " WHERE id = 1"
        )
        connection.commit()
    problems = found(faulty)
    assert any("results row 1" in problem for problem in problems), problems


async def test_an_earlier_state_of_a_row_is_found(journal: Path) -> None:
    """A failure that a later run has mended, put back as it was."""
    async with SimulatedServer(faults=[Fault.status(400, first=1)]) as server:
        await mapped(server, journal, ["a"])
        before = row(journal, "SELECT * FROM results")
        await mapped(server, journal, ["a"])
    marks = ",".join("?" * len(before))
    changed(journal, f"REPLACE INTO results VALUES ({marks})", arguments=before)
    assert any("not the one recorded last" in problem for problem in found(journal))


async def test_a_journal_cut_back_to_an_earlier_run_lacks_the_later_head(
    server: SimulatedServer, journal: Path, tmp_path: Path
) -> None:
    first = await mapped(server, journal, ITEMS[:3])
    earlier = tmp_path / "earlier.db"
    shutil.copy(journal, earlier)
    second = await mapped(server, journal, ITEMS[:5])
    assert first.stats.journal_head != second.stats.journal_head
    # What was kept of either run is in the whole journal; the cut one is whole in itself.
    assert found(journal, head=first.stats.journal_head) == []
    assert verify(journal).head == second.stats.journal_head
    assert found(earlier) == []
    (problem,) = found(earlier, head=second.stats.journal_head)
    assert "the journal was written anew, cut" in problem


async def test_every_item_is_accounted_for(faulty: Path) -> None:
    first, second = verify(faulty).accounts
    assert (first.items, first.ok, first.failed, first.not_asked) == (20, 16, 4, 0)
    assert (first.recorded, first.missing) == (18, 0)
    assert (second.items, second.ok, second.failed) == (16, 13, 3)


async def test_a_stopped_run_says_what_it_left(server: SimulatedServer, journal: Path) -> None:
    results = await mapped(server, journal, concurrency=2, budget=Budget(requests=5))
    (account,) = verify(journal).accounts
    assert account.items == results.stats.items
    assert account.not_asked == results.stats.not_asked > 0
    assert account.items + account.not_asked == len(ITEMS)
    assert found(journal) == []


# Replay, diff, export.


async def test_a_replay_is_the_run_byte_for_byte(faulty: Path, journal: Path) -> None:
    faults = [Fault.status(400, match="3")]
    async with SimulatedServer(faults=faults) as server:
        several = await mapped(
            server, journal, prompt=lambda item: {"b": f"{item} b", "a": f"{item} a"}
        )
        arrived = server.ledger.arrived
        again = replay(journal)
        assert server.ledger.arrived == arrived
    assert again.digest == several.digest
    assert [r.value for r in again] == [r.value for r in several]
    assert [str(r.error) for r in again.failed] == [str(r.error) for r in several.failed]
    assert again.usage == several.usage
    assert (again.stats.ok, again.stats.failed) == (several.stats.ok, several.stats.failed)


async def test_replays_of_objects_failures_and_vectors(
    server: SimulatedServer, journal: Path, tmp_path: Path
) -> None:
    objects = await mapped(server, journal, prompt=picky, schema=Soluble)
    assert objects.failed
    assert isinstance(objects.failed[0].error, PromptError)
    again = replay(journal)
    assert again.digest == objects.digest
    assert again[0].value == {"soluble": objects[0].value.soluble}

    vectors = await parallel_embed(
        ITEMS, base_url=server.base_url, journal=tmp_path / "v.db", progress=False
    )
    assert replay(tmp_path / "v.db").digest == vectors.digest
    assert vectors.digest != objects.digest


async def test_an_earlier_run_is_rebuilt_after_later_ones(
    server: SimulatedServer, journal: Path
) -> None:
    first = await mapped(server, journal)
    second = await mapped(server, journal, list(reversed(ITEMS))[:10])
    assert replay(journal, 1).digest == first.digest
    assert replay(journal, 2).digest == second.digest
    assert [stored.index for stored in read_run(journal, 2)] == list(range(10))


async def test_what_cannot_be_rebuilt_says_why(journal: Path) -> None:
    async def program(item: str, llm: Any) -> str:
        return str((await llm(item)).text)

    async with SimulatedServer(faults=[Fault.status(400, first=1)]) as server:
        await mapped(server, journal, ["a", "b"])
        await mapped(server, journal, ["a", "b"])
        with pytest.raises(JournalError, match="asked items again"):
            replay(journal, 1)
        assert [stored.kept for stored in read_run(journal, 1)] == [False, False]
        await mapped(server, journal, ["a"], prompt=program)
    with pytest.raises(JournalError, match="a program for each item"):
        replay(journal)
    with pytest.raises(JournalError, match="no run 9"):
        replay(journal, 9)
    with pytest.raises(JournalError, match="no run 9"):
        list(read_run(journal, 9))
    assert found(journal) == []


async def test_what_differs_between_two_runs(tmp_path: Path) -> None:
    one, two = tmp_path / "one.db", tmp_path / "two.db"
    async with SimulatedServer(
        faults=[Fault.status(400, match=lambda view: view.prompt in {"c", "longer d"})]
    ) as server:
        await mapped(server, one, ["a", "b", "c", "d", "e"], key=str)
        await mapped(
            server, two, ["a", "b", "c", "d", "f"], key=str,
            prompt=lambda item: f"longer {item}" if item in "bcd" else item,
        )  # fmt: skip
    difference = diff(one, two)
    counts = [getattr(difference, what) for what in ("same", "answer", "added", "removed")]
    assert counts == [1, 1, 1, 1]
    assert (difference.failed, difference.mended) == (1, 1)
    assert difference.prompt_tokens > 0
    changes = {change.what: (change.key, change.before) for change in difference.examples}
    assert changes["answer"] == ("b", "echo: b")
    assert changes["mended"][0] == "c"
    assert changes["failed"] == ("d", "echo: d")
    assert diff(one, one, run_before=1, run_after=1).equal


async def test_a_run_and_the_one_before_it(server: SimulatedServer, journal: Path) -> None:
    await mapped(server, journal, ["a", "b"])
    await mapped(server, journal, ["a", "b", "c"])
    difference = diff(journal)
    assert (difference.same, difference.added, difference.removed) == (2, 1, 0)


def invoke(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["runs", *arguments])
    return done.exit_code, done.output


async def test_the_commands(faulty: Path, tmp_path: Path) -> None:
    code, said = invoke("verify", str(faulty))
    assert code == 0
    assert "run 1: 20 items = 16 ok + 4 failed + 0 not asked" in said
    head = said.rpartition("head ")[2].strip()
    assert invoke("verify", str(faulty), "--head", head)[0] == 0
    assert invoke("verify", str(faulty), "--head", "00" * 16)[0] == 1

    digest = replay(faulty).digest
    out = tmp_path / "again.jsonl"
    code, said = invoke("replay", str(faulty), "--out", str(out), "--digest", digest)
    assert (code, digest in said) == (0, True)
    assert len(out.read_text().splitlines()) == 16
    assert invoke("replay", str(faulty), "--digest", "00")[0] == 1

    code, said = invoke("diff", str(faulty))
    assert code == 1
    assert "added" in said
    assert invoke("diff", str(faulty), str(faulty))[0] == 0
    code, said = invoke("audit", str(faulty))
    assert code == 0
    assert "(no label)" in said
    assert "up to date already" in invoke("upgrade", str(faulty))[1]


async def test_export_in_the_shape_of_a_batch(faulty: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    code, _ = invoke("export", str(faulty), "--format", "openai", "--out", str(out))
    assert code == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 16
    good = next(line for line in lines if line["error"] is None)
    assert good["response"]["status_code"] == 200
    body = good["response"]["body"]
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["content"].startswith("echo: ")
    assert body["usage"]["total_tokens"] > 0
    failed = {line["error"]["code"] for line in lines if line["error"] is not None}
    assert failed == {"Permanent", "PromptError"}
    assert len({line["custom_id"] for line in lines}) == 16


async def test_export_as_parquet(faulty: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "out.parquet"
    assert invoke("export", str(faulty), "--run", "1", "--out", str(out))[0] == 0
    table = parquet.read_table(out).to_pylist()
    stored = [one for one in read_run(faulty, 1) if one.kept]
    assert [line["text"] for line in table] == [one.payload.get("text") for one in stored]


# Journals of the first format.


def as_first_format(journal: Path) -> None:
    """Make of a journal what the version before the chain would have left."""
    changed(
        journal,
        "DROP TABLE chain",
        "UPDATE attempts SET more = NULL",
        "ALTER TABLE attempts DROP COLUMN more",
        "PRAGMA user_version = 1",
    )
    with closing(sqlite3.connect(journal)) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        columns = "run, identity, occurrence, number, endpoint, started, latency_s, status,"
        columns += " http_status, prompt_tokens, completion_tokens, error"
        for number, *values in connection.execute(f"SELECT id, {columns} FROM attempts").fetchall():
            digest = attempt_digest(tuple(values))
            connection.execute("UPDATE attempts SET digest = ? WHERE id = ?", (digest, number))
        connection.commit()


async def test_a_journal_of_the_first_format_is_brought_up_to_date(
    server: SimulatedServer, faulty: Path
) -> None:
    before = list(read_results(faulty, everything=True))
    as_first_format(faulty)
    with pytest.raises(JournalError, match="format 1") as caught:
        verify(faulty)
    assert "runs upgrade" in caught.value.hint
    assert invoke("upgrade", str(faulty)) == (0, f"{faulty} is up to date\n")
    assert not upgrade(faulty)
    assert found(faulty) == []
    assert list(read_results(faulty, everything=True)) == before
    assert len(list(read_attempts(faulty))) > 0
    results = await mapped(server, faulty, prompt=picky)
    assert results.stats.resumed == 16
    assert found(faulty) == []
    forged_payload(faulty)
    assert found(faulty)


async def test_resuming_brings_it_up_to_date_too(server: SimulatedServer, faulty: Path) -> None:
    as_first_format(faulty)
    results = await mapped(server, faulty, prompt=picky)
    assert results.stats.resumed == 16
    assert found(faulty) == []
    assert replay(faulty).digest == results.digest


def test_upgrading_nothing(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="no journal"):
        upgrade(tmp_path / "none.db")


async def test_who_saw_what_counts_every_call(server: SimulatedServer, journal: Path) -> None:
    await mapped(server, journal)
    (sight,) = who_saw(journal)
    assert (sight.label, sight.endpoint, sight.items, sight.calls, sight.answered) == (
        "", server.base_url, 20, 20, 20,
    )  # fmt: skip
    assert sight.allowed is None
    assert sys.maxsize > sight.last >= sight.first > 0
