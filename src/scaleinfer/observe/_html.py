"""`result_html`: a map's results as a fragment of HTML, for notebooks."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from scaleinfer.observe._format import duration, one_line
from scaleinfer.observe._summary import failure_groups, head, headline, shorten

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from scaleinfer.observe._summary import ResultSummary
    from scaleinfer.results import Result

__all__ = ["result_html"]

_ITEM = 60
_VALUE = 100
_MESSAGE = 200

# No scripts, no style sheet: notebooks strip them. Text takes the theme's own colour; the
# greys are half transparent, so they show on light and on dark.
_BOX = "font-size:90%;line-height:1.45;overflow-x:auto"
_TABLE = "border-collapse:collapse;margin:.4em 0;font-size:inherit"
_CELL = "padding:2px 10px 2px 0;text-align:left;vertical-align:top;background:transparent"
_RULE = "border:0;border-bottom:1px solid rgba(128,128,128,.35)"
_FADED = "opacity:.7"
_BAD = "color:var(--jp-error-color1,#d9534f)"
_MONO = "font-family:ui-monospace,monospace;font-size:95%"


def result_html(summary: ResultSummary, results: Iterable[Result], *, rows: int = 10) -> str:
    """Return results as a self-contained fragment of HTML, without scripts.

    Args:
        summary: What the map came to.
        results: All results, in input order; gone through twice, so no iterator.
        rows: How many results to show. Failures of all results are shown by kind.
    """
    shown = head(results, rows)
    parts = [_headline(summary), _results(shown)]
    if summary.total > len(shown):
        parts.append(f'<div style="{_FADED}">and {summary.total - len(shown):,} more</div>')
    if summary.failed:
        parts.append(_failures(summary, results))
    return f'<div style="{_BOX}">{"".join(parts)}</div>'


def _headline(summary: ResultSummary) -> str:
    words = " · ".join(escape(part) for part in headline(summary))
    name = escape(one_line(summary.name, _ITEM)) or "scaleinfer"
    line = f'<div><b>{name}</b>&ensp;<span style="{_FADED}">{words}</span></div>'
    if summary.stopped:
        line += f'<div style="{_BAD}">Stopped: {escape(one_line(summary.stopped, _MESSAGE))}</div>'
    return line


def _results(shown: list[Result]) -> str:
    if not shown:
        return ""
    return _table(
        ("", "item", "answer", "attempts", "time"),
        [
            (
                f'<span style="{_FADED}">{result.index:,}</span>',
                f'<span style="{_MONO}">{escape(shorten(result.item, _ITEM))}</span>',
                _answer(result),
                f"{result.attempts}",
                "resumed" if result.resumed else duration(result.latency_s),
            )
            for result in shown
        ],
    )


def _answer(result: Result) -> str:
    if result.ok:
        cut = " (cut)" if result.finish_reason == "length" else ""
        return escape(shorten(result.value, _VALUE) + cut)
    error = result.error
    words = "no answer" if error is None else f"{type(error).__name__}: {error.message}"
    return f'<span style="{_BAD}">{escape(one_line(words, _VALUE))}</span>'


def _failures(summary: ResultSummary, results: Iterable[Result]) -> str:
    return _table(
        ("failed", "kind", "for example", "what to do"),
        [
            (
                f"{group.count:,}",
                f'<span style="{_BAD}">{escape(group.kind)}</span>',
                escape(f"item {group.index}: {one_line(group.message, _MESSAGE)}"),
                escape(one_line(group.advice, _MESSAGE)),
            )
            for group in failure_groups(summary, results)
        ],
    )


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(
        f'<th style="{_CELL};{_RULE};font-weight:600">{escape(name)}</th>' for name in names
    )
    body = "".join(
        "<tr>" + "".join(f'<td style="{_CELL};{_RULE}">{cell}</td>' for cell in row) + "</tr>"
        for row in rows
    )
    return f'<table style="{_TABLE}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'
