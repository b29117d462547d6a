"""The links over Redis: the plain exchange, and the hybrid one whose peers speak directly."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from typing import TYPE_CHECKING, Any

import redis.asyncio
import redis.exceptions
from academy.exception import BadEntityIdError, MailboxTerminatedError
from academy.exchange.hybrid import HybridExchangeFactory, HybridExchangeTransport
from academy.exchange.redis import RedisExchangeFactory, RedisExchangeTransport
from academy.identifier import AgentId
from academy.message import Message
from pydantic import ValidationError
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from scaleinfer.fleet._keepalive import keepalive_options
from scaleinfer.fleet._resilient import Unusable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from academy.exchange.redis import _RedisConnectionInfo
    from academy.identifier import EntityId

__all__ = ["HybridLinkFactory", "RedisLinkFactory", "connection_options", "redis_is_away"]

_log = logging.getLogger("scaleinfer.fleet")

# Redis gives up a blocked read after so long, so that a reader behind a dead link takes no
# message, and a mailbox that was terminated or forgotten meanwhile is noticed.
_POLL_S = 5.0
_ANSWER_S = 10.0  # a server that says nothing for so long after it has gone
_SENDING = 32
_AT_ONCE = 64
_ACTIVE, _INACTIVE, _CLOSED = b"ACTIVE", b"INACTIVE", b"<CLOSED>"
_REFUSALS = (
    redis.exceptions.AuthenticationError,
    redis.exceptions.AuthorizationError,
)


def redis_is_away(error: BaseException) -> bool:
    """Tell a lost connection, or a server that is still loading, from a refusal."""
    if isinstance(error, _REFUSALS):
        return False
    return isinstance(
        error,
        (
            redis.exceptions.ConnectionError,
            redis.exceptions.TimeoutError,
            redis.exceptions.ReadOnlyError,  # a replica that is not yet the primary
            OSError,
        ),
    )


def connection_options(**given: Any) -> dict[str, Any]:
    """Return the keyword arguments of `redis.asyncio.Redis`, with ours where none are given."""
    return {
        # redis-py's own limit of 5 s would end every blocked read, and the agent with it.
        "socket_timeout": None,
        "socket_connect_timeout": 5.0,
        "socket_keepalive": True,
        "socket_keepalive_options": keepalive_options(),
        # One retry at once for a pooled connection that has died; the rest is `persist`'s.
        "retry": Retry(NoBackoff(), 1),
    } | given


async def _probe(info: _RedisConnectionInfo) -> None:
    """Raise what a Redis that cannot be used raises."""
    options = info.kwargs | {"socket_timeout": 5.0, "retry": Retry(NoBackoff(), 0)}
    client = redis.asyncio.Redis(host=info.hostname, port=info.port, **options)
    try:
        await client.echo("scaleinfer")
    except redis.exceptions.AuthenticationError:
        given = info.kwargs.get("password")
        raise Unusable("it refused the password" if given else "it asks for a password") from None
    except redis.exceptions.InvalidResponse:
        raise Unusable("what listens there is not Redis") from None
    finally:
        await client.aclose()


class _RedisLink(RedisExchangeTransport):
    """Academy's transport with a listener that can be started again."""

    _lineage: bytes | str | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sending = asyncio.Semaphore(_SENDING)

    def is_away(self, error: BaseException) -> bool:
        return redis_is_away(error)

    async def restore_mailbox(self) -> None:
        uid = self._mailbox_id
        state = await self._client.get(self._active_key(uid))
        if state == _INACTIVE:
            raise MailboxTerminatedError(uid)
        if state is None:
            _log.warning("the exchange has lost mailbox %s; registering it again", uid)
            await self._client.set(self._active_key(uid), _ACTIVE)
            if isinstance(uid, AgentId) and self._lineage is not None:
                await self._client.set(self._agent_key(uid), self._lineage)
        elif isinstance(uid, AgentId) and self._lineage is None:
            self._lineage = await self._client.get(self._agent_key(uid))

    async def send(self, message: Message[Any]) -> None:
        """Do what Academy's own does, in two round trips over few connections.

        Its counts of requests in flight are kept. A coordinator that answers 2,000 workers at
        once would have a connection for each reply, and four round trips.
        """
        to = message.dest
        async with self._sending:
            look = self._client.pipeline(transaction=False)
            look.get(self._active_key(to))
            tracked = self._request_key(message.src, message.tag)
            look.get(tracked)
            state, asked = await look.execute()
            if state is None:
                raise BadEntityIdError(to)
            if state == _INACTIVE:
                raise MailboxTerminatedError(to)
            write = self._client.pipeline(transaction=False)
            if message.is_request():
                key = self._request_key(to, message.tag)
                write.set(key, message.header.model_dump_json())
                write.incr(self._outgoing_key(message.src))
            elif asked is not None:
                write.delete(tracked)
                write.incr(self._completions_key(message.src))
            write.rpush(self._queue_key(to), message.model_serialize())
            await write.execute()

    async def listen(self, timeout: float | None = None) -> AsyncGenerator[Message[Any]]:
        while True:
            await self.restore_mailbox()
            poll = _POLL_S if timeout is None else timeout
            while waiting := await self._next(poll):
                for raw in waiting:
                    if raw == _CLOSED:
                        raise MailboxTerminatedError(self._mailbox_id)
                    try:
                        message: Message[Any] = Message.model_validate_json(raw)
                    except ValidationError:
                        _log.warning("dropped a message for %s that cannot be read",
                                     self._mailbox_id)  # fmt: skip
                        continue
                    yield message
            if timeout is not None:
                raise TimeoutError(f"no message for {self._mailbox_id} within {timeout} s")

    async def _next(self, poll: float) -> list[bytes]:
        """Return the messages that wait, or else the first to come within `poll` seconds."""
        key = self._queue_key(self._mailbox_id)
        async with asyncio.timeout(poll + _ANSWER_S):
            waiting: Any = await self._client.lpop(key, _AT_ONCE)
            if waiting:
                return list(waiting)
            popped: Any = await self._client.blpop([key], timeout=poll)
        return [] if popped is None else [popped[1]]

    def factory(self) -> RedisLinkFactory:
        hostname, port, options = self._redis_info
        return RedisLinkFactory(hostname, port, **options)

    async def close(self) -> None:
        await self._client.aclose()


