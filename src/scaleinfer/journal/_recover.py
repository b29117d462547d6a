"""Salvaging a damaged journal: every row that can still be read goes into a new one."""

from __future__ import annotations

import os
import sqlite3
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaleinfer.errors import JournalError
from scaleinfer.journal._chain import adopt
from scaleinfer.journal._database import connect_writer, create, inspect, translate
from scaleinfer.journal._format import (
    BATCHES_SCHEMA,
    PAGE_SIZE,
    TABLES,
    ResultRow,
    as_result,
    decoded,
    is_intact,
    place_checksum,
    row_digest,
)
from scaleinfer.journal._lock import Lock, refuse_if_held
from scaleinfer.journal._pages import Pages, Wal, table_rows
from scaleinfer.journal._store import insert_many
from scaleinfer.journal._verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["RecoverReport", "recover"]

_BATCH = 2000
_FORMER_ATTEMPT = len(TABLES["attempts"]) - 1
"""Columns of a call in format 1."""


@dataclass(slots=True)
class RecoverReport:
    """What `recover` brought over.

    Attributes:
        path: The damaged journal, which was left as it is.
        out_path: The new one.
        results: Results that were salvaged.
        attempts: Attempts that were salvaged.
        unrendered: Items without a prompt that were salvaged.
        batches: Notes on batches that were salvaged.
        runs: Runs whose manifest was salvaged.
        lost: Results that were recorded and are not in the new journal; `None` if the damage has
            taken the count too.
        intact: True if the journal had no damage and is copied whole.
    """

    path: str
    out_path: str
    results: int = 0
    attempts: int = 0
    unrendered: int = 0
    batches: int = 0
    runs: int = 0
    lost: int | None = None
    intact: bool = False


def recover(path: str | os.PathLike[str], out_path: str | os.PathLike[str]) -> RecoverReport:
    """Write every row that can still be read into a new journal.

    The file's pages are searched without help of SQLite, so that it does not matter which of
    them are gone; the log beside the file is searched too. Only rows whose digest is right are
    taken. The damaged file is not changed.

    Args:
        path: The damaged journal; its log is taken from `<path>-wal`.
        out_path: The new journal; must not exist.

    Raises:
        JournalError: `locked` while a writer lives, `io` if there is nothing at `path` or something
            at `out_path`, or as for writing a journal.
    """
    source, target = os.path.realpath(path), os.path.realpath(out_path)
    refuse_if_held(source)
    if not _anything(source) and not _anything(source + "-wal"):
        raise JournalError(f"There is nothing to recover at {path}.", path=source)
    if os.path.lexists(target):
        raise JournalError(
            f"{out_path} exists already.", path=target, hint="Give a path where nothing is."
        )
    report = RecoverReport(source, target, intact=_is_whole(source))
    lock = Lock.acquire(target)
    try:
        create(target)
        with closing(connect_writer(target, file_locks=lock.supports_file_locks)) as connection:
            # The copy is made again if it breaks off, so it needs no sync at every step.
            connection.execute("PRAGMA synchronous=OFF")
            _fill(connection, source, report)
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA journal_mode=DELETE")
        inspect(target)
    except (sqlite3.Error, OSError) as error:
        raise translate(error, target) from error
    finally:
        lock.release()
    return report


def _anything(path: str) -> bool:
    return Path(path).is_file() and Path(path).stat().st_size > 0


def _is_whole(path: str) -> bool:
    try:
        return verify(path).ok
    except JournalError:
        return False


def _fill(connection: sqlite3.Connection, source: str, report: RecoverReport) -> None:
    highest = 0
    batches: dict[str, list[tuple[Any, ...]]] = {table: [] for table in TABLES}
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(BATCHES_SCHEMA)
    for table, row in _salvage(source):
        if table == "results":
            highest = max(highest, row[0])
        batches[table].append(row)
        if len(batches[table]) >= _BATCH:
            _insert(connection, table, batches[table])
    for table, rows in batches.items():
        _insert(connection, table, rows)
    for table in ("results", "attempts", "unrendered", "runs", "batches"):
        count = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        setattr(report, table, count)
    promised, states = connection.execute(
        "SELECT coalesce(max(rows), 0), count(*) FROM run_states"
    ).fetchone()
    if states or report.intact:
        report.lost = max(highest, promised) - report.results
    _renumber(connection)
    _complete_runs(connection, report.results)
    # Numbers and places are new, and so is the chain.
    adopt(connection)
    connection.execute("COMMIT")


