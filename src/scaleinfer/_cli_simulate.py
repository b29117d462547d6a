"""`scaleinfer simulate`: a forecast of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaleinfer.simulate import Forecast

__all__ = ["simulate"]

_SCALES = {"k": 10**3, "m": 10**6, "g": 10**9}


def _count(ctx: click.Context, param: click.Parameter, value: str | int | None) -> int | None:
    """Return a positive whole number, such as 2000, 10M or 1.5k."""
    if value is None or isinstance(value, int):
        return value
    text = value.replace(",", "").replace("_", "").lower()
    scale = _SCALES.get(text[-1:], 1)
    try:
        number = float(text[:-1] if scale > 1 else text) * scale
        if number == int(number) >= 1:
            return int(number)
    except (ValueError, OverflowError):
        pass
    raise click.BadParameter(
        f"{value!r} is no positive whole number (such as 2000 or 10M).", ctx, param
    )


def _count_or_auto(ctx: click.Context, param: click.Parameter, value: str) -> int | str | None:
    """Return a positive whole number or `auto`."""
    return value if value == "auto" else _count(ctx, param, value)


def _spread(ctx: click.Context, param: click.Parameter, value: str) -> float | tuple[float, float]:
    """Return a number, or mean and coefficient of variation."""
    mean, comma, cv = value.partition(",")
    try:
        return (float(mean), float(cv)) if comma else float(mean)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is neither a number nor MEAN,CV (such as 400,0.5).", ctx, param
        ) from None


def _options(*options: Callable[..., Any]) -> Callable[..., Any]:
    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


_run = _options(
    click.option(
        "--items", metavar="NUMBER", callback=_count, required=True, help="Items, such as 10M."
    ),
    click.option(
        "--prompt-tokens", default="400", metavar="MEAN[,CV]", callback=_spread, help="Default 400."
    ),
    click.option(
        "--answer-tokens", default="150", metavar="MEAN[,CV]", callback=_spread, help="Default 150."
    ),
    click.option(
        "--concurrency",
        default="auto",
        metavar="auto|NUMBER",
        callback=_count_or_auto,
        help="Calls at each endpoint.",
    ),
    click.option(
        "--endpoints",
        default="1",
        metavar="NUMBER",
        callback=_count,
        help="Endpoints of each process.",
    ),
    click.option(
        "--client-us",
        type=float,
        default=250.0,
        show_default=True,
        help="Microseconds of a client process's core for one item.",
    ),
    click.option("--seed", type=int, default=0),
)
_server = _options(
    click.option(
        "--slots",
        default="256",
        show_default=True,
        metavar="NUMBER",
        callback=_count,
        help="At each endpoint.",
    ),
    click.option("--step", type=float, default=0.02, show_default=True, help="Seconds of a step."),
    click.option("--step-per-sequence", type=float, default=0.0, help="Seconds it adds to a step."),
    click.option("--prefill-tokens-per-second", type=float, help="Default no time."),
    click.option(
        "--kv-tokens",
        metavar="NUMBER",
        callback=_count,
        help="Tokens in the KV cache; default all.",
    ),
    click.option("--latency", type=float, default=0.0, help="Seconds of network for a call."),
    click.option("--error-rate", type=float, default=0.0, help="Share of calls that fail."),
    click.option("--requests-per-minute", type=float, help="Rate limit of each endpoint."),
    click.option("--tokens-per-minute", type=float, help="Rate limit of each endpoint."),
)
_fleet = _options(
    click.option(
        "--workers",
        metavar="NUMBER",
        callback=_count,
        help="A fleet: so many processes and endpoints.",
    ),
    click.option(
        "--worker-start",
        default="0",
        metavar="MEAN[,CV]",
        callback=_spread,
        help="Seconds to load the model.",
    ),
    click.option("--worker-speed-cv", type=float, default=0.0, help="Variation of their speed."),
    click.option(
        "--lease-items",
        default="auto",
        metavar="auto|NUMBER",
        callback=_count_or_auto,
        help="Items in a lease.",
    ),
    click.option("--lease-overhead", type=float, default=0.002, show_default=True, help="Seconds."),
)
_price = _options(
    click.option("--usd-per-million-prompt", type=float, default=0.0, help="Price of tokens."),
    click.option("--usd-per-million-answer", type=float, default=0.0, help="Price of tokens."),
    click.option("--usd-per-node-hour", type=float, default=0.0, help="Price of a worker."),
)


@click.command()
@_run
@_server
@_fleet
@_price
@click.option("--json", "as_json", is_flag=True, help="The forecast as JSON.")
def simulate(as_json: bool, **given: Any) -> None:
    """Forecast a run: how long, how much, and what holds it back. Nothing is asked.

    Lengths and start times are a number or MEAN,CV: log-normal with that mean and coefficient
    of variation.
    """
    forecast = _forecast(given)
    if as_json:
        import orjson

        click.echo(orjson.dumps(forecast.to_dict(), option=orjson.OPT_INDENT_2).decode())
    else:
        click.echo(str(forecast))


def _forecast(given: dict[str, Any]) -> Forecast:
    from scaleinfer.engine import RateLimit
    from scaleinfer.simulate import EndpointModel, Price
    from scaleinfer.simulate import simulate as run
    from scaleinfer.testing import Batching

    requests, tokens = given["requests_per_minute"], given["tokens_per_minute"]
    endpoint = EndpointModel(
        server=Batching(
            slots=given["slots"],
            step_s=given["step"],
            step_per_sequence_s=given["step_per_sequence"],
            prefill_tokens_per_s=given["prefill_tokens_per_second"],
            kv_tokens=given["kv_tokens"],
        ),
        latency_s=given["latency"],
        error_rate=given["error_rate"],
        rate_limit=RateLimit(requests, tokens) if requests or tokens else None,
    )
    return run(
        given["items"],
        prompt_tokens=given["prompt_tokens"],
        answer_tokens=given["answer_tokens"],
        endpoints=[endpoint] * given["endpoints"],
        workers=given["workers"],
        concurrency=given["concurrency"],
        price=Price(
            prompt=given["usd_per_million_prompt"],
            answer=given["usd_per_million_answer"],
            node_hour=given["usd_per_node_hour"],
        ),
        worker_start_s=given["worker_start"],
        worker_speed_cv=given["worker_speed_cv"],
        lease_items=given["lease_items"],
        lease_overhead_s=given["lease_overhead"],
        client_us_per_item=given["client_us"],
        seed=given["seed"],
    )
