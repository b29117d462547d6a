"""Charts as SVG inside HTML, without scripts; colours are the page's classes `c0` to `c8`."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, log10
from typing import TYPE_CHECKING

from scaleinfer.observe._escape import shown
from scaleinfer.observe._format import amount, duration

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["COLOURS", "Line", "Mark", "histogram", "stack_chart", "time_chart"]

COLOURS = 8
_WIDTH, _HEIGHT = 640, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 28
_IN_WIDTH, _IN_HEIGHT = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
_HITS = 120
_LEAST_BARS = 9
_WORD = 26
_TIME_STEPS = (
    0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600,
    7200, 10800, 21600, 43200, 86400, 172800, 604800,
)  # fmt: skip
_TICKS = 6


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart.

    Attributes:
        name: What it shows.
        points: Seconds and values, in the order of time.
        colour: Number of its colour.
        step: True if a value holds until the next.
        dashed: True for a broken line: a limit, not a measurement.
        filled: True to fill the area below.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    step: bool = False
    dashed: bool = False
    filled: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened, shown as a dot with a text.

    Attributes:
        time: When, in seconds.
        value: Where on the vertical axis.
        text: What.
        colour: Number of its colour.
    """

    time: float
    value: float
    text: str
    colour: int = 0


def time_chart(
    title: str,
    lines: Sequence[Line],
    *,
    elapsed_s: float,
    value: Callable[[float], str] | None = None,
    marks: Sequence[Mark] = (),
    note: str = "",
) -> str:
    """Return a chart of values over time.

    Args:
        title: What is shown, with its unit.
        lines: What to draw.
        elapsed_s: Where the horizontal axis ends.
        value: How a value is written.
        marks: What happened when.
        note: A word below.
    """
    value = value or _count
    most = max((y for line in lines for _, y in line.points), default=0.0)
    most = max([most, *(mark.value for mark in marks)])
    top, ticks = _round_up(most)
    frame = _Frame(elapsed_s or 1.0, top)
    parts = [frame.grid(ticks, value), frame.times()]
    parts += [frame.line(line, elapsed_s) for line in lines]
    parts += [frame.mark(mark) for mark in marks]
    parts.append(_time_hits(frame, lines, elapsed_s, value))
    return _figure(title, "".join(parts), [(line.name, line.colour, line.dashed) for line in lines],
                   note)  # fmt: skip


def stack_chart(
    title: str,
    series: Sequence[tuple[str, int, Sequence[float]]],
    *,
    width_s: float,
    elapsed_s: float,
    note: str = "",
) -> str:
    """Return a chart of counts over time, one upon the other.

    Args:
        title: What is counted.
        series: Name, colour and counts by bin.
        width_s: Seconds of a bin.
        elapsed_s: Where the horizontal axis ends.
        note: A word below.
    """
    bins = max((len(counts) for _, _, counts in series), default=0)
    sums = [sum(counts[n] for _, _, counts in series if n < len(counts)) for n in range(bins)]
    top, ticks = _round_up(max(sums, default=0.0), whole=True)
    frame = _Frame(max(elapsed_s, bins * width_s) or 1.0, top)
    parts = [frame.grid(ticks, _count), frame.times()]
    below = [0.0] * bins
    for _, colour, counts in series:
        for n, count in enumerate(counts):
            if count:
                parts.append(frame.bar(n * width_s, (n + 1) * width_s, below[n], count, colour))
                below[n] += count
    for n, total in enumerate(sums):
        if total:
            said = [f"{c[n]:,.0f} {name}" for name, _, c in series if n < len(c) and c[n]]
            parts.append(frame.hit(n * width_s, (n + 1) * width_s, [duration(n * width_s), *said]))
    names = [(name, colour, False) for name, colour, _ in series]
    return _figure(title, "".join(parts), names, note, always=True)


