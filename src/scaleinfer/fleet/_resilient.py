"""An exchange client that outlives a restart of its exchange.

Academy's own transports give up on the first broken connection: the listener ends and the agent
with it. Here a listener reconnects for as long as it lives, a forgotten mailbox is registered
again under its own id, and everything else is tried again for a while.

A call that is tried again may arrive twice, so a mailbox drops what it has seen. What was on the
way while the exchange went down may still be lost: delivery is at most once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from academy.exception import BadEntityIdError, ExchangeError
from academy.exchange import ExchangeFactory
from academy.exchange.transport import ExchangeTransportMixin
from academy.message import Body, CancelRequest, check_version
from academy.serialize import NoPickleMixin
from pydantic import TypeAdapter, ValidationError
from tenacity import AsyncRetrying, retry_if_exception, wait_random_exponential

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from uuid import UUID

    from academy.agent import Agent
    from academy.exchange.client_config import ExchangeClientConfig
    from academy.exchange.transport import AgentRegistration
    from academy.identifier import AgentId, EntityId
    from academy.message import Header, Message
    from academy.stats import AgentStats

__all__ = [
    "ExchangeAway",
    "Link",
    "ResilientFactory",
    "ResilientTransport",
    "Unusable",
    "persist",
]

_log = logging.getLogger("scaleinfer.fleet")
_T = TypeVar("_T")

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
_HEARTBEAT_PATIENCE_S = 5.0  # the next heartbeat comes anyway
_TERMINATE_PATIENCE_S = 2.0  # closing must not hang on an exchange that has gone
_CANCEL_PATIENCE_S = 0.5
_REMEMBERED = 4096
_BODY: TypeAdapter[Any] = TypeAdapter(Body)


class ExchangeAway(ExchangeError):  # noqa: N818 - what happened, as with this package's errors
    """The exchange could not be reached for as long as we were willing to wait."""


class Unusable(Exception):  # noqa: N818 - see above
    """What answers is no exchange that we may use."""


class Link(Protocol):
    """A transport that says which of its errors mean that the exchange is away."""

    @property
    def mailbox_id(self) -> EntityId:
        """The mailbox this link is bound to."""

    def is_away(self, error: BaseException) -> bool:
        """Tell a lost connection from a refusal."""

    async def restore_mailbox(self) -> None:
        """Register the mailbox again under its own id if the exchange has forgotten it."""

    def listen(self, timeout: float | None = None) -> AsyncGenerator[Message[Any]]:
        """Yield messages until the connection breaks."""

    def factory(self) -> ExchangeFactory[Any]:
        """Return a factory for the same exchange."""

    async def close(self) -> None:
        """Close the connections; never raises because the exchange is away."""

    async def discover(
        self, agent: type[Agent] | str, *, allow_subclasses: bool = True
    ) -> tuple[AgentId[Any], ...]:
        """Find agents of a class."""

    async def register_agent(
        self, agent: type[Any], *, name: str | None = None
    ) -> AgentRegistration[Any]:
        """Make a mailbox for an agent."""

    async def send(self, message: Message[Any]) -> None:
        """Put a message into a mailbox."""

    async def terminate(self, uid: EntityId) -> None:
        """Close a mailbox."""

    async def update_heartbeat(self) -> None:
        """Say that this mailbox's owner is alive."""

    async def heartbeat_status(self, uid: EntityId) -> float | None:
        """Return the seconds since a mailbox's last heartbeat."""

    async def agent_stats(self, uid: EntityId) -> AgentStats:
        """Return what went through an agent's mailbox."""


