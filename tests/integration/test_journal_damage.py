"""Journals that were cut, whose bytes flipped, whose pages are gone: refused, found, salvaged."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import shutil
import subprocess
import sys
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scaleinfer.errors import JournalError
from scaleinfer.journal import Journal, Manifest, _lock, list_runs, read_results, recover, verify
from scaleinfer.journal._format import PAGE_SIZE, is_intact
from scaleinfer.journal._pages import Pages, Wal, table_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

ITEMS = 300
CUTS = 200

WRITER = """
import asyncio, os, sys
from hashlib import blake2b
from scaleinfer.journal import Journal, Manifest
from scaleinfer.journal import _writer
from scaleinfer.results import Attempt

path, items, kill = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "kill"
_writer._LOG_BYTES = int(sys.argv[4])

async def main():
    journal = Journal.open(path, Manifest("damage", "f", {"prompt": "p" * 9000}))
    loop = asyncio.get_running_loop()
    for first in range(0, items, 20):
        landed = []
        for index in range(first, first + 20):
            identity = blake2b(str(index).encode(), digest_size=16).digest()
            claim = await journal.claim(identity, key=str(index), index=index)
            # some answers are short, some fill several pages
            text = "x" * (index * 37 % 600 + (index % 50 == 0) * 12_000)
            journal.attempt(claim, Attempt(1, "e", 0.0, 0.1, "ok"))
            landed.append(loop.create_future())
            journal.record(claim, b'{"text":"%d %s"}' % (index, text.encode()), ok=True,
                           done=landed[-1].set_result)
        await asyncio.gather(*landed)
    if kill:
        os.kill(os.getpid(), 9)
    await journal.aclose(state="complete", counts={})

asyncio.run(main())
"""


def make(path: Path, kind: str, log_bytes: int = 400_000) -> None:
    """Write a journal, its log moved into the file on the way, or never."""
    subprocess.run(
        [sys.executable, "-c", WRITER, str(path), str(ITEMS), kind, str(log_bytes)],
        check=kind == "close",
        timeout=50,
    )


NEVER = 1 << 30


@pytest.fixture(scope="module", params=["closed", "killed"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal of 300 items: closed well, or killed with a log beside it."""
    path = tmp_path_factory.mktemp(request.param) / "run.db"
    make(path, "kill" if request.param == "killed" else "close")
    assert Path(f"{path}-wal").exists() == (request.param == "killed")
    return path


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    for name in ("run.db", "run.db-wal"):
        if (whole.parent / name).exists():
            shutil.copy(whole.parent / name, tmp_path / name)
    return tmp_path / "run.db"


def answers(path: Path) -> dict[str, str]:
    return {r.key: r.payload["text"] for r in read_results(path, everything=True)}


def outcome(path: Path) -> tuple[dict[str, str], JournalError | None]:
    try:
        return answers(path), None
    except JournalError as error:
        return {}, error


def keys(pages: Pages) -> set[str]:
    """Keys of the results that lie intact on these pages."""
    columns = 11
    return {
        row[6].decode()
        for _, row in table_rows(pages)
        if len(row) == columns and is_intact("results", tuple(row))
    }


