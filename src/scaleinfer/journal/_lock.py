"""The lock file beside a journal: one writer, on any file system.

File locks of the operating system do not reach across nodes everywhere (NFS without a lock
service, Lustre mounted without `flock`), so the writer also creates `<path>-lock`, which every
file system can do exclusively, and rewrites it every few seconds. Its modification time is the
sign of life that other hosts see; on the same host the process itself is looked up.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from scaleinfer.errors import JournalError

__all__ = [
    "BEAT_S",
    "STALE_S",
    "Holder",
    "Lock",
    "is_held",
    "locked_error",
    "look",
    "refuse_if_held",
]

BEAT_S = 5.0
"""Seconds between two signs of life."""

STALE_S = 30.0
"""A holder on another host is given up after so many seconds without one."""

_SIZE = 1024
_OPEN = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who writes a journal, as its lock file says.

    Attributes:
        pid: Process number.
        host: Host name.
        machine: Boot and process namespace, which tell hosts and containers of one name apart.
        birth: When the process started, in the kernel's own count; empty if unknown.
        started: Unix time at which it opened the journal.
        token: Tells one opening from another.
        run: The run's number; 0 until it has one.
        progress: Counts of the run.
    """

    pid: int
    host: str
    machine: str
    birth: str
    started: float
    token: str
    run: int = 0
    progress: dict[str, int] = field(default_factory=dict)

    @classmethod
    def here(cls) -> Holder:
        """Return this process as a holder."""
        pid = os.getpid()
        birth = _birth(pid) or ""
        return cls(pid, socket.gethostname(), _machine(), birth, time.time(), secrets.token_hex(8))

    @classmethod
    def parse(cls, text: bytes) -> Holder | None:
        """Read a lock file's content; `None` if it is not (yet) whole."""
        try:
            data: Any = json.loads(text)
            return cls(**{f.name: data[f.name] for f in fields(cls)})
        except (ValueError, KeyError, TypeError):
            return None


def is_held(holder: Holder | None, here: Holder, age_s: float, birth: str | None) -> bool:
    """Decide whether a lock file belongs to a living writer.

    Args:
        holder: What the file says; `None` if it is not readable.
        here: This process.
        age_s: Seconds since the file's last sign of life.
        birth: When the process of that number on this host started; `None` if there is none.
    """
    if holder is not None and (holder.host, holder.machine) == (here.host, here.machine):
        return birth is not None and birth == holder.birth
    return age_s < STALE_S


def locked_error(path: str, holder: Holder | None, age_s: float) -> JournalError:
    """Return the error that names who writes `path`."""
    if holder is None:
        who = "a process that has just created its lock file"
        counts = ""
    else:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.started))
        who = f"process {holder.pid} on {holder.host} since {since}"
        progress = {name: n for name, n in holder.progress.items() if n and name != "rows"}
        counts = ", ".join(f"{n} {name}" for name, n in progress.items())
    so_far = f" ({counts} so far)" if counts else ""
    return JournalError(
        f"The journal {path} is being written by {who}{so_far}; last sign of life "
        f"{max(age_s, 0):.0f} s ago.",
        path=path,
        reason="locked",
        hint=(
            "Wait until it ends or stop it, or give this run a journal of its own. A writer that "
            f"died on another host frees it {STALE_S:.0f} s after its last sign of life."
        ),
    )


def look(path: str) -> tuple[Holder | None, float, int] | None:
    """Return holder, age in seconds and inode of `path`'s lock file; `None` if there is none."""
    try:
        # Opening, not only asking for the times, makes NFS fetch them anew.
        with open(path + "-lock", "rb") as file:
            status = os.fstat(file.fileno())
            holder = Holder.parse(file.read(2 * _SIZE))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _translated(error, path) from error
    return holder, _now_there(path) - status.st_mtime, status.st_ino


def refuse_if_held(path: str) -> None:
    """Raise `JournalError` (`locked`) if a living process writes `path`."""
    seen = look(path)
    if seen is not None:
        holder, age, _ = seen
        if is_held(holder, Holder.here(), age, _birth(holder.pid) if holder else None):
            raise locked_error(path, holder, age)


