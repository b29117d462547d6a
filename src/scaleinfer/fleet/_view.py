"""A fleet's status as text and as HTML; `_live` shows it while it changes."""

from __future__ import annotations

import re
import textwrap
import time
from collections import Counter
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from scaleinfer.observe import amount, duration, one_line, rate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaleinfer.fleet._status import FleetStatus, WorkerStatus

__all__ = ["Line", "Speeds", "status_html", "status_line", "status_lines", "status_text"]

_ROWS = 20
_LEAST_WIDTH = 40
_NAME = 40
_PROBLEM = 300
_LONGEST_S = 1e8
_RANKS = ("broken", "leaving", "starting")

_COLUMNS = (
    "worker", "node", "state", "in flight", "leased", "answered", "failed", "items/s", "tokens",
    "heard",
)  # fmt: skip
_RIGHT = frozenset(_COLUMNS[3:])
# What a narrow terminal does without, first to last.
_SPARED = ("tokens", "leased", "heard", "failed", "items/s", "answered", "node")

# As maps' results look in a notebook: no scripts, no style sheet; text takes the theme's own
# colour, and the greys are half transparent, so they show on light and on dark.
_BOX = "font-size:90%;line-height:1.45;overflow-x:auto"
_TABLE = "border-collapse:collapse;margin:.4em 0;font-size:inherit"
_CELL = "padding:2px 10px 2px 0;vertical-align:top;background:transparent"
_RULE = "border:0;border-bottom:1px solid rgba(128,128,128,.35)"
_FADED = "opacity:.7"
_BAD = "color:var(--jp-error-color1,#d9534f)"


