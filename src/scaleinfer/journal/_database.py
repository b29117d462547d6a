"""Opening a journal's file: what is accepted, what is refused and with which words.

A file is looked at before SQLite touches it, because SQLite repairs, truncates and deletes as it
opens. The check reads the header and compares the pages it counts with the file's length, which
finds a cut file in microseconds; SQLite's own `quick_check` reads the whole file, minutes for
a journal of millions of items. Damage inside a page is found where it matters: every answer that
is taken up is checked against its digest, and `verify` checks all of them.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import tempfile
from pathlib import Path
from urllib.parse import quote

from scaleinfer.errors import JournalError
from scaleinfer.journal import _format
from scaleinfer.journal._pages import HEADER_BYTES, MAGIC, Header, Wal

__all__ = ["connect_reader", "connect_writer", "create", "damaged", "inspect", "translate"]

_PATIENCE_S = 1.0
"""How long a writer waits for a reader that holds SQLite's own lock."""


def damaged(path: str, what: str) -> JournalError:
    """Return the error for a file that is ours but not whole."""
    return JournalError(
        f"The journal {path} is damaged: {what}.",
        path=path,
        reason="damaged",
        hint=f"Salvage what is left with `scaleinfer runs recover {path} --out NEW`.",
    )


def _foreign(path: str, what: str) -> JournalError:
    return JournalError(
        f"{path} {what}.",
        path=path,
        reason="foreign",
        hint="It was left as it is. Choose another path for the journal.",
    )


def inspect(path: str) -> Header | None:
    """Look at a file without changing it.

    Returns:
        The file's header; `None` if there is no file or an empty one, so that a journal may be
        made there.

    Raises:
        JournalError: `foreign`, `damaged`, `newer`, `older`, or `io` if it cannot be read.
    """
    size, head = _beginning(path)
    if size == 0:
        if _size(path + "-wal") > 0:
            raise damaged(path, f"the file is gone or empty but its log {path}-wal is there")
        return None
    if not head.startswith(MAGIC[: len(head)]):
        raise _foreign(path, "is not a journal of scaleinfer, nor any SQLite file")
    if len(head) < HEADER_BYTES:
        raise damaged(path, f"it is cut after {size} bytes")
    header = Header.parse(head)
    _check_origin(path, header)
    _check_length(path, header, size)
    return header


def _beginning(path: str) -> tuple[int, bytes]:
    """Return a file's length and its header; 0 and nothing if there is none."""
    try:
        kind = os.stat(path).st_mode
        if stat.S_ISDIR(kind):
            raise _foreign(path, "is a folder, not a journal")
        if not stat.S_ISREG(kind):  # opening a pipe would wait for its other end
            raise _foreign(path, "is not a regular file")
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_size, file.read(HEADER_BYTES)
    except FileNotFoundError:
        return 0, b""
    except OSError as error:
        raise JournalError(
            f"Cannot read {path}: {error.strerror}.",
            path=path,
            hint="Check the path and its permissions.",
        ) from error


def _check_origin(path: str, header: Header) -> None:
    if header.application_id != _format.APPLICATION_ID:
        raise _foreign(path, "is an SQLite file of another program")
    if header.user_version > _format.FORMAT:
        raise JournalError(
            f"The journal {path} has format {header.user_version}; this scaleinfer knows up to "
            f"{_format.FORMAT}.",
            path=path,
            reason="newer",
            hint="Install the scaleinfer that wrote it, or a later one.",
        )
    if any(n not in _format.MIGRATIONS for n in range(header.user_version, _format.FORMAT)):
        raise JournalError(
            f"The journal {path} has format {header.user_version}, which this scaleinfer no "
            "longer reads.",
            path=path,
            reason="older",
            hint="Export it with the scaleinfer that wrote it.",
        )


def _check_length(path: str, header: Header, size: int) -> None:
    """Compare the pages that are counted with those that are there."""
    if header.page_size < 512 or header.page_size & (header.page_size - 1):  # noqa: PLR2004
        raise damaged(path, "its header makes no sense")
    expected, logged = header.page_count, set[int]()
    if _size(path + "-wal") > 0:
        with open(path + "-wal", "rb") as file:
            wal = Wal(file)
        if wal.damaged:
            raise damaged(path, f"a part of its log {path}-wal is broken")
        if wal.page_count:
            # The log's last commit says how long the file is to be; a kill in the middle of
            # moving pages over leaves the file short, and the rest in the log.
            expected, logged = wal.page_count, set(wal.committed)
    whole = size // header.page_size
    if any(number not in logged for number in range(whole + 1, expected + 1)):
        raise damaged(
            path, f"it has {size} bytes and should have {expected * header.page_size}: it was cut"
        )


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def create(path: str) -> None:
    """Make an empty journal: complete under another name first, then renamed."""
    made = path + "-new"
    # A rollback journal of a file that is gone would be played into the new one.
    for leftover in (made, made + "-journal", path + "-journal"):
        Path(leftover).unlink(missing_ok=True)
    try:
        connection = _connect(made, "mode=rwc&vfs=unix-none", isolation_level=None)
        try:
            connection.execute(f"PRAGMA page_size={_format.PAGE_SIZE}")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA journal_mode=MEMORY")
            connection.execute("BEGIN")
            connection.execute(f"PRAGMA application_id={_format.APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={_format.FORMAT}")
            for statement in _format.SCHEMA:
                connection.execute(statement)
            connection.execute("COMMIT")
        finally:
            connection.close()
        os.replace(made, path)
        _sync_folder(path)
    except (sqlite3.Error, OSError) as error:
        Path(made).unlink(missing_ok=True)
        raise translate(error, path) from error