class Lock:
    """This process's hold on a journal.

    Attributes:
        holder: What the lock file says.
        displaced: The dead holder whose lock was taken over, if there was one.
    """

    def __init__(self, path: str, fd: int, holder: Holder, displaced: Holder | None) -> None:
        self._file = path + "-lock"
        self._fd = fd
        self.holder = holder
        self.displaced = displaced
        self.supports_file_locks = _supports_file_locks(fd)

    @classmethod
    def acquire(cls, path: str) -> Lock:
        """Take the lock at once or say who has it.

        Raises:
            JournalError: `locked` if a living process has it, `readonly`, `full` or `io` if the
                lock file cannot be made.
        """
        here = Holder.here()
        displaced: Holder | None = None
        try:
            while (fd := _make(path + "-lock")) is None:
                seen = look(path)
                if seen is None:
                    continue
                holder, age, inode = seen
                if is_held(holder, here, age, _birth(holder.pid) if holder else None):
                    raise locked_error(path, holder, age)
                _displace(path + "-lock", inode, here.token)
                displaced = holder
        except OSError as error:
            raise _translated(error, path) from error
        lock = cls(path, fd, here, displaced)
        try:
            lock.beat(0, {})
        except OSError as error:
            lock.release()
            raise _translated(error, path) from error
        return lock

    def beat(self, run: int, progress: dict[str, int]) -> None:
        """Give a sign of life and say how far the run is.

        Raises:
            OSError: The file cannot be written.
        """
        data = asdict(self.holder) | {"run": run, "progress": progress}
        # One write of one size, so that nobody reads half of it; synced, so that NFS tells
        # other hosts of it now.
        os.pwrite(self._fd, json.dumps(data).encode().ljust(_SIZE), 0)
        os.fsync(self._fd)

    def owned(self) -> bool:
        """Return whether the lock file is still ours: nobody has taken us for dead."""
        try:
            return os.stat(self._file).st_ino == os.fstat(self._fd).st_ino
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Remove the lock file if it is ours."""
        if self._fd >= 0:
            with suppress(OSError):
                if self.owned():
                    os.unlink(self._file)
            os.close(self._fd)
            self._fd = -1


def _make(file: str) -> int | None:
    """Create a file that must not exist; `None` if it does."""
    try:
        return os.open(file, _OPEN, 0o644)
    except FileExistsError:
        return None


def _displace(file: str, inode: int, token: str) -> None:
    """Move a dead writer's lock file away; put back what turns out to be somebody else's."""
    aside = f"{file}-{token}"
    try:
        os.rename(file, aside)
    except FileNotFoundError:
        return
    if os.stat(aside).st_ino != inode:
        with suppress(OSError):
            os.link(aside, file)
    os.unlink(aside)


def _now_there(path: str) -> float:
    """Return the time by the clock of the file system that holds `path`."""
    try:
        with tempfile.TemporaryFile(dir=Path(path).parent) as probe:
            probe.write(b"?")
            probe.flush()
            return os.fstat(probe.fileno()).st_mtime
    except OSError:
        return time.time()


def _birth(pid: int) -> str | None:
    """Return when a process of this host started; `None` if there is none (a zombie is none)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, *rest = file.read().rpartition(b")")[2].split()
        return None if state in {b"Z", b"X"} else rest[18].decode()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except (OSError, IndexError, ValueError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return ""


def _machine() -> str:
    parts = []
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _supports_file_locks(fd: int) -> bool:
    """Return whether the operating system's file locks work on this file system."""
    import fcntl

    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in {errno.EAGAIN, errno.EACCES}
    return True


def _translated(error: OSError, path: str) -> JournalError:
    """Return the `JournalError` for a lock file that could not be made or read."""
    folder = str(Path(path).parent)
    match error.errno:
        case errno.ENOENT:
            return JournalError(
                f"The folder {folder} does not exist.", path=path, hint="Create it first."
            )
        case errno.ENOTDIR:
            return JournalError(
                f"{folder} is not a folder.", path=path, hint="Choose another path."
            )
        case errno.EROFS | errno.EACCES | errno.EPERM:
            return JournalError(
                f"Cannot write in the folder {folder}: {error.strerror}.",
                path=path,
                reason="readonly",
                hint="A journal needs a folder it may write in; choose another path.",
            )
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return JournalError(
                f"No space for the journal {path}: {error.strerror}.",
                path=path,
                reason="full",
                hint="Free space or raise the quota, then run again.",
            )
        case _:
            return JournalError(
                f"Cannot make the lock file of {path}: {error.strerror}.",
                path=path,
                hint="Check the path and the file system.",
            )
