"""Opening what cannot be opened, two at a time, without room, without rights: words for each."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from scaleinfer.errors import JournalError
from scaleinfer.journal import (
    Journal,
    Manifest,
    _lock,
    _writer,
    list_runs,
    read_results,
    recover,
    verify,
)
from scaleinfer.journal._database import create
from scaleinfer.journal._lock import STALE_S, Holder

pytestmark = pytest.mark.anyio

MANIFEST = Manifest("test", "f", {"n": 1})


def identity(number: int) -> bytes:
    return number.to_bytes(16, "big")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def beside(path: Path, suffix: str) -> bool:
    return Path(f"{path}{suffix}").exists()


async def put(journal: Journal, *numbers: int, size: int = 10) -> None:
    """Claim and record items and wait until they are on disk."""
    loop = asyncio.get_running_loop()
    landed = []
    for number in numbers:
        claim = await journal.claim(identity(number), key=str(number), index=number)
        if claim.stored is None:
            future: asyncio.Future[JournalError | None] = loop.create_future()
            payload = b'{"text":"%s"}' % (b"x" * size)
            journal.record(claim, payload, ok=True, done=future.set_result)
            landed.append(future)
    for error in await asyncio.gather(*landed):
        if error is not None:
            raise error


async def close(journal: Journal) -> None:
    await journal.aclose(state="complete", counts={})


def refused(path: Path) -> JournalError:
    with pytest.raises(JournalError) as caught:
        Journal.open(path, MANIFEST)
    assert not Path(f"{path}-lock").exists()
    assert caught.value.hint
    return caught.value


async def test_one_file_after_close_and_no_shared_memory_file_before(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    journal = Journal.open(path, MANIFEST)
    await put(journal, *range(50))
    assert names(tmp_path) == ["run.db", "run.db-lock", "run.db-wal"]
    await close(journal)
    await close(journal)
    assert names(tmp_path) == ["run.db"]
    with closing(sqlite3.connect(path)) as connection:  # a plain file for any other tool
        assert connection.execute("SELECT count(*) FROM results").fetchone() == (50,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    with pytest.raises(JournalError, match="closed"):
        await journal.claim(identity(1), key="k", index=0)
    assert not [t for t in threading.enumerate() if t.name == "scaleinfer-journal"]


async def test_an_empty_file_becomes_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    path.touch()
    journal = Journal.open(path, MANIFEST)
    await put(journal, 1)
    await close(journal)
    assert verify(path).results == 1


async def test_a_link_is_followed_so_that_two_names_are_one_journal(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "run.db")
    journal = Journal.open(tmp_path / "link.db", MANIFEST)
    with pytest.raises(JournalError, match="is being written"):
        Journal.open(tmp_path / "run.db", MANIFEST)
    await close(journal)


async def test_what_is_not_a_journal_is_left_alone(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "no" / "run.db").message
    folder = tmp_path / "folder"
    folder.mkdir()
    assert refused(folder).reason == "foreign"
    notes = tmp_path / "notes.txt"
    notes.write_text("my notes, longer than a header " * 10)
    assert refused(notes).reason == "foreign"
    assert notes.read_text().startswith("my notes")
    assert refused(notes / "run.db").reason == "io"
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE results (x)")
    before = other.read_bytes()
    assert refused(other).reason == "foreign"
    assert other.read_bytes() == before
    os.mkfifo(tmp_path / "pipe", 0o600)
    # A pipe is never opened: that would wait for somebody at its other end.
    assert refused(tmp_path / "pipe").reason == "foreign"
    with pytest.raises(JournalError, match="no journal"):
        list_runs(tmp_path / "nothing.db")


@pytest.mark.parametrize(("version", "reason"), [(3, "newer"), (0, "older")])
async def test_other_formats_are_refused(tmp_path: Path, version: int, reason: str) -> None:
    path = tmp_path / "run.db"
    create(str(path))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version={version}")
    assert refused(path).reason == reason
    with pytest.raises(JournalError) as caught:
        list_runs(path)
    assert caught.value.reason == reason


async def test_a_second_writer_in_the_same_process(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    journal = Journal.open(path, MANIFEST)
    await put(journal, 1)
    began = time.monotonic()
    with pytest.raises(JournalError) as caught:
        Journal.open(path, MANIFEST)
    assert time.monotonic() - began < 1.0
    assert caught.value.reason == "locked"
    assert f"process {os.getpid()} on " in caught.value.message
    with pytest.raises(JournalError, match="is being written"):
        list_runs(path)
    with pytest.raises(JournalError, match="is being written"):
        recover(path, tmp_path / "new.db")
    await put(journal, 2)  # the first one is not disturbed
    await close(journal)
    assert verify(path).results == 2


async def test_two_threads_that_open_at_once(tmp_path: Path) -> None:
    path, outcomes = tmp_path / "run.db", list[Any]()
    barrier = threading.Barrier(6)

    def attempt() -> None:
        barrier.wait()
        try:
            outcomes.append(Journal.open(path, MANIFEST))
        except JournalError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=attempt) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [outcome for outcome in outcomes if isinstance(outcome, Journal)]
    assert len(winners) == 1
    assert all(o.reason == "locked" for o in outcomes if isinstance(o, JournalError))
    await close(winners[0])


def write_lock(path: Path, holder: Holder, age_s: float) -> None:
    lock = Path(f"{path}-lock")
    lock.write_text(json.dumps(asdict(holder)))
    then = time.time() - age_s
    os.utime(lock, (then, then))


async def test_a_lock_of_another_host_holds_until_its_heart_stops(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    elsewhere = replace(Holder.here(), host="node0042", machine="boot pid:[1]")
    write_lock(path, elsewhere, STALE_S - 5)
    with pytest.raises(JournalError) as caught:
        Journal.open(path, MANIFEST)
    assert "node0042" in caught.value.message
    write_lock(path, elsewhere, STALE_S + 5)
    journal = Journal.open(path, MANIFEST)
    await close(journal)


def ended_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait(timeout=30)
    return process.pid


async def test_a_dead_process_of_this_host_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    write_lock(path, replace(Holder.here(), pid=ended_process()), 0.0)
    journal = Journal.open(path, MANIFEST)
    await close(journal)
    # The number lives on as another process.
    write_lock(path, replace(Holder.here(), birth="1"), 0.0)
    journal = Journal.open(path, MANIFEST)
    await close(journal)


async def test_the_heart_beats_and_says_how_far_the_run_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_writer, "BEAT_S", 0.02)
    path = tmp_path / "run.db"
    journal = Journal.open(path, MANIFEST)
    await put(journal, 1, 2, 3)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        seen = _lock.look(str(path))
        assert seen is not None
        assert seen[0] is not None
        if seen[0].progress.get("ok") == 3:
            break
        await asyncio.sleep(0.01)
    else:
        pytest.fail("no sign of life")
    await close(journal)


async def test_a_writer_that_was_taken_for_dead_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_writer, "BEAT_S", 0.02)
    path = tmp_path / "run.db"
    journal = Journal.open(path, MANIFEST)
    await put(journal, 1)
    os.unlink(f"{path}-lock")
    write_lock(path, replace(Holder.here(), host="thief"), 0.0)
    await asyncio.sleep(0.1)
    with pytest.raises(JournalError) as caught:
        await put(journal, 2)
    assert caught.value.reason == "locked"
    assert "thief" in caught.value.message
    await close(journal)
    assert beside(path, "-lock")  # it is not ours to remove
    assert beside(path, "-wal")  # nor is the file ours to change


async def test_without_file_locks_the_lock_file_guards_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def none(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "lockf", none)
    path = tmp_path / "run.db"
    journal = Journal.open(path, MANIFEST)
    await put(journal, 1)
    with closing(sqlite3.connect(path, timeout=0)) as connection:
        # SQLite's own locks are not taken: another program gets in, our own does not.
        connection.execute("PRAGMA user_version").fetchone()
    with pytest.raises(JournalError, match="is being written"):
        Journal.open(path, MANIFEST)
    await close(journal)
    assert verify(path).results == 1


async def test_a_reader_keeps_writers_out_with_words(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    journal = Journal.open(path, MANIFEST)
    await put(journal, 1, 2, 3)
    await close(journal)
    results = read_results(path)
    next(results)
    error = refused(path)
    assert error.reason == "locked"
    assert "export" in error.hint
    results.close()  # type: ignore[attr-defined]  # a generator, declared as an iterator
    journal = Journal.open(path, MANIFEST)
    await close(journal)


async def test_a_cancelled_close_still_closes(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    journal = Journal.open(path, MANIFEST)
    await put(journal, 1)
    task = asyncio.create_task(close(journal))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert names(tmp_path) == ["run.db"]
    assert list_runs(path)[0].state == "complete"


async def test_when_every_task_is_cancelled_it_still_closes(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    ready = asyncio.Event()

    async def forever() -> None:
        journal = Journal.open(path, MANIFEST)
        try:
            await put(journal, 1)
            ready.set()
            await asyncio.Event().wait()
        finally:
            await journal.aclose(state="stopped", counts={})

    before = asyncio.all_tasks()
    task = asyncio.create_task(forever())
    await ready.wait()
    task.cancel()
    await asyncio.sleep(0)
    for other in asyncio.all_tasks() - before:
        other.cancel()  # as `asyncio.run` does on its way out, in the middle of the close
    with pytest.raises(asyncio.CancelledError):
        await task
    assert names(tmp_path) == ["run.db"]
    assert list_runs(path)[0].state == "stopped"


async def test_a_cancelled_claim_is_given_back(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "run.db", MANIFEST)
    await put(journal, 1)
    task = asyncio.create_task(journal.claim(identity(1), key="k", index=0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.05)
    assert (await journal.claim(identity(1), key="k", index=0)).occurrence == 1
    await close(journal)


async def test_one_callers_mistake_keeps_nobody_waiting(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    complaints = list[dict[str, Any]]()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    journal = Journal.open(tmp_path / "run.db", MANIFEST)
    gone: asyncio.Future[JournalError | None] = loop.create_future()
    gone.cancel()
    landed: asyncio.Future[JournalError | None] = loop.create_future()
    for number, future in enumerate((gone, landed)):
        claim = await journal.claim(identity(number), key="k", index=number)
        journal.record(claim, b"{}", ok=True, done=future.set_result)
    assert await asyncio.wait_for(landed, 5) is None
    assert [type(c["exception"]) for c in complaints] == [asyncio.InvalidStateError]
    await close(journal)


async def test_a_key_that_is_no_text_in_any_encoding(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "run.db", MANIFEST)
    claim = await journal.claim(identity(1), key="a\ud800b", index=0)
    landed: asyncio.Future[JournalError | None] = asyncio.get_running_loop().create_future()
    journal.record(claim, b"{}", ok=True, done=landed.set_result)
    assert await landed is None
    await close(journal)
    assert next(read_results(tmp_path / "run.db")).key == r"a\ud800b"


def test_a_forgotten_journal_is_closed_at_exit(tmp_path: Path) -> None:
    program = (
        "import asyncio\nfrom scaleinfer.journal import *\n"
        f"journal = Journal.open({str(tmp_path / 'run.db')!r}, Manifest(None, 'f', {{}}))\n"
        "async def main():\n"
        "    claim = await journal.claim(b'1' * 16, key='k', index=0)\n"
        "    journal.record(claim, b'{}', ok=True, done=print)\n"
        "asyncio.run(main())\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
    assert names(tmp_path) == ["run.db"]
    assert list_runs(tmp_path / "run.db")[0].state == "stopped"
    assert len(list(read_results(tmp_path / "run.db"))) == 1


FORKS = """
import asyncio, os, sys
from scaleinfer.errors import JournalError
from scaleinfer.journal import Journal, Manifest

