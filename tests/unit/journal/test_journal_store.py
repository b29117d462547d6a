"""The store against a dictionary: claims, duplicates, failures, resumes, kills."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections import OrderedDict
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scaleinfer.errors import JournalError
from scaleinfer.journal import (
    Claim,
    Manifest,
    _format,
    _store,
    list_runs,
    read_attempts,
    read_results,
    verify,
)
from scaleinfer.journal._database import connect_writer, create, inspect
from scaleinfer.journal._store import Store
from scaleinfer.results import Attempt

IDENTITIES = [bytes([n]) * 16 for n in range(4)]


def open_store(path: Path, fingerprint: str = "f") -> Store:
    if inspect(str(path)) is None:
        create(str(path))
    connection = connect_writer(str(path), file_locks=True)
    return Store.begin(connection, Manifest(None, fingerprint, {}))


def claim_of(identity: bytes, index: int = 0, key: str = "k") -> Claim:
    return Claim(identity, -1, key, "", index, None)


class JournalMachine(RuleBasedStateMachine):
    """A row is (identity, occurrence); the model knows what is committed and who has claimed."""

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY))
        self.path = self.folder / "run.db"
        self.committed: dict[tuple[bytes, int], tuple[bool, bytes]] = {}
        self.held: dict[tuple[bytes, int], tuple[bool, bytes]] = {}
        self.mine: set[tuple[bytes, int]] = set()
        self.open: list[Claim] = []
        self.number = 0
        self.store = open_store(self.path)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.connection.close()
            shutil.rmtree(self.folder)

    @rule(identities=st.lists(st.sampled_from(IDENTITIES), min_size=1, max_size=8))
    def claim(self, identities: list[bytes]) -> None:
        claims = [claim_of(identity) for identity in identities]
        self.store.claim(claims)
        for claim in claims:
            expected = 0
            while (claim.identity, expected) in self.mine:
                expected += 1
            assert claim.occurrence == expected
            slot = (claim.identity, expected)
            self.mine.add(slot)
            ok, payload = self.committed.get(slot, (False, b""))
            assert claim.stored == (payload if ok else None)
            if claim.stored is None:
                self.open.append(claim)

    @precondition(lambda self: self.open)
    @rule(ok=st.booleans(), which=st.integers(0), size=st.sampled_from([0, 40, 4200, 9000]))
    def record(self, ok: bool, which: int, size: int) -> None:
        claim = self.open.pop(which % len(self.open))
        self.number += 1
        payload = b'{"text":"%d %s"}' % (self.number, b"x" * size)
        self.store.attempt(claim, Attempt(1, "e", 0.0, 1.0, "ok"))
        self.store.record(claim, payload, ok=ok)
        self.held[claim.identity, claim.occurrence] = (ok, payload)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0))
    def release(self, which: int) -> None:
        claim = self.open.pop(which % len(self.open))
        self.store.release(claim)
        self.mine.discard((claim.identity, claim.occurrence))

    @rule()
    def commit(self) -> None:
        self.store.commit()
        self.committed |= self.held
        self.held.clear()

    @rule(kill=st.booleans())
    def reopen(self, kill: bool) -> None:
        if not kill:
            self.commit()
            self.store.connection.execute("PRAGMA journal_mode=DELETE")
        self.store.connection.close()
        self.held.clear()
        self.mine.clear()
        self.open.clear()
        self.store = open_store(self.path)

    @invariant()
    def outstanding_is_what_is_open_or_held(self) -> None:
        assert len(self.open) + len(self.held) <= self.store.outstanding
        assert self.store.tally.rows <= len(self.committed)

    @rule()
    def read(self) -> None:
        self.reopen(kill=True)
        self.store.connection.close()
        with closing(sqlite3.connect(self.path)) as connection:
            rows = connection.execute(
                "SELECT identity, occurrence, ok, CAST(payload AS BLOB) FROM results"
            ).fetchall()
        stored = {(row[0], row[1]): (row[2] == 1, row[3]) for row in rows}
        assert stored == self.committed
        assert len(list(read_results(self.path, everything=True))) == len(stored)
        assert verify(self.path).problems == []
        self.store = open_store(self.path)


MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
JournalMachine.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestJournalMachine = JournalMachine.TestCase


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


def test_a_prompt_repeated_many_times_is_not_searched_from_the_start(path: Path) -> None:
    """20,000 duplicates, resumed: the work per claim must not grow with their number."""
    store = open_store(path)
    for _ in range(100):
        claims = [claim_of(IDENTITIES[0]) for _ in range(200)]
        store.claim(claims)
        for claim in claims:
            store.record(claim, b"{}", ok=True)
        store.commit()
    store.connection.close()
    store = open_store(path)
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    store.connection.set_progress_handler(count, 100)
    for _ in range(100):
        claims = [claim_of(IDENTITIES[0]) for _ in range(200)]
        store.claim(claims)
        assert all(claim.stored == b"{}" for claim in claims)
        store.commit()
    store.connection.set_progress_handler(None, 0)
    assert steps * 100 / 20_000 < 500  # SQLite instructions a claim; a scan takes 100,000
    last = claim_of(IDENTITIES[0])
    store.claim([last])
    assert (last.occurrence, last.stored) == (20_000, None)
    store.connection.close()


def test_forgotten_cursors_only_cost_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_store, "_CURSORS", 1)
    store = open_store(path)
    for turn in range(30):
        for identity in IDENTITIES:
            claim = claim_of(identity)
            store.claim([claim])
            assert claim.occurrence == turn
            store.record(claim, b"{}", ok=True)
        store.commit()
    assert isinstance(store._cursors, OrderedDict)
    assert len(store._cursors) == 1
    store.connection.close()


def test_a_failed_item_is_asked_again_and_its_row_replaced(path: Path) -> None:
    store = open_store(path)
    claim = claim_of(IDENTITIES[0], index=3)
    store.claim([claim])
    store.record(claim, b'{"error":{"type":"Transient"}}', ok=False)
    store.commit("complete", {"ok": 0})
    store.connection.close()
    store = open_store(path)
    again = claim_of(IDENTITIES[0], index=5)
    store.claim([again])
    assert (again.occurrence, again.stored) == (0, None)
    store.record(again, b'{"text":"yes"}', ok=True)
    store.commit()
    store.connection.close()
    (result,) = read_results(path)
    assert (result.ok, result.index, result.payload, result.run) == (True, 5, {"text": "yes"}, 2)


def test_a_stored_answer_whose_bytes_changed_is_not_handed_out(path: Path) -> None:
    store = open_store(path)
    claim = claim_of(IDENTITIES[0])
    store.claim([claim])
    store.record(claim, b'{"text":"yes"}', ok=True)
    store.commit()
    store.connection.execute('UPDATE results SET payload = \'{"text":"yez"}\'')
    store.connection.close()
    store = open_store(path)
    again = claim_of(IDENTITIES[0])
    store.claim([again])
    assert again.stored is None
    store.record(again, b'{"text":"yes"}', ok=True)
    store.commit()
    store.connection.close()
    assert verify(path).ok


def test_runs_and_their_states(path: Path) -> None:
    store = open_store(path, "a")
    store.unrendered(2, "two", {"type": "PromptError", "message": "no field"})
    store.commit("stopped", {"answered": 0})
    store.connection.close()
    store = open_store(path, "b")
    store.connection.close()
    first, second = list_runs(path)
    assert (first.state, second.state) == ("stopped", "killed")
    assert first.ended is not None
    assert second.ended is None
    assert first.counts["answered"] == 0
    assert first.counts["unrendered"] == 1
    assert (first.fingerprint, second.fingerprint) == ("a", "b")
    (missing,) = read_results(path, run=1)
    assert (missing.rendered, missing.index, missing.ok) == (False, 2, False)
    assert missing.payload == {"error": {"type": "PromptError", "message": "no field"}}
    assert list(read_results(path)) == []
    with pytest.raises(JournalError, match="no run 7"):
        list(read_results(path, run=7))


def test_default_results_are_those_of_the_same_program(path: Path) -> None:
    for fingerprint, indexes in (("a", range(6)), ("b", range(10, 12)), ("a", range(3))):
        store = open_store(path, fingerprint)
        claims = [claim_of(bytes([n]) * 16, index=n, key=str(n)) for n in indexes]
        store.claim(claims)
        for claim in reversed(claims):
            if claim.stored is None:
                store.record(claim, b"{}", ok=True)
        store.commit()
        store.connection.close()
    assert [result.index for result in read_results(path)] == list(range(6))
    assert [result.index for result in read_results(path, run=3)] == [0, 1, 2]
    assert [result.index for result in read_results(path, run=2)] == [10, 11]
    everything = [result.index for result in read_results(path, everything=True)]
    assert everything == [*range(6), 10, 11]


def test_several_questions_share_a_key(path: Path) -> None:
    store = open_store(path)
    for identity, question in zip(IDENTITIES, ("b", "a"), strict=False):
        claim = Claim(identity, -1, "paper", question, 7, None)
        store.claim([claim])
        store.record(claim, b"{}", ok=True)
    store.commit()
    store.connection.close()
    rows = [(r.key, r.question, r.index) for r in read_results(path)]
    assert rows == [("paper", "a", 7), ("paper", "b", 7)]


def test_attempts_come_back_as_they_were(path: Path) -> None:
    attempt = Attempt(2, "http://h/v1", 12.5, 3.0, "Overloaded", 503, 7, 0, "busy")
    store = open_store(path)
    claim = claim_of(IDENTITIES[0], index=4, key="four")
    store.claim([claim])
    store.attempt(claim, attempt)
    store.record(claim, b"{}", ok=True)
    orphan = claim_of(IDENTITIES[1])
    store.claim([orphan])
    store.attempt(orphan, attempt)
    store.commit()
    store.connection.close()
    first, second = read_attempts(path)
    assert (first.key, first.index, first.run, first.attempt) == ("four", 4, 1, attempt)
    assert (second.key, second.index) == ("", -1)
    assert list(read_attempts(path, run=2)) == []


def test_secrets_do_not_reach_the_file(path: Path) -> None:
    create(str(path))
    connection = connect_writer(str(path), file_locks=True)
    data: dict[str, Any] = {"api_key": "TOPSECRET1", "url": "https://u:TOPSECRET2@h/v1"}
    store = Store.begin(connection, Manifest("n", "f", data))
    claim = claim_of(IDENTITIES[0])
    store.claim([claim])
    error = "Bearer TOPSECRET3 was refused"
    store.attempt(claim, Attempt(1, "https://TOPSECRET4@h", 0.0, 1.0, "AuthError", error=error))
    store.unrendered(0, "k", {"message": error, "headers": {"a": "TOPSECRET5"}})
    store.commit()
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()
    assert b"TOPSECRET" not in path.read_bytes()


def test_an_older_format_is_migrated_in_one_transaction(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(path)
    claim = claim_of(IDENTITIES[0])
    store.claim([claim])
    store.record(claim, b'{"text":"old"}', ok=True)
    store.commit("complete", {})
    store.connection.execute("PRAGMA journal_mode=DELETE")
    store.connection.close()

    def add_column(connection: sqlite3.Connection) -> None:
        connection.execute("ALTER TABLE runs ADD COLUMN extra TEXT")

    monkeypatch.setattr(_format, "FORMAT", 3)
    with pytest.raises(JournalError) as caught:
        inspect(str(path))
    assert caught.value.reason == "older"
    monkeypatch.setitem(_format.MIGRATIONS, 2, add_column)
    with pytest.raises(JournalError) as caught:
        list_runs(path)
    assert caught.value.reason == "older"
    assert "runs upgrade" in caught.value.hint
    store = open_store(path)
    store.connection.execute("PRAGMA journal_mode=DELETE")
    assert store.connection.execute("SELECT extra FROM runs").fetchall() == [(None,), (None,)]
    store.connection.close()
    header = inspect(str(path))
    assert header is not None
    assert header.user_version == 3
    assert [r.payload for r in read_results(path)] == [{"text": "old"}]
