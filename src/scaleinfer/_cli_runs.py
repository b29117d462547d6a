"""`scaleinfer runs`: what journals hold."""

from __future__ import annotations

import sys
import time
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from scaleinfer._cli_exit import FAILED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scaleinfer.journal import RunInfo, StoredResult
    from scaleinfer.results import Result

__all__ = ["chosen_run", "run_line", "runs", "stored_results"]

_JOURNAL = click.argument("journal", type=click.Path())
_RUN = click.option("--run", type=click.IntRange(min=1), help="Number of a run; see list.")
_SHOWN = 5


@click.group()
def runs() -> None:
    """List, show, export, verify and recover what journals hold; attach to a running fleet."""


@runs.command("list")
@click.argument("journals", type=click.Path(), nargs=-1, required=True)
def list_(journals: tuple[str, ...]) -> None:
    """List the runs in each journal."""
    from scaleinfer.journal import list_runs

    for path in journals:
        click.echo(path)
        for info in list_runs(path):
            click.echo(f"  {run_line(info)}")


@runs.command()
@_JOURNAL
@_RUN
def show(journal: str, run: int | None) -> None:
    """Show what a run was and what came of it; default the newest."""
    info = chosen_run(journal, run)
    if info is None:
        click.echo(f"{journal} holds no run yet.")
        return
    click.echo(run_line(info))
    for name, value in {**info.data, "counts": info.counts}.items():
        click.echo(f"  {name:<10} {_short(value)}")
    _show_failures(journal, info.id)


@runs.command()
@_JOURNAL
@_RUN
@click.option("--everything", is_flag=True, help="Also what other programs asked.")
@click.option(
    "--out", type=click.Path(dir_okay=False), required=True, help=".jsonl, .csv or .parquet"
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["rows", "openai"]),
    default="rows",
    show_default=True,
    help="openai: lines as in the output file of an OpenAI batch, one per question.",
)
def export(journal: str, run: int | None, everything: bool, out: str, form: str) -> None:
    """Write a row per item.

    Without --run: what the newest run had; if it was stopped or killed, together with what
    earlier runs of the same program (prompt, model, sampling, schema) answered.
    """
    from scaleinfer.data import open_writer

    rows = failed = 0
    with open_writer(out, format="jsonl" if form == "openai" else None) as writer:
        for row, ok in _rows(journal, run, form, everything=everything):
            writer.write(row)
            rows += 1
            failed += not ok
    click.echo(f"{rows:,} rows in {out}; {failed:,} of them failed")


def _rows(
    journal: str, run: int | None, form: str, *, everything: bool
) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield what export writes, and whether it is an answer."""
    if form == "rows":
        from scaleinfer.data import result_row

        for result in stored_results(journal, run=run, everything=everything):
            yield result_row(result), result.ok
        return
    from scaleinfer._exported import exported

    info = chosen_run(journal, run)
    created = 0.0 if info is None else info.started
    for line in exported(_stored(journal, run, everything=everything), created):
        yield line, line["error"] is None


@runs.command()
@_JOURNAL
@click.option("--head", help="Digest of a commit that must be there: RunStats.journal_head.")
def verify(journal: str, head: str | None) -> None:
    """Check every row, the chain of commits, and that every item is accounted for."""
    from scaleinfer.journal import verify as check

    report = check(journal, head=head)
    click.echo(
        f"{report.results:,} results, {report.attempts:,} attempts, {report.runs:,} runs and "
        f"{report.links:,} commits intact"
    )
    for account in report.accounts:
        if account.items is not None:
            click.echo(
                f"run {account.run}: {account.items + account.not_asked:,} items = "
                f"{account.ok:,} ok + {account.failed:,} failed + {account.not_asked:,} not asked"
            )
    click.echo(f"head {report.head}")
    for problem in report.problems:
        click.echo(f"problem: {problem}")
    sys.exit(0 if report.ok else FAILED)


@runs.command()
@_JOURNAL
@click.option("--out", type=click.Path(), required=True, help="The new journal.")
def recover(journal: str, out: str) -> None:
    """Salvage what a damaged journal still holds into a new one."""
    from scaleinfer.journal import recover as salvage

    report = salvage(journal, out)
    lost = "an unknown number" if report.lost is None else f"{report.lost:,}"
    click.echo(
        f"{report.results:,} results and {report.attempts:,} attempts salvaged into {out}; "
        f"{lost} lost"
    )


def chosen_run(journal: str, run: int | None) -> RunInfo | None:
    """Return a run of a journal, by default the newest; `None` if there is none yet.

    Raises:
        UsageError: It has no run of that number.
    """
    from scaleinfer.journal import list_runs

    infos = {info.id: info for info in list_runs(journal)}
    if not infos:
        return None
    number = run or max(infos)
    if number not in infos:
        raise click.UsageError(f"{journal} has no run {number}; it has {_numbers(infos)}.")
    return infos[number]


def stored_results(
    journal: str, *, run: int | None = None, everything: bool = False
) -> Iterator[Result]:
    """Yield a `Result` per item from a journal; named questions of an item are joined."""
    from scaleinfer.audit import results_of

    stored = _stored(journal, run, everything=everything)
    for _, rows in groupby(stored, key=lambda row: (row.index, row.run, row.key)):
        yield from results_of(list(rows))


def _stored(journal: str, run: int | None, *, everything: bool) -> Iterator[StoredResult]:
    """Yield what one run had, also where later runs have it too, or as `read_results` says."""
    from scaleinfer.journal import read_results, read_run

    if run is None or everything:
        return read_results(journal, run=run, everything=everything)
    return (row for row in read_run(journal, run) if row.kept)


def _show_failures(journal: str, number: int) -> None:
    from scaleinfer._shown import shown_result

    stored = stored_results(journal, run=number)
    failed = [shown_result(result) for result in stored if not result.ok]
    if failed:
        click.echo(f"  {len(failed):,} failed:")
    for result in failed[:_SHOWN]:
        click.echo(f"    {type(result.error).__name__}: {result.error}")
    if len(failed) > _SHOWN:
        click.echo(f"    and {len(failed) - _SHOWN:,} more; `scaleinfer runs export` has them all")


def run_line(info: RunInfo) -> str:
    """Return a run on one line: number, name, state, when, what it counted."""
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(info.started))
    took = "" if info.ended is None else f", {info.ended - info.started:.0f} s"
    shown = {n: c for n, c in info.counts.items() if c and not n.startswith("spent_")}
    counts = ", ".join(f"{count:,} {name}" for name, count in shown.items())
    name = f" {info.name}" if info.name else ""
    return f"run {info.id}{name}: {info.state}, {started}{took}; {counts or 'nothing recorded'}"


def _numbers(infos: dict[int, Any]) -> str:
    return ", ".join(str(number) for number in infos)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items()) or "-"
    return str(value)