async def item(journal, number):
    claim = await journal.claim(number.to_bytes(16, "big"), key=str(number), index=number)
    landed = asyncio.get_running_loop().create_future()
    journal.record(claim, b"{}", ok=True, done=landed.set_result)
    assert await landed is None

async def items(journal, start, end):
    for number in range(start, end):
        await item(journal, number)

async def rest(journal):
    await items(journal, 10, 20)
    assert os.path.exists(sys.argv[1] + "-wal")
    await journal.aclose(state="complete", counts={})

journal = Journal.open(sys.argv[1], Manifest(None, "f", {}))
asyncio.run(items(journal, 0, 10))
# Between two loops: a child that ends a copied loop breaks its parent's, journal or not.
child = os.fork()
if child == 0:
    try:
        journal.attempt(None, None)
    except JournalError as error:
        sys.exit(0 if error.reason == "locked" else 3)
    sys.exit(4)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
asyncio.run(rest(journal))
"""


def test_a_forked_child_leaves_the_journal_to_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(path)], capture_output=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert verify(path).ok
    assert len(list(read_results(path))) == 20
    assert names(tmp_path) == ["run.db"]


FULL = """
import asyncio, resource, sys
from scaleinfer.errors import JournalError
from scaleinfer.journal import Journal, Manifest

