"""Numbers as people read them."""

from __future__ import annotations

__all__ = ["amount", "duration", "money", "one_line", "percent", "rate"]

_MINUTE = 60
_HOUR = 3600
_DAY = 86400
_SUB_SECOND = 10


def amount(number: float) -> str:
    """Return a count in at most five characters: `950`, `12.3k`, `4.0M`."""
    for unit in ("", "k", "M", "G"):
        if abs(number) < 999.5:  # noqa: PLR2004  # what rounds to four digits takes the next unit
            return f"{number:.0f}" if not unit else f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:,.0f}T"


def duration(seconds: float) -> str:
    """Return a time: `4.2 s`, `42 s`, `3:07`, `2 h 05 min`, `3 d 04 h`."""
    if seconds < _SUB_SECOND:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // 60}:{whole % 60:02d}"
    if whole < _DAY:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // _DAY} d {whole % _DAY // 3600:02d} h"


def rate(per_second: float) -> str:
    """Return items a second, or a minute if there are few: `23.1/s`, `4.2/min`."""
    if per_second >= 1:
        return f"{amount(per_second) if per_second >= 1000 else f'{per_second:.3g}'}/s"  # noqa: PLR2004  # k, M, ...
    return f"{per_second * _MINUTE:.2g}/min"


def percent(done: int, total: int) -> str:
    """Return a share, rounded down: 100% means all."""
    return f"{100 * done // total if total else 100}%"


def money(usd: float) -> str:
    """Return a price with two digits that matter: `$1.20`, `$0.0031`."""
    return f"${usd:,.2f}" if usd >= 0.1 or usd == 0 else f"${usd:.2g}"  # noqa: PLR2004  # cents


def one_line(text: str, width: int) -> str:
    """Return `text` on one line of at most `width` characters, control characters removed."""
    # What is cut off anyway need not be looked at: a text may be megabytes long.
    line = " ".join(text[: 4 * width].split())
    line = "".join(c for c in line if c.isprintable())
    cut = len(line) > width or len(text) > 4 * width
    return line[: width - 1].rstrip() + "…" if cut else line