class RedisLinkFactory(RedisExchangeFactory):
    """Makes links to a Redis exchange."""

    is_away = staticmethod(redis_is_away)

    def __repr__(self) -> str:
        scheme = "rediss" if self.redis_info.kwargs.get("ssl") else "redis"
        return f"{scheme}://{self.redis_info.hostname}:{self.redis_info.port}"

    async def probe(self) -> None:
        """Raise what an exchange that cannot be used raises."""
        await _probe(self.redis_info)

    async def _create_transport(
        self,
        mailbox_id: EntityId | None = None,
        *,
        name: str | None = None,
        registration: Any = None,
    ) -> _RedisLink:
        return await _RedisLink.new(mailbox_id=mailbox_id, name=name, redis_info=self.redis_info)


class _HybridLink(HybridExchangeTransport):
    """Academy's transport with a Redis listener that reconnects."""

    _lineage: bytes | str | None = None

    def is_away(self, error: BaseException) -> bool:
        return redis_is_away(error)

    async def restore_mailbox(self) -> None:
        """Do nothing: the listener below restores it."""

    async def _restore(self) -> None:
        uid = self._mailbox_id
        state = await self._redis_client.get(self._status_key(uid))
        if state == _INACTIVE:
            raise MailboxTerminatedError(uid)
        if isinstance(uid, AgentId) and self._lineage is None:
            self._lineage = await self._redis_client.get(self._agent_key(uid))
        if state is None:
            _log.warning("the exchange has lost mailbox %s; registering it again", uid)
            await self._redis_client.set(self._status_key(uid), _ACTIVE)
            await self._redis_client.set(self._address_key(uid), f"{self._host}:{self._port}")
            if isinstance(uid, AgentId) and self._lineage is not None:
                await self._redis_client.set(self._agent_key(uid), self._lineage)

    async def _run_redis_listener(self) -> None:
        failures = 0
        try:
            while True:
                try:
                    await self._restore()
                    failures = 0
                    await self._get_message_from_redis()
                except (ValidationError, UnicodeDecodeError):
                    _log.warning("dropped a message for %s that cannot be read", self._mailbox_id)
                except Exception as error:
                    if not redis_is_away(error):
                        raise
                    pause = min(1.0, 0.05 * 2 ** min(failures, 10))
                    failures += 1
                    await asyncio.sleep(pause * random.uniform(0.5, 1.0))
        except MailboxTerminatedError:
            pass
        finally:
            self._shutdown.set()
            self._messages.shutdown(immediate=True)

    def factory(self) -> HybridLinkFactory:
        hostname, port, options = self._redis_info
        return HybridLinkFactory(
            hostname,
            port,
            redis_kwargs=options,
            interface=self._interface,
            namespace=self._namespace,
        )

    async def close(self) -> None:
        self._shutdown.set()
        self._messages.shutdown(immediate=True)
        self._redis_task.cancel()
        await self._socket_pool.close()
        # The server's last act is to take its address out of Redis, which may have gone.
        _, pending = await asyncio.wait({self._server_task, self._redis_task}, timeout=5)
        for task in pending:
            task.cancel()
        for task in (self._server_task, self._redis_task):
            with contextlib.suppress(asyncio.CancelledError, redis.exceptions.RedisError, OSError):
                await task
        await self._redis_client.aclose()


class HybridLinkFactory(HybridExchangeFactory):
    """Makes links to a hybrid exchange."""

    is_away = staticmethod(redis_is_away)

    def __repr__(self) -> str:
        return f"hybrid://{self._redis_info.hostname}:{self._redis_info.port}"

    async def probe(self) -> None:
        """Raise what an exchange that cannot be used raises."""
        await _probe(self._redis_info)

    async def _create_transport(
        self,
        mailbox_id: EntityId | None = None,
        *,
        name: str | None = None,
        registration: Any = None,
    ) -> _HybridLink:
        return await _HybridLink.new(
            interface=self._interface,
            mailbox_id=mailbox_id,
            name=name,
            namespace=self._namespace,
            port=None if self._ports is None else next(self._ports),
            redis_info=self._redis_info,
        )
