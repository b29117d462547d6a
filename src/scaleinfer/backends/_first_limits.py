"""The limits of FIRST that a client keeps by itself, so that it is never told of them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from scaleinfer.backends._shared_limit import (
    RequestWindow,
    SharedNumbers,
    TokenPace,
    shared_numbers,
)
from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["FirstLimits", "InFlight", "RequestShare", "TokenTurns", "Turns"]

T = TypeVar("T")

_LOCK_PATIENCE_S = 1.0
_LOCK_LOOK_S = 0.002
_LOOK_AGAIN_S = 0.1
_MIB = 1024 * 1024
_FIRST_GUESS = 512.0
_CHARACTERS_PER_TOKEN = 4
_EXPLORE = 0.25
_MEMORY = 20
_MOST_LATE_S = 60.0
_FIRST_CALLS = 64
_FEWEST = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstLimits:
    """What the gateway allows one user. Where it tells its limits, `None` stands for those.

    Attributes:
        requests_per_second: Requests of the user in any second, those for the state of models
            included; shared by all processes of the user on this host, and by all workers of a
            fleet. With several hosts that know nothing of each other, give each its share.
        tokens_per_minute: Tokens a minute of the user and the model; `None` for what
            `/{cluster}/models` tells.
        window_s: Length of the window that tokens are counted in.
        body_bytes: Largest body that is sent.

    Raises:
        ConfigError: A value is not positive.
    """

    requests_per_second: float = 10.0
    tokens_per_minute: float | None = None
    window_s: float = 60.0
    body_bytes: int = int(2.4 * _MIB)

    def __post_init__(self) -> None:
        for name in ("requests_per_second", "tokens_per_minute", "window_s", "body_bytes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"FirstLimits.{name} must be positive, not {value}.")


class _Shared:
    """Numbers shared with other processes, changed without ever blocking the loop."""

    def __init__(self, name: str) -> None:
        self._numbers, why = shared_numbers(name)
        self._owed: list[Callable[[tuple[float, ...]], Sequence[float]]] = []
        if why:
            self._alone(why)

    async def update(self, change: Callable[[tuple[float, ...]], tuple[Sequence[float], T]]) -> T:
        until = time.monotonic() + _LOCK_PATIENCE_S
        while True:
            try:
                return self._numbers.update(lambda before: change(self._paid_up(before)))
            except BlockingIOError:
                if time.monotonic() > until:
                    self._alone("another process has kept the lock for a second")
                else:
                    await asyncio.sleep(_LOCK_LOOK_S)
            except OSError as error:
                self._alone(str(error))

    def update_soon(self, change: Callable[[tuple[float, ...]], Sequence[float]]) -> None:
        """Change the numbers now, or with the next change if another process has them."""
        self._owed.append(change)
        with contextlib.suppress(BlockingIOError, OSError):
            self._numbers.update(lambda before: (self._paid_up(before), None))

    def _paid_up(self, numbers: tuple[float, ...]) -> tuple[float, ...]:
        for change in self._owed:
            numbers = tuple(change(numbers))
        self._owed.clear()
        return numbers

    def _alone(self, why: str) -> None:
        self._numbers = SharedNumbers(None)
        logging.getLogger("scaleinfer").warning(
            "FIRST's limit of requests a second is kept for this process alone, not together "
            "with others of yours: %s.",
            why,
        )


class Turns:
    """Lets requests go one after the other, no more in a second than the gateway allows.

    Belongs to one event loop.

    Args:
        gateway: The gateway's URL; all who name the same one share a limit.
        per_second: Requests in any second.
        share: This process's part of these, if others have some too.
    """

    def __init__(self, gateway: str, per_second: float, share: RequestShare | None = None) -> None:
        self._window = RequestWindow(per_second)
        self._share = share or RequestShare(per_second)
        self._shared = _Shared(f"first-{_short(gateway)}.requests")
        # First come, first served: a lock of asyncio keeps its queue in order.
        self._lock = asyncio.Lock()

    async def take(self) -> None:
        """Wait for a turn; the request must be sent right after."""
        async with self._lock:
            while True:
                wait = self._share.wait(time.monotonic())
                if wait <= 0:
                    wait = await self._shared.update(
                        lambda sent: self._window.take(sent, time.monotonic())
                    )
                    if wait <= 0:
                        self._share.sent(time.monotonic())
                        return
                await asyncio.sleep(wait)

    def refused(self) -> None:
        """The gateway has counted too many requests."""
        now = time.monotonic()
        self._share.refused(now)
        self._shared.update_soon(lambda sent: self._window.refused(sent, now))


class RequestShare:
    """This process's part of the requests that the gateway allows the user on all machines.

    Without holders there is no such part: then other machines are no concern of ours. May be used
    from several threads.

    Args:
        per_second: Requests a second of all machines together.
    """

    def __init__(self, per_second: float) -> None:
        self._unit = per_second / max(1, math.floor(per_second))
        self._held: WeakKeyDictionary[Any, tuple[int, float]] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self._window: RequestWindow | None = None
        self._most = 0
        self._sent: list[float] = []

    def hold(self, holder: object, requests: int, until: float) -> None:
        """Give a holder a share, up to a time of the monotonic clock."""
        with self._lock:
            self._held[holder] = requests, until

    def of(self, holder: object, now: float) -> int:
        """Return a holder's share."""
        requests, until = self._held.get(holder, (0, now))
        return requests if now < until else 0

    def wait(self, now: float) -> float:
        """Return the seconds until the next request may be sent; 0 if it may go now."""
        with self._lock:
            window = self._windows(now)
            if window is None:
                return _LOOK_AGAIN_S if len(self._held) else 0.0
            return window.take(self._sent, now)[1]

    def sent(self, now: float) -> None:
        """A request is sent."""
        with self._lock:
            window = self._windows(now)
            if window is not None:
                self._sent = window.take(self._sent, now)[0]

    def refused(self, now: float) -> None:
        """The gateway has counted too many."""
        with self._lock:
            if self._window is not None:
                self._sent = self._window.refused(self._sent, now)

    def _windows(self, now: float) -> RequestWindow | None:
        most = sum(share for share, until in self._held.values() if now < until)
        if most != self._most:
            self._most = most
            self._window = RequestWindow(most * self._unit) if most else None
        return self._window


