"""`scaleinfer endpoints`."""

from __future__ import annotations

import click

from scaleinfer._cli_exit import FAILED
from scaleinfer._loop import run
from scaleinfer.backends import resolve_backend

__all__ = ["show_endpoints"]

_MOST_MODELS = 20


def show_endpoints(backend: str | None, base_url: str | None, model: str | None) -> int:
    """Print what a call would use and whether it answers; return the exit code."""
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
