"""Reading a journal that nobody writes: its runs, results and attempts. Changes nothing."""

from __future__ import annotations

import heapq
import os
import sqlite3
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from scaleinfer.errors import JournalError
from scaleinfer.journal import _format
from scaleinfer.journal._database import connect_reader, inspect, translate
from scaleinfer.journal._lock import refuse_if_held
from scaleinfer.results import Attempt

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "RunInfo",
    "StoredAttempt",
    "StoredResult",
    "list_runs",
    "read_attempts",
    "read_results",
    "reading",
    "unrendered_results",
]

_CHECK_EVERY = 1000
"""Rows between two looks for a writer that has come in the meantime."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """One run in a journal.

    Attributes:
        id: Its number.
        name: Its name, if it was given one.
        started: Unix time.
        ended: Unix time; `None` if it was killed.
        state: `complete`, `stopped`, `failed` or `killed`.
        fingerprint: Equal for runs of the same program.
        counts: What the journal counted (`ok`, `failed`, `reused`, `unrendered`, `attempts`), and
            over it what the run itself counted when it ended.
        data: The manifest: versions, parameters, hashes.
        limits: What the limiters decided when, for reports; empty if the run was killed.
    """

    id: int
    name: str | None
    started: float
    ended: float | None
    state: str
    fingerprint: str
    counts: dict[str, int] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredResult:
    """One answer or failure as it was recorded.

    Attributes:
        key: The item's key.
        question: Name of the question if the item asks several.
        occurrence: Counts items of equal identity.
        index: The item's position in the input of the run that had it last.
        ok: Whether it is an answer.
        payload: What the run recorded: text, value, error, usage, ...
        run: The run that had it last.
        rendered: False if `prompt_fn` failed for the item; the payload holds the error only.
        kept: False if a later run has replaced it, which only `read_run` tells; the payload is
            empty then.
    """

    key: str
    question: str
    occurrence: int
    index: int
    ok: bool
    payload: dict[str, Any]
    run: int
    rendered: bool = True
    kept: bool = True


@dataclass(frozen=True, slots=True)
class StoredAttempt:
    """One call as it was recorded.

    Attributes:
        key: The item's key; empty if the item has no result yet.
        index: The item's position, as in `StoredResult`; -1 if it has no result yet.
        run: The run that made the call.
        attempt: The call.
        label: What the run's policy called the item; empty without one.
    """

    key: str
    index: int
    run: int
    attempt: Attempt
    label: str = ""


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[tuple[sqlite3.Connection, str]]:
    """Open a journal for reading; SQLite's errors come out as `JournalError`.

    Yields:
        The connection and the path with links resolved.

    Raises:
        JournalError: `locked` while a writer lives, or as for opening.
    """
    real = os.path.realpath(path)
    refuse_if_held(real)
    header = inspect(real)
    if header is None:
        raise JournalError(
            f"There is no journal at {path}.", path=real, hint="Check the path; a run makes it."
        )
    if header.user_version < _format.FORMAT:
        raise JournalError(
            f"The journal {path} has format {header.user_version}; this scaleinfer writes "
            f"{_format.FORMAT}.",
            path=real,
            reason="older",
            hint="`scaleinfer runs upgrade` brings it up to date; so does opening it for a run.",
        )
    try:
        with closing(connect_reader(real, header)) as connection:
            yield connection, real
    except sqlite3.Error as error:
        refuse_if_held(real)  # a writer that came in the meantime explains what was read
        raise translate(error, real) from error


def list_runs(path: str | os.PathLike[str]) -> list[RunInfo]:
    """Return a journal's runs, oldest first.

    Raises:
        JournalError: `locked`, `foreign`, `damaged`, `newer`, `older` or `io`.
    """
    with reading(path) as (connection, _):
        rows = connection.execute(
            "SELECT r.id, r.name, r.started, s.ended, s.state, r.fingerprint, s.ok, s.failed,"
            " s.reused, s.unrendered, s.attempts, s.counts, r.data"
            " FROM runs r LEFT JOIN run_states s ON s.run = r.id ORDER BY r.id"
        ).fetchall()
    names = ("ok", "failed", "reused", "unrendered", "attempts")
    return [
        RunInfo(
            id=number,
            name=name,
            started=started,
            ended=ended,
            # No writer lives, or this would have been refused.
            state="killed" if state in {"running", None} else state,
            fingerprint=fingerprint,
            counts={n: c or 0 for n, c in zip(names, tallies, strict=True)}
            | {n: c for n, c in orjson.loads(counts or "{}").items() if isinstance(c, int)},
            data=orjson.loads(data),
            limits=orjson.loads(counts or "{}").get("limits", {}),
        )
        for number, name, started, ended, state, fingerprint, *tallies, counts, data in rows
    ]


def read_results(
    path: str | os.PathLike[str], *, run: int | None = None, everything: bool = False
) -> Iterator[StoredResult]:
    """Yield results in the order of their index.

    Without choice: what the newest run had, if it went through to its end. If it did not, what
    any run with its fingerprint had last, so that a resumed run that was killed again still
    gives what earlier runs of the same program answered. Items without a prompt are the newest
    run's.

    Args:
        path: The journal.
        run: Only what this run had last, and its items without a prompt.
        everything: All results in the journal.

    Raises:
        JournalError: As `list_runs`; also if there is no such run.
    """
    with reading(path) as (connection, real):
        newest = connection.execute("SELECT max(id) FROM runs").fetchone()[0]
        chosen = newest if run is None else run
        found = connection.execute(
            "SELECT r.fingerprint, s.state FROM runs r LEFT JOIN run_states s ON s.run = r.id"
            " WHERE r.id = ?",
            (chosen,),
        ).fetchone()
        if found is None and (run is not None or newest is not None):
            raise JournalError(
                f"The journal {path} has no run {chosen}.",
                path=real,
                hint="`scaleinfer runs list` shows those it has.",
            )
        arguments: tuple[Any, ...] = ()
        if everything:
            which = "1"
        elif run is not None or (found is not None and found[1] == "complete"):
            which, arguments = "run = ?", (chosen,)
        else:
            which = "run IN (SELECT id FROM runs WHERE fingerprint = ?)"
            arguments = (found[0] if found else "",)
        results = _results(connection, which, arguments)
        missing = unrendered_results(connection, chosen)
        merged = heapq.merge(results, missing, key=lambda result: result.index)
        for number, result in enumerate(merged):
            if number % _CHECK_EVERY == _CHECK_EVERY - 1:
                refuse_if_held(real)
            yield result
        refuse_if_held(real)


def _results(
    connection: sqlite3.Connection, which: str, arguments: tuple[Any, ...]
) -> Iterator[StoredResult]:
    # Only numbers are sorted, so that a large journal needs little room for that.
    order = connection.execute(
        f"SELECT id FROM results WHERE {which} ORDER BY idx, run, question, id", arguments
    )
    for (number,) in order:
        key, question, occurrence, index, ok, payload, run = connection.execute(
            "SELECT key, question, occurrence, idx, ok, CAST(payload AS BLOB), run FROM results"
            " WHERE id = ?",
            (number,),
        ).fetchone()
        yield StoredResult(key, question, occurrence, index, ok == 1, orjson.loads(payload), run)


def unrendered_results(connection: sqlite3.Connection, run: int | None) -> Iterator[StoredResult]:
    """Yield a run's items without a prompt in the order of their index."""
    rows = connection.execute(
        "SELECT key, idx, error FROM unrendered WHERE run = ? ORDER BY idx, id", (run,)
    )
    for key, index, error in rows:
        payload = {"error": orjson.loads(error)}
        yield StoredResult(key, "", 0, index, False, payload, run or 0, rendered=False)


def read_attempts(
    path: str | os.PathLike[str], *, run: int | None = None
) -> Iterator[StoredAttempt]:
    """Yield the calls that were made, oldest first.

    Args:
        path: The journal.
        run: Only this run's; all by default.

    Raises:
        JournalError: As `list_runs`.
    """
    with reading(path) as (connection, real):
        rows = connection.execute(
            "SELECT coalesce(r.key, ''), coalesce(r.idx, -1), a.run, a.number, a.endpoint,"
            " a.started, a.latency_s, a.status, a.http_status, a.prompt_tokens,"
            " a.completion_tokens, a.error, a.more FROM attempts a LEFT JOIN results r"
            " ON r.identity = a.identity AND r.occurrence = a.occurrence"
            " WHERE ?1 IS NULL OR a.run = ?1 ORDER BY a.id",
            (run,),
        )
        for key, index, number, *columns, more in rows:
            further, label = _further(more)
            yield StoredAttempt(key, index, number, Attempt(*columns, *further), label)
        refuse_if_held(real)


def _further(more: str | None) -> tuple[list[Any], str]:
    """Return an attempt's last fields and its item's label."""
    if more is None:
        return [], ""
    *further, label = orjson.loads(more)
    return further, label
