"""Exchanges: where the messages of a fleet go, from a text or from a factory of Academy's.

`exchange_factory` makes the factory, `exchange_spec` turns it into the text again (a worker's
specification is JSON), `check_exchange` says before the start why one cannot be used, and
`json_only` keeps pickles out of the calls made within it.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from academy.exchange import ExchangeFactory
    from academy.exchange.client_config import ExchangeClientConfig

__all__ = [
    "PASSWORD_VARIABLE",
    "check_exchange",
    "exchange_factory",
    "exchange_name",
    "exchange_spec",
    "json_only",
]

PASSWORD_VARIABLE = "SCALEINFER_EXCHANGE_PASSWORD"

_CHECK_S = 10.0
_KNOWN = (
    "redis://[:password@]host:port, rediss://... (TLS), "
    "http://[:token@]host:port, https://[:token@]host, "
    "hybrid://[:password@]host:port[?interface=name], academy (hosted, Globus login), "
    "local (this process only), or a factory of academy.exchange"
)


def exchange_factory(
    spec: str | ExchangeFactory[Any],
    *,
    heartbeat_s: float = 2.0,
    missed: int = 3,
    patience_s: float = 15.0,
) -> ExchangeFactory[Any]:
    """Return a factory of clients that outlive a restart of their exchange.

    A password or token may be left out of the text and given in the environment variable
    `SCALEINFER_EXCHANGE_PASSWORD` of every process instead.

    Args:
        spec: `"redis://[:password@]host:port"`, `"rediss://..."`, `"http://host:port"`,
            `"https://host"`, `"hybrid://host:port"`, `"academy"`, `"local"`, or a factory. Of
            Academy's own factories the Redis, HTTP and Hybrid ones are made resilient; any
            other is returned as it is.
        heartbeat_s: Seconds between two heartbeats of a client. With many agents this must grow:
            each is one request to the exchange.
        missed: Missed heartbeats after which an agent counts as inactive.
        patience_s: Seconds for which sending and the like is tried again while the exchange is
            away. Listening goes on until the client is closed.

    Raises:
        ConfigError: The text is none of these, or the Globus login is missing.
    """
    from academy.exchange.client_config import ExchangeClientConfig

    config = ExchangeClientConfig(heartbeat_interval=heartbeat_s, stale_heartbeat_threshold=missed)
    if not isinstance(spec, str):
        return _from_object(spec, config, patience_s)
    if spec == "local":
        from academy.exchange import LocalExchangeFactory

        return LocalExchangeFactory(config=config)
    inner = _hosted() if spec == "academy" else _from_url(spec)
    from scaleinfer.fleet._resilient import ResilientFactory

    return ResilientFactory(inner, spec=spec, patience=patience_s, config=config)


def exchange_spec(factory: ExchangeFactory[Any]) -> str | None:
    """Return the text a factory was made from, password included, or None.

    None for `"local"`, which no other process can reach, and for factories made from objects.
    """
    return getattr(factory, "spec", None)


def exchange_name(factory: ExchangeFactory[Any]) -> str:
    """Return what an exchange is called in messages: its URL without credentials."""
    inner = getattr(factory, "inner", None)
    return type(factory).__name__ if inner is None else repr(inner)


async def check_exchange(factory: ExchangeFactory[Any], *, patience_s: float = 0.0) -> None:
    """Make sure that an exchange can be reached and used.

    Args:
        factory: Makes its clients.
        patience_s: Seconds to try for, for an exchange that may just be restarting.

    Raises:
        ConfigError: It cannot, within 10 s or the patience; the message names the exchange and
            the cause.
    """
    from scaleinfer.fleet._resilient import persist

    name = exchange_name(factory)
    inner = getattr(factory, "inner", None)
    probe = getattr(inner, "probe", None)
    try:
        async with asyncio.timeout(_CHECK_S + patience_s):
            if probe is not None and inner is not None and patience_s:
                await persist(probe, worth_another_try=inner.is_away, patience=patience_s)
            elif probe is not None:
                await probe()
            else:
                # A client that is closed at once would leave its heartbeat running.
                transport = await factory._create_transport()
                await transport.terminate(transport.mailbox_id)
                await transport.close()
    except Exception as error:
        raise _unusable(name, error) from None


@contextmanager
def json_only() -> Iterator[None]:
    """Send JSON and accept nothing else in the calls made within, and in tasks begun within.

    Academy's handles unpickle an answer that says it is a pickle. Within this, such an answer
    raises `academy.exception.DeserializationMethodProhibitedError` and is never unpickled.
    """
    from academy.serialize import SerializationStrategy, allowed_deserializers, default_serializer

    allowed = allowed_deserializers.set({SerializationStrategy.JSON})
    default = default_serializer.set(SerializationStrategy.JSON)
    try:
        yield
    finally:
        default_serializer.reset(default)
        allowed_deserializers.reset(allowed)


def _from_object(
    factory: ExchangeFactory[Any], config: ExchangeClientConfig, patience_s: float
) -> ExchangeFactory[Any]:
    from academy.exchange import ExchangeFactory

    if not isinstance(factory, ExchangeFactory):
        raise ConfigError(f"{type(factory).__name__} is no exchange.", hint=f"Known are: {_KNOWN}.")
    inner = _link_factory(factory)
    if inner is None:
        return factory
    from scaleinfer.fleet._resilient import ResilientFactory

    own = factory.config or config
    return ResilientFactory(inner, spec=None, patience=patience_s, config=own)


def _link_factory(factory: ExchangeFactory[Any]) -> ExchangeFactory[Any] | None:
    """Return our own kind of Academy's factory; a subclass may rely on its own transport."""
    from academy.exchange import HttpExchangeFactory, HybridExchangeFactory, RedisExchangeFactory

    if type(factory) is RedisExchangeFactory:
        from scaleinfer.fleet._redis_link import RedisLinkFactory, connection_options

        hostname, port, given = factory.redis_info
        return RedisLinkFactory(hostname, port, **connection_options(**given))
    if type(factory) is HttpExchangeFactory:
        from scaleinfer.fleet._http_link import HttpLinkFactory

        return HttpLinkFactory.to(factory._info, factory._auth_method)
    if type(factory) is HybridExchangeFactory and factory._ports is None:
        from scaleinfer.fleet._redis_link import HybridLinkFactory, connection_options

        hostname, port, given = factory._redis_info
        return HybridLinkFactory(
            hostname,
            port,
            redis_kwargs=connection_options(**given),
            interface=factory._interface,
            namespace=factory._namespace,
        )
    return None


