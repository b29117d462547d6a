"""Limits that all processes of a user share on this host: some bytes in a file, read in turn.

The limits themselves are plain state machines; the clock is passed in. It is the monotonic
one, which all processes of a host share.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import stat
import struct
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["RequestWindow", "SharedNumbers", "TokenPace", "runtime_directory"]

T = TypeVar("T")

_MARGIN_S = 0.03
_CATCH_UP, _WOKE_LATE = 0.4, 0.1
_LONGEST_MARGIN_S = 1.0
_GROW, _SHRINK = 1.5, 0.9
_CALM_S = 5.0
_MANY = 3
_PACE = 0.985
_LONGEST_DEBT = 10.0
_NUMBER = struct.Struct("<d")
_MOST_BYTES = 65_536
_PRIVATE = 0o700


class RequestWindow:
    """At most so many requests in any second, as a server counts them.

    The times at which requests were sent are the state; so one that was never sent, because
    its process died, costs nothing. Requests may reach the server closer together than they
    were sent: the window is a little longer than a second, and longer after each refusal.

    Args:
        per_second: Requests in any second.
    """

    def __init__(self, per_second: float) -> None:
        self.most = max(1, math.floor(per_second))
        self._seconds = self.most / per_second
        self._margin = _MARGIN_S * self._seconds
        self._refused_at = -math.inf
        self._refusals = 0

    @property
    def seconds(self) -> float:
        """Length of the window."""
        return self._seconds + self._margin

    def take(self, sent: Sequence[float], now: float) -> tuple[list[float], float]:
        """Try to send a request.

        Args:
            sent: When the latest requests were sent.
            now: The clock.

        Returns:
            What is to be remembered, and the seconds to wait before trying again; 0 if the
            request may go now.
        """
        self._calm_down(now)
        # Times after now are those of a host that has been started anew.
        recent = sorted(at for at in sent if at <= now)[-self.most :]
        ready = recent[0] + self.seconds if len(recent) == self.most else -math.inf
        if ready > now:
            return recent, ready - now
        # What woke up a little late does not make all that follow late too.
        late = _CATCH_UP * _MARGIN_S * self._seconds
        at = max(ready, now - late) if now - ready < _WOKE_LATE * self._seconds else now
        return [*recent, at][-self.most :], 0.0

    def refused(self, sent: Sequence[float], now: float) -> list[float]:
        """The server counted more than we did; return what is to be remembered.

        One refusal is jitter on the way, and the refused request has had its turn here. Several
        at once are somebody else's requests, and then nobody sends for a second.
        """
        if now - self._refused_at > self.seconds:
            base = _MARGIN_S * self._seconds
            self._margin = min(max(base, _GROW * self._margin), _LONGEST_MARGIN_S)
            self._refused_at, self._refusals = now, 0
        self._refusals += 1
        return [now] * self.most if self._refusals == _MANY else list(sent)

    def _calm_down(self, now: float) -> None:
        base = _MARGIN_S * self._seconds
        if self._margin > base and now - self._refused_at > _CALM_S:
            self._margin = max(base, self._margin * _SHRINK)
            self._refused_at = now


class TokenPace:
    """Tokens of a window of time, spread evenly over it.

    One number is the state: the time at which all that was started is paid (the generic cell
    rate algorithm). A request pays what it will probably cost as it starts, and the difference
    when its answer has come. Whether the server counts in fixed windows, and where these
    begin, makes no difference to a steady pace.

    Args:
        tokens: Tokens of a window.
        seconds: Its length.
    """

    def __init__(self, tokens: float, seconds: float) -> None:
        self.tokens = tokens
        self.seconds = seconds
        self._gap = seconds / (tokens * _PACE)
        self._burst = (1 - _PACE) * seconds

    def ready_at(self, due: float, now: float) -> float:
        """Return when the next request may start."""
        # A debt of many windows is none of ours: the clock of another start of this host.
        return now if due > now + _LONGEST_DEBT * self.seconds else due

    def pay(self, due: float, cost: float, now: float) -> float:
        """Return the new state after a request starts that may cost so many tokens."""
        due = self.ready_at(due, now)
        return max(due, now - self._burst) + cost * self._gap

    def correct(self, due: float, paid: float, cost: float) -> float:
        """Return the new state after a request has cost something else than it paid."""
        return due + (cost - paid) * self._gap

    def hold(self, due: float, seconds: float, now: float) -> float:
        """Return the new state if nothing is to start for some seconds."""
        return max(self.ready_at(due, now), now + seconds)


@dataclass(slots=True)
class SharedNumbers:
    """A few numbers that all processes of the user on this host see.

    Without a file they are this process's own.

    Attributes:
        path: The file; `None` for none.
        own: The numbers without a file.
    """

    path: Path | None
    own: tuple[float, ...] = ()

    def update(self, change: Callable[[tuple[float, ...]], tuple[Sequence[float], T]]) -> T:
        """Replace the numbers by what `change` makes of them, alone with them; return the rest.

        The lock is the kernel's: it ends with the process that holds it.

        Raises:
            BlockingIOError: Another process has them at this moment.
            OSError: The file cannot be used.
        """
        if self.path is None:
            numbers, result = change(self.own)
            self.own = tuple(numbers)
            return result
        import fcntl

        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            data = os.pread(descriptor, _MOST_BYTES, 0)
            before = _unpacked(data)
            numbers, result = change(before)
            written = b"".join(map(_NUMBER.pack, numbers))
            if written != data:
                os.pwrite(descriptor, written, 0)
                os.ftruncate(descriptor, len(written))
        finally:
            os.close(descriptor)
        return result


def _unpacked(data: bytes) -> tuple[float, ...]:
    whole = len(data) - len(data) % _NUMBER.size
    numbers = (number for (number,) in _NUMBER.iter_unpack(data[:whole]))
    return tuple(number for number in numbers if math.isfinite(number))


def shared_numbers(name: str) -> tuple[SharedNumbers, str]:
    """Return the numbers of this name, and why they are this process's own if they are."""
    directory, why = runtime_directory()
    if directory is None:
        return SharedNumbers(None), why
    numbers = SharedNumbers(directory / re.sub(r"[^\w.-]+", "-", name))
    for _ in range(100):
        try:
            numbers.update(lambda before: (before, None))
        except BlockingIOError:
            time.sleep(0.001)
        except OSError as error:
            return SharedNumbers(None), f"{directory} takes no locks: {error.strerror}"
        else:
            break
    return numbers, ""


def runtime_directory() -> tuple[Path | None, str]:
    """Return a folder of this host that is the user's alone, or None and why there is none.

    Home folders are often on a network, where hosts share files but not clocks.
    """
    try:
        import fcntl  # noqa: F401 - whether it is there is the question
    except ImportError:
        return None, "this system has no file locks"
    given = os.environ.get("XDG_RUNTIME_DIR")
    base = Path(given) if given and os.access(given, os.W_OK | os.X_OK) else None
    name = "scaleinfer" if base else f"scaleinfer-{os.getuid()}"
    directory = (base or Path(tempfile.gettempdir())) / name
    try:
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=_PRIVATE)
        found = directory.lstat()
    except OSError as error:
        return None, f"{directory} cannot be made: {error.strerror}"
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        return None, f"{directory} is not this user's folder"
    return directory, ""
