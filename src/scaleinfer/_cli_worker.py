"""`scaleinfer worker`: one worker of a fleet, started by hand or by a batch script."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scaleinfer._cli_exit import FAILED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaleinfer.fleet import NodeServer, WorkerSpec

__all__ = ["FLEET_SECRET", "spec_text", "worker"]

FLEET_SECRET = "SCALEINFER_FLEET_SECRET"

_CLOCK = re.compile(r"(\d{1,4}):([0-5]\d):([0-5]\d)")
_SAME = ("model", "base_url", "patience_s")
_SERVER = ("per_node", "pin", "health", "ready_timeout")


def _concurrency(ctx: click.Context, param: click.Parameter, value: str | None) -> int | str | None:
    """Return a positive whole number or `auto`."""
    if value is None or value == "auto":
        return value
    if not (value.isascii() and value.isdecimal() and int(value)):
        raise click.BadParameter(
            f"{value!r} is neither auto nor a positive whole number.", ctx, param
        )
    return int(value)


def _seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Return the seconds of `3600` or `01:00:00`."""
    if value is None:
        return None
    clock = _CLOCK.fullmatch(value)
    if clock is not None:
        hours, minutes, seconds = map(int, clock.groups())
        return float((hours * 60 + minutes) * 60 + seconds)
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    raise click.BadParameter(f"{value!r} is neither seconds nor HH:MM:SS.", ctx, param)


def _pins(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> list[tuple[str, str]]:
    """Return the parts of each `NAME=VALUE`."""
    pins = []
    for value in values:
        name, equals, rest = value.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{value!r} is not of the form NAME=VALUE.", ctx, param)
        pins.append((name, rest))
    return pins


@click.command()
@click.option("--exchange", metavar="URL", help="Where messages go: redis://HOST:PORT, ...")
@click.option("--fleet", metavar="NAME", help="Name of the fleet to work for.")
@click.option(
    "--backend",
    multiple=True,
    metavar="SPEC",
    help="What to ask: local, openai, a URL, or module:function; several share the work.",
)
@click.option("--base-url", metavar="URL", help="An OpenAI-compatible server, /v1 included.")
@click.option(
    "--server",
    metavar="COMMAND",
    help="A model server to start on this node: 'vllm serve M --port {port}'.",
)
@click.option(
    "--per-node", type=click.IntRange(min=1), metavar="N", help="Servers to start; default 1."
)
@click.option(
    "--pin",
    multiple=True,
    callback=_pins,
    metavar="NAME=VALUE",
    help="Variable that gives each server its device, with {index}; or as many times as there "
    "are servers, a value for each.",
)
@click.option("--health", metavar="PATH", help="Answers 200 once it serves; default /health.")
@click.option(
    "--ready-timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="For the server's start; default 600.",
)
@click.option("--model", help="Model to ask; default the server's only one.")
@click.option(
    "--concurrency",
    callback=_concurrency,
    metavar="N|auto",
    help="Calls in flight at each endpoint; default what it is fastest with.",
)
@click.option(
    "--walltime",
    callback=_seconds,
    metavar="SECONDS|HH:MM:SS",
    help="When this job ends, from now on. Slurm tells by itself.",
)
@click.option(
    "--log",
    metavar="FILE",
    help="Log file; {name} and {node} are filled in, the name is added if missing. "
    "Default standard error.",
)
@click.option("--name", help="Beginning of the worker's name; node and a random part follow.")
@click.option(
    "--patience",
    "patience_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long to look for a coordinator; default 120.",
)
@click.option(
    "--spec",
    metavar="FILE|-",
    help="All of this as JSON (WorkerSpec.to_json); options override it.",
)
def worker(**given: Any) -> None:
    """Work for a fleet on this node until the fleet is closed.

    Any number of these may be started with the same options, at any time, on any node that
    reaches the exchange: mpiexec -n 2000 scaleinfer worker ...

    The fleet's secret is read from SCALEINFER_FLEET_SECRET, the exchange's password from
    SCALEINFER_EXCHANGE_PASSWORD. Exit codes: 0 the fleet has ended or needs this worker no
    longer, 1 the coordinator or the model server was lost, 2 wrong usage or configuration.
    """
    sys.exit(_run(**given))


def _run(*, spec: str | None, **given: Any) -> int:
    from scaleinfer.errors import ConfigError, ScaleInferError
    from scaleinfer.fleet import run_worker

    text = None if spec is None else spec_text(spec)
    made = _spec(text, **given)
    try:
        run_worker(made.to_json())
    except ConfigError:
        raise
    except ScaleInferError as error:
        click.echo(f"Error: {error}", err=True)
        return FAILED
    return 0


def spec_text(path: str) -> str:
    """Return what a spec file, or standard input for `-`, holds."""
    return sys.stdin.read() if path == "-" else Path(path).read_text("utf-8")


def _spec(
    text: str | None,
    *,
    exchange: str | None,
    fleet: str | None,
    backend: tuple[str, ...],
    server: str | None,
    walltime: float | None,
    concurrency: int | str | None,
    log: str | None,
    name: str | None,
    **others: Any,
) -> WorkerSpec:
    """Return what the options, and the file beneath them, amount to."""
    base = _base(text, exchange, fleet)
    changes: dict[str, Any] = {key: others[key] for key in _SAME}
    changes |= {
        "exchange": exchange,
        "fleet": fleet,
        "backend": backend or None,
        "concurrency": concurrency,
        "walltime_s": walltime,
        "secret": os.environ.get(FLEET_SECRET) or None,
    }
    node_server = _server(server, {key: others[key] for key in _SERVER})
    if node_server is not None:
        if backend or others["base_url"]:
            raise click.UsageError("--server is what the worker asks; leave out the others.")
        changes |= {"server": node_server.to_dict(), "backend": (), "base_url": ""}
    elif backend or others["base_url"]:
        base = replace(base, server=None)
    made = replace(base, **{key: value for key, value in changes.items() if value is not None})
    begins = name or made.name
    unique = f"{f'{begins}-' if begins else ''}{socket.gethostname()}-{secrets.token_hex(4)}"
    made = replace(
        made, base_url=made.base_url or None, name=unique, log=_log_file(log or made.log, unique)
    )
    made.concurrency_or_none()
    return made


def _base(text: str | None, exchange: str | None, fleet: str | None) -> WorkerSpec:
    """Return the file's spec, or an empty one; the exchange and the fleet may be the options'."""
    import orjson

    from scaleinfer.errors import ConfigError
    from scaleinfer.fleet import WorkerSpec

    try:
        data = {} if text is None else orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"the worker's spec cannot be read: {error}") from error
    if isinstance(data, dict):
        if exchange:
            data["exchange"] = exchange
        if fleet:
            data["fleet"] = fleet
        missing = [f"--{key}" for key in ("exchange", "fleet") if not data.get(key)]
        if missing:
            raise click.UsageError(f"Missing {' and '.join(missing)}, in the options or the spec.")
    return WorkerSpec.from_json(orjson.dumps(data))


