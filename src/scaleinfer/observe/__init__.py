"""What a run shows of itself: progress, a report of what it did, telemetry for other programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaleinfer._lazy import lazy_exports

if TYPE_CHECKING:
    from scaleinfer.observe._base import Progress, snapshot_line, summary_line
    from scaleinfer.observe._digest import Digest
    from scaleinfer.observe._format import amount, duration, money, one_line, rate
    from scaleinfer.observe._html import result_html
    from scaleinfer.observe._observer import RunObserver
    from scaleinfer.observe._page import Table
    from scaleinfer.observe._rate import Rate
    from scaleinfer.observe._record import Decision, Place, RunRecord
    from scaleinfer.observe._records import JsonFormatter
    from scaleinfer.observe._report import report_page, write_page, write_report
    from scaleinfer.observe._sinks import RunFacts
    from scaleinfer.observe._snapshot import Snapshot
    from scaleinfer.observe._status import RunStatus, read_status, remove_status, write_status
    from scaleinfer.observe._stream import Stderr
    from scaleinfer.observe._summary import ResultSummary
    from scaleinfer.observe._text import result_text
    from scaleinfer.observe.progress import fitting_mode, open_progress
    from scaleinfer.observe.telemetry import (
        Telemetry,
        check_telemetry,
        configure,
        metrics_url,
        open_sinks,
    )

__all__ = [
    "Decision",
    "Digest",
    "JsonFormatter",
    "Place",
    "Progress",
    "Rate",
    "ResultSummary",
    "RunFacts",
    "RunObserver",
    "RunRecord",
    "RunStatus",
    "Snapshot",
    "Stderr",
    "Table",
    "Telemetry",
    "amount",
    "check_telemetry",
    "configure",
    "duration",
    "fitting_mode",
    "metrics_url",
    "money",
    "one_line",
    "open_progress",
    "open_sinks",
    "rate",
    "read_status",
    "remove_status",
    "report_page",
    "result_html",
    "result_text",
    "snapshot_line",
    "summary_line",
    "write_page",
    "write_report",
    "write_status",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Decision": "_record",
        "Digest": "_digest",
        "JsonFormatter": "_records",
        "Place": "_record",
        "Progress": "_base",
        "Rate": "_rate",
        "ResultSummary": "_summary",
        "RunFacts": "_sinks",
        "RunObserver": "_observer",
        "RunRecord": "_record",
        "RunStatus": "_status",
        "Snapshot": "_snapshot",
        "Stderr": "_stream",
        "Table": "_page",
        "Telemetry": "telemetry",
        "amount": "_format",
        "check_telemetry": "telemetry",
        "configure": "telemetry",
        "duration": "_format",
        "fitting_mode": "progress",
        "metrics_url": "telemetry",
        "money": "_format",
        "one_line": "_format",
        "open_progress": "progress",
        "open_sinks": "telemetry",
        "rate": "_format",
        "read_status": "_status",
        "remove_status": "_status",
        "report_page": "_report",
        "result_html": "_html",
        "result_text": "_text",
        "snapshot_line": "_base",
        "summary_line": "_base",
        "write_page": "_report",
        "write_report": "_report",
        "write_status": "_status",
    },
)