async def main(path, limit):
    journal = Journal.open(path, Manifest(None, "f", {}))
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    loop, number, landed = asyncio.get_running_loop(), 0, []
    while True:
        futures = []
        for _ in range(20):
            future = loop.create_future()
            try:
                claim = await journal.claim(
                    number.to_bytes(16, "big"), key=str(number), index=number)
                journal.record(claim, b'{"text":"%s"}' % (b"x" * 1000), ok=True,
                               done=future.set_result)
            except JournalError as error:
                assert error.reason == "full"
                break
            futures.append((number, future))
            number += 1
        outcomes = [(n, await future) for n, future in futures]
        landed += [n for n, error in outcomes if error is None]
        if any(error for _, error in outcomes) or len(outcomes) < 20:
            break
    assert all(error.reason == "full" for _, error in outcomes if error), outcomes
    for again in (journal.claim(b"0" * 16, key="k", index=0), journal.flush()):
        try:
            await again
        except JournalError as error:
            assert error.reason == "full"
        else:
            raise SystemExit("it went on")
    await journal.aclose(state="failed", counts={})
    print(len(landed))

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def fill(path: Path, limit: int) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path), str(limit)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_file_size_limit_keeps_what_was_committed(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    landed = fill(path, 1 << 20)
    assert landed > 50
    assert len(list(read_results(path))) >= landed
    assert verify(path).ok


async def resume(path: Path) -> int:
    journal = Journal.open(path, MANIFEST)
    await put(journal, *range(100))
    await close(journal)
    return verify(path).results


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small disk takes root"
)
def test_a_full_disk_keeps_what_was_committed_and_the_run_goes_on(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], check=True)
    try:
        path = disk / "run.db"
        landed = fill(path, 0)
        assert landed > 50
        assert len(list(read_results(path))) >= landed
        assert verify(path).ok
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        assert asyncio.run(resume(path)) >= landed
    finally:
        subprocess.run(["umount", str(disk)], check=True)


