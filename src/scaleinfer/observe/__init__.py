"""What a run shows of itself: progress while it goes on, a summary of its results at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaleinfer._lazy import lazy_exports

if TYPE_CHECKING:
    from scaleinfer.observe._base import Progress, summary_line
    from scaleinfer.observe._html import result_html
    from scaleinfer.observe._report import write_report
    from scaleinfer.observe._snapshot import Snapshot
    from scaleinfer.observe._summary import ResultSummary
    from scaleinfer.observe._text import result_text
    from scaleinfer.observe.progress import open_progress

__all__ = [
    "Progress",
    "ResultSummary",
    "Snapshot",
    "open_progress",
    "result_html",
    "result_text",
    "summary_line",
    "write_report",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Progress": "_base",
        "ResultSummary": "_summary",
        "Snapshot": "_snapshot",
        "open_progress": "progress",
        "result_html": "_html",
        "result_text": "_text",
        "summary_line": "_base",
        "write_report": "_report",
    },
)
