"""A set's members on one event loop: opened, followed, checked and closed."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

from scaleinfer.backends._membership import Membership
from scaleinfer.backends._wire import max_connections
from scaleinfer.errors import ConfigError, EndpointError, Starting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from scaleinfer.backends._base import Backend, Follower
    from scaleinfer.backends._membership import Address

__all__ = ["Roster"]

_TICK_S = 0.5
_AT_ONCE = 64
_OTHERS_S = 1.0
"""Seconds that endpoints get to name their model once one of them has."""
_FEWEST = 2
_SUMMED_EVERY_S = 1.0


class Maker(Protocol):
    """Makes the adapters."""

    def member(self, address: Address) -> Backend:
        """Return a new adapter."""

    @property
    def model_known(self) -> bool:
        """True if no endpoint has to be asked for its model."""


class Roster:
    """The asyncio side of `Membership`.

    Args:
        name: The set's, for messages.
        read: Lists the endpoints.
        every: Seconds between two looks at the list.
        maker: Makes the adapters.

    Attributes:
        users: How many have opened the set on this loop.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[], Awaitable[Sequence[Address]]],
        every: float,
        maker: Maker,
    ) -> None:
        self.users = 0
        self._name = name
        self._read = read
        self._every = every
        self._maker = maker
        self._membership = Membership()
        self._adapters: dict[str, Backend] = {}
        self._leaving: list[Backend] = []
        self._followers: WeakSet[Follower] = WeakSet()
        self._starting = asyncio.Lock()
        self._checks: set[asyncio.Task[None]] = set()
        self._first = asyncio.Event()
        self._failure: EndpointError | ConfigError | None = None
        self._watch: asyncio.Task[None] | None = None
        self._said = ""
        self._waited, self._waited_until = 0.0, 0.0

    @property
    def started(self) -> bool:
        """True once there has been a member."""
        return self._watch is not None

    def members(self) -> list[Backend]:
        """Return the adapters of those that get calls."""
        return [self._adapters[url] for url in self._membership.members()]

    def follow(self, follower: Follower) -> list[Backend]:
        """Return the members, and tell the follower who comes and goes."""
        self._followers.add(follower)
        return self.members()

    def connection_wait_s(self) -> float:
        """Return the seconds that calls have waited for connections, a moment ago."""
        now = time.monotonic()
        if now >= self._waited_until:
            # It is asked for many times a second, and there may be thousands.
            self._waited_until = now + (_SUMMED_EVERY_S if len(self._adapters) > _AT_ONCE else 0.0)
            self._waited = sum(one.connection_wait_s for one in self._adapters.values())
        return self._waited

    async def start(self) -> None:
        """Read the list and wait for the first member; harmless if it runs already.

        Raises:
            ConfigError: The list cannot be understood.
            EndpointError: It is empty, or no endpoint on it answers.
        """
        async with self._starting:
            if self._watch is not None and self._membership.members():
                return
            await self._look(await self._read())
            if not self._membership.known:
                raise Starting(
                    f"{self._name} names no endpoint yet.",
                    hint="Tags and model= choose among those that are listed.",
                    endpoint=self._name,
                )
            if not self._membership.members():
                await self._first_of_all()
            if self._watch is None:
                self._watch = asyncio.create_task(self._follow_list())

    async def aclose(self) -> None:
        """End the checks and close every member; calls in flight are ended."""
        tasks = [*self._checks, *([] if self._watch is None else [self._watch])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        adapters = [*self._adapters.values(), *self._leaving]
        self._adapters, self._leaving, self._watch = {}, [], None
        await asyncio.gather(*(adapter.aclose() for adapter in adapters))

    async def _first_of_all(self) -> None:
        """Check those of which the model is unknown until one of them has named it."""
        self._check_due()
        first = asyncio.create_task(self._first.wait())
        try:
            while self._checks and not self._first.is_set():
                await asyncio.wait({first, *self._checks}, return_when=asyncio.FIRST_COMPLETED)
            if self._checks:
                await asyncio.wait(self._checks, timeout=_OTHERS_S)
        finally:
            first.cancel()
        if not self._first.is_set():
            assert self._failure is not None
            raise self._failure

    async def _follow_list(self) -> None:
        """Look at the list and at the members again and again, until cancelled."""
        loop = asyncio.get_running_loop()
        next_look = loop.time() + self._every
        while True:
            await asyncio.sleep(min(_TICK_S, self._every))
            try:
                if loop.time() >= next_look:
                    await self._look_again()
                    next_look = loop.time() + self._every
                self._look_after_members()
                await self._close_those_that_left()
            except Exception:
                logging.getLogger("scaleinfer").exception("%s cannot be followed.", self._name)

    async def _look_again(self) -> None:
        try:
            listed = await self._read()
        except (ConfigError, EndpointError) as error:
            # What was known holds; a list that is being written is not yet another list.
            self._say(str(error))
            return
        self._said = ""
        await self._look(listed)

    async def _look(self, listed: Iterable[Address]) -> None:
        now = time.monotonic()
        change = self._membership.seen(listed, now, ready=self._maker.model_known)
        for url in change.left:
            self._dismiss(url)
        for address in (*change.joined, *change.unknown):
            old = self._adapters.pop(address.url, None)
            if old is not None:
                self._leaving.append(old)
            self._adapters[address.url] = self._maker.member(address)
        for number, address in enumerate(change.joined):
            await self._adapters[address.url].open()
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
        if change.joined or change.left:
            self._share_files()
        for address in change.joined:
            self._welcome(address)
        # One that was never a member has nobody to be told of.
        for url in self._adapters.keys() - self._membership.urls():
            self._leaving.append(self._adapters.pop(url))

    def _look_after_members(self) -> None:
        now, followers = time.monotonic(), list(self._followers)
        broken = [{one.endpoint for one in follower.troubled()} for follower in followers]
        if broken:
            names = set.intersection(*broken)
            urls = [url for url, one in self._adapters.items() if one.endpoint in names]
            self._membership.trouble(urls, now)
        self._check_due()

    def _check_due(self) -> None:
        calls = sum(follower.calls() for follower in self._followers)
        most = _AT_ONCE - len(self._checks)
        now = time.monotonic()
        for address in self._membership.due(now, calls=calls, most=most):
            task = asyncio.create_task(self._check(address))
            self._checks.add(task)
            task.add_done_callback(self._checked)

    def _checked(self, task: asyncio.Task[None]) -> None:
        self._checks.discard(task)
        if not task.cancelled() and self._membership.members() == []:
            self._check_due()

    async def _check(self, address: Address) -> None:
        adapter = self._adapters.get(address.url)
        ok = False
        try:
            if adapter is None:
                return
            if adapter.model is None:
                ok = await self._introduced(adapter)
            else:
                ok = (await adapter.check()).ok
        finally:
            new = not self._membership.is_member(address.url)
            if self._membership.checked(address, time.monotonic(), ok=ok) and adapter is not None:
                if new:
                    self._share_files()
                    self._welcome(address)
                else:
                    for follower in list(self._followers):
                        follower.mended(adapter)

    async def _introduced(self, adapter: Backend) -> bool:
        """Open an adapter that must find out its model; return whether it could."""
        try:
            await adapter.open()
        except (EndpointError, ConfigError) as error:
            self._failure = error
            return False
        return True

    def _welcome(self, address: Address) -> None:
        self._first.set()
        for follower in list(self._followers):
            follower.joined(self._adapters[address.url])

    def _dismiss(self, url: str) -> None:
        adapter = self._adapters.pop(url)
        for follower in list(self._followers):
            follower.left(adapter)
        self._leaving.append(adapter)

    async def _close_those_that_left(self) -> None:
        """Close those that have no calls in flight any more."""
        for adapter in list(self._leaving):
            if not any(follower.busy(adapter) for follower in self._followers):
                self._leaving.remove(adapter)
                await adapter.aclose()

    def _share_files(self) -> None:
        """Divide the connections that this process can hold among the members."""
        each = max(_FEWEST, max_connections() // max(1, len(self._adapters)))
        for adapter in self._adapters.values():
            if adapter.most_in_flight is not None:
                adapter.most_in_flight = min(adapter.most_in_flight, each)

    def _say(self, line: str) -> None:
        if line != self._said:
            self._said = line
            logging.getLogger("scaleinfer").warning("%s", line)