@pytest.mark.timeout(180)
def test_cut_at_two_hundred_lengths(whole: Path, copy: Path, tmp_path: Path) -> None:
    """Every committed result is there, or it is refused and `recover` salvages what is left."""
    truth = answers(whole)
    assert len(truth) == ITEMS
    size, chance = copy.stat().st_size, random.Random(11)
    lengths = sorted({0, 1, 50, 99, 100, size - 1, *chance.sample(range(size), CUTS - 6)})
    content, refusals = whole.read_bytes(), 0
    log = Path(f"{copy}-wal")
    wal = Wal(io.BytesIO(log.read_bytes() if log.exists() else b""))
    for number, length in enumerate(lengths):
        copy.write_bytes(content[:length])
        out = tmp_path / "out.db"
        kept, error = outcome(copy)
        if error is None:
            assert kept == truth
            continue
        refusals += 1
        if length == 0 and not Path(f"{copy}-wal").exists():
            assert "no journal" in error.message
            continue
        assert error.reason == "damaged", (length, error)
        assert "runs recover" in error.hint
        with pytest.raises(JournalError, match="damaged"):
            Journal.open(copy, Manifest(None, "f", {}))
        if number % 10 == 0:
            assert not verify(copy).ok
        report = recover(copy, out)
        salvaged = answers(out)
        assert report.results == len(salvaged)
        assert salvaged.items() <= truth.items()
        # Whole pages only: a lower bound of what can be salvaged.
        part = io.BytesIO(content[: length // PAGE_SIZE * PAGE_SIZE])
        assert salvaged.keys() >= keys(Pages(part, wal, PAGE_SIZE))
        assert report.lost in {None, ITEMS - len(salvaged)}
        out.unlink()
    assert refusals > CUTS / 4 if Path(f"{whole}-wal").exists() else refusals == len(lengths)


def test_most_is_salvaged_when_most_is_there(whole: Path, copy: Path, tmp_path: Path) -> None:
    os.truncate(copy, copy.stat().st_size * 3 // 4)
    if len(outcome(copy)[0]) == ITEMS:
        return  # what was cut off is in the log
    report = recover(copy, tmp_path / "out.db")
    assert report.results > ITEMS / 2
    assert report.lost == ITEMS - report.results
    assert verify(tmp_path / "out.db").ok
    assert asyncio.run(resume(tmp_path / "out.db")) == report.results


async def resume(path: Path) -> int:
    """Return how many of the items a new run finds answered."""
    journal = Journal.open(path, Manifest(None, "f", {}))
    found = 0
    for index in range(ITEMS):
        identity = blake2b(str(index).encode(), digest_size=16).digest()
        claim = await journal.claim(identity, key=str(index), index=index)
        found += claim.stored is not None
    await journal.aclose(state="complete", counts={})
    return found


def test_the_log_cut_anywhere_holds_every_commit_before_the_cut(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = tmp_path_factory.mktemp("log") / "run.db"
    make(whole, "kill", NEVER)
    log = Path(f"{whole}-wal").read_bytes()
    path, chance = tmp_path / "run.db", random.Random(5)
    truth = answers(whole)
    best = 0
    for length in sorted(chance.sample(range(len(log)), 40)):
        shutil.copy(whole, path)
        Path(f"{path}-wal").write_bytes(log[:length])
        kept, error = outcome(path)
        assert error is None or error.reason == "damaged"
        assert kept.items() <= truth.items()
        assert len(kept) >= best
        best = max(best, len(kept))
    assert best > 0


def test_a_log_that_lost_synced_commits_is_noticed_by_the_last_sign_of_life(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run.db"
    make(path, "kill")
    seen = _lock.look(str(path))
    assert seen is not None
    holder = seen[0]
    assert holder is not None
    lock = Path(f"{path}-lock")
    fields = {name: getattr(holder, name) for name in holder.__slots__}
    # More than the file alone can hold, however much of the log was moved there in time.
    lock.write_text(json.dumps(fields | {"progress": {"ok": ITEMS + 1, "failed": 0}}))
    os.truncate(f"{path}-wal", 32)
    with pytest.raises(JournalError, match="damaged") as caught:
        Journal.open(path, Manifest(None, "f", {}))
    assert caught.value.reason == "damaged"


def test_a_byte_flipped_in_the_middle_of_the_log_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    make(path, "kill", NEVER)
    log = bytearray(Path(f"{path}-wal").read_bytes())
    log[32 + 24 + 100] ^= 1
    Path(f"{path}-wal").write_bytes(log)
    with pytest.raises(JournalError, match="log"):
        list_runs(path)
    report = recover(path, tmp_path / "out.db")
    assert report.results == ITEMS


def flips(path: Path, count: int) -> Iterator[tuple[int, bytes]]:
    content, chance = path.read_bytes(), random.Random(3)
    for place in chance.sample(range(100, len(content)), count):
        flipped = bytearray(content)
        flipped[place] ^= 1 << chance.randrange(8)
        yield place, bytes(flipped)


def test_no_flipped_byte_changes_results_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    make(path, "close")
    truth = list(read_results(path, everything=True))
    found = 0
    for place, content in flips(path, 150):
        path.write_bytes(content)
        if verify(path).ok:
            # A byte that holds nothing: free space of a page.
            assert list(read_results(path, everything=True)) == truth, place
        else:
            found += 1
    assert found > 75


def test_verify_names_the_row(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    make(path, "close")
    content = path.read_bytes()
    place = content.index(b'{"text":"123 ')
    path.write_bytes(content[: place + 9] + b"9" + content[place + 10 :])
    report = verify(path)
    assert report.results == ITEMS - 1
    assert any("'123'" in problem for problem in report.problems), report.problems


@pytest.mark.parametrize("gone", [1, 2, 4])
def test_lost_schema_or_root_pages_do_not_matter(tmp_path: Path, gone: int) -> None:
    path = tmp_path / "run.db"
    make(path, "close")
    truth = answers(path)
    content = bytearray(path.read_bytes())
    content[(gone - 1) * PAGE_SIZE : gone * PAGE_SIZE] = os.urandom(PAGE_SIZE)
    path.write_bytes(content)
    recover(path, tmp_path / "out.db")
    assert answers(tmp_path / "out.db") == truth


def test_recover_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    make(path, "close")
    with pytest.raises(JournalError, match="exists already"):
        recover(path, path)
    with pytest.raises(JournalError, match="nothing to recover"):
        recover(tmp_path / "none.db", tmp_path / "out.db")
    assert not (tmp_path / "out.db").exists()
    report = recover(path, tmp_path / "out.db")
    assert (report.intact, report.results, report.lost) == (True, ITEMS, 0)


def test_a_file_that_is_gone_leaves_its_log(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    make(path, "kill")
    path.unlink()
    assert not path.exists()
    with pytest.raises(JournalError) as caught:
        Journal.open(path, Manifest(None, "f", {}))
    assert caught.value.reason == "damaged"
    report = recover(path, tmp_path / "out.db")
    assert report.results > 0
    assert Path(f"{path}-wal").exists()
