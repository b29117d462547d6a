"""The chain over commits: what it covers, and that no damage to it makes the check fail."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.journal import Claim, Manifest, verify
from scaleinfer.journal._chain import (
    ANSWERED,
    Link,
    hash_rows,
    pack_entries,
    pack_states,
    unpack_entries,
    unpack_states,
)
from scaleinfer.journal._database import connect_writer, create
from scaleinfer.journal._store import Store
from scaleinfer.results import Attempt

if TYPE_CHECKING:
    from pathlib import Path

DIGESTS = st.binary(min_size=16, max_size=16)
COLUMNS = (
    "run", "noted", "runs", "attempts", "unrendered", "batches", "added", "results", "states",
    "digest",
)  # fmt: skip


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A journal of six commits: results, calls, an item without a prompt."""
    path = tmp_path / "run.db"
    create(str(path))
    connection = connect_writer(str(path), file_locks=True)
    store = Store.begin(connection, Manifest(None, "f", {}))
    for number in range(5):
        claim = Claim(bytes([number]) * 16, -1, str(number), "", number, None)
        store.claim([claim])
        store.attempt(claim, Attempt(1, "e", 0.0, 1.0, "ok", model="m", cost_usd=0.5))
        store.record(claim, b'{"text":"%d"}' % number, ok=number != 3)
        if number == 4:
            store.unrendered(5, "five", {"type": "PromptError", "message": "no field"})
        store.commit()
    store.commit("complete", {"items": 6, "ok": 4, "failed": 2})
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()
    assert verify(path).problems == []
    return path


@given(
    st.lists(st.tuples(st.integers(1, 2**32 - 1), st.integers(), st.integers(0, 2), DIGESTS)).map(
        lambda rows: [(n, max(-(2**63), min(2**63 - 1, i)), k, d) for n, i, k, d in rows]
    )
)
def test_entries_come_back(entries: list[tuple[int, int, int, bytes]]) -> None:
    packed = pack_entries(entries)
    assert len(packed) == 29 * len(entries)
    assert [tuple(entry) for entry in unpack_entries(packed)] == entries


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.binary(min_size=8, max_size=8))))
def test_states_come_back(states: list[tuple[int, bytes]]) -> None:
    assert list(unpack_states(pack_states(states))) == states


def test_rows_are_told_apart_by_table_and_order() -> None:
    one, two = b"1" * 8, b"2" * 8
    added: list[list[list[bytes]]] = [
        [[one, two], []], [[two, one], []], [[one], [two]], [[], [one, two]], [[], []],
    ]  # fmt: skip
    assert len({hash_rows(rows) for rows in added}) == 5


def test_a_links_digest_covers_every_part_and_the_link_before() -> None:
    entries = pack_entries([(1, 0, ANSWERED, bytes(16))])
    link = Link(1, 1, 2.0, 1, 2, 3, 4, bytes(16), entries, pack_states([(1, bytes(8))]), b"")
    others = [
        link._replace(**{name: _other(getattr(link, name))})
        for name in ("id", *COLUMNS[:-1])
    ]  # fmt: skip
    digests = {one.digest_after(bytes(16)) for one in (link, *others)}
    assert len(digests) == 11
    assert link.digest_after(b"1" * 16) not in digests
    # Where results end and states begin is part of it.
    shifted = link._replace(results=entries + link.states, states=b"")
    assert shifted.digest_after(bytes(16)) != link.digest_after(bytes(16))


def _other(value: Any) -> Any:
    return value + 1 if isinstance(value, int | float) else bytes([value[0] ^ 255]) + value[1:]


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("value", [b"", b"x", -1, 2**62, 1.5, "text", b"\xff" * 58])
def test_whatever_stands_in_a_link_is_a_problem_and_no_crash(
    journal: Path, column: str, value: Any
) -> None:
    with closing(sqlite3.connect(journal)) as connection:
        connection.execute(f"UPDATE chain SET {column} = ? WHERE id = 3", (value,))
        connection.commit()
    assert verify(journal).problems


@pytest.mark.parametrize(
    "table", ["runs", "attempts", "unrendered", "results", "run_states", "chain"]
)
def test_an_emptied_table_is_a_problem(journal: Path, table: str) -> None:
    with closing(sqlite3.connect(journal)) as connection:
        connection.execute(f"DELETE FROM {table}")
        connection.commit()
    assert verify(journal).problems


def test_a_dropped_chain_is_a_problem(journal: Path) -> None:
    with closing(sqlite3.connect(journal)) as connection:
        connection.execute("DROP TABLE chain")
        connection.commit()
    assert verify(journal).problems


def test_items_that_left_no_trace_are_counted(journal: Path, tmp_path: Path) -> None:
    (account,) = verify(journal).accounts
    assert (account.items, account.recorded, account.missing) == (6, 5, 0)
    path = tmp_path / "other.db"
    create(str(path))
    connection = connect_writer(str(path), file_locks=True)
    store = Store.begin(connection, Manifest(None, "f", {}))
    store.commit("complete", {"items": 2, "ok": 2, "failed": 0})
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()
    (problem,) = verify(path).problems
    assert problem == "run 1: 2 of 2 items left no trace"


def test_a_row_recorded_through_two_claims_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    create(str(path))
    connection = connect_writer(str(path), file_locks=True)
    store = Store.begin(connection, Manifest(None, "f", {}))
    for text in (b"1", b"2"):
        store.record(Claim(bytes(16), 0, "k", "", 0, None), b'{"text":"%s"}' % text, ok=True)
    store.record(Claim(b"1" * 16, 0, "l", "", 1, None), b"{}", ok=True)
    store.commit()
    connection.close()
    assert verify(path).problems == []
