"""What a run shows of itself: progress while it goes on, a summary of its results at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaleinfer._lazy import lazy_exports

if TYPE_CHECKING:
    from scaleinfer.observe._base import Progress, summary_line
    from scaleinfer.observe._format import amount, duration, one_line, rate
    from scaleinfer.observe._html import result_html
    from scaleinfer.observe._rate import Rate
    from scaleinfer.observe._report import write_report
    from scaleinfer.observe._snapshot import Snapshot
    from scaleinfer.observe._stream import Stderr
    from scaleinfer.observe._summary import ResultSummary
    from scaleinfer.observe._text import result_text
    from scaleinfer.observe.progress import fitting_mode, open_progress

__all__ = [
    "Progress",
    "Rate",
    "ResultSummary",
    "Snapshot",
    "Stderr",
    "amount",
    "duration",
    "fitting_mode",
    "one_line",
    "open_progress",
    "rate",
    "result_html",
    "result_text",
    "summary_line",
    "write_report",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Progress": "_base",
        "Rate": "_rate",
        "ResultSummary": "_summary",
        "Snapshot": "_snapshot",
        "Stderr": "_stream",
        "amount": "_format",
        "duration": "_format",
        "fitting_mode": "progress",
        "one_line": "_format",
        "open_progress": "progress",
        "rate": "_format",
        "result_html": "_html",
        "result_text": "_text",
        "summary_line": "_base",
        "write_report": "_report",
    },
)
