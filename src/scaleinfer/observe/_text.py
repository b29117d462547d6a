"""`result_text`: a map's results as plain text, for `print`."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from scaleinfer.observe._format import duration, one_line
from scaleinfer.observe._summary import failure_groups, head, headline, shorten

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from scaleinfer.observe._summary import ResultSummary
    from scaleinfer.results import Result

__all__ = ["result_text"]

_LEAST = 40


def result_text(
    summary: ResultSummary, results: Iterable[Result], *, rows: int = 10, width: int = 100
) -> str:
    """Return results as plain text, without colours.

    Args:
        summary: What the map came to.
        results: All results, in input order; gone through twice, so no iterator.
        rows: How many results to show. Failures of all results are shown by kind.
        width: Characters a line may have, at least 40.
    """
    width = max(width, _LEAST)
    shown = head(results, rows)
    lines = [f"{one_line(summary.name, 60) or 'scaleinfer'}: {', '.join(headline(summary))}"]
    if summary.stopped:
        lines.append(f"Stopped: {one_line(summary.stopped, width - 9)}")
    lines += _table(shown, width)
    if summary.total > len(shown):
        lines.append(f"  and {summary.total - len(shown):,} more")
    if summary.failed:
        lines += _failures(summary, results, width)
    return "\n".join(lines)


def _table(shown: list[Result], width: int) -> list[str]:
    if not shown:
        return []
    room = width - 30
    rows = [("", "item", "answer", "attempts", "time")] + [
        (
            f"{result.index}",
            shorten(result.item, room * 2 // 5),
            _answer(result, room * 3 // 5),
            f"{result.attempts}",
            "resumed" if result.resumed else duration(result.latency_s),
        )
        for result in shown
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return [_line(row, widths) for row in rows]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    number, *rest = (cell.ljust(size) for cell, size in zip(row, widths, strict=True))
    return "  ".join(["", number.strip().rjust(widths[0]), *rest]).rstrip()


def _answer(result: Result, width: int) -> str:
    if result.ok:
        cut = " (cut)" if result.finish_reason == "length" else ""
        return shorten(result.value, width - len(cut)) + cut
    error = result.error
    words = "no answer" if error is None else f"{type(error).__name__}: {error.message}"
    return one_line(words, width)


def _failures(summary: ResultSummary, results: Iterable[Result], width: int) -> list[str]:
    lines = ["Failed:"]
    for group in failure_groups(summary, results):
        example = f"item {group.index}: {one_line(group.message, 300)}"
        told = f"{group.count:,} x {group.kind}, for example {example}"
        lines += textwrap.wrap(told, width, initial_indent="  ", subsequent_indent="      ")
        if group.advice:
            advice = one_line(group.advice, 300)
            lines += textwrap.wrap(
                advice, width, initial_indent="      ", subsequent_indent=" " * 6
            )
    return lines
