"""The short ways into the journal: claims without a look into the file, records as futures."""

from __future__ import annotations

import asyncio
from hashlib import blake2b
from typing import TYPE_CHECKING

import pytest

from scaleinfer.errors import JournalError
from scaleinfer.journal import Journal, Manifest, read_attempts, read_results, verify
from scaleinfer.results import Attempt

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

MANIFEST = Manifest("test", "f", {})


def identity(number: int) -> bytes:
    return blake2b(number.to_bytes(8, "big"), digest_size=16).digest()


async def close(journal: Journal) -> None:
    await journal.aclose(state="complete", counts={})


async def test_a_fresh_journal_claims_without_waiting(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    journal = Journal.open(path, MANIFEST)
    landed = []
    for number in range(3000):
        claim = journal.claim_nowait(identity(number), key=str(number), index=number)
        assert claim is not None
        journal.attempt(claim, Attempt(1, "e", 0.0, 1.0, "ok"))
        landed.append(journal.recorded(claim, b'{"text":"x"}', ok=True))
    assert await asyncio.wait_for(asyncio.gather(*landed), 30) == [None] * 3000
    await close(journal)
    assert [result.key for result in read_results(path)] == [str(n) for n in range(3000)]
    assert [attempt.index for attempt in read_attempts(path)] == list(range(3000))
    assert verify(path).problems == []


async def test_what_may_be_known_needs_a_look(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    journal = Journal.open(path, MANIFEST)
    first = journal.claim_nowait(identity(1), key="a", index=0)
    assert first is not None
    assert journal.claim_nowait(identity(1), key="b", index=1) is None
    second = await journal.claim(identity(1), key="b", index=1)
    assert (first.occurrence, second.occurrence) == (0, 1)
    # Given up in the same turn in which it is claimed again.
    journal.release(first)
    third = await journal.claim(identity(1), key="c", index=2)
    assert (third.occurrence, third.stored) == (0, None)
    await asyncio.gather(*(journal.recorded(c, b'{"text":"x"}', ok=True) for c in (second, third)))
    await close(journal)
    again = Journal.open(path, MANIFEST)
    assert again.claim_nowait(identity(1), key="a", index=0) is None
    assert (await again.claim(identity(1), key="a", index=0)).stored == b'{"text":"x"}'
    await close(again)


async def test_who_stops_waiting_is_recorded_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    journal = Journal.open(path, MANIFEST)
    claims = [await journal.claim(identity(n), key="k", index=n) for n in range(2)]
    first, second = [journal.recorded(claim, b'{"text":"x"}', ok=True) for claim in claims]
    first.cancel()
    await second
    await close(journal)
    assert len(list(read_results(path))) == 2
    with pytest.raises(JournalError, match="closed"):
        journal.claim_nowait(identity(3), key="k", index=3)
    with pytest.raises(JournalError, match="closed"):
        journal.recorded(claims[0], b"{}", ok=True)


async def test_an_attempt_whose_error_is_no_text_in_any_encoding(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    journal = Journal.open(path, MANIFEST)
    claim = await journal.claim(identity(1), key="k", index=0)
    journal.attempt(claim, Attempt(1, "e\udc80", 0.0, 1.0, "Transient", error="a\ud800b"))
    await asyncio.wait_for(journal.recorded(claim, b"{}", ok=False), 30)
    await close(journal)
    (stored,) = read_attempts(path)
    assert (stored.attempt.endpoint, stored.attempt.error) == (r"e\udc80", r"a\ud800b")
