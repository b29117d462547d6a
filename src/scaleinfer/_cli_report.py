"""`scaleinfer runs report` and `runs watch`: what a journal's run did, and does."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from scaleinfer._cli_exit import FAILED
from scaleinfer._cli_runs import chosen_run, run_line, stored_results
from scaleinfer._shown import shown_result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scaleinfer.journal import RunInfo
    from scaleinfer.observe import Progress, RunRecord, RunStatus, Table
    from scaleinfer.results import Result

__all__ = ["report", "watch"]

_QUIET_S = 10.0
_AT_ONCE = 1000


@click.command()
@click.argument("journal", type=click.Path())
@click.option("--run", type=click.IntRange(min=1), help="Number of a run; default the newest.")
@click.option("-o", "--out", type=click.Path(dir_okay=False), required=True, help="The page: .html")
def report(journal: str, run: int | None, out: str) -> None:
    """Write a page that shows what a run did, from its journal alone.

    It holds no items, for a journal has none: items are named by their keys.
    """
    from scaleinfer.observe import Digest, ResultSummary, report_page, write_page

    info = chosen_run(journal, run)
    if info is None:
        raise click.UsageError(f"{journal} holds no run yet.")
    record, tables = _recorded(journal, info)
    digest = Digest(_fresh(stored_results(journal, run=info.id)), journaled=True)
    ended = info.ended or info.started + record.elapsed_s
    summary = ResultSummary(
        total=digest.total,
        ok=digest.ok,
        failed=digest.failed,
        resumed=info.counts.get("reused", 0),
        elapsed_s=max(ended - info.started, 0.0),
        usage=digest.usage,
        cost_usd=digest.cost_usd,
        stopped=None if info.state == "complete" else f"the run {_state(info)}.",
        name=info.name or "",
        journal=journal,
    )
    program = info.data.get("program", {})
    where = " at ".join(
        str(one) for one in (program.get("model"), info.data.get("endpoint")) if one
    )
    write_page(
        out,
        report_page(
            summary,
            digest,
            record=record,
            manifest={"run": info.id, "fingerprint": info.fingerprint, **info.data},
            where=where,
            tables=tables,
        ),
    )
    click.echo(f"{out}: {digest.total:,} items, {sum(_calls(record)):,} calls")


def _recorded(journal: str, info: RunInfo) -> tuple[RunRecord, list[Table]]:
    """Return what a run did over time, and what its calls cost, as far as its journal says."""
    from scaleinfer.journal import read_attempts
    from scaleinfer.observe import RunRecord, Table, money
    from scaleinfer.results import CUT_OFF

    record = RunRecord(info.started)
    costs: dict[tuple[str, str], list[float]] = {}
    attempts = (stored.attempt for stored in read_attempts(journal, run=info.id))
    ended = (attempt for attempt in attempts if attempt.status != CUT_OFF)
    while some := list(islice(ended, _AT_ONCE)):
        record.attempted(*some)
        for attempt in some:
            if attempt.cost_usd is None:
                continue
            line = costs.setdefault((attempt.endpoint, attempt.model or ""), [0, 0, 0, 0.0])
            for place, number in enumerate(
                (1, attempt.prompt_tokens, attempt.completion_tokens, attempt.cost_usd)
            ):
                line[place] += number
    if info.limits:
        record.take_limits(info.limits)
    rows = [
        (endpoint, model, f"{calls:,}", f"{prompt:,}", f"{completion:,}", money(usd))
        for (endpoint, model), (calls, prompt, completion, usd) in costs.items()
    ]
    columns = ("endpoint", "model", "#calls", "#prompt tokens", "#completion tokens", "#cost")
    return record, [Table("Cost", columns, rows)]


def _fresh(results: Iterator[Result]) -> Iterator[Result]:
    """Yield results as the run had them: a journal does not say which it took from itself."""
    for result in results:
        result.resumed = False
        yield shown_result(result)


def _calls(record: RunRecord) -> Iterator[int]:
    return (calls.ok + calls.failed for calls in record.calls.values())


def _state(info: RunInfo) -> str:
    return {"killed": "was killed", "stopped": "was stopped", "failed": "failed"}.get(
        info.state, f"is {info.state}"
    )


@click.command()
@click.argument("journal", type=click.Path())
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
def watch(*, journal: str, once: bool, as_json: bool, every: float) -> None:
    """Show where the run that writes a journal stands, until it ends.

    The run writes that beside its journal once a second, so any shell that sees the file can
    watch, on another node too. Ctrl-C ends the view, not the run.
    """
    try:
        code = _once(journal, as_json) if once else _watch(journal, as_json, every)
    except KeyboardInterrupt:
        code = 0
    sys.exit(code)


def _once(journal: str, as_json: bool) -> int:
    from scaleinfer.observe import read_status, snapshot_line

    ended = _ended(journal)
    if ended is not None:
        click.echo(ended)
        return 0
    status = read_status(journal)
    if status is None:
        click.echo(f"{journal} is being written; its run has not said yet where it stands.")
    elif as_json:
        _print(status)
    else:
        click.echo(snapshot_line(status.snapshot))
    return 0


def _watch(journal: str, as_json: bool, every: float) -> int:
    from scaleinfer.observe import open_progress, read_status

    ended = _ended(journal)
    if ended is not None:
        click.echo(ended)
        click.echo("No run is going on.", err=True)
        return FAILED
    if as_json:
        while (ended := _ended(journal)) is None:
            status = read_status(journal)
            if status is not None:
                _print(status)
            time.sleep(every)
        return 0
    with open_progress() as progress:
        show = _shower(progress)
        while (ended := _ended(journal)) is None:
            show(read_status(journal))
            time.sleep(every)
        progress.close(summary=ended)
    return 0


def _shower(progress: Progress) -> Callable[[RunStatus | None], None]:
    """Return what shows a status; one that is old says so in place of the phase."""
    shown: set[str] = set()

    def show(status: RunStatus | None) -> None:
        if status is None:
            return
        snapshot, age = status.snapshot, time.time() - status.written
        if age > _QUIET_S:
            snapshot = replace(snapshot, phase=f"no word from it for {age:.0f} s")
        progress.update(snapshot)
        error = snapshot.last_error
        if error and error not in shown and len(shown) < 100:  # noqa: PLR2004 - a few are enough
            shown.add(error)
            progress.note(error)

    return show


def _ended(journal: str) -> str | None:
    """Return how the newest run ended; `None` while it goes on."""
    from scaleinfer.errors import JournalError
    from scaleinfer.journal import list_runs

    try:
        infos = list_runs(journal)
    except JournalError as error:
        if error.reason == "locked":
            return None
        raise
    return run_line(infos[-1]) if infos else f"{journal} holds no run yet."


def _print(status: RunStatus) -> None:
    import orjson

    data: dict[str, Any] = asdict(status.snapshot)
    data |= {"journal_run": status.journal_run, "written": status.written}
    click.echo(orjson.dumps(data).decode())
