"""Several requests in one call, for endpoints that take a list of prompts or of texts."""

from __future__ import annotations

import asyncio
import copy
from typing import TYPE_CHECKING, Generic, TypeVar

import orjson

from scaleinfer.errors import ConfigError, EndpointError, Permanent
from scaleinfer.requests import plain

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from scaleinfer.policy import Audience
    from scaleinfer.requests import Request

__all__ = ["Packer"]

T = TypeVar("T")


class _Pack(Generic[T]):
    """Requests that go out together."""

    __slots__ = ("audience", "most", "places", "requests", "task", "timer")

    def __init__(self, timer: asyncio.Handle, most: int, audience: Audience | None) -> None:
        self.most = most
        self.audience = audience
        self.requests: list[Request] = []
        self.places: list[asyncio.Future[T]] = []
        self.timer = timer
        self.task: asyncio.Task[None] | None = None

    @property
    def wanted(self) -> bool:
        """True if anybody still waits for it."""
        return not all(place.done() for place in self.places)


class Packer(Generic[T]):
    """Gathers requests that wait at the same time and sends them in one call.

    Plain completions, or texts to be embedded, of the same sampling, model and schema that the
    same endpoints may see go together; anything else (chat, several answers to one prompt) is
    sent by itself. Belongs to one event loop.

    Args:
        send: Makes the call, given the requests and who may see them; returns one outcome for
            each request, in order. What it raises is the outcome of each.
        most: Requests in one call at most.
        linger: Seconds to wait for more; 0 gathers those that come in the same turn of the
            event loop.

    Attributes:
        most: Requests in one call at most.

    Raises:
        ConfigError: `most` is below 1.
    """

    def __init__(
        self,
        send: Callable[[list[Request], Audience | None], Awaitable[Sequence[T | EndpointError]]],
        *,
        most: int,
        linger: float = 0.0,
    ) -> None:
        if most < 1:
            raise ConfigError(f"packing must be at least 1, not {most}.")
        self._send = send
        self.most = most
        self._linger = linger
        self._gathering: dict[bytes, _Pack[T]] = {}
        self._sent: set[asyncio.Task[None]] = set()

    async def call(
        self, request: Request, *, most: int | None = None, audience: Audience | None = None
    ) -> T:
        """Send a request with others and return its own answer.

        Cancelling it leaves the others alone; the call is ended once all are gone.

        Args:
            request: What to ask.
            most: Requests in its call at most, if fewer.
            audience: Who may see it, if not everybody.

        Raises:
            EndpointError: What became of this request.
        """
        most = self.most if most is None else min(most, self.most)
        group = self._group(request, most, audience)
        pack = self._gathering.get(group) if group else None
        if pack is None:
            pack = self._open(group, most, audience)
        place: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        pack.requests.append(request)
        pack.places.append(place)
        if len(pack.requests) >= pack.most or not group:
            self._close(group, pack)
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                place.exception()  # the answer came as its caller left: nobody will look at it
            if not pack.wanted:
                self._drop(group, pack)
            raise

    def _group(self, request: Request, most: int, audience: Audience | None) -> bytes:
        """Return what requests of one pack have in common; empty for one that goes alone."""
        sampling = request.sampling
        if request.messages is not None or most == 1 or (sampling.n or 1) > 1:
            return b""
        embed = request.input is not None
        label = None if audience is None else audience.label
        return orjson.dumps(
            [sampling.to_body(), request.schema, request.model, embed, most, label],
            default=plain,
            option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS,
        )

    def _open(self, group: bytes, most: int, audience: Audience | None) -> _Pack[T]:
        loop = asyncio.get_running_loop()
        if self._linger > 0:
            timer: asyncio.Handle = loop.call_later(self._linger, self._close_gathered, group)
        else:
            timer = loop.call_soon(self._close_gathered, group)
        pack: _Pack[T] = _Pack(timer, most, audience)
        if group:
            self._gathering[group] = pack
        return pack

    def _close_gathered(self, group: bytes) -> None:
        pack = self._gathering.get(group)
        if pack is not None:
            self._close(group, pack)

    def _close(self, group: bytes, pack: _Pack[T]) -> None:
        pack.timer.cancel()
        self._gathering.pop(group, None)
        # A task of its own: whoever came first may leave without taking the others along.
        pack.task = asyncio.create_task(self._deliver(pack))
        self._sent.add(pack.task)
        pack.task.add_done_callback(self._sent.discard)

    def _drop(self, group: bytes, pack: _Pack[T]) -> None:
        if pack.task is not None:
            pack.task.cancel()
            return
        pack.timer.cancel()
        if self._gathering.get(group) is pack:
            del self._gathering[group]

    async def _deliver(self, pack: _Pack[T]) -> None:
        wanted = [
            (request, place)
            for request, place in zip(pack.requests, pack.places, strict=True)
            if not place.done()
        ]
        if not wanted:
            return
        try:
            outcomes = await self._send([request for request, _ in wanted], pack.audience)
        except asyncio.CancelledError:
            for _, place in wanted:
                place.cancel()
            raise
        except Exception as error:
            for _, place in wanted:
                _settle(place, error)
            return
        if len(outcomes) != len(wanted):
            what = f"{len(outcomes)} answers to {len(wanted)} prompts"
            outcomes = [Permanent(f"the endpoint gave {what} sent in one call.")] * len(wanted)
        for (_, place), outcome in zip(wanted, outcomes, strict=True):
            _settle(place, outcome)


def _settle(place: asyncio.Future[T], outcome: T | Exception) -> None:
    if place.done():
        return
    if isinstance(outcome, Exception):
        # Each has an error of its own: its fields will name one item.
        place.set_exception(copy.copy(outcome))
    else:
        place.set_result(outcome)
