"""Where a set of endpoints is listed: host files and variables."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from scaleinfer.backends._address import checked_address
from scaleinfer.backends._membership import Address
from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Fixed", "HostFile", "Source", "base_url", "parse_hosts"]

_SETTLED_S = 2.0


class Source(Protocol):
    """Lists endpoints, again and again."""

    name: str
    """What the set is called: never holds credentials."""
    every: float
    """Seconds between two looks; infinite if nothing can change."""

    async def read(self) -> Sequence[Address]:
        """Return all endpoints that are listed now.

        Raises:
            ConfigError: There is no such list, or it cannot be understood.
            EndpointError: The list cannot be had at the moment.
        """


class Fixed:
    """A list that does not change.

    Args:
        name: What the set is called.
        urls: Base URLs, or `host:port`.

    Raises:
        ConfigError: One of them is no address.
    """

    every = float("inf")

    def __init__(self, name: str, urls: Iterable[str]) -> None:
        self.name = name
        self._addresses = tuple(Address(base_url(url)) for url in urls)

    @property
    def count(self) -> int:
        """How many endpoints it lists."""
        return len(self._addresses)

    async def read(self) -> Sequence[Address]:
        """Return the endpoints."""
        return self._addresses


class HostFile:
    """A file with a line for each endpoint; see `parse_hosts`.

    Args:
        path: The file. It is looked at again and again and read when it has changed.
        scheme: Of the servers' URLs: `http` or `https`.
        prefix: What follows host and port.
        every: Seconds between two looks.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        scheme: str = "http",
        prefix: str = "/v1",
        every: float = 2.0,
    ) -> None:
        self.name = f"hosts:{os.fspath(path)}"
        self.every = every
        self._path = Path(path)
        self._scheme, self._prefix = scheme, prefix
        self._signature: tuple[int, int, int] | None = None
        self._settled = False
        self._addresses: Sequence[Address] = ()

    async def read(self) -> Sequence[Address]:
        """Return the endpoints in the file.

        Raises:
            ConfigError: It is not there, cannot be read, or a line is no endpoint.
        """
        # A shared file system may take its time, or hang.
        return await asyncio.to_thread(self._read)

    def _read(self) -> Sequence[Address]:
        try:
            facts = self._path.stat()
            signature = facts.st_mtime_ns, facts.st_size, facts.st_ino
            if signature == self._signature and self._settled:
                return self._addresses
            # What a launcher is still writing may end in half an address.
            settled = signature == self._signature or time.time() - facts.st_mtime > _SETTLED_S
            text = self._path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"the host file {self._path} cannot be read: {error}.",
                hint="Write it first; an empty one is waited for.",
            ) from error
        if not settled and text and not text.endswith("\n"):
            text = text[: text.rfind("\n") + 1]
        self._addresses = parse_hosts(
            text, str(self._path), scheme=self._scheme, prefix=self._prefix
        )
        self._signature, self._settled = signature, settled
        return self._addresses


def parse_hosts(
    text: str, where: str, *, scheme: str = "http", prefix: str = "/v1"
) -> list[Address]:
    """Return the endpoints in a host file's text.

    A line holds host and port with a tab (or blanks) between them, or `host:port`, or a URL,
    and then `key=value` tags. What follows `#` at the beginning of a line or after white space
    is a comment. The tags `model`, `weight`, `scheme` and `path` are understood; all of them
    can be asked for.

    Raises:
        ConfigError: A line is no endpoint; the message names it.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        fields = _fields(line)
        if not fields:
            continue
        try:
            found.append(_address(fields, scheme, prefix))
        except ValueError as error:
            raise ConfigError(
                f"{where}, line {number} is no endpoint: {error}.",
                hint="A line is: host, tab, port, and key=value tags; or host:port.",
            ) from None
    return found


def _fields(line: str) -> list[str]:
    """Return a line's fields without its comment; a tag's value may hold blanks after a tab."""
    tabbed = "\t" in line
    fields = []
    for part in line.split("\t") if tabbed else line.split():
        if part.lstrip().startswith("#"):
            break
        word, comment, _ = part.partition(" #")
        if len(word.partition("=")[0].split()) > 1:
            fields += word.split()
        elif word.strip():
            fields.append(word.strip())
        if comment:
            break
    return fields


def _address(fields: list[str], scheme: str, prefix: str) -> Address:
    where = fields[0]
    rest = fields[1:]
    if rest and "=" not in rest[0]:
        if not rest[0].isdigit():
            raise ValueError(f"{rest[0]!r} is neither a port nor key=value")
        host = f"[{where}]" if ":" in where and not where.startswith("[") else where
        where = f"{host}:{rest.pop(0)}"
    tags = {}
    for tag in rest:
        name, equals, value = tag.partition("=")
        if not equals or not name:
            raise ValueError(f"{tag!r} is not key=value")
        tags[name.strip()] = value.strip()
    try:
        url = base_url(where, scheme=tags.get("scheme", scheme), prefix=tags.get("path", prefix))
        weight = float(tags.get("weight", 1.0))
    except ConfigError as error:
        raise ValueError(error.message.rstrip(".")) from None
    if not 0 < weight < float("inf"):
        raise ValueError(f"weight={tags['weight']} is not a positive number")
    return Address(url, tags.get("model") or None, tags, weight)


def base_url(where: str, *, scheme: str = "http", prefix: str = "/v1") -> str:
    """Return the base URL of `host:port`, `host` or a URL, which stays as it is.

    Raises:
        ConfigError: It is no address.
    """
    if "://" not in where:
        host, colon, port = where.rpartition(":")
        if colon and not (port.isdigit() and 0 < int(port) < 1 << 16 and host):
            raise ConfigError(f"{where!r} is not host:port.")
        if not where or any(c.isspace() or c in "/?#@" for c in where):
            raise ConfigError(f"{where!r} is not host:port.")
        where = f"{scheme}://{where}/{prefix.strip('/')}"
    where = where.rstrip("/")
    checked_address(where)
    return where
