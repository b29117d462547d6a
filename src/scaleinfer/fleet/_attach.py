"""A look at a running fleet from another process."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from typing import TYPE_CHECKING, Any

from scaleinfer import __version__
from scaleinfer.errors import ConfigError, WorkerLost
from scaleinfer.fleet._link import Link, LinkError, find_coordinator
from scaleinfer.fleet._messages import PROTOCOL
from scaleinfer.fleet._status import FleetStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from academy.exchange import ExchangeClient
    from academy.identifier import AgentId

__all__ = ["RunningFleet", "running_fleet"]

_REPLY_S = 10.0
_PAUSE_S = 1.0
_PATIENCE_S = 30.0


class RunningFleet:
    """A fleet that another process runs; made by `running_fleet`.

    Attributes:
        name: Its name.
    """

    def __init__(
        self, name: str, exchange: ExchangeClient[Any], agent: AgentId[Any], secret: str | None
    ) -> None:
        self.name = name
        self._exchange = exchange
        self._secret = secret
        self._sender = f"view-{secrets.token_hex(4)}"
        self._link = Link(agent, exchange, self._sender)
        self._number = self._ack = -1
        self._epoch = ""

    async def status(self) -> FleetStatus:
        """Return where the fleet stands.

        Raises:
            ConfigError: The coordinator refuses; it says why.
            WorkerLost: The coordinator was not heard of for 30 s.
        """
        status = await self._asked()
        if status is None:
            raise WorkerLost(f"the fleet {self.name!r} has ended.")
        return status

    async def statuses(self, every: float = 1.0) -> AsyncIterator[FleetStatus]:
        """Yield where the fleet stands until it has ended.

        Args:
            every: Seconds between two looks.

        Raises:
            ConfigError: The coordinator refuses; it says why.
            WorkerLost: The coordinator was not heard of for 30 s.
        """
        while (status := await self._asked()) is not None:
            yield status
            await asyncio.sleep(every)

    async def _asked(self) -> FleetStatus | None:
        """Ask until there is an answer; return `None` if the fleet has ended."""
        heard = time.monotonic()
        while True:
            try:
                return await self._asked_once()
            except LinkError as error:
                if not await self._still_there() and _ended(error):
                    return None
                silent = time.monotonic() - heard
                if silent > _PATIENCE_S:
                    raise WorkerLost(
                        f"the fleet {self.name!r} has not answered for {silent:.0f} s ({error}).",
                        hint="Do its client and its exchange still run?",
                    ) from error
            await asyncio.sleep(_PAUSE_S)

    async def _asked_once(self) -> FleetStatus:
        self._number += 1
        # A client's message rather than the action `status`: the reply is compressed, and goes in
        # pieces where thousands of workers make it too large for the exchange.
        message = {
            "v": PROTOCOL,
            "version": __version__,
            "secret": self._secret,
            "client": self._sender,
            "epoch": self._epoch,
            "n": self._number,
            "ack": self._ack,
            "ask": [],
            "forms": {},
            "withdraw": [],
            "status": True,
        }
        reply = await self._link.send(message, timeout=_REPLY_S)
        if "refuse" in reply:
            raise ConfigError(f"the coordinator of {self.name!r} refuses: {reply['refuse']}")
        self._epoch, self._ack = reply["epoch"], reply["n"]
        return FleetStatus.from_dict(reply["status"])

    async def _still_there(self) -> bool:
        """Look whether the fleet has another coordinator by now."""
        with contextlib.suppress(LinkError):
            agent = await find_coordinator(self._exchange, self.name, self._secret, self._sender)
            if agent is not None:
                self._link = Link(agent, self._exchange, self._sender)
                return True
        return False


def _ended(error: LinkError) -> bool:
    from academy.exception import AgentTerminatedError, MailboxTerminatedError

    return isinstance(error.__cause__, AgentTerminatedError | MailboxTerminatedError)


@contextlib.asynccontextmanager
async def running_fleet(
    exchange: Any, fleet: str, *, secret: str | None = None
) -> AsyncIterator[RunningFleet]:
    """Connect to a fleet that another process runs, to see where it stands.

    Args:
        exchange: Where its messages go; see `exchange_factory`.
        fleet: Its name.
        secret: What it wants to be shown.

    Raises:
        ConfigError: The exchange cannot be used, or there is no such fleet.
    """
    from scaleinfer.fleet.exchange import (
        check_exchange,
        exchange_factory,
        exchange_name,
        json_only,
    )

    factory = exchange_factory(exchange)
    await check_exchange(factory)
    with json_only():
        client = await factory.create_user_client()
    try:
        sender = f"view-{secrets.token_hex(4)}"
        try:
            agent = await find_coordinator(client, fleet, secret, sender)
        except LinkError as error:
            raise ConfigError(
                f"the exchange {exchange_name(factory)} does not answer: {error}."
            ) from error
        if agent is None:
            raise ConfigError(
                f"no fleet {fleet!r} answers at the exchange {exchange_name(factory)}.",
                hint="Are name and secret right, and does its client still run?",
            )
        yield RunningFleet(fleet, client, agent, secret)
    finally:
        with contextlib.suppress(Exception):
            await client.close()