@dataclass(frozen=True, slots=True)
class Speeds:
    """How fast a fleet is.

    Attributes:
        items: Answers a second; `None` while that cannot be told.
        tokens: Completion tokens a second; `None` while that cannot be told.
    """

    items: float | None
    tokens: float | None

    @classmethod
    def average(cls, status: FleetStatus) -> Speeds:
        """Return what the workers of a status have done a second since each of them came."""
        workers = [one for one in status.workers if one.answered]
        items = sum(one.items_per_s for one in workers)
        tokens = sum(one.tokens * one.items_per_s / one.answered for one in workers)
        return cls(items or None, tokens or None)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text.

    Attributes:
        text: What it says.
        kind: `head`, `bad`, `faded` or empty: how a terminal shows it.
    """

    text: str
    kind: str = ""


def status_text(status: FleetStatus, *, width: int = 100, rows: int = _ROWS) -> str:
    """Return a status as plain text, without colours.

    Args:
        status: Where the fleet stands.
        width: Characters a line may have, at least 40.
        rows: How many workers to show: broken ones first, then those that leave, then the slowest.
    """
    return "\n".join(line.text for line in status_lines(status, width=width, rows=rows))


def status_lines(
    status: FleetStatus,
    *,
    width: int = 100,
    rows: int = _ROWS,
    speeds: Speeds | None = None,
    now: float | None = None,
) -> list[Line]:
    """Return a status as lines.

    Args:
        status: Where the fleet stands.
        width: Characters a line may have, at least 40.
        rows: How many workers to show.
        speeds: How fast it is; default the average since the workers came.
        now: The Unix time.
    """
    width = max(width, _LEAST_WIDTH)
    first, *rest = _summary(status, speeds or Speeds.average(status), now)
    lines = [Line(one_line(f"{one_line(status.name, _NAME)}: {first}", width), "head")]
    lines += [Line(f"  {one_line(words, width - 2)}") for words in rest]
    shown = _chosen(status.workers, rows)
    lines += _table_lines(shown, width)
    if more := _more(status.workers, shown):
        lines.append(Line(one_line(more, width), "faded"))
    return lines


def status_line(status: FleetStatus, *, speeds: Speeds | None = None) -> str:
    """Return a status as one line, for log files."""
    first, work, done, *_ = _summary(status, speeds or Speeds.average(status), 0.0)
    lost = f", {status.lost_workers:,} lost" if status.lost_workers else ""
    return f"{one_line(status.name, _NAME)}: {first}{lost}; {work}; {done}"


def status_html(
    status: FleetStatus,
    *,
    rows: int = _ROWS,
    speeds: Speeds | None = None,
    now: float | None = None,
) -> str:
    """Return a status as a self-contained fragment of HTML, without scripts.

    Args:
        status: Where the fleet stands.
        rows: How many workers to show.
        speeds: How fast it is; default the average since the workers came.
        now: The Unix time.
    """
    first, *rest = _summary(status, speeds or Speeds.average(status), now)
    name = escape(one_line(status.name, _NAME))
    parts = [f"<div><b>{name}</b>&ensp;{escape(first)}</div>"]
    parts += [f'<div style="{_FADED}">{escape(words)}</div>' for words in rest]
    shown = _chosen(status.workers, rows)
    if shown:
        parts.append(_table_html(shown))
    if more := _more(status.workers, shown):
        parts.append(f'<div style="{_FADED}">{escape(more)}</div>')
    return f'<div style="{_BOX}">{"".join(parts)}</div>'


# -- what both say -----------------------------------------------------------------------------


def _summary(status: FleetStatus, speeds: Speeds, now: float | None) -> list[str]:
    """Return what there is to say of the whole fleet, in lines; the first three always."""
    states = Counter(_state(worker) for worker in status.workers)
    who = f"{_count(len(status.workers), 'worker')} on {_count(status.nodes, 'node')}"
    odd = "".join(f", {states[name]:,} {name}" for name in _RANKS if states[name])
    limit = sum(worker.limit for worker in status.workers)
    work = f"{status.queued:,} queued, {status.leased:,} leased, {status.in_flight:,} in flight"
    if limit:
        work += f" of {limit:,} possible"
    at_hand = status.queued + status.leased
    if at_hand and speeds.items and at_hand / speeds.items < _LONGEST_S:
        work += f"; work at hand for {duration(at_hand / speeds.items)}"
    done = [f"{status.answered:,} answered"]
    if status.failed:
        done.append(f"{status.failed:,} of them failed")
    if speeds.items:
        done.append(rate(speeds.items))
    if speeds.tokens:
        done.append(f"{amount(speeds.tokens)} tokens/s")
    lines = [f"{who}{odd}, after {duration(status.elapsed_s)}", work, ", ".join(done)]
    faults = [
        _count(number, what) + words
        for number, what, words in (
            (status.lost_workers, "worker", " lost"),
            (status.requeued, "lease", " requeued"),
            (status.copies, "second request", ""),
            (status.doubled, "late answer", ""),
        )
        if number
    ]
    if faults:
        lines.append(", ".join(faults))
    ends = [worker.facts.until for worker in status.workers if worker.facts.until]
    if ends:
        left = min(ends) - (time.time() if now is None else now)
        lines.append(f"first job ends in {duration(max(left, 0.0))}")
    return lines


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _state(worker: WorkerStatus) -> str:
    """Return the state, and tell those whose endpoint is not there yet, and idle ones, apart."""
    if worker.state != "working":
        return worker.state
    if not worker.limit:
        return "starting"
    return "working" if worker.in_flight or worker.held else "idle"


def _chosen(workers: Sequence[WorkerStatus], rows: int) -> list[WorkerStatus]:
    """Return the workers to show; by name while all of them are, so that lines do not jump."""
    everyone = len(workers) <= rows

    def interest(worker: WorkerStatus) -> tuple[int, float, list[tuple[int, str]]]:
        state = _state(worker)
        rank = _RANKS.index(state) if state in _RANKS else len(_RANKS)
        return rank, 0.0 if everyone else worker.items_per_s, _natural(worker.name)

    return sorted(workers, key=interest)[: max(rows, 0)]


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key by which `w-10` comes after `w-9`."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def _more(workers: Sequence[WorkerStatus], shown: Sequence[WorkerStatus]) -> str:
    states = Counter(_state(worker) for worker in workers)
    states.subtract(_state(worker) for worker in shown)
    left = [f"{number:,} more {state}" for state, number in states.most_common() if number > 0]
    return f"and {', '.join(left)}" if left else ""


def _cells(worker: WorkerStatus) -> dict[str, str]:
    cells = (
        one_line(worker.name, _NAME),
        one_line(worker.facts.node, _NAME),
        _state(worker),
        f"{worker.in_flight:,}/{worker.limit:,}",
        f"{worker.held:,}",
        f"{worker.answered:,}",
        f"{worker.failed:,}",
        f"{worker.items_per_s:.3g}",
        amount(worker.tokens),
        duration(worker.seen_s),
    )
    return dict(zip(_COLUMNS, cells, strict=True))


def _problems(shown: Sequence[WorkerStatus]) -> list[list[str]]:
    """Return why each worker is broken, the same words once, and where to look."""
    said, problems = "", []
    for worker in shown:
        words = one_line(worker.problem, _PROBLEM)
        lines = [words] if words != said else []
        if worker.problem and worker.facts.log:
            lines.append(one_line(f"log on {worker.facts.node}: {worker.facts.log}", _PROBLEM))
        problems.append([line for line in lines if line])
        said = words
    return problems


# -- text --------------------------------------------------------------------------------------


def _table_lines(shown: Sequence[WorkerStatus], width: int) -> list[Line]:
    if not shown:
        return []
    rows = [_cells(worker) for worker in shown]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in _COLUMNS}
    for name in _SPARED:
        if sum(widths.values()) + 2 * len(widths) - 2 > width:
            del widths[name]
    lines = [Line(_row({name: name for name in widths}, widths, width), "faded")]
    for worker, row, problem in zip(shown, rows, _problems(shown), strict=True):
        kind = "bad" if worker.state == "broken" else ""
        lines.append(Line(_row(row, widths, width), kind))
        lines += [Line(words, kind) for words in _wrapped(problem, width)]
    return lines


def _wrapped(lines: Sequence[str], width: int) -> list[str]:
    return [
        part
        for line in lines
        for part in textwrap.wrap(line, width, initial_indent="    ", subsequent_indent="    ")
    ]


def _row(cells: dict[str, str], widths: dict[str, int], width: int) -> str:
    line = "  ".join(
        cells[name].rjust(size) if name in _RIGHT else cells[name].ljust(size)
        for name, size in widths.items()
    )
    return line.rstrip() if len(line) <= width else line[: width - 1] + "…"


# -- HTML --------------------------------------------------------------------------------------


def _table_html(shown: Sequence[WorkerStatus]) -> str:
    top = "".join(
        f'<th style="{_CELL};{_RULE};{_align(name)};font-weight:600">{name}</th>'
        for name in _COLUMNS
    )
    body = "".join(map(_row_html, shown, _problems(shown)))
    return f'<table style="{_TABLE}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def _row_html(worker: WorkerStatus, problem: Sequence[str]) -> str:
    rule = "border:0" if problem else _RULE
    bad = f";{_BAD}" if worker.state == "broken" else ""
    cells = "".join(
        f'<td style="{_CELL};{rule};{_align(name)}{bad}">{escape(cell)}</td>'
        for name, cell in _cells(worker).items()
    )
    row = f"<tr>{cells}</tr>"
    if problem:
        words = "<br>".join(map(escape, problem))
        style = f"{_CELL};{_RULE};text-align:left;padding-left:2em{bad}"
        row += f'<tr><td colspan="{len(_COLUMNS)}" style="{style}">{words}</td></tr>'
    return row


def _align(name: str) -> str:
    return f"text-align:{'right' if name in _RIGHT else 'left'}"