async def persist(
    call: Callable[[], Awaitable[_T]],
    *,
    worth_another_try: Callable[[BaseException], bool],
    patience: float,
) -> _T:
    """Repeat a call while its errors mean that the exchange is away.

    Args:
        call: Makes one attempt.
        worth_another_try: Tells an exchange that is away from one that refuses.
        patience: Seconds in all, pauses and attempts that hang included.

    Raises:
        ExchangeAway: The patience has ended; the cause is the last error.
        Exception: Whatever else an attempt raised.
    """
    last: BaseException | None = None

    def again(error: BaseException) -> bool:
        nonlocal last
        if not worth_another_try(error):
            return False
        last = error
        return True

    try:
        async with asyncio.timeout(patience) as limit:
            try:
                return await call()
            except Exception as error:
                if not again(error):
                    raise
            async for attempt in AsyncRetrying(
                retry=retry_if_exception(again),
                wait=wait_random_exponential(_FIRST_PAUSE_S, _LONGEST_PAUSE_S),
                reraise=True,
            ):
                with attempt:
                    return await call()
    except TimeoutError as error:
        if not limit.expired():
            raise
        cause = last or error
        why = f"{type(cause).__name__}: {cause}".rstrip(": ")
        raise ExchangeAway(f"the exchange was away for {patience:g} s ({why})") from cause
    raise AssertionError("unreachable: attempts go on until one returns or raises")


class _Seen:
    """Remembers the latest messages, so that one that was sent twice is read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[UUID, str], None] = {}

    def before(self, header: Header) -> bool:
        key = (header.tag, header.kind)
        if key in self._known:
            return True
        self._known[key] = None
        if len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]
        return False


class ResilientTransport(ExchangeTransportMixin, NoPickleMixin):
    """An Academy transport over a `Link`.

    Args:
        link: The connection to one kind of exchange.
        patience: Seconds for which a call is tried again.
        spec: What `exchange_spec` returns for factories made from this transport.
    """

    def __init__(self, link: Link, *, patience: float, spec: str | None) -> None:
        self._link = link
        self._patience = patience
        self._spec = spec
        self._seen = _Seen()
        self._away = False
        self._closed = False

    def _may_return(self, error: BaseException) -> bool:
        return not self._closed and self._link.is_away(error)

    async def _persist(
        self,
        call: Callable[[], Awaitable[_T]],
        *,
        patience: float | None = None,
        also: tuple[type[Exception], ...] = (),
    ) -> _T:
        return await persist(
            call,
            worth_another_try=lambda error: isinstance(error, also) or self._may_return(error),
            patience=self._patience if patience is None else patience,
        )

    @property
    def mailbox_id(self) -> EntityId:
        """The mailbox this transport is bound to."""
        return self._link.mailbox_id

    def factory(self) -> ResilientFactory:
        """Return a factory for the same exchange."""
        return ResilientFactory(self._link.factory(), spec=self._spec, patience=self._patience)

    async def close(self) -> None:
        """Close the connections; nothing is tried again after it."""
        self._closed = True
        await self._link.close()

    async def discover(
        self, agent: type[Agent] | str, *, allow_subclasses: bool = True
    ) -> tuple[AgentId[Any], ...]:
        """Find agents of a class whose mailboxes have not been terminated."""
        return await self._persist(
            lambda: self._link.discover(agent, allow_subclasses=allow_subclasses)
        )

    async def register_agent(
        self, agent: type[Any], *, name: str | None = None
    ) -> AgentRegistration[Any]:
        """Make a mailbox for an agent."""
        return await self._persist(lambda: self._link.register_agent(agent, name=name))

    async def send(self, message: Message[Any]) -> None:
        """Put a message into a mailbox.

        A mailbox that is unknown gets time to be registered again: the exchange may have just
        come back without its data, and the owner reconnects as we do.
        """
        if isinstance(message.body, CancelRequest):
            await self._send_cancel(message)
            return
        try:
            await self._persist(lambda: self._link.send(message), also=(BadEntityIdError,))
        except ExchangeAway as error:
            if isinstance(error.__cause__, BadEntityIdError):
                raise error.__cause__ from None
            raise

    async def _send_cancel(self, message: Message[Any]) -> None:
        """Send what Academy sends when a call is given up; a timeout must not wait for it."""
        try:
            await self._persist(lambda: self._link.send(message), patience=_CANCEL_PATIENCE_S)
        except ExchangeError as error:
            _log.debug("a call to %s could not be cancelled: %s", message.dest, error)

    async def terminate(self, uid: EntityId) -> None:
        """Close a mailbox, or leave it if the exchange has gone."""
        try:
            await self._persist(lambda: self._link.terminate(uid), patience=_TERMINATE_PATIENCE_S)
        except (ExchangeAway, BadEntityIdError) as error:
            _log.warning("mailbox %s could not be closed: %s", uid, error)

    async def update_heartbeat(self) -> None:
        """Send a heartbeat; one that fails is followed by the next."""
        try:
            await self._persist(self._link.update_heartbeat, patience=_HEARTBEAT_PATIENCE_S)
        except (ExchangeAway, BadEntityIdError) as error:
            _log.debug("no heartbeat for %s: %s", self.mailbox_id, error)

    async def heartbeat_status(self, uid: EntityId) -> float | None:
        """Return the seconds since a mailbox's last heartbeat, or None if none is known."""
        try:
            return await self._persist(lambda: self._link.heartbeat_status(uid))
        except ExchangeAway:
            # Academy's handles poll this in a task that would end with an error.
            return None

    async def agent_stats(self, uid: EntityId) -> AgentStats:
        """Return what went through an agent's mailbox."""
        return await self._persist(lambda: self._link.agent_stats(uid))

    async def listen(self, timeout: float | None = None) -> AsyncGenerator[Message[Any]]:
        """Yield messages, reconnecting for as long as it takes.

        Args:
            timeout: Seconds without a message after which TimeoutError is raised; with one, a
                lost connection is an error too.
        """
        failures = 0
        while True:
            try:
                if failures:
                    await self._link.restore_mailbox()
                    self._note_return()
                async with contextlib.aclosing(self._link.listen(timeout)) as messages:
                    async for message in messages:
                        failures = 0
                        if self._readable(message):
                            yield message
            except Exception as error:
                forgotten = isinstance(error, BadEntityIdError)
                if timeout is not None or not (forgotten or self._may_return(error)):
                    raise
                self._note_outage(error)
            pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(failures, 10))
            failures += 1
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))

    def _readable(self, message: Message[Any]) -> bool:
        if self._seen.before(message.header):
            return False
        try:
            _read_body(message)
        except ValidationError:
            _log.warning("dropped a message from %s that is not one of Academy's", message.src)
            return False
        except Exception:
            # Another version of the protocol: Academy's client answers that itself.
            return True
        return True

    def _note_outage(self, error: BaseException) -> None:
        if not self._away:
            self._away = True
            _log.warning("the exchange is away (%s); reconnecting", type(error).__name__)

    def _note_return(self) -> None:
        if self._away:
            self._away = False
            _log.warning("the exchange is back")


