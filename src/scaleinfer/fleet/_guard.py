"""Runs one command and leaves nothing of it behind, however it or its owner ends.

`python -m scaleinfer.fleet._guard GRACE -- COMMAND...`, run as a process of its own between a
worker and its server. It holds the reading end of a pipe from its owner as standard input, and
writes to standard output what happens, a line each: `pid N`, `error TEXT`, `exited STATUS`
(negative: the signal). The command prints to the guard's standard error.

When the pipe ends, because the owner closed it or is dead, the guard ends the command: SIGTERM to
its process group, and after GRACE seconds SIGKILL to all that is left. A line `kill` on the pipe
does so without the grace. When the command ends by itself, what it had started is killed too.
The guard's exit status is the command's; 128 + N for signal N.

On Linux the guard adopts orphans among the command's descendants, so that they end even if they
left its session. Only the standard library is imported, so that it starts within milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

__all__ = ["descendants", "main"]

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LINUX = sys.platform == "linux"
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_NOT_STARTED = 127
_LOOK_S, _KILL_AGAIN_S = 1.0, 0.05


def descendants(root: int) -> list[int]:
    """Return the ids of all processes below one; none where there is no `/proc`."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc") if _LINUX else ():
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            # The name between the brackets may hold anything, brackets too.
            parent = int(file.read().rpartition(b")")[2].split()[1])
            children.setdefault(parent, []).append(int(name))
    found, look = [], [root]
    while look:
        below = children.get(look.pop(), [])
        found += below
        look += below
    return found


def _prctl(option: int, value: int) -> None:
    if not _LINUX:
        return
    with contextlib.suppress(ImportError, OSError):  # a Python without ctypes does with less
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # the owner is gone, and the next read says so
        os.write(1, line.encode(errors="replace") + b"\n")


class _Guard:
    """One command's life.

    Args:
        command: Program and arguments.
        grace: Seconds between SIGTERM and SIGKILL.
    """

    def __init__(self, command: list[str], grace: float) -> None:
        self._command = command
        self._grace = grace
        self._owner = os.getppid()
        self._pid = 0
        self._status: int | None = None
        self._kill_at: float | None = None
        self._poll = select.poll()
        self._wake, wake = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (*_ENDING, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)

    def run(self) -> int:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        guard = os.getpid()

        def die_with_the_guard() -> None:
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != guard:
                os._exit(_NOT_STARTED)

        try:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=2,
                start_new_session=True,
                preexec_fn=die_with_the_guard,  # noqa: PLW1509 - the guard has one thread
            )
        except (OSError, subprocess.SubprocessError) as error:
            _say(f"error {getattr(error, 'strerror', None) or error}")
            return _NOT_STARTED
        self._pid = process.pid
        process.returncode = 0  # it is reaped below, with all the others
        _say(f"pid {self._pid}")
        self._poll.register(0, select.POLLIN | select.POLLHUP)
        self._poll.register(self._wake, select.POLLIN)
        while self._reap():
            self._look()
        status = 0 if self._status is None else self._status
        _say(f"exited {status}")
        return status if status >= 0 else 128 - status

    def _look(self) -> None:
        """Wait for the next event and act on it."""
        now = time.monotonic()
        if self._kill_at is None:
            wait = _LOOK_S
        elif now < self._kill_at:
            wait = min(_LOOK_S, self._kill_at - now)
        else:
            self._kill()
            wait = _KILL_AGAIN_S
        for number, _ in self._poll.poll(wait * 1000):
            if number == self._wake:
                if not set(os.read(number, 4096)).isdisjoint(_ENDING):
                    self._end(self._grace)
                continue
            line = os.read(number, 64)
            if not line:
                self._poll.unregister(number)
                self._end(self._grace)
            elif b"kill" in line:
                self._end(0.0)
        # A process that the owner forked may hold the pipe open after the owner's death.
        if os.getppid() != self._owner:
            self._end(self._grace)

    def _end(self, grace: float) -> None:
        """Begin to end the command, or give it less time than it had."""
        at = time.monotonic() + grace
        if self._kill_at is None and grace > 0:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, signal.SIGTERM)
        self._kill_at = at if self._kill_at is None else min(at, self._kill_at)

    def _kill(self) -> None:
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not _LINUX:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, signal.SIGKILL)

    def _reap(self) -> bool:
        """Collect what has ended; return whether anything is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                if not _LINUX:
                    self._kill()  # only the group is known here
                return False
            if pid == 0:
                return True
            if pid == self._pid:
                self._status = os.waitstatus_to_exitcode(status)
                # Its children may hold the device and the port, and nobody tells them to end.
                self._kill_at = time.monotonic()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    grace, dashes, *command = sys.argv[1:] if arguments is None else arguments
    if dashes != "--" or not command:
        raise SystemExit("usage: _guard GRACE -- COMMAND...")
    return _Guard(command, float(grace)).run()


if __name__ == "__main__":
    sys.exit(main())
