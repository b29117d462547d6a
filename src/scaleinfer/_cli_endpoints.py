"""`scaleinfer endpoints`."""

from __future__ import annotations

import os

import click

from scaleinfer._cli_exit import FAILED
from scaleinfer._loop import run
from scaleinfer.backends import resolve_backend
from scaleinfer.errors import EndpointError

__all__ = ["show_endpoints"]

_MOST_MODELS = 20


def show_endpoints(backend: str | None, base_url: str | None, model: str | None) -> int:
    """Print what a call would use and whether it answers; return the exit code."""
    if (backend or os.environ.get("SCALEINFER_BACKEND", "")).rstrip(":") == "first":
        return _show_first(base_url, model)
    resolved = resolve_backend(backend, base_url=base_url, model=model)
    adapter = resolved.backend
    click.echo(f"backend   {adapter.kind} ({resolved.reason})")
    click.echo(f"endpoint  {adapter.endpoint}")
    click.echo(f"model     {adapter.model or 'the only one the endpoint offers'}")
    status = run(adapter.check())
    click.echo(f"answers   {'yes' if status.ok else 'no'}: {status.detail}")
    if status.models:
        more = len(status.models) - _MOST_MODELS
        click.echo(
            f"models    {', '.join(status.models[:_MOST_MODELS])}"
            + (f" and {more} more" if more > 0 else "")
        )
    return 0 if status.ok else FAILED


def _show_first(base_url: str | None, model: str | None) -> int:
    """Print every model of every cluster behind FIRST, or one model's clusters."""
    from scaleinfer.backends.first import alias, first_models

    try:
        models = run(first_models(base_url=base_url))
    except EndpointError as error:
        click.echo(f"FIRST does not tell: {error}", err=True)
        return FAILED
    rows = [("CLUSTER", "FRAMEWORK", "MODEL", "STATE", "TOKENS/MIN")]
    for one in models:
        if model is not None and alias(model) != alias(one.model):
            continue
        state = f"{one.state}, estimated start {one.start}" if one.start else one.state
        tokens = one.limits.least
        limit = "" if tokens is None else f"{tokens:,.0f}"
        rows.append((one.cluster, one.framework, one.model, state, limit))
    if len(rows) == 1:
        click.echo(f"No cluster offers {model or 'you a model'}.", err=True)
        return FAILED
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
    click.echo("10 requests/s for you on all of them together.")
    return 0
