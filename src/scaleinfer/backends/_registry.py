"""Service registries over HTTP, as launchers of model servers offer them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import orjson

from scaleinfer.backends._address import checked_address, shown
from scaleinfer.backends._membership import Address
from scaleinfer.backends._sources import base_url
from scaleinfer.backends._wire import WireError, open_wire
from scaleinfer.errors import ConfigError, EndpointError, Transient

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Registry", "Shape", "parse_services"]

_TIMEOUT_S = 10.0
_OK = 200
_ITEMS = ("services", "endpoints", "instances", "servers", "items", "data")
_HEALTH = ("healthy", "status", "health", "state")
_GOOD = frozenset({
    "true", "1", "ok", "up", "healthy", "ready", "running", "alive", "passing", "active",
    "available", "online", "serving",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """Where things are in a registry's JSON. Paths are keys with dots between them.

    Attributes:
        items: The list of services, or a dict of them; `None` for the document itself or the
            first of the usual names in it.
        host: A service's host.
        port: Its port; may be missing if `host` says it.
        model: Its model.
        url: Its whole base URL, instead of host and port.
        healthy: What says whether it is healthy; `None` for the first of the usual names.
        tags: A dict of its tags; `None` for the service's own plain fields.
    """

    items: str | None = None
    host: str = "host"
    port: str = "port"
    model: str = "model"
    url: str | None = None
    healthy: str | None = None
    tags: str | None = None


class Registry:
    """A service registry over HTTP that lists services as JSON; see `parse_services`.

    Args:
        url: What is fetched.
        shape: Where things are in the answer.
        headers: Of the call to the registry.
        scheme: Of the servers' URLs.
        prefix: What follows host and port there.
        every: Seconds between two looks.

    Raises:
        ConfigError: It is no URL.
    """

    def __init__(
        self,
        url: str,
        shape: Shape,
        *,
        headers: Mapping[str, str] | None = None,
        scheme: str = "http",
        prefix: str = "/v1",
        every: float = 10.0,
    ) -> None:
        parts = urlsplit(url)
        self._origin = urlunsplit(parts._replace(path="", query="", fragment=""))
        checked_address(self._origin)
        self.name = f"registry:{shown(parts._replace(query='', fragment=''))}"
        self.every = every
        self._url, self._shape = url, shape
        self._headers = {"Accept": "application/json", **(headers or {})}
        self._scheme, self._prefix = scheme, prefix

    async def read(self) -> Sequence[Address]:
        """Return the healthy services.

        Raises:
            ConfigError: The answer is no list of services.
            EndpointError: The registry did not answer.
        """
        # A registry may move, and is asked seldom: nothing is kept open for it.
        wire = open_wire(self._origin)
        try:
            response = await wire.get(self._url, self._headers, _TIMEOUT_S)
        except WireError as error:
            raise self._failed(f"does not answer: {error}", reached=False) from error
        finally:
            await wire.aclose()
        if response.status != _OK:
            raise self._failed(f"answers HTTP {response.status}")
        try:
            data = orjson.loads(response.body)
        except orjson.JSONDecodeError:
            raise self._failed("answers with something that is not JSON") from None
        return parse_services(
            data, self._shape, self.name, scheme=self._scheme, prefix=self._prefix
        )

    def _failed(self, what: str, *, reached: bool = True) -> EndpointError:
        return Transient(f"{self.name} {what}.", endpoint=self.name, reached=reached)


def parse_services(
    data: Any, shape: Shape, where: str, *, scheme: str = "http", prefix: str = "/v1"
) -> list[Address]:
    """Return the healthy services in a registry's answer.

    Raises:
        ConfigError: There is no list of services in it, or one has no address.
    """
    items = _items(data, shape.items)
    if items is None:
        raise ConfigError(
            f"{where} lists no services where they are looked for ({shape.items or 'the usual'}).",
            hint="Say where they are: EndpointSet.registry(url, items='path.to.list', host=...).",
        )
    found = []
    for item in items:
        if not _is_healthy(item, shape.healthy):
            continue
        try:
            url = _url_of(item, shape, scheme, prefix)
        except (ConfigError, ValueError) as error:
            raise ConfigError(
                f"{where} lists a service without an address: {error}",
                hint="Say what its fields are called: host=, port=, or url=.",
            ) from None
        model = _at(item, shape.model)
        found.append(Address(url, None if model in {None, ""} else str(model), _tags(item, shape)))
    return found


def _items(data: Any, path: str | None) -> list[Any] | None:
    if path:
        data = _at(data, path)
    elif path is None and isinstance(data, Mapping):
        usual = next(
            (data[name] for name in _ITEMS if isinstance(data.get(name), list | dict)), None
        )
        data = data if usual is None else usual
    if isinstance(data, Mapping):
        data = list(data.values())
    if not isinstance(data, list) or not all(isinstance(item, Mapping) for item in data):
        return None
    return data


def _at(data: Any, path: str) -> Any:
    for key in path.split("."):
        if isinstance(data, list) and key.isdigit() and int(key) < len(data):
            data = data[int(key)]
        elif isinstance(data, Mapping):
            data = data.get(key)
        else:
            return None
    return data


def _is_healthy(item: Any, path: str | None) -> bool:
    if path is not None:
        said = _at(item, path)
    else:
        said = next((item[name] for name in _HEALTH if item.get(name) is not None), None)
    return said is None or str(said).lower() in _GOOD


def _url_of(item: Any, shape: Shape, scheme: str, prefix: str) -> str:
    if shape.url is not None:
        return base_url(str(_at(item, shape.url) or ""), scheme=scheme, prefix=prefix)
    host, port = _at(item, shape.host), _at(item, shape.port)
    if not host:
        raise ValueError(f"it has no {shape.host!r}.")
    if port is None:
        return base_url(str(host), scheme=scheme, prefix=prefix)
    if not str(port).isdigit():
        raise ValueError(f"{shape.port!r} is {port!r}.")
    bracketed = f"[{host}]" if ":" in str(host) and not str(host).startswith("[") else str(host)
    return base_url(f"{bracketed}:{port}", scheme=scheme, prefix=prefix)


def _tags(item: Any, shape: Shape) -> dict[str, str]:
    tags = item if shape.tags is None else _at(item, shape.tags)
    if not isinstance(tags, Mapping):
        return {}
    plain = str | int | float | bool
    return {str(name): str(value) for name, value in tags.items() if isinstance(value, plain)}