def _from_url(spec: str) -> ExchangeFactory[Any]:
    url, port = _split(spec)
    host = url.hostname
    assert host is not None  # _split has looked
    password = unquote(url.password or "") or os.environ.get(PASSWORD_VARIABLE, "")
    if url.scheme in {"http", "https"}:
        from scaleinfer.fleet._http_link import HttpLinkFactory, stream_timeout

        where = f"[{host}]" if ":" in host else host
        return HttpLinkFactory(
            f"{url.scheme}://{where}{f':{port}' if port else ''}{url.path.rstrip('/')}",
            additional_headers={"Authorization": f"Bearer {password}"} if password else {},
            client_timeout=stream_timeout(),
        )
    from scaleinfer.fleet._redis_link import (
        HybridLinkFactory,
        RedisLinkFactory,
        connection_options,
    )

    options: dict[str, Any] = {"password": password} if password else {}
    if url.username:
        options["username"] = unquote(url.username)
    if url.path.strip("/"):
        options["db"] = int(url.path.strip("/"))
    if url.scheme == "rediss":
        options["ssl"] = True
    port = port or 6379
    if url.scheme == "hybrid":
        interface = parse_qs(url.query).get("interface", [None])[0]
        return HybridLinkFactory(
            host, port, redis_kwargs=connection_options(**options), interface=interface
        )
    return RedisLinkFactory(host, port, **connection_options(**options))


def _split(spec: str) -> tuple[SplitResult, int | None]:
    known = {"redis", "rediss", "http", "https", "hybrid"}
    wrong = ConfigError(f"no exchange {_redacted(spec)!r}.", hint=f"Known are: {_KNOWN}.")
    try:
        url = urlsplit(spec)
        port = url.port
    except ValueError:
        raise wrong from None
    if url.scheme not in known or not url.hostname:
        raise wrong
    queries = set(parse_qs(url.query, keep_blank_values=True))
    if queries - ({"interface"} if url.scheme == "hybrid" else set()) or url.fragment:
        raise wrong
    is_http = url.scheme.startswith("http")
    if not is_http and not re.fullmatch(r"/?\d*", url.path):
        raise wrong
    return url, port


def _redacted(spec: str) -> str:
    return re.sub(r"//.*@", "//...@", spec)


def _hosted() -> ExchangeFactory[Any]:
    """Log in to the hosted exchange, asking the user only where there is a terminal."""
    from academy.exchange.cloud.client import DEFAULT_EXCHANGE_URL
    from academy.exchange.cloud.login import get_globus_app
    from academy.exchange.cloud.scopes import AcademyExchangeScopes

    from scaleinfer.fleet._http_link import HttpLinkFactory, stream_timeout

    how = (
        "Log in once in a terminal on this machine, with "
        "`python -c 'from academy.exchange import HttpExchangeFactory as F; F()'`, or set "
        "ACADEMY_GLOBUS_CLIENT_ID and ACADEMY_GLOBUS_CLIENT_SECRET."
    )
    try:
        app = get_globus_app()
        server = AcademyExchangeScopes.resource_server
        app.add_scope_requirements({server: [AcademyExchangeScopes.academy_exchange]})
        if app.login_required() and not sys.stdin.isatty():
            raise ConfigError("the exchange 'academy' needs a Globus login.", hint=how)
        return HttpLinkFactory(
            DEFAULT_EXCHANGE_URL, auth_method="globus", client_timeout=stream_timeout()
        )
    except ConfigError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"the Globus login for the exchange 'academy' failed ({why}).", hint=how
        ) from error


def _unusable(name: str, error: Exception) -> ConfigError:
    """Say in one sentence why an exchange cannot be used."""
    from scaleinfer.fleet._resilient import Unusable

    chain: list[BaseException] = [error]
    while under := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(under)

    def has(*kinds: type[Exception]) -> BaseException | None:
        return next((one for one in chain if isinstance(one, kinds)), None)

    hint = ""
    if isinstance(error, Unusable):
        why = str(error)
        if "password" in why or "token" in why:
            hint = f"Put it into the URL or into {PASSWORD_VARIABLE}."
    elif found := has(ssl.SSLCertVerificationError):
        why = f"its TLS certificate does not verify: {found}"
    elif has(ssl.SSLError):
        why = "it does not speak TLS as we do"
    elif has(socket.gaierror):
        why = "there is no such host"
    elif has(ConnectionRefusedError):
        why, hint = "nobody listens there", "Is it running, and is the port right?"
    elif has(TimeoutError):
        why, hint = "it did not answer in time", "Is a firewall in between?"
    else:
        why = f"{type(error).__name__}: {error}"
    return ConfigError(f"the exchange {name} cannot be used: {why}.", hint=hint)