def histogram(
    title: str,
    bars: Sequence[tuple[float, float, int]],
    *,
    value: Callable[[float], str],
    quantiles: Sequence[tuple[str, float]] = (),
    words: Callable[[float], str] | None = None,
    colour: int = 0,
) -> str:
    """Return a histogram over bins of equal ratio.

    Args:
        title: What is spread.
        bars: Lower bound, upper bound and number of each bin, without gaps.
        value: How a bound is written.
        quantiles: Name and value of the quantiles to mark.
        words: How a quantile is written, if not like a bound.
        colour: Number of the bars' colour.
    """
    if not bars:
        return ""
    top, ticks = _round_up(max(number for _, _, number in bars), whole=True)
    bars = _padded(bars)
    frame = _Frame(len(bars), top)
    parts = [frame.grid(ticks, _count)]
    every = ceil(len(bars) / _TICKS)
    said = ""
    for n, (low, high, number) in enumerate(bars):
        if n % every == 0 and value(low) != said:
            said = value(low)
            parts.append(frame.below(n, said))
        if number:
            parts.append(frame.bar(n, n + 1, 0.0, number, colour))
            parts.append(frame.hit(n, n + 1, [f"{value(low)} to {value(high)}", f"{number:,}"]))
    written = -float(_WORD)
    for name, at in quantiles:
        place = next((n for n, (_, high, _) in enumerate(bars) if at <= high), len(bars) - 1)
        low, high, _ = bars[place]
        within = min(1.0, max(0.0, (at - low) / (high - low)))
        x = float(frame.x(place + within))
        parts.append(frame.upright(x, name if x - written >= _WORD else ""))
        written = x if x - written >= _WORD else written
    note = ", ".join(f"{name} {(words or value)(at)}" for name, at in quantiles)
    return _figure(title, "".join(parts), (), note)


class _Frame:
    """Where things are in a chart."""

    def __init__(self, right: float, top: float) -> None:
        self._right = right
        self._top = top

    def x(self, value: float) -> str:
        share = min(1.0, max(0.0, value / self._right))
        return _number(_LEFT + share * _IN_WIDTH)

    def y(self, value: float) -> str:
        share = min(1.0, max(0.0, value / self._top))
        return _number(_TOP + (1 - share) * _IN_HEIGHT)

    def grid(self, ticks: Sequence[float], value: Callable[[float], str]) -> str:
        parts = []
        for tick in ticks:
            y = self.y(tick)
            kind = "axis" if tick == 0 else "grid"
            parts.append(f'<path class="{kind}" d="M{_LEFT} {y}H{_WIDTH - _RIGHT}"/>')
            parts.append(f'<text class="end" x="{_LEFT - 6}" y="{y}" dy=".32em">')
            parts.append(f"{shown(value(tick))}</text>")
        return "".join(parts)

    def times(self) -> str:
        least = self._right / _TICKS
        step = next((step for step in _TIME_STEPS if step >= least), least)
        return "".join(
            self.below(n * step, _clock(n * step, step)) for n in range(int(self._right / step) + 1)
        )

    def below(self, place: float, text: str) -> str:
        x, bottom = self.x(place), _HEIGHT - _BOTTOM
        return (
            f'<path class="axis" d="M{x} {bottom}v4"/>'
            f'<text class="middle" x="{x}" y="{bottom + 17}">{shown(text)}</text>'
        )

    def line(self, line: Line, until: float) -> str:
        if not line.points:
            return ""
        path = [f"M{self.x(line.points[0][0])} {self.y(line.points[0][1])}"]
        for x, y in line.points[1:]:
            if line.step:
                path.append(f"H{self.x(x)}V{self.y(y)}")
            else:
                path.append(f"L{self.x(x)} {self.y(y)}")
        if line.step:
            path.append(f"H{self.x(until)}")
        kind = f"line c{line.colour}" + (" dashed" if line.dashed else "")
        drawn = f'<path class="{kind}" d="{"".join(path)}"/>'
        if line.filled:
            last = until if line.step else line.points[-1][0]
            floor_, first = self.y(0), self.x(line.points[0][0])
            path.append(f"L{self.x(last)} {floor_}L{first} {floor_}Z")
            drawn = f'<path class="area c{line.colour}" d="{"".join(path)}"/>' + drawn
        return drawn

    def mark(self, mark: Mark) -> str:
        x, y = self.x(mark.time), self.y(mark.value)
        return (
            f'<circle class="mark c{mark.colour}" cx="{x}" cy="{y}"'
            f' r="3.5"><title>{shown(mark.text)}</title></circle>'
        )

    def bar(self, left: float, right: float, below: float, height: float, colour: int) -> str:
        x, end = float(self.x(left)), float(self.x(right))
        y, bottom = float(self.y(below + height)), float(self.y(below))
        gap = 1.0 if end - x > 4 else 0.0  # noqa: PLR2004 - narrow bars touch
        return (
            f'<rect class="bar c{colour}" x="{_number(x)}" y="{_number(y)}"'
            f' width="{_number(max(end - x - gap, 0.5))}" height="{_number(bottom - y)}"/>'
        )

    def hit(self, left: float, right: float, lines: Sequence[str]) -> str:
        x, end = float(self.x(left)), float(self.x(right))
        text = "&#10;".join(shown(line) for line in lines)
        return (
            f'<rect class="hit" x="{_number(x)}" y="{_TOP}" width="{_number(end - x)}"'
            f' height="{_IN_HEIGHT}"><title>{text}</title></rect>'
        )

    def upright(self, x: float, name: str) -> str:
        line = f'<path class="upright" d="M{_number(x)} {_TOP}V{_HEIGHT - _BOTTOM}"/>'
        if not name:
            return line
        left = x > _WIDTH - _RIGHT - _WORD
        kind, at = ("end", x - 3) if left else ("start", x + 3)
        text = f'<text class="{kind}" x="{_number(at)}" y="{_TOP + 8}">{shown(name)}</text>'
        return line + text