class TokenTurns:
    """Lets requests go at the pace of the tokens that a model's limit allows.

    Belongs to one event loop.

    Args:
        name: Gateway, cluster and model; all who name the same ones share a limit.
        tokens: Tokens of a window.
        window_s: Its length in seconds.
    """

    def __init__(self, name: str, tokens: float, window_s: float) -> None:
        self._pace = TokenPace(tokens, window_s)
        self._shared = _Shared(f"first-{_short(name)}.tokens")
        self._lock = asyncio.Lock()
        self._answer = _FIRST_GUESS
        self._answers = self._asked = 0
        self._per_byte = 1 / _CHARACTERS_PER_TOKEN

    def expected(self, size: int) -> float:
        """Return the tokens that a request of so many bytes will probably cost."""
        self._asked += 1
        # The first ones are to tell what an answer costs; it is settled when they have come.
        unknown = not self._answers and self._asked * _FIRST_GUESS <= _EXPLORE * self._pace.tokens
        return size * self._per_byte + (0.0 if unknown else self._answer)

    async def take(self, cost: float) -> None:
        """Wait for a turn, and pay for it."""
        async with self._lock:
            while True:
                wait = await self._shared.update(lambda kept: self._take(kept, cost))
                if wait <= 0:
                    return
                await asyncio.sleep(wait)

    def _take(self, kept: tuple[float, ...], cost: float) -> tuple[list[float], float]:
        now = time.monotonic()
        due = kept[0] if kept else now
        wait = self._pace.ready_at(due, now) - now
        return ([due], wait) if wait > 0 else ([self._pace.pay(due, cost, now)], 0.0)

    def settle(self, paid: float, cost: float) -> None:
        """A request has ended that cost something else than it paid; 0 if it was refused."""
        self._shared.update_soon(lambda kept: [self._pace.correct(at, paid, cost) for at in kept])

    def learn(self, size: int, prompt_tokens: int, completion_tokens: int) -> None:
        """An answer came: the next ones will cost about as much."""
        self._answers += 1
        part = 1 / min(self._answers, _MEMORY)
        self._answer += part * (completion_tokens - self._answer)
        if size and prompt_tokens:
            self._per_byte += part * (prompt_tokens / size - self._per_byte)

    def hold(self, seconds: float) -> None:
        """Nothing starts for so long: the gateway has refused a request for its tokens."""
        now = time.monotonic()
        self._shared.update_soon(
            lambda kept: [self._pace.hold(max(kept, default=now), seconds, now)]
        )


class InFlight:
    """How many requests are worth having at the gateway at once. A plain state machine.

    The rate of requests is bounded elsewhere, so this only has to keep a slow model's queue
    short: the gateway gives up on what takes 300 s.

    Args:
        most: Never more.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = min(most, _FIRST_CALLS)
        self._seconds = 0.0
        self._answers = 0
        self._cut_at = float("-inf")

    def answered(self, seconds: float, now: float) -> None:
        """An answer came after so many seconds."""
        self._answers += 1
        self._seconds += (seconds - self._seconds) / min(self._answers, _MEMORY)
        if self._seconds <= _MOST_LATE_S:
            self.limit = min(self.most, self.limit + 1)
        elif now - self._cut_at > self._seconds:
            self._cut(_MOST_LATE_S / self._seconds, now)

    def late(self, now: float) -> None:
        """The gateway gave up waiting for an answer."""
        if now - self._cut_at > max(1.0, self._seconds):
            self._cut(0.5, now)

    def _cut(self, by: float, now: float) -> None:
        self.limit = max(min(_FEWEST, self.most), int(self.limit * by))
        self._cut_at = now


def _short(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]
