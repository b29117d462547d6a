"""The links over Redis: the plain exchange, and the hybrid one whose peers speak directly."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from typing import TYPE_CHECKING, Any

import redis.asyncio
import redis.exceptions
from academy.exception import MailboxTerminatedError
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

    async def listen(self, timeout: float | None = None) -> AsyncGenerator[Message[Any]]:
        while True:
            await self.restore_mailbox()
            poll = _POLL_S if timeout is None else timeout
            while (message := await self._next(poll)) is not None:
                yield message
            if timeout is not None:
                raise TimeoutError(f"no message for {self._mailbox_id} within {timeout} s")

    async def _next(self, poll: float) -> Message[Any] | None:
        while True:
            async with asyncio.timeout(poll + _ANSWER_S):
                popped = await self._client.blpop([self._queue_key(self._mailbox_id)], timeout=poll)
            if popped is None:
                return None
            raw = popped[1]
            if raw == _CLOSED:
                raise MailboxTerminatedError(self._mailbox_id)
            try:
                return Message.model_validate_json(raw)
            except ValidationError:
                _log.warning("dropped a message for %s that cannot be read", self._mailbox_id)

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
