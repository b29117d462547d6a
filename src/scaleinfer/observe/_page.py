"""The report's parts: numbers, charts, tables, items."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scaleinfer.observe._digest import full_text
from scaleinfer.observe._escape import cut, shown
from scaleinfer.observe._format import amount, duration, money, percent, rate
from scaleinfer.observe._summary import shorten

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from scaleinfer.observe._digest import Digest
    from scaleinfer.observe._summary import FailureGroup, ResultSummary
    from scaleinfer.results import Result

__all__ = ["Table", "failures", "header", "items", "manifest", "page", "table", "tiles"]

_LINE = 110
_TEXT = 2000
_SEARCHED = 12
_RESTRICTED = "restricted by the policy"


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the report.

    Attributes:
        title: What it lists.
        columns: Names of the columns; one that begins with `#` holds numbers.
        rows: The cells: texts, or numbers as they are to be read.
        note: A word below.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def header(summary: ResultSummary, started: float | None, where: str) -> str:
    """Return the title, what was asked where, and why the run ended early if it did."""
    words = [where, "" if summary.journal is None else f"journal {summary.journal}"]
    if started is not None:
        words.insert(0, time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(started)))
    line = " · ".join(shown(cut(word, 300)) for word in words if word)
    name = shown(cut(summary.name, 200)) or "scaleinfer"
    parts = [f'<h1 dir="auto">{name}</h1><p class="sub">{line}</p>']
    if summary.stopped:
        parts.append(f'<p class="banner">Stopped early: {shown(cut(summary.stopped, 500))}</p>')
    if summary.held_back_by:
        held = shown(cut(summary.held_back_by, 300))
        parts.append(f'<p class="banner">Held back by {held}</p>')
    return "".join(parts)


def tiles(summary: ResultSummary, peak: int | None = None) -> str:
    """Return what the run came to, in a few large numbers."""
    s = summary
    fresh = s.total - s.resumed
    found: list[tuple[str, str, str]] = [
        (f"{s.total:,}", "items", ""),
        (f"{s.ok:,}", f"ok, {percent(s.ok, s.total)}", "good" if s.ok else ""),
        (f"{s.failed:,}", "failed", "bad" if s.failed else ""),
    ]
    if s.resumed:
        found.append((f"{s.resumed:,}", "from the journal", ""))
    found.append((duration(s.elapsed_s), "from start to end", ""))
    if fresh > 0 and s.elapsed_s > 0:
        found.append((rate(fresh / s.elapsed_s), "items, on average", ""))
    if s.usage.total_tokens:
        found.append((amount(s.usage.prompt_tokens), "prompt tokens", ""))
        found.append((amount(s.usage.completion_tokens), "completion tokens", ""))
    if s.cost_usd is not None:
        found.append((money(s.cost_usd), "for these answers", ""))
    if peak:
        found.append((f"{peak:,}", "in flight at most", ""))
    return '<div class="tiles">' + "".join(
        f'<div class="tile {kind}"><b>{shown(number)}</b><span>{shown(words)}</span></div>'
        for number, words, kind in found
    ) + "</div>"  # fmt: skip


def table(given: Table, *, folded: bool = False) -> str:
    """Return a table; `folded` hides it behind its title."""
    if not given.rows:
        return ""
    numbers = [name.startswith("#") for name in given.columns]
    head = "".join(
        f"<th{_kind(number)}>{shown(name.lstrip('#'))}</th>"
        for name, number in zip(given.columns, numbers, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{_kind(number)}>{shown(cut(cell, 300))}</td>"
            for cell, number in zip(row, numbers, strict=True)
        )
        + "</tr>"
        for row in given.rows
    )
    note = f'<p class="note">{shown(given.note)}</p>' if given.note else ""
    content = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"
    title = shown(given.title)
    if folded:
        return f'<details class="card"><summary>{title}</summary>{content}</details>'
    return f'<h2>{title}</h2><div class="card">{content}</div>'


def failures(groups: Sequence[FailureGroup]) -> str:
    """Return the failures by kind, with an example of each and what to do."""
    if not groups:
        return ""
    rows = "".join(
        f'<tr><td class="n">{group.count:,}</td><td class="bad">{shown(group.kind)}</td>'
        f"<td><bdi>{shown(cut(group.message, 400))}</bdi>"
        f' <span class="faded">(item {group.index:,})</span></td>'
        f"<td>{shown(cut(group.advice, 400))}</td></tr>"
        for group in groups
    )
    head = '<th class="n">items</th><th>kind</th><th>for example</th><th>what to do</th>'
    return (
        '<h2>What failed, and why</h2><div class="card"><table><thead><tr>'
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def items(digest: Digest) -> str:
    """Return the items that are shown one by one."""
    parts = []
    for title, chosen, whole in (
        ("Failed items", digest.bad, digest.total - digest.ok),
        ("Slowest items", digest.slowest, digest.total),
        ("Items in order", digest.first, digest.total),
    ):
        if not chosen:
            continue
        number = f"{len(chosen):,} of {whole:,}" if len(chosen) < whole else f"{whole:,}"
        parts.append(f"<h2>{title} ({number})</h2>{_items(chosen)}")
    return "".join(parts)


_HEAD = "".join(
    f'<th data-sort="{kind}"{_class}>{name}</th>'
    for name, kind, _class in (
        ("#", "n", ' class="n"'),
        ("item", "t", ""),
        ("answer", "t", ""),
        ("seconds", "n", ' class="n"'),
        ("attempts", "n", ' class="n"'),
        ("tokens", "n", ' class="n"'),
        ("endpoint", "t", ""),
    )
)


def _items(chosen: Sequence[Result]) -> str:
    search = ""
    if len(chosen) > _SEARCHED:
        search = '<input type="search" placeholder="Search these items" aria-label="Search">'
    rows = "".join(_item(result) for result in chosen)
    return (
        f'<div class="card">{search}<table class="items"><thead><tr>{_HEAD}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _item(result: Result) -> str:
    item = result.item if result.item is not None else result.key
    if result.restricted:
        item, answer, kind = _RESTRICTED, f'<span class="faded">{_RESTRICTED}</span>', "w"
        if not result.ok and result.error is not None:
            answer, kind = shown(type(result.error).__name__), "w bad"
    elif result.ok:
        answer, kind = _foldable(result.value), "w"
        if result.finish_reason == "length":
            answer += ' <span class="faded">(cut off at max_tokens)</span>'
    else:
        error = result.error
        words = "no answer" if error is None else f"{type(error).__name__}: {error.message}"
        answer, kind = _foldable(words), "w bad"
    took = "resumed" if result.resumed else f"{result.latency_s:.3g}"
    usage = result.usage
    tokens = f"{usage.prompt_tokens:,} + {usage.completion_tokens:,}"
    return (
        f'<tr><td class="n" data-v="{result.index}">{result.index:,}</td>'
        f'<td class="w">{_foldable(item)}</td><td class="{kind}">{answer}</td>'
        f'<td class="n" data-v="{result.latency_s:.3f}">{took}</td>'
        f'<td class="n" data-v="{result.attempts}">{result.attempts}</td>'
        f'<td class="n" data-v="{usage.total_tokens}">{tokens}</td>'
        f'<td class="faded">{shown(cut(result.endpoint or "", 120))}</td></tr>'
    )


def _foldable(value: Any) -> str:
    """Return a value on one line that unfolds to its whole text, if there is more of it."""
    line, whole = shorten(value, _LINE), full_text(value, _TEXT)
    if whole == line or (not isinstance(value, str) and len(line) < _LINE and "…" not in line):
        return f"<bdi>{shown(line)}</bdi>"
    return (
        f"<details><summary><bdi>{shown(line)}</bdi></summary>"
        f'<pre dir="auto">{shown(whole)}</pre></details>'
    )


def manifest(facts: Mapping[str, Any]) -> str:
    """Return what is known of the program, folded."""
    if not facts:
        return ""
    return '<h2>Manifest</h2><div class="card">' + _facts(facts) + "</div>"


def _facts(facts: Mapping[str, Any]) -> str:
    rows = []
    for name, value in facts.items():
        if value is None or value in ({}, [], ""):
            continue
        words = _facts(value) if isinstance(value, dict) else f"<bdi>{_fact(value)}</bdi>"
        rows.append(f"<dt>{shown(str(name).replace('_', ' '))}</dt><dd>{words}</dd>")
    return f"<dl>{''.join(rows)}</dl>"


def _fact(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(shown(cut(str(part), 300)) for part in value[:50])
    return shown(cut(str(value), 2000))


def _kind(number: bool) -> str:
    return ' class="n"' if number else ""


def page(title: str, policy: str, style: str, script: str, parts: Iterable[str]) -> str:
    """Return a whole page."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{shown(cut(title, 200))}</title><style>{style}</style></head><body><main>"
        f"{''.join(parts)}</main><script>{script}</script></body></html>\n"
    )
