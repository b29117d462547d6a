"""Reading SQLite's file format without SQLite, against SQLite."""

from __future__ import annotations

import io
import os
import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaleinfer.journal._format import TABLES, is_intact
from scaleinfer.journal._pages import MAGIC, Header, Pages, Wal, table_rows

VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40),
    st.integers(0, 20_000).map(lambda n: b"\xff" * n),
)


def plain(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value


@settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.lists(st.tuples(VALUES, VALUES, VALUES), max_size=30),
    st.sampled_from([512, 4096, 65536]),
    st.integers(1, 2**62),
)
def test_rows_are_those_that_sqlite_wrote(
    tmp_path: Path, rows: list[tuple[Any, Any, Any]], page_size: int, first: int
) -> None:
    path = tmp_path / f"{os.urandom(8).hex()}.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size={page_size}")
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("CREATE TABLE t (a, b, c)")
        for number, row in enumerate(rows):
            connection.execute(
                "INSERT INTO t (rowid,a,b,c) VALUES (?,?,?,?)", (first + number, *row)
            )
    with path.open("rb") as file:
        found = {n: tuple(v) for n, v in table_rows(Pages(file, None, 4096)) if len(v) == 3}
    assert found == {first + n: tuple(map(plain, row)) for n, row in enumerate(rows)}


def test_the_log_holds_what_was_committed_and_not_what_was_not(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (x)")
        for number in range(50):
            connection.execute("INSERT INTO t VALUES (?)", (b"y" * 3000 + bytes([number]),))
        log = Path(f"{path}-wal").read_bytes()
        main = path.read_bytes()
    wal = Wal(io.BytesIO(log))
    assert not wal.damaged
    # 50 rows, one a page, with the root and the schema; SQLite says the same.
    with closing(sqlite3.connect(path)) as connection:
        assert wal.page_count == connection.execute("PRAGMA page_count").fetchone()[0]
    rows = list(table_rows(Pages(io.BytesIO(main), wal, 4096)))
    assert {r[1][0][-1] for r in rows if len(r[1]) == 1} == set(range(50))

    frames = list(wal.frames())
    commits = [offset for _, size, _, offset in frames if size]
    sizes = [size for _, size, _, _ in frames if size]
    for cut, last_commit in ((commits[10], 9), (commits[10] + 4095, 9), (commits[10] + 4096, 10)):
        part = Wal(io.BytesIO(log[:cut]))
        assert not part.damaged  # a torn end is what a kill leaves
        assert part.page_count == sizes[last_commit]
    for place in (commits[0], commits[20] + 500):
        broken = bytearray(log)
        broken[place] ^= 4
        assert Wal(io.BytesIO(bytes(broken))).damaged
    last = bytearray(log)
    last[commits[-1] + 7] ^= 4
    torn = Wal(io.BytesIO(bytes(last)))
    assert not torn.damaged  # the last commit may not have reached the disk
    assert torn.committed != wal.committed


@pytest.mark.parametrize("junk", [b"", b"x" * 10, b"\0" * 9000, MAGIC + b"\0" * 84, b"\x0d" * 9000])
def test_junk_yields_nothing(junk: bytes) -> None:
    rows = list(table_rows(Pages(io.BytesIO(junk), Wal(io.BytesIO(junk)), 4096)))
    assert not [row for _, row in rows for table in TABLES if is_intact(table, padded(table, row))]


def padded(table: str, row: list[Any]) -> tuple[Any, ...]:
    """Give a row as many columns as the table has."""
    width = len(TABLES[table])
    return tuple((row + [None] * width)[:width])


@given(st.integers(), st.integers(0, 65535))
def test_a_page_of_noise_never_raises(seed: int, cells: int) -> None:
    page = b"\x0d\0\0" + cells.to_bytes(2, "big") + random.Random(seed).randbytes(4091)
    for _, row in table_rows(Pages(io.BytesIO(b"\0" * 4096 + page), None, 4096)):
        assert len(row) <= 32


def test_the_header_of_a_real_file(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA page_size=8192")
        connection.execute("PRAGMA application_id=77")
        connection.execute("PRAGMA user_version=5")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (x)")
    header = Header.parse(path.read_bytes()[:100])
    assert header == Header(8192, 2, wal=True, user_version=5, application_id=77)