READONLY = """
import os, sys
from scaleinfer.errors import JournalError
from scaleinfer.journal import Journal, Manifest, list_runs, read_results, verify

folder = sys.argv[1]
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for name in ("new.db", "closed.db", "killed.db"):
    try:
        Journal.open(f"{folder}/{name}", Manifest(None, "f", {}))
    except JournalError as error:
        assert error.reason == "readonly" and error.hint, error
    else:
        raise SystemExit("opened for writing")
for name in ("closed.db", "killed.db"):
    assert len(list(read_results(f"{folder}/{name}"))) == 20, name
    assert verify(f"{folder}/{name}").ok
    assert list_runs(f"{folder}/{name}")
print("fine")
"""

KILLED = """
import asyncio, os, sys
from scaleinfer.journal import Journal, Manifest
async def main():
    journal = Journal.open(sys.argv[1], Manifest(None, "f", {}))
    for number in range(20):
        claim = await journal.claim(number.to_bytes(16, "big"), key=str(number), index=number)
        journal.record(claim, b"{}", ok=True, done=lambda error: None)
    await journal.flush()
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""


async def write_twenty(path: Path) -> None:
    journal = Journal.open(path, MANIFEST)
    await put(journal, *range(20))
    await close(journal)


def test_a_read_only_folder_can_be_read_and_not_written(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    subprocess.run(
        [sys.executable, "-c", KILLED, str(folder / "killed.db")], check=False, timeout=30
    )
    asyncio.run(write_twenty(folder / "closed.db"))
    assert (folder / "killed.db-wal").exists()
    for file in folder.iterdir():
        file.chmod(0o444)
    folder.chmod(0o555)
    # A user who is not root, so that the rights count; the folders above must let him through.
    for parent in folder.parents:
        if parent.is_relative_to("/tmp") and parent != Path("/tmp") and parent.owner() == "root":
            parent.chmod(parent.stat().st_mode | 0o055)
    try:
        done = subprocess.run(
            [sys.executable, "-c", READONLY, str(folder)],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert done.stdout == "fine\n", done.stderr
    finally:
        folder.chmod(0o755)


async def test_a_read_only_file_in_a_folder_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    create(str(path))
    real_open = os.open

    def denied(name: Any, flags: int, *rest: Any, **named: Any) -> int:
        if name == str(path) and flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real_open(name, flags, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", denied)
        assert refused(path).reason == "readonly"


async def test_statistics_add_up(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "run.db", MANIFEST)
    await put(journal, *range(200))
    await journal.flush()
    statistics = journal.statistics()
    assert statistics.records == 200
    assert statistics.rows == 200
    assert 1 <= statistics.commits <= 200
    assert statistics.commit_s > 0
    assert statistics.record_wait_s > 0
    assert statistics.queued == 0
    await close(journal)
