"""The link over Academy's HTTP exchange, self-hosted or the hosted one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal, Self

import aiohttp
from academy import __version__ as academy_version
from academy.exchange.cloud.client import (
    HttpAgentRegistration,
    HttpExchangeFactory,
    HttpExchangeTransport,
    _raise_for_status,
)
from academy.exchange.cloud.login import get_auth_headers
from academy.identifier import AgentId, UserId
from pydantic import Field

from scaleinfer.fleet._keepalive import set_keepalive
from scaleinfer.fleet._resilient import Unusable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from academy.exchange.cloud.client import _HttpConnectionInfo
    from academy.identifier import EntityId

__all__ = ["HttpLinkFactory", "Registration", "http_is_away", "stream_timeout"]

_RELISTEN_MS = 20.0  # after the server has ended a stream on which nothing came
_LONGEST_LINE = 2**20  # bytes; a message is one line of the stream
_WAIT_S = 10.0  # for the head of an answer to anything but `listen`
_FORBIDDEN = HTTPStatus.FORBIDDEN
_REFUSED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_PASSING = frozenset({429, 500, 502, 503, 504})


def http_is_away(error: BaseException) -> bool:
    """Tell a lost connection, or a proxy whose exchange is away, from a refusal."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return False
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status in _PASSING
    return isinstance(
        error, (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError, TimeoutError)
    )


def stream_timeout() -> aiohttp.ClientTimeout:
    """Return limits for a stream on which the server says something every 15 s."""
    return aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=45)


class Registration(HttpAgentRegistration):  # type: ignore[type-arg] # its pickle would need a name
    """An agent's registration that knows the agent's classes.

    An exchange that has lost its mailboxes cannot tell them, and `discover` needs them.
    """

    lineage: str = Field(default="", repr=False)


def _socket(address: Any) -> socket.socket:
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    set_keepalive(made)
    return made


class _HttpLink(HttpExchangeTransport):
    """Academy's transport, which here closes what it opens and logs no lost connection."""

    _lineage = ""

    def __init__(
        self,
        mailbox_id: EntityId,
        session: aiohttp.ClientSession,
        connection_info: _HttpConnectionInfo,
        auth_method: Literal["globus"] | None,
    ) -> None:
        super().__init__(mailbox_id, session, connection_info, auth_method)
        self._retry_time_ms = _RELISTEN_MS

    @classmethod
    def create_session(cls, connection_info: _HttpConnectionInfo) -> aiohttp.ClientSession:
        verify = connection_info.ssl_verify
        if verify is None:
            verify = connection_info.url.startswith("https:")
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=verify, socket_factory=_socket),
            headers={"academy_version": academy_version} | connection_info.additional_headers,
            trust_env=True,
            timeout=connection_info.client_timeout or aiohttp.ClientTimeout(total=None),
            read_bufsize=_LONGEST_LINE,
        )

    @classmethod
    async def new(
        cls,
        *,
        connection_info: _HttpConnectionInfo,
        auth_method: Literal["globus"] | None,
        mailbox_id: EntityId | None = None,
        name: str | None = None,
    ) -> Self:
        session = cls.create_session(connection_info)
        link = cls(mailbox_id or UserId.new(name=name), session, connection_info, auth_method)
        if mailbox_id is None:
            try:
                await link.restore_mailbox()
            except BaseException:
                await link.close()
                raise
        return link

    def is_away(self, error: BaseException) -> bool:
        return http_is_away(error)

    async def restore_mailbox(self) -> None:
        body = {"mailbox": self._mailbox_id.model_dump_json()}
        if self._lineage:
            body["agent"] = self._lineage
        async with self._request_with_retry_and_refresh(
            "post", self._mailbox_url, json=body
        ) as response:
            _raise_for_status(response, self._mailbox_id)

    @contextlib.asynccontextmanager
    async def _request_with_retry_and_refresh(
        self, method: str, url: str, **kwargs: Any
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """Make one request, with fresh credentials once if they were refused."""
        async with asyncio.timeout(_WAIT_S):
            response = await self._session.request(method, url, **kwargs)
        if response.status == _FORBIDDEN and self._auth_method is not None:
            response.close()
            await self._log_in_again()
            async with asyncio.timeout(_WAIT_S):
                response = await self._session.request(method, url, **kwargs)
        async with response:
            yield response

    async def _log_in_again(self) -> None:
        fresh = await asyncio.to_thread(get_auth_headers, self._auth_method)
        self._info.additional_headers.update(fresh)
        self._session.headers.update(fresh)

    async def register_agent(self, agent: type[Any], *, name: str | None = None) -> Registration:
        uid: AgentId[Any] = AgentId.new(name=name)
        lineage = ",".join(agent._agent_mro())
        async with self._request_with_retry_and_refresh(
            "post", self._mailbox_url, json={"mailbox": uid.model_dump_json(), "agent": lineage}
        ) as response:
            _raise_for_status(response, self._mailbox_id, uid)
        return Registration(agent_id=uid, exchange_type="http", lineage=lineage)

    def factory(self) -> HttpLinkFactory:
        return HttpLinkFactory.to(self._info, self._auth_method)


class HttpLinkFactory(HttpExchangeFactory):
    """Makes links to an HTTP exchange."""

    is_away = staticmethod(http_is_away)

    @classmethod
    def to(cls, info: _HttpConnectionInfo, auth_method: Literal["globus"] | None) -> Self:
        """Make a factory from what another one knows."""
        return cls(
            info.url,
            auth_method=auth_method,
            additional_headers=dict(info.additional_headers),
            request_timeout_s=info.request_timeout_s,
            ssl_verify=info.ssl_verify,
            client_timeout=info.client_timeout,
        )

    @property
    def connection(self) -> _HttpConnectionInfo:
        """Where the exchange is, and how it is reached."""
        return self._info

    def __repr__(self) -> str:
        return self._info.url

    async def probe(self) -> None:
        """Raise what an exchange that cannot be used raises; `Unusable` if it is none."""
        session = _HttpLink.create_session(self._info)
        question = {"agent": "scaleinfer.nobody", "allow_subclasses": False}
        async with session, session.get(f"{self._info.url}/discover", json=question) as response:
            if response.status in _REFUSED:
                raise Unusable(
                    "it refused the token" if self._has_token() else "it asks for a token"
                )
            answer = await response.read()
            if response.status in _PASSING:
                raise Unusable(f"a web server answered, but not the exchange ({response.status})")
            if response.status != HTTPStatus.OK or b'"agent_ids"' not in answer:
                raise Unusable(f"a web server that is no exchange answered ({response.status})")

    def _has_token(self) -> bool:
        return "Authorization" in self._info.additional_headers

    async def _create_transport(
        self,
        mailbox_id: EntityId | None = None,
        *,
        name: str | None = None,
        registration: Any = None,
    ) -> _HttpLink:
        link = await _HttpLink.new(
            connection_info=self._info,
            mailbox_id=mailbox_id,
            name=name,
            auth_method=self._auth_method,
        )
        link._lineage = getattr(registration, "lineage", "")
        return link
