"""What a journal keeps of batches: planned, submitted, closed; whole and damaged."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from scaleinfer.journal import (
    BatchEvent,
    BatchMember,
    Journal,
    Manifest,
    OpenBatch,
    pack_members,
    recover,
    verify,
)
from scaleinfer.journal._batches import unpack_members

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

MEMBERS = (
    BatchMember(b"a" * 16, 0, 0, (b"a" * 16).hex(), "", 3),
    BatchMember(b"b" * 16, 2, 1, "my key", "city", 4),
)


def opened(path: Path) -> Journal:
    return Journal.open(path, Manifest(None, "f", {}))


def event(token: str, what: Any, batch: str = "", noted: float = 5.0) -> BatchEvent:
    members = pack_members(MEMBERS) if what == "planned" else b""
    return BatchEvent(token, what, batch, "http://e/v1", noted, members)


async def noted(path: Path, *events: BatchEvent) -> None:
    journal = opened(path)
    for one in events:
        await journal.note_batch(one)
    await journal.aclose(state="stopped", counts={})


async def found(path: Path) -> tuple[OpenBatch, ...]:
    journal = opened(path)
    batches = journal.open_batches
    await journal.aclose(state="stopped", counts={})
    return batches


def test_members_come_back_as_they_were() -> None:
    assert unpack_members(pack_members(MEMBERS)) == MEMBERS
    assert unpack_members(pack_members(())) == ()
    many = [BatchMember(n.to_bytes(16, "big"), 0, 0, f"{n:032x}", "", n) for n in range(10_000)]
    packed = pack_members(many)
    assert unpack_members(packed) == tuple(many)
    assert len(packed) < 40 * len(many)


async def test_a_batch_is_open_until_it_is_closed(journal: Path) -> None:
    await noted(journal, event("t1", "planned"), event("t2", "planned"))
    one, _ = await found(journal)
    assert (one.token, one.batch, one.endpoint, one.planned) == ("t1", "", "http://e/v1", 5.0)
    assert one.members == MEMBERS
    await noted(journal, event("t1", "submitted", "b1"), event("t2", "closed"))
    (one,) = await found(journal)
    assert (one.batch, one.members) == ("b1", MEMBERS)
    await noted(journal, event("t1", "closed", "b1"))
    assert await found(journal) == ()
    report = verify(journal)
    assert (report.ok, report.batches) == (True, 5)


async def test_the_last_plan_counts(journal: Path) -> None:
    later = BatchEvent("t1", "planned", "", "http://e/v1", 9.0, b"")
    await noted(journal, event("t1", "planned"), later)
    (one,) = await found(journal)
    assert (one.planned, one.members) == (9.0, MEMBERS)


async def test_a_journal_without_batches_has_no_table_for_them(journal: Path) -> None:
    await noted(journal)
    connection = sqlite3.connect(journal)
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    connection.close()
    assert "batches" not in tables
    assert verify(journal).ok
    await noted(journal, event("t1", "planned"))
    assert len(await found(journal)) == 1


async def test_a_row_that_was_changed_is_found_and_not_used(journal: Path) -> None:
    await noted(journal, event("t1", "planned"), event("t2", "planned"))
    connection = sqlite3.connect(journal)
    connection.execute("UPDATE batches SET endpoint = 'elsewhere' WHERE token = 't1'")
    connection.commit()
    connection.close()
    assert "batches row 1" in verify(journal).problems[0]
    assert [one.token for one in await found(journal)] == ["t2"]


async def test_batches_are_salvaged_with_the_rest(journal: Path, tmp_path: Path) -> None:
    await noted(journal, event("t1", "planned"), event("t1", "submitted", "b1"))
    rescued = tmp_path / "rescued.db"
    report = recover(journal, rescued)
    assert (report.intact, report.batches, report.lost) == (True, 2, 0)
    (one,) = await found(rescued)
    assert (one.batch, one.members) == ("b1", MEMBERS)


async def test_no_secret_gets_in(journal: Path) -> None:
    leak = BatchEvent("t1", "planned", "", "https://user:TOPSECRET@e/v1", 5.0, b"")
    await noted(journal, leak)
    connection = sqlite3.connect(journal)
    rows = connection.execute("SELECT endpoint FROM batches").fetchall()
    connection.close()
    assert rows
    assert "TOPSECRET" not in str(rows)
