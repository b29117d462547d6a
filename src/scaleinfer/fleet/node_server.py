"""`NodeServer`: a model server that each worker runs on its own node."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from os import PathLike, fspath
from pathlib import PurePath
from typing import Any

from scaleinfer.errors import ConfigError

__all__ = ["HOST", "NodeServer"]

HOST = "127.0.0.1"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NOT_IN_NAME = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class NodeServer:
    """A model server that a worker starts on its node, feeds, watches and stops.

    In `command` and in the values of `env` and `pin`, `{port}` becomes a free port of the
    node, `{host}` the address to listen on (127.0.0.1) and `{index}` the server's number on the
    node, from 0. Other braces stay as they are. Where none of them has `{port}`, the port is in
    the environment variable `PORT`; no option is guessed.

    Args:
        command: Program and arguments; no shell reads them. The program must stay in the
            foreground: when it ends, all it has started is ended.
        name: What messages and log files call it; default the program's name.
        health: Path that answers with HTTP status 200 once requests are served.
        ready_timeout: Seconds from its start until it must be healthy.
        per_node: Servers of this kind on each node, such as one for each GPU or tile.
        pin: Environment variables that give each server its device: one mapping in which
            `{index}` differs, or a list with one mapping for each server.
        env: Environment variables on top of the worker's; `None` takes one away. They travel to
            the node as they are, so a secret belongs into the node's own environment.
        model: Model to ask; default the server's only one.
        api: Path of the OpenAI-compatible interface.
        restarts: Restarts in a row without having become healthy, after which it is given up.
        check_every: Seconds between health checks.
        check_timeout: Seconds a health check may take.
        failed_checks: Failed checks in a row after which it is killed and started again.
        stop_timeout: Seconds it has to end by itself when it is stopped.
        log_folder: Where the node writes what the servers print, a file each; it may be shared by
            all nodes. By default the worker chooses, among the node's temporary files.

    Raises:
        ConfigError: An argument that cannot be.
    """

    command: Sequence[str]
    _: KW_ONLY
    name: str = ""
    health: str = "/health"
    ready_timeout: float = 600.0
    per_node: int = 1
    pin: Mapping[str, str] | Sequence[Mapping[str, str]] = field(default_factory=dict)
    env: Mapping[str, str | None] = field(default_factory=dict, repr=False)
    model: str | None = None
    api: str = "/v1"
    restarts: int = 5
    check_every: float = 5.0
    check_timeout: float = 10.0
    failed_checks: int = 3
    stop_timeout: float = 10.0
    log_folder: str | PathLike[str] | None = None

    def __post_init__(self) -> None:
        command = _checked_command(self.command)
        _require_whole("per_node", self.per_node, least=1)
        name = self.name or _NOT_IN_NAME.sub("-", PurePath(command[0]).name).strip("-._")
        folder = None if self.log_folder is None else fspath(self.log_folder)
        set_field = object.__setattr__
        set_field(self, "command", command)
        set_field(self, "name", name or "server")
        set_field(self, "api", self.api.rstrip("/"))
        set_field(self, "log_folder", folder)
        set_field(self, "env", _checked_variables("env", self.env, may_unset=True))
        set_field(self, "pin", _checked_pin(self.pin, self.per_node))
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"name {self.name!r} cannot name a log file.",
                hint="Use letters, digits, '.', '_' and '-'.",
            )
        for key, path in (("health", self.health), ("api", self.api or "/")):
            if not path.startswith("/"):
                raise ConfigError(f"{key} must be a path that begins with '/', not {path!r}.")
        _require_whole("restarts", self.restarts, least=0)
        _require_whole("failed_checks", self.failed_checks, least=1)
        for key in ("ready_timeout", "check_every", "check_timeout"):
            _require_seconds(key, getattr(self, key), above_zero=True)
        _require_seconds("stop_timeout", self.stop_timeout, above_zero=False)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON data; what has its default value is left out."""
        data: dict[str, Any] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            data[one.name] = list(value) if isinstance(value, tuple) else value
        plain = {"command": data["command"], "name": data["name"]}
        defaults = {f.name: f.default for f in fields(self)} | {"pin": {}, "env": {}}
        return plain | {k: v for k, v in data.items() if k not in plain and v != defaults[k]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NodeServer:
        """Rebuild it from `to_dict`.

        Raises:
            ConfigError: A field is missing, unknown or cannot be.
        """
        known = {one.name for one in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise ConfigError(
                f"A node server has no field {', '.join(map(str, unknown))}.",
                hint="Client and node may have different versions of scaleinfer.",
            )
        if "command" not in data:
            raise ConfigError("A node server needs a command.")
        return cls(**data)

    def arguments(self, index: int, port: int) -> list[str]:
        """Return the command line of one server.

        Args:
            index: Its number on the node, from 0.
            port: Where it is to listen.
        """
        return [_filled(one, index, port) for one in self.command]

    def environment(self, index: int, port: int, inherited: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of one server.

        Args:
            index: Its number on the node, from 0.
            port: Where it is to listen.
            inherited: The worker's own environment.
        """
        pin = self.pin if isinstance(self.pin, Mapping) else self.pin[index]
        own: dict[str, str | None] = {**self.env, **pin}
        made = {key: value for key, value in inherited.items() if key not in own}
        texts = {key: value for key, value in own.items() if value is not None}
        if not any("{port}" in text for text in (*self.command, *texts.values())):
            made["PORT"] = str(port)
        return made | {key: _filled(value, index, port) for key, value in texts.items()}


def _filled(text: str, index: int, port: int) -> str:
    # Not str.format: JSON among the arguments has braces of its own.
    filled = text.replace("{port}", str(port)).replace("{index}", str(index))
    return filled.replace("{host}", HOST)


def _checked_command(command: Any) -> tuple[str, ...]:
    if isinstance(command, (str, bytes)) or not isinstance(command, Sequence):
        raise ConfigError(
            f"command must be a list of program and arguments, not {command!r}.",
            hint="shlex.split() makes one of a line; ['bash', '-c', LINE] runs it in a shell.",
        )
    parts = tuple(fspath(part) if isinstance(part, PathLike) else part for part in command)
    if not parts or not parts[0]:
        raise ConfigError("command must name a program.")
    for part in parts:
        if not isinstance(part, str) or "\0" in part:
            raise ConfigError(f"command must hold texts, not {part!r}.")
    fixed = any(part == "--port" or part.startswith("--port=") for part in parts)
    if fixed and not any("{port}" in part for part in parts):
        raise ConfigError(
            "command has a port of its own, where a node may run something else.",
            hint='Write {port} in its place, as in ["--port", "{port}"].',
        )
    return parts


def _checked_variables(what: str, given: Any, *, may_unset: bool = False) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise ConfigError(f"{what} must map names to texts, not be {given!r}.")
    for key, value in given.items():
        if not isinstance(key, str) or not key or "=" in key or "\0" in key:
            raise ConfigError(f"{what} has {key!r}, which cannot name an environment variable.")
        if value is None and may_unset:
            continue
        if not isinstance(value, str) or "\0" in value:
            raise ConfigError(f"{what}[{key!r}] must be a text, not a {type(value).__name__}.")
    return dict(given)


def _checked_pin(pin: Any, per_node: int) -> dict[str, str] | tuple[dict[str, str], ...]:
    if isinstance(pin, Mapping):
        one = _checked_variables("pin", pin)
        if one and per_node > 1 and not any("{index}" in value for value in one.values()):
            raise ConfigError(
                f"pin gives all {per_node} servers of a node the same device.",
                hint='Use "{index}" in a value, or a list with one mapping for each server.',
            )
        return one
    if isinstance(pin, (str, bytes)) or not isinstance(pin, Sequence):
        raise ConfigError(f"pin must be a mapping or a list of mappings, not {pin!r}.")
    if len(pin) != per_node:
        raise ConfigError(
            f"pin has {len(pin)} mappings for per_node={per_node} servers.",
            hint="Give one for each server.",
        )
    return tuple(_checked_variables(f"pin[{i}]", each) for i, each in enumerate(pin))


def _require_whole(key: str, value: Any, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{key} must be a whole number, at least {least}, not {value!r}.")


def _require_seconds(key: str, value: Any, *, above_zero: bool) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0 or (above_zero and not value):
        least = "more than 0" if above_zero else "0 or more"
        raise ConfigError(f"{key} must be seconds, {least}, not {value!r}.")
