"""`write_report`: results as one HTML page that needs nothing beside it."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from scaleinfer.errors import ConfigError
from scaleinfer.observe._html import result_html

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from scaleinfer.observe._summary import ResultSummary
    from scaleinfer.results import Result

__all__ = ["write_report"]

_ROWS = 500

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


def write_report(
    path: str | os.PathLike[str], summary: ResultSummary, results: Iterable[Result]
) -> None:
    """Write a page with the summary, the first 500 results and all failures by kind.

    Args:
        path: The page's file.
        summary: What the map came to.
        results: All results, in input order; gone through twice, so no iterator.

    Raises:
        ConfigError: The file cannot be written.
    """
    body = result_html(summary, results, rows=_ROWS)
    page = _PAGE.format(title=escape(summary.name or "scaleinfer"), body=body)
    try:
        Path(path).write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}.") from error