def _time_hits(
    frame: _Frame, lines: Sequence[Line], elapsed_s: float, value: Callable[[float], str]
) -> str:
    """Return an invisible column for each stretch of time, with the values in it as its title."""
    columns = min(_HITS, max((len(line.points) for line in lines), default=0))
    if not columns or not elapsed_s:
        return ""
    width, parts = elapsed_s / columns, []
    places = [0] * len(lines)
    for column in range(columns):
        until, said = (column + 1) * width, []
        for number, line in enumerate(lines):
            points = line.points
            while places[number] + 1 < len(points) and points[places[number] + 1][0] < until:
                places[number] += 1
            if points and points[places[number]][0] < until:
                said.append(f"{line.name}: {value(points[places[number]][1])}")
        parts.append(frame.hit(column * width, until, [duration(column * width), *said]))
    return "".join(parts)


def _figure(
    title: str,
    drawing: str,
    names: Sequence[tuple[str, int, bool]],
    note: str = "",
    *,
    always: bool = False,
) -> str:
    keys = ""
    if len(names) > 1 or always:
        keys = "".join(
            f'<span class="key c{colour}{" dashed" if dashed else ""}">{shown(name)}</span>'
            for name, colour, dashed in names
        )
        keys = f'<div class="keys">{keys}</div>'
    below = f'<p class="note">{shown(note)}</p>' if note else ""
    return (
        f"<figure><figcaption>{shown(title)}</figcaption>{keys}"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{shown(title, plain=True)}">'
        f"{drawing}</svg>{below}</figure>"
    )


def _padded(bars: Sequence[tuple[float, float, int]]) -> list[tuple[float, float, int]]:
    """Return bars with empty ones around them if they are few: one alone would fill the chart."""
    padded = list(bars)
    while len(padded) < _LEAST_BARS:
        (low, high, _), (lower, upper, _) = padded[0], padded[-1]
        padded = [(low * low / high, low, 0), *padded, (upper, upper * upper / lower, 0)]
    return padded


def _round_up(most: float, *, whole: bool = False) -> tuple[float, list[float]]:
    """Return where an axis from 0 ends, and its ticks; whole numbers if it counts something."""
    if most <= 0:
        return 1.0, [0.0, 1.0]
    least = max(most / 4, 1.0 if whole else 0.0)
    power = 10.0 ** floor(log10(least))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= least * 0.999)
    ticks = ceil(most / step - 1e-9)
    return step * ticks, [step * n for n in range(ticks + 1)]


def _count(value: float) -> str:
    return amount(value) if value >= 1000 else f"{value:.3g}"  # noqa: PLR2004 - k, M, ...


def _clock(seconds: float, step: float) -> str:
    if not seconds:
        return "0"
    if step < 1:
        return f"{seconds:.2g} s" if step < 0.1 else f"{seconds:.1f} s"  # noqa: PLR2004
    if seconds < 60:  # noqa: PLR2004 - a minute
        return f"{seconds:.0f} s"
    return duration(seconds)


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
