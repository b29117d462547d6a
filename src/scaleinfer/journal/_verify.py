"""Checking a journal: SQLite's own check, every row's digest, the chain, the counts."""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from scaleinfer.errors import JournalError
from scaleinfer.journal._batches import has_batches
from scaleinfer.journal._format import TABLES, as_result, is_intact
from scaleinfer.journal._read import reading
from scaleinfer.journal._verify_chain import Account, check_chain

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["VerifyReport", "verify"]

_MOST_PROBLEMS = 1000


@dataclass(slots=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        path: The journal.
        results: Results that are intact.
        attempts: Attempts that are intact.
        unrendered: Items without a prompt that are intact.
        batches: Notes on batches that are intact.
        runs: Runs that are intact.
        links: Commits whose link of the chain is intact.
        head: Digest of the last link. Kept elsewhere, it shows later that nobody has written the
            journal anew.
        accounts: What became of each run's items.
        problems: What is wrong, each naming its row; at most 1,000.
    """

    path: str
    results: int = 0
    attempts: int = 0
    unrendered: int = 0
    batches: int = 0
    runs: int = 0
    links: int = 0
    head: str = ""
    accounts: list[Account] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(path: str | os.PathLike[str], *, head: str | None = None) -> VerifyReport:
    """Read all of a journal and check it; changes nothing.

    A damaged journal gives a report with problems, not an error.

    Args:
        path: The journal.
        head: `RunStats.journal_head` of a run, or what `verify` said of it before: the journal
            must still hold that commit and everything before it.

    Raises:
        JournalError: There is no journal of ours to check: `locked`, `foreign`, `newer`, `older`
            or `io`.
    """
    report = VerifyReport(os.path.realpath(path))
    try:
        with reading(path) as (connection, _):
            connection.text_factory = bytes
            for (line,) in connection.execute("PRAGMA integrity_check(100)"):
                if line != b"ok":
                    _note(report, f"SQLite: {line.decode(errors='replace')}")
            for table in TABLES:
                if table != "batches" or has_batches(connection):
                    _check_table(connection, table, report)
            _check_counts(connection, report)
            chain = check_chain(connection, partial(_note, report), head=head)
            report.links, report.head, report.accounts = chain.links, chain.head, chain.accounts
    except JournalError as error:
        if error.reason != "damaged":
            raise
        _note(report, error.message)
    return report


def _note(report: VerifyReport, problem: str) -> None:
    if len(report.problems) < _MOST_PROBLEMS:
        report.problems.append(problem)


def _check_table(connection: sqlite3.Connection, table: str, report: VerifyReport) -> None:
    """Check every digest of one table; what SQLite cannot read ends that table."""
    intact = 0
    try:
        for row in _rows(connection, table):
            if not is_intact(table, row):
                _note(report, f"{table} row {row[0]}{_name(table, row)} is not what was written")
                continue
            intact += 1
            if table == "results" and not as_result(row).placed():
                _note(report, f"results row {row[0]}{_name(table, row)}: its run or index changed")
    except sqlite3.DatabaseError as error:
        _note(report, f"{table} cannot be read to the end: {error}")
    if table != "run_states":
        setattr(report, table, intact)


def _rows(connection: sqlite3.Connection, table: str) -> Iterator[tuple[Any, ...]]:
    yield from connection.execute(f"SELECT {', '.join(TABLES[table])} FROM {table} ORDER BY 1")


def _name(table: str, row: tuple[Any, ...]) -> str:
    key = dict(zip(TABLES[table], row, strict=True)).get("key")
    return f" (key {key.decode(errors='replace')!r})" if isinstance(key, bytes) else ""


def _check_counts(connection: sqlite3.Connection, report: VerifyReport) -> None:
    """Compare the rows that are there with those that were counted at the last commit."""
    counted, indexed, highest, promised, runs, states = connection.execute(
        "SELECT (SELECT count(*) FROM results NOT INDEXED), (SELECT count(identity) FROM results"
        " INDEXED BY results_identity WHERE identity >= x''),"
        " (SELECT coalesce(max(id), 0) FROM results),"
        " (SELECT coalesce(max(rows), 0) FROM run_states), (SELECT count(*) FROM runs),"
        " (SELECT count(*) FROM run_states)"
    ).fetchone()
    if len({counted, indexed, highest, promised}) > 1:
        _note(
            report,
            f"{promised} results were recorded; {counted} are there, {indexed} of them indexed",
        )
    if runs != states:
        _note(report, f"{runs} runs are there and the states of {states}")
