"""`scaleinfer login`: a human logs in once, and every process of that user finds the login."""

from __future__ import annotations

import os
import sys

import click

__all__ = ["login"]

_JOBS = {
    "SLURM_JOB_ID": "Slurm",
    "PBS_JOBID": "PBS",
    "LSB_JOBID": "LSF",
    "COBALT_JOBID": "Cobalt",
    "JOB_ID": "Grid Engine",
}
_WHERE = "Log in on a login node, in a terminal; jobs find the login in your home folder."


@click.group()
def login() -> None:
    """Log in to a gateway that wants a human now and then."""


@login.command("first")
@click.option("--no-policy", is_flag=True, help="Without the session policy of the gateway.")
def login_first(no_policy: bool) -> None:
    """Log in to FIRST, ALCF's inference gateway, with your institution's identity.

    Prints a page to open in a browser, and asks for the code that it shows. Needed once, and
    again every 30 days. ALCF's alcf-tokens shares the login.
    """
    where = next((name for variable, name in _JOBS.items() if os.environ.get(variable)), None)
    if where is not None:
        raise click.UsageError(f"This is a {where} job, where nobody can log in. {_WHERE}")
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise click.UsageError(f"There is no terminal to ask for the code in. {_WHERE}")
    _log_in(with_policy=not no_policy)


def _log_in(*, with_policy: bool) -> None:
    from scaleinfer.backends.first import FirstLogin

    flow = FirstLogin(with_policy=with_policy)
    click.echo(f"Open this page in a browser and log in:\n\n  {flow.url}\n", err=True)
    path = flow.finish(click.prompt("The code it shows", err=True))
    click.echo(f"Logged in. The tokens are in {path}, readable by you alone.", err=True)
