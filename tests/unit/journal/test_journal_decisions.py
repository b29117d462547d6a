"""The journal's pure parts: pacing, the verdict on a lock file, digests, redaction, the filter."""

from __future__ import annotations

import math
import os
import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.journal._format import (
    ResultRow,
    attempt_digest,
    place_checksum,
    result_digest,
    row_digest,
    storable,
)
from scaleinfer.journal._lock import BEAT_S, STALE_S, Holder, is_held, locked_error
from scaleinfer.journal._pacing import Pacing
from scaleinfer.journal._redaction import redact, redact_data
from scaleinfer.journal._seen import Seen

HERE = Holder(100, "login1", "boot-a pid:[1]", "5000", 1000.0, "t")


def test_nothing_at_hand_is_never_due() -> None:
    assert Pacing().due(5.0, rows=0, awaited=0, outstanding=7) == math.inf


def test_commits_at_once_when_everyone_waits() -> None:
    pacing = Pacing()
    pacing.added(10.0, awaited=True)
    assert pacing.due(10.0, rows=1, awaited=1, outstanding=1) == 10.0


def test_gathers_while_others_are_out_but_not_for_long() -> None:
    pacing = Pacing()
    pacing.added(10.0, awaited=True)
    pacing.added(10.9, awaited=True)
    due = pacing.due(10.0, rows=2, awaited=2, outstanding=64)
    assert 10.0 < due <= 10.0 + pacing.gather_s


def test_a_slow_disk_gathers_longer_up_to_the_cap() -> None:
    quick, slow = Pacing(), Pacing()
    for _ in range(100):
        quick.committed(0.0, 0.0005, awaited=0)
        slow.committed(0.0, 0.5, awaited=0)
    for pacing in (quick, slow):
        pacing.added(10.0, awaited=True)
    assert quick.due(10.0, rows=1, awaited=1, outstanding=9) < slow.due(
        10.0, rows=1, awaited=1, outstanding=9
    )
    assert slow.due(10.0, rows=1, awaited=1, outstanding=9) == 10.0 + slow.gather_s


def test_rows_nobody_waits_for_linger() -> None:
    pacing = Pacing()
    pacing.added(10.0, awaited=False)
    assert pacing.due(10.0, rows=3, awaited=0, outstanding=5) == 10.0 + pacing.linger_s
    assert pacing.due(10.0, rows=pacing.most, awaited=0, outstanding=5) == 10.0
    pacing.committed(10.3, 0.001, awaited=0)
    pacing.added(20.0, awaited=False)
    assert pacing.due(20.0, rows=1, awaited=0, outstanding=5) == 20.0 + pacing.linger_s


def _paced(rows_a_second: float, commit_s: float = 0.002) -> Pacing:
    """Return a pacing that has seen commits every 10 ms at this pace."""
    pacing = Pacing()
    for n in range(200):
        pacing.committed(n * 0.01, commit_s, awaited=max(1, round(rows_a_second * 0.01)))
    return pacing


def test_the_longer_items_take_the_longer_their_rows_gather() -> None:
    """6,000 rows/s: 10,000 out is 1.7 s an item, 64 is 11 ms, of which 10 ms is a lot."""
    gathers = []
    for outstanding in (64, 1000, 10_000):
        pacing = _paced(6000)
        pacing.added(10.0, awaited=True)
        gathers.append(pacing.due(10.0, rows=1, awaited=1, outstanding=outstanding) - 10.0)
    assert gathers[0] == pytest.approx(0.001)
    assert gathers[1] == pytest.approx(0.04 * 1000 / 6000, rel=0.01)
    assert gathers[2] == pytest.approx(Pacing().gather_s)


def test_a_pause_is_no_pace() -> None:
    pacing = _paced(6000)
    pacing.committed(3600.0, 0.002, awaited=60)
    pacing.added(4000.0, awaited=True)
    due = pacing.due(4000.0, rows=1, awaited=1, outstanding=1000)
    assert due <= 4000.0 + pacing.gather_s
    for n in range(60):
        pacing.committed(3600.0 + n * 0.01, 0.002, awaited=60)
    pacing.added(5000.0, awaited=True)
    due = pacing.due(5000.0, rows=1, awaited=1, outstanding=64)
    assert due == pytest.approx(5000.001)


@given(
    st.lists(st.tuples(st.floats(0, 60), st.floats(0, 5), st.integers(0, 5000)), max_size=50),
    st.integers(1, 100),
    st.integers(0, 20_000),
)
def test_no_row_waits_longer_than_the_cap(
    commits: list[tuple[float, float, int]], awaited: int, others: int
) -> None:
    pacing, now = Pacing(), 0.0
    for passed, took, rows in commits:
        now += passed
        pacing.committed(now, took, awaited=rows)
    pacing.added(now, awaited=True)
    due = pacing.due(now, rows=awaited, awaited=awaited, outstanding=awaited + others)
    assert now <= due <= now + pacing.gather_s