def _server(command: str | None, given: dict[str, Any]) -> NodeServer | None:
    from scaleinfer.fleet import NodeServer

    options = {key: value for key, value in given.items() if value}
    if command is None:
        if options:
            names = ", ".join(f"--{key.replace('_', '-')}" for key in options)
            raise click.UsageError(f"{names}: there is no --server that it is for.")
        return None
    try:
        arguments = shlex.split(command)
    except ValueError as error:
        raise click.UsageError(f"--server {command!r} cannot be read: {error}.") from None
    if "pin" in options:
        options["pin"] = _pin(options["pin"], options.get("per_node", 1))
    return NodeServer(arguments, **options)


def _pin(pairs: Sequence[tuple[str, str]], servers: int) -> dict[str, str] | list[dict[str, str]]:
    """Return the same variables for all servers, or those of each."""
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    for name, given in values.items():
        if len(given) not in {1, servers}:
            raise click.UsageError(
                f"--pin {name} is given {len(given)} times, for {servers} servers."
            )
    if all(len(given) == 1 for given in values.values()):
        return {name: given[0] for name, given in values.items()}
    return [
        {name: given[index if len(given) > 1 else 0] for name, given in values.items()}
        for index in range(servers)
    ]


def _log_file(log: str, name: str) -> str:
    """Return the worker's own log file: thousands may be started with the same option."""
    if not log:
        return ""
    if log.endswith(("/", os.sep)) or os.path.isdir(log):
        log = os.path.join(log, "{name}.log")
    elif "{name}" not in log:
        stem, suffix = os.path.splitext(log)
        log = f"{stem}-{{name}}{suffix}"
    path = log.replace("{name}", name).replace("{node}", socket.gethostname())
    # The worker fills in once more.
    return path.replace("{", "{{").replace("}", "}}")
