"""Check the settings that jobs of any batch system share."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from scaleinfer.errors import ConfigError

__all__ = [
    "Blocks",
    "check_address",
    "check_counts",
    "check_directives",
    "check_heartbeat",
    "check_name",
    "check_one_line",
    "check_positive",
    "drain_seconds",
    "walltime_seconds",
]

# Names go into submit scripts and shell commands.
_NAME = re.compile(r"[A-Za-z0-9_.,:@+-]+")
_WALLTIME = re.compile(r"(\d{1,4}):([0-5]\d):([0-5]\d)")
_MIN_WALLTIME = 60
# Before its end a job takes no further worker: this share of its time, at most so many seconds.
# It is more than what a worker leaves unused, or the next one would follow it at once.
_LAST_SHARE, _LAST_SECONDS = 0.2, 300


@dataclass(frozen=True)
class Blocks:
    """How many jobs of how many nodes.

    Attributes:
        nodes: Nodes of one job.
        smallest: Jobs that are kept.
        largest: Jobs that are asked for at most.
    """

    nodes: int
    smallest: int
    largest: int

    @classmethod
    def of(cls, nodes: int, min_nodes: int | None, max_nodes: int | None) -> Blocks:
        """Return how many jobs of `nodes` nodes make `min_nodes` to `max_nodes`.

        Raises:
            ConfigError: A number makes no sense.
        """
        _check_count("nodes", nodes, 1)
        least = 0 if min_nodes is None else min_nodes
        _check_count("min_nodes", least, 0)
        most = max(nodes, least) if max_nodes is None else max_nodes
        _check_count("max_nodes", most, 1)
        if most < max(least, nodes):
            raise ConfigError(
                f"max_nodes is {most}, less than "
                + (f"nodes ({nodes})." if most < nodes else f"min_nodes ({least})."),
                hint="nodes is the size of one job; max_nodes counts the nodes of all jobs.",
            )
        largest = most // nodes
        return cls(nodes, min(-(-least // nodes), largest), largest)


def _check_count(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, not {value!r}.")


def check_counts(**counts: int | None) -> None:
    """Check counts that must be at least 1 where they are given.

    Raises:
        ConfigError: One is not.
    """
    for name, value in counts.items():
        if value is not None:
            _check_count(name, value, 1)


def check_positive(**values: float) -> None:
    """Check durations.

    Raises:
        ConfigError: One is not a number above 0.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ConfigError(f"{name} must be a number above 0, not {value!r}.")


def walltime_seconds(walltime: str) -> int:
    """Return the seconds of a walltime `HH:MM:SS`.

    Raises:
        ConfigError: It has another form or is under a minute.
    """
    found = _WALLTIME.fullmatch(walltime) if isinstance(walltime, str) else None
    if found is None:
        raise ConfigError(
            f"walltime must be HH:MM:SS, not {walltime!r}.", hint="Two days are '48:00:00'."
        )
    hours, minutes, seconds = map(int, found.groups())
    total = (hours * 60 + minutes) * 60 + seconds
    if total < _MIN_WALLTIME:
        raise ConfigError(f"walltime {walltime} is under a minute.", hint="Ask for more.")
    return total


def drain_seconds(walltime: int) -> int:
    """Return after how many seconds a job of `walltime` seconds takes no further worker."""
    return int(walltime - min(_LAST_SECONDS, walltime * _LAST_SHARE))


def check_name(name: str, value: str | None) -> None:
    """Check an account, a partition, a queue.

    Raises:
        ConfigError: It is empty or holds spaces or characters that a shell acts on.
    """
    if value is not None and not (isinstance(value, str) and _NAME.fullmatch(value)):
        raise ConfigError(f"{name} is not a name a batch system can have: {value!r}.")


def check_one_line(name: str, value: str) -> None:
    """Check a piece of a command or of a directive.

    Raises:
        ConfigError: It spans lines.
    """
    if not isinstance(value, str) or len(value.splitlines()) > 1:
        raise ConfigError(f"{name} must be one line of text, not {value!r}.")


def check_directives(text: str, prefix: str) -> None:
    """Check that every line of the scheduler's options is one.

    Raises:
        ConfigError: A line does not begin with `prefix`.
    """
    for line in text.splitlines():
        if line.strip() and not line.startswith(prefix):
            raise ConfigError(
                f"scheduler_options has a line that is no {prefix} line: {line!r}.",
                hint="Shell commands belong into worker_init.",
            )


def check_heartbeat(period: int, threshold: int) -> None:
    """Check that a node may miss a beat or two.

    Raises:
        ConfigError: A value is no whole number of seconds, or the threshold is too short.
    """
    _check_count("heartbeat_period", period, 1)
    _check_count("heartbeat_threshold", threshold, 1)
    if threshold < 3 * period:
        raise ConfigError(
            f"heartbeat_threshold ({threshold} s) must be at least three times "
            f"heartbeat_period ({period} s).",
            hint="Otherwise one late message counts as a lost node.",
        )


def check_address(address: str | None) -> None:
    """Check the address that the nodes are to connect to.

    Raises:
        ConfigError: It is no IP address.
    """
    if address is None:
        return
    try:
        ipaddress.ip_address(address)
    except ValueError:
        raise ConfigError(
            f"address must be an IP address of this machine, not {address!r}."
        ) from None
