"""A worker's line to its coordinator, over whatever exchange there is."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from academy.exchange.mailbox_status import MailboxStatus
from academy.handle import Handle
from academy.identifier import AgentId
from academy.serialize import SerializationStrategy, allowed_deserializers

from scaleinfer.fleet._messages import cut, pack, unpack

if TYPE_CHECKING:
    from academy.exchange import ExchangeClient

__all__ = ["Link", "LinkError", "find_coordinator"]

_JSON = SerializationStrategy.JSON
_HELLO_S = 5.0


class LinkError(Exception):
    """No reply came; whether the message arrived is not known."""


class Link:
    """Sends messages to a coordinator and awaits the replies, one at a time.

    Args:
        coordinator: Its identifier.
        exchange: The exchange as this process sees it.
        sender: The name of this end.
    """

    def __init__(
        self, coordinator: AgentId[Any], exchange: ExchangeClient[Any], sender: str
    ) -> None:
        self._handle: Handle[Any] = Handle(
            coordinator, exchange=exchange, ignore_context=True, request_serializer=_JSON
        )
        self._sender = sender

    async def send(self, message: dict[str, Any], *, timeout: float) -> dict[str, Any]:
        """Send a message and return the reply.

        Raises:
            LinkError: No reply came in time, or none that can be read.
        """
        try:
            reply = unpack(await self._in_time(self._exchanged(pack(message)), timeout))
        except ValueError as error:
            raise LinkError(str(error)) from error
        if not isinstance(reply, dict):
            raise LinkError("the coordinator's reply cannot be read")
        return reply

    async def call(self, action: str, *args: Any, timeout: float) -> Any:
        """Call another action of the coordinator.

        Raises:
            LinkError: No reply came in time.
        """
        return await self._in_time(self._handle.action(action, *args), timeout)

    async def _exchanged(self, text: str) -> str:
        pieces = cut(text)
        answer: list[Any] = ["", 0]
        for number, piece in enumerate(pieces):
            answer = await self._handle.action("lease", self._sender, piece, number, len(pieces))
        first, count = answer
        whole = [first]
        for number in range(1, count):
            more: str = await self._handle.action("rest", self._sender, number)
            whole.append(more)
        return "".join(whole)

    @staticmethod
    async def _in_time(asking: Any, seconds: float) -> Any:
        # A cancelled action sends its cancellation first, for which a dead exchange may take
        # long: nobody waits for that.
        token = allowed_deserializers.set({_JSON})
        try:
            task = asyncio.ensure_future(asking)
        finally:
            allowed_deserializers.reset(token)
        try:
            done, _ = await asyncio.wait({task}, timeout=seconds)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not done:
            task.cancel()
            task.add_done_callback(_ignore)
            raise LinkError(f"no reply in {seconds:.1f} s")
        try:
            return task.result()
        except asyncio.CancelledError:
            raise LinkError("the exchange has closed") from None
        except Exception as error:
            # Each exchange has errors of its own: redis-py's, aiohttp's.
            raise LinkError(f"{type(error).__name__}: {error}") from error


def _ignore(task: asyncio.Future[Any]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        task.exception()


async def find_coordinator(
    exchange: ExchangeClient[Any], fleet: str, secret: str | None, sender: str
) -> AgentId[Any] | None:
    """Return the identifier of a fleet's coordinator; `None` if none answers.

    Raises:
        LinkError: The exchange does not answer.
    """
    from scaleinfer.fleet.coordinator import Coordinator

    try:
        async with asyncio.timeout(2 * _HELLO_S):
            found = await exchange.discover(Coordinator)
    except Exception as error:
        raise LinkError(f"{type(error).__name__}: {error}") from error

    async def ours(agent: AgentId[Any]) -> AgentId[Any] | None:
        # An exchange names the dead of years too.
        if await exchange.status(agent) is not MailboxStatus.ACTIVE:
            return None
        link = Link(agent, exchange, sender)
        try:
            answer = await link.call("hello", fleet, secret, timeout=_HELLO_S)
        except LinkError:
            return None
        return agent if isinstance(answer, dict) and answer.get("fleet") else None

    # All at once: those that do not answer take the whole time.
    answers = await asyncio.gather(*(ours(agent) for agent in found), return_exceptions=True)
    return next((agent for agent in answers if isinstance(agent, AgentId)), None)