def _read_body(message: Message[Any]) -> None:
    """Have a message hold its body as an object, without Academy's new adapter for each.

    Raises:
        ValidationError: It is none of Academy's.
        Exception: The message is of another version of the protocol.
    """
    if check_version(message.protocol_version) and isinstance(message.body, str | dict):
        body: Any = message.body
        text = isinstance(body, str)
        message.body = _BODY.validate_json(body) if text else _BODY.validate_python(body)
    else:
        message.get_body()


class ResilientFactory(ExchangeFactory[ResilientTransport]):
    """Makes clients that outlive a restart of their exchange.

    Args:
        inner: The factory of one kind of exchange, whose transports are links.
        spec: The text `exchange_factory` makes the same factory from.
        patience: Seconds for which a call is tried again.
        config: Heartbeats.
    """

    def __init__(
        self,
        inner: ExchangeFactory[Any],
        *,
        spec: str | None,
        patience: float,
        config: ExchangeClientConfig | None = None,
    ) -> None:
        super().__init__(config)
        self.inner = inner
        self.spec = spec
        self.patience = patience

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.inner!r})"

    async def _create_transport(
        self,
        mailbox_id: EntityId | None = None,
        *,
        name: str | None = None,
        registration: AgentRegistration[Any] | None = None,
    ) -> ResilientTransport:
        link = await persist(
            lambda: self.inner._create_transport(mailbox_id, name=name, registration=registration),
            worth_another_try=self.inner.is_away,  # type: ignore[attr-defined] # a factory of links
            patience=self.patience,
        )
        return ResilientTransport(link, patience=self.patience, spec=self.spec)