def _sync_folder(path: str) -> None:
    folder = os.open(Path(path).parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def connect_writer(path: str, *, file_locks: bool) -> sqlite3.Connection:
    """Open a journal for the one thread that writes it.

    Args:
        path: An existing journal that `inspect` has passed.
        file_locks: Whether the file system has file locks; without, the lock file guards alone.

    Raises:
        JournalError: As `translate` says.
    """
    try:
        os.close(os.open(path, os.O_RDWR))
        connection = _connect(
            path, "mode=rw" if file_locks else "mode=rw&vfs=unix-none",
            timeout=_PATIENCE_S, isolation_level=None, check_same_thread=False,
            cached_statements=256,
        )  # fmt: skip
    except (sqlite3.Error, OSError) as error:
        raise translate(error, path) from error
    try:
        # Exclusive before WAL: the log's index then lives in memory and no -shm file, which
        # network file systems cannot share, is made.
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise JournalError(f"Cannot keep a write-ahead log beside {path}.", path=path)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA fullfsync=ON")
        connection.execute("PRAGMA checkpoint_fullfsync=ON")
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("PRAGMA cache_size=-4096")
        _migrate(connection)
    except sqlite3.Error as error:
        connection.close()
        raise translate(error, path) from error
    except JournalError:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    for number in range(version, _format.FORMAT):
        _format.MIGRATIONS[number](connection)
        connection.execute(f"PRAGMA user_version={number + 1}")
    connection.execute("COMMIT")


def connect_reader(path: str, header: Header) -> sqlite3.Connection:
    """Open a journal without changing it or its log, in a read-only folder too.

    A file that was closed well is read under SQLite's shared lock. One that a killed writer
    left with a log is read without locks, the log's index in memory.
    """
    if header.wal or _size(path + "-wal") > 0:
        connection = _connect(path, "mode=ro&vfs=unix-none", isolation_level=None)
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        return connection
    for mode in ("mode=ro", "mode=rw", "mode=ro&vfs=unix-none"):
        connection = _connect(path, mode, isolation_level=None)
        try:
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError as error:
            # Without file locks the first two fail; a hot rollback journal needs the second.
            connection.close()
            if error.sqlite_errorname == "SQLITE_BUSY" or mode.endswith("none"):
                raise
        else:
            return connection
    raise AssertionError("unreachable: the last way either worked or raised")


def _connect(
    path: str,
    options: str,
    *,
    isolation_level: None,
    timeout: float = _PATIENCE_S,
    check_same_thread: bool = True,
    cached_statements: int = 128,
) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(path)}?{options}",
        uri=True,
        timeout=timeout,
        isolation_level=isolation_level,
        check_same_thread=check_same_thread,
        cached_statements=cached_statements,
    )


def translate(error: Exception, path: str) -> JournalError:
    """Return the `JournalError` for what SQLite or the operating system reported."""
    if isinstance(error, JournalError):
        return error
    code = getattr(error, "sqlite_errorname", "") or ""
    number = getattr(error, "errno", None)
    if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return damaged(path, str(error))
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")):
        return JournalError(
            f"Another program holds the journal {path} open.",
            path=path,
            reason="locked",
            hint="Close whatever reads it (an export, a database browser), then run again.",
        )
    if code.startswith(("SQLITE_READONLY", "SQLITE_PERM")) or number in {
        errno.EROFS, errno.EACCES, errno.EPERM,
    }:  # fmt: skip
        return JournalError(
            f"The journal {path} may not be written: {error}.",
            path=path,
            reason="readonly",
            hint="Change its permissions or copy it to a place you may write to.",
        )
    if code == "SQLITE_FULL" or number in _NO_SPACE or _out_of_space(code, path):
        return JournalError(
            f"No space left for the journal {path}; everything committed so far is kept.",
            path=path,
            reason="full",
            hint="Free space or raise the quota, then run again: it goes on where it stopped.",
        )
    return JournalError(
        f"The journal {path} failed: {error or type(error).__name__}.",
        path=path,
        hint="Check the disk and the file system, then run again: what was committed is kept.",
    )


_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def _out_of_space(code: str, path: str) -> bool:
    """Return whether a failed write was for want of space, which SQLite reports only at times.

    A quota or a file size limit comes as a plain write error. A write of the same kind tells.
    """
    if not code.startswith("SQLITE_IOERR"):
        return False
    longest = max(_size(path), _size(path + "-wal"))
    try:
        with tempfile.TemporaryFile(dir=Path(path).parent) as probe:
            os.pwrite(probe.fileno(), b"\0" * 8192, 0)
            os.pwrite(probe.fileno(), b"\0" * 8192, longest)
            os.fsync(probe.fileno())
    except OSError as problem:
        return problem.errno in _NO_SPACE
    return False
