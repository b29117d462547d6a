"""`write_report`: a run as one HTML page that needs nothing beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaleinfer.errors import ConfigError
from scaleinfer.observe import _page, _plots
from scaleinfer.observe._digest import Digest
from scaleinfer.observe._format import duration
from scaleinfer.observe._page import Table
from scaleinfer.observe._page_style import POLICY, SCRIPT, STYLE

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    from scaleinfer.observe._record import RunRecord
    from scaleinfer.observe._summary import ResultSummary
    from scaleinfer.results import Result

__all__ = ["report_page", "write_page", "write_report"]


def write_report(
    path: str | os.PathLike[str],
    summary: ResultSummary,
    results: Iterable[Result],
    *,
    record: RunRecord | None = None,
    manifest: Mapping[str, Any] | None = None,
    where: str = "",
    peak: int | None = None,
    tables: Sequence[Table] = (),
) -> None:
    """Write a page with what a run did: numbers, charts, failures, items, manifest.

    Of many items it shows 500 that failed, the 50 slowest and the first 200, so that the page
    stays small.

    Args:
        path: The page's file.
        summary: What the map came to.
        results: All results, in input order; gone through once.
        record: What happened when; without it there are no charts.
        manifest: What is known of the program.
        where: Model and endpoint, in words.
        peak: The most calls that were in flight at once.
        tables: Further tables.

    Raises:
        ConfigError: The file cannot be written.
    """
    digest = Digest(results, journaled=summary.journal is not None)
    content = report_page(
        summary, digest, record=record, manifest=manifest, where=where, peak=peak, tables=tables
    )
    write_page(path, content)


def write_page(path: str | os.PathLike[str], content: str) -> None:
    """Write a page.

    Raises:
        ConfigError: The file cannot be written.
    """
    try:
        Path(path).write_text(content, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}.") from error


def report_page(
    summary: ResultSummary,
    digest: Digest,
    *,
    record: RunRecord | None = None,
    manifest: Mapping[str, Any] | None = None,
    where: str = "",
    peak: int | None = None,
    tables: Sequence[Table] = (),
) -> str:
    """Return the page; the arguments are those of `write_report`."""
    parts = [
        _page.header(summary, None if record is None else record.started, where),
        _page.tiles(summary, peak),
    ]
    if record is not None:
        parts += [_plots.over_time(record), _plots.distributions(record)]
    parts += [_page.failures(digest.failures)]
    parts += [_page.table(one) for one in tables]
    if record is not None:
        parts += [_page.table(_calls(record)), _page.table(_decisions(record), folded=True)]
    parts += [_page.items(digest), _page.manifest(manifest or {})]
    parts.append("<footer>Written by scaleinfer. Nothing on this page is fetched.</footer>")
    return _page.page(summary.name or "scaleinfer", POLICY, STYLE, SCRIPT, parts)


def _calls(record: RunRecord) -> Table:
    rows = []
    for name in record.endpoints:
        calls = record.calls[name]
        quantiles = [calls.latency.quantile(share) for share in (0.5, 0.99)]
        rows.append(
            (
                name,
                f"{calls.ok + calls.failed:,}",
                f"{calls.failed:,}",
                f"{calls.tokens:,}",
                *("" if one is None else _plots.seconds(one) for one in quantiles),
            )
        )
    columns = ("endpoint", "#calls", "#failed", "#completion tokens", "#p50", "#p99")
    return Table("Calls by endpoint", columns, rows)


def _decisions(record: RunRecord) -> Table:
    rows = [
        (duration(one.time), one.endpoint, f"{one.limit:,}", one.reason) for one in record.decisions
    ]
    columns = ("#after", "endpoint", "#limit", "why")
    return Table(f"The limiters' decisions ({len(rows):,})", columns, rows)
