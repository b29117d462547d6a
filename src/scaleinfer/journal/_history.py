"""What each run had, as the chain has it: also where later runs have taken it over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from scaleinfer.errors import JournalError
from scaleinfer.journal._chain import FAILED, read_links, unpack_entries
from scaleinfer.journal._read import StoredResult, reading, unrendered_results

if TYPE_CHECKING:
    import os
    import sqlite3
    from collections.abc import Iterator

    from scaleinfer.journal._chain import Entry

__all__ = ["read_run", "read_sights"]


def read_run(path: str | os.PathLike[str], run: int | None = None) -> Iterator[StoredResult]:
    """Yield everything that one run had, in the order of the items' index.

    A result belongs to the run that recorded it and to every later run that took it up. What a
    later run has replaced (a failure that was asked again) is no longer there: it comes with
    `kept=False` and without its payload.

    Args:
        path: The journal.
        run: Number of the run; default the newest.

    Raises:
        JournalError: As `list_runs`; also if there is no such run.
    """
    with reading(path) as (connection, real):
        newest = connection.execute("SELECT max(id) FROM runs").fetchone()[0]
        number = newest if run is None else run
        known = connection.execute("SELECT 1 FROM runs WHERE id = ?", (number,)).fetchone()
        if known is None:
            raise JournalError(
                f"The journal {path} has no run {number}.",
                path=real,
                hint="`scaleinfer runs list` shows those it has.",
            )
        had = _had(connection, number)
        results: list[tuple[int, StoredResult | Entry]] = [
            (missing.index, missing) for missing in unrendered_results(connection, number)
        ]
        results += [(entry.place, entry) for entry in had.values()]
        results.sort(key=lambda pair: pair[0])
        for _, one in results:
            yield one if isinstance(one, StoredResult) else _stored(connection, number, one)


def _had(connection: sqlite3.Connection, run: int) -> dict[int, Entry]:
    """Return the last word of a run's links on each row."""
    had: dict[int, Entry] = {}
    for link in read_links(connection, run):
        for entry in unpack_entries(link.results):
            had[entry.number] = entry
    return had


def _stored(connection: sqlite3.Connection, run: int, entry: Entry) -> StoredResult:
    row: Any = connection.execute(
        "SELECT key, question, occurrence, ok, CAST(payload AS BLOB), digest FROM results"
        " WHERE id = ?",
        (entry.number,),
    ).fetchone()
    if row is None:
        return StoredResult("", "", 0, entry.place, False, {}, run, kept=False)
    key, question, occurrence, ok, payload, digest = row
    if digest != entry.digest:
        ok = entry.kind != FAILED
        return StoredResult(key, question, occurrence, entry.place, ok, {}, run, kept=False)
    data = orjson.loads(payload)
    return StoredResult(key, question, occurrence, entry.place, ok == 1, data, run)


def read_sights(
    path: str | os.PathLike[str], *, run: int | None = None
) -> Iterator[tuple[int, str, str, int, int, int, float, float]]:
    """Yield what each endpoint was sent: a row for each run, label and endpoint.

    Args:
        path: The journal.
        run: Only this run's; all by default.

    Yields:
        Run, label (empty without one), endpoint, questions, calls, calls that brought an answer,
        and Unix time of the first and the last call.

    Raises:
        JournalError: As `list_runs`.
    """
    with reading(path) as (connection, _):
        yield from connection.execute(
            "SELECT run, coalesce(json_extract(more, '$[4]'), '') AS label, endpoint,"
            " count(DISTINCT hex(identity) || occurrence), count(*), sum(status = 'ok'),"
            " min(started), max(started) FROM attempts WHERE ?1 IS NULL OR run = ?1"
            " GROUP BY run, label, endpoint ORDER BY run, label, endpoint",
            (run,),
        )