def _salvage(source: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield table and columns of every row whose digest is right; some come more than once."""
    tables: dict[int, list[str]] = {}
    for table, columns in TABLES.items():
        tables.setdefault(len(columns), []).append(table)
    with ExitStack() as stack:
        wal = None
        if _anything(source + "-wal"):
            wal = Wal(stack.enter_context(open(source + "-wal", "rb")))
            if wal.damaged:
                wal.trust_all()
        main = stack.enter_context(open(source if _anything(source) else os.devnull, "rb"))
        for number, values in table_rows(Pages(main, wal, PAGE_SIZE)):
            if len(values) == _FORMER_ATTEMPT:
                values.append(None)
            row = (number, *values[1:])
            for table in tables.get(len(values), ()):
                if is_intact(table, row):
                    yield table, _placed(row) if table == "results" else decoded(table, row)
                    break


def _placed(row: tuple[Any, ...]) -> ResultRow:
    """Return a result, at the start of an unknown run if its place is not what was written."""
    result = as_result(row)
    if not result.placed():
        place = place_checksum(result.identity, result.occurrence, 0, 0)
        result = result._replace(run=0, idx=0, place=place)
    return result


_NEWER = {
    # An old version of a page may still be about: an answer wins over a failure, then the later.
    "results": " ON CONFLICT (identity, occurrence) DO UPDATE SET run=excluded.run,"
    " idx=excluded.idx, ok=excluded.ok, key=excluded.key, question=excluded.question,"
    " payload=excluded.payload, digest=excluded.digest, place=excluded.place"
    " WHERE (excluded.ok, excluded.run) > (results.ok, results.run)",
    "run_states": " ON CONFLICT (run) DO UPDATE SET state=excluded.state, ended=excluded.ended,"
    " counts=excluded.counts, ok=excluded.ok, failed=excluded.failed, reused=excluded.reused,"
    " unrendered=excluded.unrendered, attempts=excluded.attempts, rows=excluded.rows,"
    " digest=excluded.digest WHERE (excluded.ended IS NOT NULL, excluded.ok + excluded.failed +"
    " excluded.reused + excluded.attempts) > (run_states.ended IS NOT NULL, run_states.ok +"
    " run_states.failed + run_states.reused + run_states.attempts)",
}


def _insert(connection: sqlite3.Connection, table: str, rows: list[tuple[Any, ...]]) -> None:
    if table == "results":
        # The number is left to the new table: a stale copy may have another row's number.
        rows[:] = [row[1:] for row in rows]
    insert_many(connection, table, rows, tail=_NEWER.get(table, " ON CONFLICT (id) DO NOTHING"))
    rows.clear()


def _renumber(connection: sqlite3.Connection) -> None:
    """Bring the states' counts of rows to what is there."""
    rows = connection.execute("SELECT count(*) FROM results").fetchone()[0]
    columns = TABLES["run_states"]
    states = connection.execute(f"SELECT {','.join(columns)} FROM run_states").fetchall()
    for state in states:
        values = (*state[:9], rows if state is states[-1] else min(state[9], rows))
        connection.execute(
            "UPDATE run_states SET rows = ?, digest = ? WHERE run = ?",
            (values[9], row_digest("run_states", values), state[0]),
        )


def _complete_runs(connection: sqlite3.Connection, rows: int) -> None:
    """Give results whose run is lost a run, so that they are read like all others."""
    for (run,) in connection.execute(
        "SELECT DISTINCT run FROM results WHERE run NOT IN (SELECT id FROM runs)"
        " UNION SELECT run FROM run_states WHERE run NOT IN (SELECT id FROM runs)"
    ).fetchall():
        values = (run, None, 0.0, "", "{}")
        insert_many(connection, "runs", [(*values, row_digest("runs", values))])
    for (run,) in connection.execute(
        "SELECT id FROM runs WHERE id NOT IN (SELECT run FROM run_states)"
    ).fetchall():
        state = (run, "killed", None, "{}", 0, 0, 0, 0, 0, rows)
        insert_many(connection, "run_states", [(*state, row_digest("run_states", state))])
