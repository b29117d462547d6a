"""Sets of endpoints: from a host file, a service registry, a variable or a list."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any, ClassVar, Self

from scaleinfer.backends._base import EndpointStatus
from scaleinfer.backends._registry import Registry, Shape
from scaleinfer.backends._roster import Roster
from scaleinfer.backends._rostered import RosteredBackend
from scaleinfer.backends._sources import Fixed, HostFile
from scaleinfer.backends.openai import OpenAIBackend
from scaleinfer.errors import ConfigError, EndpointError, Starting

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from scaleinfer.backends._membership import Address
    from scaleinfer.backends._sources import Source
    from scaleinfer.requests import Request
    from scaleinfer.results import Completion

__all__ = ["EndpointSet"]

_CHECKED_AT_ONCE = 64
_NOT_FOR_MEMBERS = frozenset({"base_url", "weight"})


class EndpointSet(RosteredBackend):
    """Many OpenAI-compatible servers that come and go while calls are made.

    A map spreads its calls over the members as over a list of backends, and follows who joins
    and leaves; calls in flight at one that leaves are left to end. Made by `hosts`, `registry`,
    `env` or `of`; the spec strings are `"hosts:FILE"`, `"registry:URL"` and `"env:"`.

    Args:
        source: Lists the endpoints.
        model: Model to ask. Endpoints that are listed with another are left out; `openai/x`
            and `x` are the same one. Default: each one's own, as the source says or else the
            only one that it offers.
        tags: Only endpoints with all of these: `{"role": "worker"}`, or several values to
            choose from: `{"rack": ["a", "b"]}`.
        priced: True if the endpoints' owner may charge for tokens.
        options: Further arguments of `OpenAIBackend`, for each member: `api_key`, `headers`,
            `timeout`, `concurrency`, `rate_limit`, ...

    Raises:
        ConfigError: An option is not for members.
    """

    kind: ClassVar[str] = "set"
    embeds = True

    def __init__(
        self,
        source: Source,
        *,
        model: str | None = None,
        tags: Mapping[str, str | Collection[str]] | None = None,
        priced: bool = False,
        **options: Any,
    ) -> None:
        wrong = sorted(_NOT_FOR_MEMBERS & options.keys())
        if wrong:
            raise ConfigError(f"{wrong[0]}= is no option of a set's members; its source says it.")
        super().__init__()
        self.endpoint = source.name
        self.model = self._wanted = model or os.environ.get("OPENAI_MODEL")
        self.priced = priced
        self.tags = dict(tags or {})
        # A wrong option is named now, and the attributes are what a member's are.
        member = OpenAIBackend("http://127.0.0.1/v1", **options)
        self.concurrency, self.packing = member.concurrency, member.packing
        self.timeout, self.json_schema = member.timeout, member.json_schema
        self.rate_limit = member.rate_limit
        self._source = source
        self._options = options

    @classmethod
    def hosts(
        cls,
        path: str | os.PathLike[str],
        *,
        scheme: str = "http",
        prefix: str = "/v1",
        every: float = 2.0,
        **options: Any,
    ) -> Self:
        r"""Return the set that a host file lists.

        A line is host, tab, port and `key=value` tags with tabs between them, or `host:port`,
        or a URL. `#` begins a comment. `model=`, `weight=`, `scheme=` and `path=` are
        understood. The file is read again when it changes; an empty one is waited for.

        Args:
            path: The file.
            scheme: `http` or `https`.
            prefix: What follows host and port in a server's URL.
            every: Seconds between two looks at the file.
            options: As for the class.
        """
        source = HostFile(path, scheme=scheme, prefix=prefix, every=_positive(every))
        return cls(source, **options)

    @classmethod
    def registry(
        cls,
        url: str,
        *,
        items: str | None = None,
        host: str = "host",
        port: str = "port",
        model_field: str = "model",
        url_field: str | None = None,
        healthy: str | None = None,
        tags_field: str | None = None,
        registry_headers: Mapping[str, str] | None = None,
        scheme: str = "http",
        prefix: str = "/v1",
        every: float = 10.0,
        **options: Any,
    ) -> Self:
        """Return the set that a service registry lists over HTTP, as JSON.

        Fields are named by paths with dots: `"Service.Address"`. A service that is said to be
        unhealthy is left out.

        Args:
            url: What is fetched, with GET.
            items: Where the list of services is (or a dict of them); default the whole answer,
                or `services`, `endpoints`, `instances`, `servers`, `items` or `data` in it.
            host: A service's host.
            port: Its port.
            model_field: Its model.
            url_field: Its whole base URL, in place of host and port.
            healthy: What says whether it is healthy; default `healthy`, `status`, `health` or
                `state`, if there is one.
            tags_field: A dict of its tags; default its own plain fields.
            registry_headers: Headers of the call to the registry.
            scheme: `http` or `https`, of the servers.
            prefix: What follows host and port in a server's URL.
            every: Seconds between two looks.
            options: As for the class.

        Raises:
            ConfigError: It is no URL.
        """
        shape = Shape(items, host, port, model_field, url_field, healthy, tags_field)
        source = Registry(
            url,
            shape,
            headers=registry_headers,
            scheme=scheme,
            prefix=prefix,
            every=_positive(every),
        )
        return cls(source, **options)

    @classmethod
    def env(cls, variable: str = "OPENAI_BASE_URL", **options: Any) -> Self:
        """Return the set of the base URLs in a variable, with commas or blanks between them.

        Args:
            variable: Its name.
            options: As for the class.

        Raises:
            ConfigError: It is not set, or names what is no URL.
        """
        urls = os.environ.get(variable or "OPENAI_BASE_URL", "").replace(",", " ").split()
        if not urls:
            raise ConfigError(
                f"the variable {variable} names no endpoint.",
                hint=f"For example: export {variable}=http://node1:8000/v1,http://node2:8000/v1",
            )
        return cls(Fixed(f"env:{variable}", urls), **({"priced": True} | options))

    @classmethod
    def of(cls, urls: Iterable[str], **options: Any) -> Self:
        """Return the set of these base URLs (or `host:port`), which does not change.

        Args:
            urls: The addresses.
            options: As for the class.

        Raises:
            ConfigError: One of them is no address, or there is none.
        """
        source = Fixed("a list", urls)
        if not source.count:
            raise ConfigError("there is no endpoint in the list.")
        source.name = f"{source.count} endpoints"
        return cls(source, **({"priced": True} | options))

    @property
    def waits_for(self) -> str:
        """What calls wait for; empty while there is a member."""
        empty = any(roster.started and not roster.members() for roster in self._open.values())
        return f"{self.endpoint} names no endpoint" if empty else ""

    def _roster(self) -> Roster:
        return Roster(self.endpoint, self._list, self._source.every, self)

    async def open(self) -> None:
        """Read the list and begin to follow it, on the running loop.

        Raises:
            ConfigError: The list is not there, or cannot be understood.
            EndpointError: It names no endpoint yet, or none of which the model can be found out.
        """
        await super().open()
        if self.model is None:
            self.model = next((member.model for member in self.members), None)

    async def complete(self, request: Request, *, timeout: float | None = None) -> Completion:
        """Ask one member after the other; a map chooses better, see `follow`."""
        members = self._opened().members()
        if not members:
            raise Starting(f"{self.endpoint} names no endpoint now.", endpoint=self.endpoint)
        return await members[next(self._turn) % len(members)].complete(request, timeout=timeout)

    async def check(self) -> EndpointStatus:
        """Ask every endpoint for its models; see `Backend.check`."""
        began = time.monotonic()
        try:
            addresses = await self._list()
        except (ConfigError, EndpointError) as error:
            return EndpointStatus(self.endpoint, ok=False, detail=str(error))
        turns = asyncio.Semaphore(_CHECKED_AT_ONCE)

        async def look(address: Address) -> EndpointStatus:
            async with turns:
                return await self.member(address).check()

        found = await asyncio.gather(*map(look, addresses))
        good = [status for status in found if status.ok]
        models = tuple(dict.fromkeys(model for status in good for model in status.models))
        detail = f"{len(good)} of {len(found)} endpoints answer"
        bad = next((status for status in found if not status.ok), None)
        if bad is not None:
            detail += f"; {bad.endpoint}: {bad.detail}"
        took = time.monotonic() - began
        return EndpointStatus(self.endpoint, bool(good), detail, models, took)

    def member(self, address: Address) -> OpenAIBackend:
        """Return a new adapter to an endpoint of the set."""
        member = OpenAIBackend(
            address.url,
            model=address.model or self._wanted,
            weight=address.weight,
            **self._options,
        )
        member.priced = member.priced and self.priced
        return member

    @property
    def model_known(self) -> bool:
        """True if no endpoint has to be asked for its model."""
        return self._wanted is not None

    def _opened(self) -> Roster:
        roster = self._open.get(asyncio.get_running_loop())
        if roster is None:
            raise ConfigError(
                "the set is not open on this event loop.",
                hint="Use `async with endpoints:`, or pass it to parallel_map.",
            )
        return roster

    async def _list(self) -> list[Address]:
        """Return the endpoints that are listed and wanted."""
        wanted = self._wanted
        return [
            address
            for address in await self._source.read()
            if address.fits(self.tags)
            and (wanted is None or address.model is None or _same(address.model, wanted))
        ]


def _same(one: str, other: str) -> bool:
    """Return whether two names are of one model; the owner's name before it may be missing."""
    one, other = one.lower(), other.lower()
    return one == other or (
        ("/" in one) != ("/" in other) and one.rpartition("/")[2] == other.rpartition("/")[2]
    )


def _positive(seconds: float) -> float:
    if not seconds > 0:
        raise ConfigError(f"every must be positive, not {seconds}.")
    return seconds