@pytest.mark.parametrize(
    ("holder", "age", "birth", "held"),
    [
        (HERE, 9999.0, "5000", True),  # same host, alive: however long it is silent
        (HERE, 0.1, None, False),  # same host, gone
        (HERE, 0.1, "7000", False),  # the number belongs to another process by now
        (replace(HERE, host="node7"), BEAT_S, "5000", True),
        (replace(HERE, host="node7"), STALE_S + 1, "5000", False),
        (replace(HERE, machine="boot-b pid:[1]"), BEAT_S, None, True),  # another machine's name
        (replace(HERE, machine="boot-b pid:[1]"), STALE_S + 1, "5000", False),
        (None, 0.1, None, True),  # just being made
        (None, STALE_S + 1, None, False),
    ],
)
def test_who_holds_a_lock(holder: Holder | None, age: float, birth: str | None, held: bool) -> None:
    assert is_held(holder, HERE, age, birth) is held


def test_the_lock_error_names_the_holder() -> None:
    error = locked_error("/x/run.db", replace(HERE, progress={"ok": 12, "failed": 0}), 3.2)
    assert error.reason == "locked"
    assert error.path == "/x/run.db"
    for part in ("process 100", "login1", "since 19", "12 ok", "3 s ago"):
        assert part in error.message
    assert "failed" not in error.message


def test_a_torn_lock_file_has_no_holder() -> None:
    assert Holder.parse(b"") is None
    assert Holder.parse(b'{"pid": 3') is None
    assert Holder.parse(b"[]") is None


def _row(**changes: Any) -> ResultRow:
    row = ResultRow(1, b"i" * 16, 2, 3, 4, 1, "key", "q", b'{"text":"x"}', b"", 0)._replace(
        **changes
    )
    digest = result_digest(
        row.identity,
        row.occurrence,
        ok=row.ok,
        key=row.key,
        question=row.question,
        payload=row.payload,
    )
    place = place_checksum(row.identity, row.occurrence, row.run, row.idx)
    return row._replace(digest=digest, place=place)


@pytest.mark.parametrize(
    "change",
    [
        {"identity": b"j" * 16},
        {"occurrence": 3},
        {"ok": 0},
        {"key": "kez"},
        {"key": "keyq", "question": ""},
        {"question": "r"},
        {"payload": b'{"text":"y"}'},
        {"digest": b"0" * 16},
    ],
)
def test_a_digest_covers_the_content(change: dict[str, Any]) -> None:
    assert _row().intact()
    assert not _row()._replace(**change).intact()


def test_a_digest_leaves_out_the_place_which_has_its_own() -> None:
    moved = _row()._replace(run=9, idx=77)
    assert moved.intact()
    assert not moved.placed()
    assert _row().placed()
    assert not _row()._replace(run=1 << 70).placed()


def test_digests_are_the_same_in_every_process() -> None:
    # A change of these values is a change of the file's format.
    assert _row().digest.hex() == RESULT_DIGEST
    assert _row().place == PLACE
    assert row_digest("attempts", (1, b"ab", 0.5, "é", None)).hex() == ATTEMPT_DIGEST


@given(
    st.integers(0, 9), st.binary(min_size=16, max_size=16), st.floats(allow_nan=False), st.text()
)
def test_the_short_way_to_an_attempts_digest_leads_to_the_same(
    run: int, identity: bytes, seconds: float, error: str
) -> None:
    values = (run, identity, 0, 1, "e", seconds, seconds, "ok", None, 1, 2, storable(error))
    assert attempt_digest(values) == row_digest("attempts", values)


def test_text_that_utf8_cannot_hold_is_escaped() -> None:
    assert storable("na\xefve") == "na\xefve"
    assert storable("a\ud800b") == "a\\ud800b"


RESULT_DIGEST = "56086fa60c01ff8ccea92edeb2ba8436"
PLACE = 1839462927
ATTEMPT_DIGEST = "883e777c3e73cfc7"


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer abcdef1234567890",
        "key sk-proj-ABCDEF1234567890xyz is wrong",
        "https://user:hunter2hunter2@host/v1 said no",
    ],
)
def test_secrets_in_texts_are_removed(text: str) -> None:
    clean = redact(text)
    assert "[redacted]" in clean
    for secret in ("abcdef1234567890", "ABCDEF1234567890xyz", "hunter2"):
        assert secret not in clean


def test_plain_texts_stay() -> None:
    for text in ("", "Basic chemistry", "a risk-benefit analysis of x@y", "https://host/v1@2"):
        assert redact(text) == text


def test_secrets_by_name_are_removed_and_counts_stay() -> None:
    data = {"api_key": "k", "X-Api-Key": "k", "nested": [{"Authorization": "z"}], "max_tokens": 5}
    assert redact_data(data) == {
        "api_key": "[redacted]",
        "X-Api-Key": "[redacted]",
        "nested": [{"Authorization": "[redacted]"}],
        "max_tokens": 5,
    }


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=200))
def test_what_was_seen_is_never_new(identities: list[bytes]) -> None:
    seen, met = Seen(log2_bits=10), set[bytes]()
    for identity in identities:
        if seen.add(identity):
            assert identity not in met
        met.add(identity)


def test_new_identities_are_mostly_known_as_new() -> None:
    seen = Seen(log2_bits=20)
    known = sum(not seen.add(os.urandom(16)) for _ in range(20_000))
    assert known < 20


def test_a_result_digest_is_injective_over_its_parts() -> None:
    assert struct.calcsize("<q?II") == 17
    one = _row(key="ab", question="c")
    two = _row(key="a", question="bc")
    assert one.digest != two.digest
