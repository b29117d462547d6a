"""Small tables as text, as HTML and as frames, and the page that holds them."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    import pandas as pd

    from scaleinfer.observe import ResultSummary
    from scaleinfer.results import Result

__all__ = ["Table", "frame", "write_page"]

_WIDTH = 60
_ROWS = 500
# Notebooks strip style sheets. The grey is half transparent, so it shows on light and on dark.
_TABLE = "border-collapse:collapse;margin:.4em 0;font-size:90%"
_CELL = (
    "padding:2px 10px 2px 0;vertical-align:top;background:transparent;border:0;"
    "border-bottom:1px solid rgba(128,128,128,.35)"
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem;
padding: 0 1rem; }}</style>
</head>
<body>
{body}
</body>
</html>
"""


@dataclass(frozen=True, slots=True)
class Table:
    """A small table.

    Attributes:
        title: What it shows.
        names: Its columns.
        rows: Its cells; numbers are set right, floats get three digits that matter.
    """

    title: str
    names: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def text(self) -> str:
        """Return the table as plain text."""
        cells = [[_cell(value) for value in row] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(self.names, *cells, strict=True)]
        right = self._numeric()
        lines = [self.title] if self.title else []
        for row in (list(self.names), *cells):
            shown = (
                cell.rjust(width) if number else cell.ljust(width)
                for cell, width, number in zip(row, widths, right, strict=True)
            )
            lines.append("  " + "  ".join(shown).rstrip())
        return "\n".join(lines)

    def html(self) -> str:
        """Return the table as a fragment of HTML without scripts."""
        align = ["right" if number else "left" for number in self._numeric()]
        head = "".join(
            f'<th style="{_CELL};text-align:{side};font-weight:600">{escape(name)}</th>'
            for name, side in zip(self.names, align, strict=True)
        )
        body = "".join(
            "<tr>"
            + "".join(
                f'<td style="{_CELL};text-align:{side}">{escape(_cell(value))}</td>'
                for value, side in zip(row, align, strict=True)
            )
            + "</tr>"
            for row in self.rows
        )
        title = f"<div><b>{escape(self.title)}</b></div>" if self.title else ""
        return (
            f'<div style="overflow-x:auto">{title}<table style="{_TABLE}">'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def _numeric(self) -> list[bool]:
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.names)
        return [
            any(isinstance(value, int | float) for value in column)
            and all(value is None or isinstance(value, int | float) for value in column)
            for column in columns
        ]


def _cell(value: Any) -> str:
    from scaleinfer.observe import one_line

    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, int):
        return f"{value:,}"
    return one_line(str(value), _WIDTH)


def frame(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Return rows as a frame.

    Raises:
        ConfigError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise ConfigError(
            "pandas is not installed.", hint="Run: pip install 'scaleinfer[data]'"
        ) from error
    return pd.DataFrame.from_records(list(rows))


def write_page(
    path: str | os.PathLike[str],
    summary: ResultSummary,
    tables: Iterable[Table],
    results: Sequence[Result],
) -> None:
    """Write one HTML page with tables and the first 500 results; it needs nothing beside it.

    Raises:
        ConfigError: The file cannot be written.
    """
    from scaleinfer.observe import result_html

    parts = [table.html() for table in tables]
    parts.append(result_html(summary, results, rows=_ROWS))
    page = _PAGE.format(title=escape(summary.name), body="\n".join(parts))
    try:
        Path(path).write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}.") from error
