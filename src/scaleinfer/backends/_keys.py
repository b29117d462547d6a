"""API keys that change: a provider is asked for the key of the moment."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING, Any

from scaleinfer.backends._address import checked_key
from scaleinfer.errors import ConfigError, Transient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

__all__ = ["RotatingKey"]

_FRESH = 1.0


class RotatingKey:
    """The headers of a call with the key that a provider names; bound to one event loop.

    The provider is asked at most once a second, however many calls are made, and again when
    the endpoint refuses a key. One that is no coroutine function may block: it runs in a
    thread.

    Args:
        provider: Returns the key, or an awaitable of it.
        headers: The other headers of every call.
        endpoint: Name of the endpoint, for errors.
        told: Given every new key.
    """

    def __init__(
        self,
        provider: Callable[[], str | Awaitable[str]],
        headers: Mapping[str, str],
        *,
        endpoint: str,
        told: Callable[[str], None],
    ) -> None:
        self._provider = provider
        self._others = headers
        self._endpoint = endpoint
        self._told = told
        self._lock = asyncio.Lock()
        self._key: str | None = None
        self._headers: Mapping[str, str] = headers
        self._until = 0.0

    async def headers(self) -> Mapping[str, str]:
        """Return the headers with a key at most a second old.

        Raises:
            Transient: The provider raised.
            ConfigError: It returned what no header can carry.
        """
        if time.monotonic() < self._until:
            return self._headers
        async with self._lock:
            if time.monotonic() >= self._until:
                await self._ask()
        return self._headers

    async def renewed(self, refused: Mapping[str, str]) -> Mapping[str, str] | None:
        """Return headers with another key than `refused` had, or None if there is none.

        Args:
            refused: Headers that the endpoint answered with 401.
        """
        if self._headers is refused:
            self._until = 0.0
        headers = await self.headers()
        return None if headers is refused else headers

    async def _ask(self) -> None:
        try:
            key = checked_key(await self._provided())
        except ConfigError:
            raise
        except Exception as error:
            # Whatever it raises, the calls that wait for it must end as calls end.
            raise self._failed(error) from error
        if key != self._key:
            self._key = key
            self._told(key or "")
            authorization = {"Authorization": f"Bearer {key}"} if key else {}
            self._headers = {**self._others, **authorization}
        self._until = time.monotonic() + _FRESH

    async def _provided(self) -> Any:
        if inspect.iscoroutinefunction(self._provider):
            return await self._provider()
        key = await asyncio.to_thread(self._provider)
        return await key if inspect.isawaitable(key) else key

    def _failed(self, error: Exception) -> Transient:
        return Transient(
            f"the provider of the API key for {self._endpoint} raised "
            f"{type(error).__name__}: {error}",
            hint="Nothing was sent; call the provider by itself to see what is wrong.",
            endpoint=self._endpoint,
        )
