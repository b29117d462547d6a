"""The agent that holds a fleet's work."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from academy.agent import Agent, action, loop

from scaleinfer.fleet._broker import Broker
from scaleinfer.fleet._messages import Pieces, cut

__all__ = ["Coordinator"]

_TICK = 1.0


class Coordinator(Agent):
    """Shards work over the `InferenceWorker` agents that ask it for some.

    `Fleet` runs one beside the maps that use it. Under a `Manager` of your own, launch one like
    any agent, give its handle to the workers, and map over it with `Fleet.of(handle)`:

        coordinator = await manager.launch(Coordinator, args=("screening",))

    Everything it is told and tells is JSON. Run it with
    `RuntimeConfig(allowed_deserializers={SerializationStrategy.JSON})`, so that nothing that an
    exchange brings is unpickled.

    Args:
        fleet: Name of the fleet; workers that have lost their coordinator look for one of it.
        secret: What workers and clients must show; `None` lets everyone in.
        broker: Where the work is; made at start-up if not given.
    """

    def __init__(
        self, fleet: str = "fleet", *, secret: str | None = None, broker: Broker | None = None
    ) -> None:
        super().__init__()
        self._fleet = fleet
        self._secret = secret
        self._broker = broker
        self._pieces = Pieces()

    async def agent_on_startup(self) -> None:
        """Make the broker, which belongs to the agent's event loop."""
        if self._broker is None:
            self._broker = Broker(self._fleet, secret=self._secret)

    @property
    def broker(self) -> Broker:
        """Where the work is; there once the agent has started."""
        assert self._broker is not None
        return self._broker

    @loop
    async def watch(self, shutdown: asyncio.Event) -> None:
        """Give up workers that are silent."""
        while not shutdown.is_set():
            self.broker.tick()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK):
                    await shutdown.wait()

    @action
    async def hello(self, fleet: str, secret: str | None = None) -> dict[str, Any]:
        """Return whether this is the fleet's coordinator, and which incarnation of it."""
        broker = self.broker
        known = broker.knows(secret)
        return {"fleet": fleet == broker.name and known, "epoch": broker.epoch if known else ""}

    @action
    async def lease(self, sender: str, text: str, piece: int = 0, pieces: int = 1) -> list[Any]:
        """Take a worker's or a client's message and reply to it.

        Args:
            sender: A name of its own for every sender.
            text: The message, or a piece of it if one message of an exchange cannot hold it.
            piece: Number of the piece, from 0.
            pieces: Pieces of the message.

        Returns:
            The reply's first piece, and how many there are; the others are had from `rest`.
            An empty one until the last piece has come.
        """
        whole = self._pieces.add(sender, text, piece, pieces)
        if whole is None:
            return ["", 0]
        reply = cut(self.broker.message(whole))
        self._pieces.keep(sender, reply)
        return [reply[0], len(reply)]

    @action
    async def rest(self, sender: str, piece: int) -> str:
        """Return a further piece of the latest reply to a sender."""
        return self._pieces.kept(sender, piece)

    @action
    async def status(self, secret: str | None = None) -> dict[str, Any]:
        """Return where the fleet stands, as `FleetStatus.from_dict` reads it."""
        if not self.broker.knows(secret):
            return {}
        return self.broker.status().to_dict()
