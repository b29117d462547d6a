"""One call for identical requests that are in flight at the same time."""

from __future__ import annotations

import asyncio
import copy
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

from scaleinfer.errors import EndpointError, Permanent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Sharing"]

T = TypeVar("T")

_LEADERS = 3
"""Callers for whom the endpoint may fail, one after the other, before the rest believe it."""


class _Followers(Generic[T]):
    """Those who wait for one leader's outcome, first come first."""

    __slots__ = ("failed_leaders", "waiting")

    def __init__(self) -> None:
        self.failed_leaders = 0
        # A follower's future brings the answer, an error that is its own too, or None: lead.
        self.waiting: OrderedDict[asyncio.Future[_Outcome[T] | None], None] = OrderedDict()

    def tell(self, outcome: _Outcome[T]) -> None:
        """Tell every follower what came of it."""
        for follower in self.waiting:
            if not follower.done():
                follower.set_result(outcome)
        self.waiting.clear()

    def promote(self) -> bool:
        """Make the next follower the leader; return False if there is none."""
        while self.waiting:
            follower, _ = self.waiting.popitem(last=False)
            if not follower.done():
                follower.set_result(None)
                return True
        return False


class _Outcome(Generic[T]):
    """An answer, or the error in its place."""

    __slots__ = ("answer", "error")

    def __init__(self, answer: T | None, error: EndpointError | None) -> None:
        self.answer = answer
        self.error = error

    def get(self) -> T:
        if self.error is not None:
            # An error's fields name an item, so each has its own.
            raise copy.copy(self.error)
        return self.answer  # type: ignore[return-value] # no error, so it is the answer


class Sharing(Generic[T]):
    """Lets the first of identical requests make the call and the others wait for its answer.

    Only for requests whose answer does not depend on chance. Belongs to one event loop. The
    call runs in its leader's own task. Should that be cancelled, or fail with anything but a
    `Permanent` error, the next follower makes the call itself; so up to three, if it is the
    endpoint that fails: a thousand followers must not try in vain one after the other.
    """

    def __init__(self) -> None:
        self._calls: dict[bytes, _Followers[T]] = {}

    def __len__(self) -> int:
        return len(self._calls)

    async def call(self, digest: bytes, make: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
        """Return the answer, and whether this caller made the call for it.

        Args:
            digest: Identifies what is asked (`Request.digest()`).
            make: Makes the call. Awaited by the leader only.

        Raises:
            EndpointError: The call failed with it, whoever made it.
            BaseException: What `make` raised, if this caller made the call.
        """
        followers = self._calls.get(digest)
        if followers is None:
            followers = self._calls[digest] = _Followers()
        else:
            outcome = await self._follow(digest, followers)
            if outcome is not None:
                return outcome.get(), False
        return await self._lead(digest, followers, make), True

    async def _follow(self, digest: bytes, followers: _Followers[T]) -> _Outcome[T] | None:
        told: asyncio.Future[_Outcome[T] | None] = asyncio.get_running_loop().create_future()
        followers.waiting[told] = None
        try:
            return await told
        except asyncio.CancelledError:
            followers.waiting.pop(told, None)
            if not told.cancelled() and told.result() is None:
                self._pass_on(digest, followers)
            raise

    async def _lead(
        self, digest: bytes, followers: _Followers[T], make: Callable[[], Awaitable[T]]
    ) -> T:
        try:
            answer = await make()
        except EndpointError as error:
            followers.failed_leaders += 1
            if isinstance(error, Permanent) or followers.failed_leaders >= _LEADERS:
                del self._calls[digest]
                followers.tell(_Outcome(None, error))
            else:
                self._pass_on(digest, followers)
            raise
        except BaseException:
            self._pass_on(digest, followers)
            raise
        del self._calls[digest]
        followers.tell(_Outcome(answer, None))
        return answer

    def _pass_on(self, digest: bytes, followers: _Followers[T]) -> None:
        if not followers.promote():
            del self._calls[digest]
