"""`scaleinfer runs attach`: a running fleet, seen from another shell."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from scaleinfer._cli_exit import FAILED
from scaleinfer._cli_worker import FLEET_SECRET, spec_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from scaleinfer.fleet import FleetStatus

__all__ = ["attach"]


@click.command()
@click.option("--exchange", metavar="URL", help="Where the fleet's messages go.")
@click.option("--fleet", metavar="NAME", help="Its name.")
@click.option("--spec", metavar="FILE|-", help="A worker's spec file, which says both.")
@click.option("--once", is_flag=True, help="Show where it stands now, and end.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON each time.")
@click.option(
    "--every",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Pause between two looks.",
)
def attach(
    *,
    exchange: str | None,
    fleet: str | None,
    spec: str | None,
    once: bool,
    as_json: bool,
    every: float,
) -> None:
    """Show where a running fleet stands, until it has ended.

    The fleet's secret is read from SCALEINFER_FLEET_SECRET, the exchange's password from
    SCALEINFER_EXCHANGE_PASSWORD. Ctrl-C ends the view, not the fleet.
    """
    from scaleinfer._loop import run

    secret = os.environ.get(FLEET_SECRET)
    if spec is not None:
        from scaleinfer.fleet import WorkerSpec

        given = WorkerSpec.from_json(spec_text(spec))
        exchange, fleet = exchange or given.exchange, fleet or given.fleet
        secret = secret or given.secret
    if not exchange or not fleet:
        raise click.UsageError("Give --exchange and --fleet, or --spec.")
    try:
        code = run(
            _attach(
                exchange=exchange,
                fleet=fleet,
                secret=secret or None,
                once=once,
                as_json=as_json,
                every=every,
            )
        )
    except KeyboardInterrupt:
        code = 0
    sys.exit(code)


async def _attach(
    *, exchange: str, fleet: str, secret: str | None, once: bool, as_json: bool, every: float
) -> int:
    from scaleinfer.errors import WorkerLost
    from scaleinfer.fleet import running_fleet, show_statuses

    async with running_fleet(exchange, fleet, secret=secret) as running:
        try:
            if once:
                _print(await running.status(), as_json)
                return 0
            statuses = running.statuses(every)
            if as_json:
                await _print_all(statuses)
            else:
                await show_statuses(statuses, stream=sys.stdout)
        except WorkerLost as error:
            click.echo(f"Error: {error}", err=True)
            return FAILED
    click.echo(f"The fleet {fleet} has ended.", err=True)
    return 0


async def _print_all(statuses: AsyncIterator[FleetStatus]) -> None:
    async for status in statuses:
        _print(status, as_json=True)


def _print(status: Any, as_json: bool) -> None:
    if not as_json:
        click.echo(str(status))
        return
    import orjson

    click.echo(orjson.dumps(status.to_dict()).decode())
