"""`scaleinfer runs replay`, `diff`, `audit` and `upgrade`: looking back from journals alone."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from scaleinfer._cli_exit import FAILED

if TYPE_CHECKING:
    from scaleinfer.audit import Change, Diff, Sight

__all__ = ["audit", "diff", "replay", "upgrade"]

_JOURNAL = click.argument("journal", type=click.Path())
_RUN = click.option(
    "--run", type=click.IntRange(min=1), help="Number of a run; default the newest."
)
_MOST = 80


@click.command()
@_JOURNAL
@_RUN
@click.option("--out", type=click.Path(dir_okay=False), help=".jsonl, .csv or .parquet")
@click.option("--digest", help="MapResult.digest of the run: exit code 1 if it is another.")
def replay(journal: str, run: int | None, out: str | None, digest: str | None) -> None:
    """Rebuild what a run (default the newest) returned, offline, and print its digest."""
    from scaleinfer.audit import replay as rebuild

    results = rebuild(journal, run)
    if out is not None:
        from scaleinfer.data import open_writer

        with open_writer(out) as writer:
            for row in results.rows():
                writer.write(row)
    found = results.digest
    click.echo(f"{len(results):,} results, {len(results.failed):,} failed; digest {found}")
    if digest is not None and digest != found:
        click.echo(f"problem: the run's digest was {digest}")
        sys.exit(FAILED)


@click.command()
@click.argument("before", type=click.Path())
@click.argument("after", type=click.Path(), required=False)
@click.option("--run-before", type=click.IntRange(min=1), help="Run of the first journal.")
@click.option("--run-after", type=click.IntRange(min=1), help="Run of the second.")
@click.option("--examples", default=5, show_default=True, help="Changes of each kind to show.")
def diff(
    before: str, after: str | None, run_before: int | None, run_after: int | None, examples: int
) -> None:
    """Compare two runs: of two journals, or of one (the newest with the one before it).

    Exit code 1 if they did not come to the same answers.
    """
    from scaleinfer.audit import diff as compare

    found = compare(before, after, run_before=run_before, run_after=run_after)
    click.echo(_counts(found))
    shown: dict[str, int] = {}
    for change in found.examples:
        shown[change.what] = shown.get(change.what, 0) + 1
        if shown[change.what] <= examples:
            click.echo(f"  {_change(change)}")
    sys.exit(0 if found.equal else FAILED)


def _counts(found: Diff) -> str:
    cost = "" if found.cost_usd is None else f", {found.cost_usd:+.6f} USD"
    return (
        f"{found.same:,} the same, {found.answer:,} answered otherwise, {found.added:,} added, "
        f"{found.removed:,} removed, {found.failed:,} failed now, {found.mended:,} mended; "
        f"{found.prompt_tokens:+,} prompt and {found.completion_tokens:+,} completion tokens{cost}"
    )


def _change(change: Change) -> str:
    name = f"{change.key} {change.question}".rstrip()
    parts = [repr(_cut(text)) for text in (change.before, change.after) if text is not None]
    return f"{change.what} {name}: {' -> '.join(parts)}"


def _cut(text: str) -> str:
    return text if len(text) <= _MOST else f"{text[:_MOST]}..."


@click.command()
@_JOURNAL
@_RUN
def audit(journal: str, run: int | None) -> None:
    """Show which endpoint was sent what, by label; default all runs.

    Exit code 1 if an endpoint saw what the run's policy keeps from it.
    """
    from scaleinfer.audit import who_saw

    sights = who_saw(journal, run)
    for sight in sights:
        click.echo(_sight(sight))
    if not sights:
        click.echo("no calls")
    sys.exit(FAILED if any(sight.allowed is False for sight in sights) else 0)


def _sight(sight: Sight) -> str:
    label = sight.label or "(no label)"
    when = [
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) for at in (sight.first, sight.last)
    ]
    verdict = {None: "", True: "; allowed", False: "; NOT ALLOWED"}[sight.allowed]
    return (
        f"{label}: {sight.endpoint} was sent {sight.items:,} questions in {sight.calls:,} calls, "
        f"{sight.answered:,} answered; {' to '.join(when)}{verdict}"
    )


@click.command()
@_JOURNAL
def upgrade(journal: str) -> None:
    """Bring a journal of an earlier version up to date; all that is in it stays."""
    from scaleinfer.journal import upgrade as bring_up

    done = bring_up(journal)
    click.echo(f"{journal} is up to date" + ("" if done else " already"))
