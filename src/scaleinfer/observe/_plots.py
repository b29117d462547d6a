"""The report's charts of a `RunRecord`."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from scaleinfer.observe._chart import COLOURS, Line, Mark, histogram, stack_chart, time_chart
from scaleinfer.observe._format import amount, duration, money
from scaleinfer.observe._record import OTHERS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scaleinfer.observe._distribution import Distribution
    from scaleinfer.observe._record import Decision, EndpointCalls, RunRecord

__all__ = ["distributions", "over_time", "seconds"]

_POINTS = 150
_BARS = 60
_ENDPOINTS = 6
_LAST = 8
"""Number of the colour for what is counted together."""
_LIMIT = 7
_LEAST_OF_LAST = 0.3


def over_time(record: RunRecord) -> str:
    """Return what happened when: answers, calls in flight, tokens, errors, cost."""
    if not record.calls:
        return ""
    charts = [_answers(record), *_in_flight(record), _tokens(record), _errors(record)]
    charts.append(_cost(record))
    return _grid("Over time", charts)


def distributions(record: RunRecord) -> str:
    """Return how long answers took, and how long they and the prompts were."""
    latency = record.latency
    charts = [
        histogram(
            "Seconds to an answer, by call",
            latency.bars(),
            value=seconds,
            quantiles=_quantiles(latency),
        ),
        histogram(
            "Tokens of an answer",
            _whole(record.completion_tokens.bars()),
            value=_least_tokens,
            quantiles=_quantiles(record.completion_tokens),
            words=_tokens_in_words,
            colour=1,
        ),
        histogram(
            "Tokens of a prompt",
            _whole(record.prompt_tokens.bars()),
            value=_least_tokens,
            quantiles=_quantiles(record.prompt_tokens),
            words=_tokens_in_words,
            colour=2,
        ),
    ]
    return _grid("Distributions", charts)


def _answers(record: RunRecord) -> str:
    named = _named(record, lambda calls: record.timeline.counts(calls.answers))
    lines = [
        Line(name, _rates(record, row), colour, filled=len(named) == 1)
        for name, (colour, row) in named.items()
    ]
    return time_chart("Answers a second", lines, elapsed_s=record.elapsed_s)


def _in_flight(record: RunRecord) -> list[str]:
    timeline, until = record.timeline, record.elapsed_s
    levels = _named(record, lambda calls: timeline.levels(calls.in_flight))
    charts = []
    if len(levels) > 1:
        lines = [Line(name, _means(record, row), c) for name, (c, row) in levels.items()]
        charts.append(time_chart("Calls in flight", lines, elapsed_s=until))
    for name, (colour, row) in levels.items():
        limits = record.limits_of(name)
        if len(levels) > 1 and not limits:
            continue
        lines = [Line("in flight", _means(record, row), colour, filled=True)]
        if limits:
            lines.append(Line("limit", limits, _LIMIT, step=True, dashed=True))
        marks = [
            Mark(one.time, one.limit, _decision_in_words(one), _LIMIT)
            for one in record.decisions
            if one.endpoint == name
        ]
        what = "Calls in flight" + (", and the limiter's decisions" if limits else "")
        title = f"{what}: {name}" if len(levels) > 1 else what
        charts.append(time_chart(title, lines, elapsed_s=until, marks=marks))
    return charts


def _decision_in_words(decision: Decision) -> str:
    return f"{duration(decision.time)}: {decision.limit:,}, {decision.reason}"


def _tokens(record: RunRecord) -> str:
    timeline = record.timeline
    lines = [
        Line("prompt", _rates(record, timeline.counts(record.prompts)), 2),
        Line("completion", _rates(record, timeline.counts(record.completions)), 1),
    ]
    if not any(y for line in lines for _, y in line.points):
        return ""
    return time_chart("Tokens a second", lines, elapsed_s=record.elapsed_s)


def _errors(record: RunRecord) -> str:
    if not record.errors:
        return ""
    timeline, series = record.timeline, []
    width = timeline.width
    rows = sorted(record.errors.items(), key=lambda pair: -sum(pair[1]))
    for number, (kind, row) in enumerate(rows):
        colour = (7, 3, 1, 4, 6, 0, 2, 5)[number] if number < COLOURS else _LAST
        width, counts = _joined(timeline.counts(row), timeline.width, _BARS)
        series.append((f"{kind} ({sum(row):,.0f})", colour, counts))
    return stack_chart("Calls that failed", series, width_s=width, elapsed_s=record.elapsed_s)


def _cost(record: RunRecord) -> str:
    if not record.cost_usd:
        return ""
    width, counts = _joined(record.timeline.counts(record.costs), record.timeline.width, _POINTS)
    points, total = [(0.0, 0.0)], 0.0
    for number, count in enumerate(counts):
        total += count
        points.append((min((number + 1) * width, record.elapsed_s), total))
    line = Line("spent", points, 5, filled=True)
    return time_chart("US dollars spent on calls", [line], elapsed_s=record.elapsed_s, value=money)


def _named(
    record: RunRecord, row_of: Callable[[EndpointCalls], list[float]]
) -> dict[str, tuple[int, list[float]]]:
    """Return colour and row of the busiest endpoints, and of all others together."""
    names = record.endpoints
    if len(names) > _ENDPOINTS + 1 or OTHERS in names:
        busiest = [name for name in names if name != OTHERS][:_ENDPOINTS]
    else:
        busiest = names
    rows = {name: (n, row_of(record.calls[name])) for n, name in enumerate(busiest)}
    rest = [row_of(record.calls[name]) for name in names if name not in rows]
    if rest:
        rows[OTHERS] = (_LAST, [sum(counts) for counts in zip(*rest, strict=True)])
    return rows


def _rates(record: RunRecord, counts: Sequence[float]) -> list[tuple[float, float]]:
    """Return counts a second, in the middle of each bin."""
    width, joined = _joined(counts, record.timeline.width, _POINTS)
    points: list[tuple[float, float]] = []
    for number, count in enumerate(joined):
        start = number * width
        took = min(width, record.elapsed_s - start)
        if took < _LEAST_OF_LAST * width and points:
            break  # too short to tell a rate from
        points.append((start + took / 2, count / max(took, 1e-9)))
    return points


def _means(record: RunRecord, levels: Sequence[float]) -> list[tuple[float, float]]:
    width, joined = _joined(levels, record.timeline.width, _POINTS)
    by = round(width / record.timeline.width)
    return [((number + 0.5) * width, level / by) for number, level in enumerate(joined)]


def _joined(counts: Sequence[float], width: float, most: int) -> tuple[float, list[float]]:
    """Return fewer, wider bins with the sums of what was in them."""
    by = max(1, -(-len(counts) // most))
    return width * by, [sum(counts[n : n + by]) for n in range(0, len(counts), by)]


def _quantiles(spread: Distribution) -> list[tuple[str, float]]:
    found = [(f"p{share}", spread.quantile(share / 100)) for share in (50, 90, 99)]
    return [(name, value) for name, value in found if value is not None]


def _whole(bars: list[tuple[float, float, int]]) -> list[tuple[float, float, int]]:
    """Return the bins in which there is a whole number."""
    return [bar for bar in bars if ceil(bar[0]) < ceil(bar[1])]


def seconds(value: float) -> str:
    """Return a short time: `4.2 ms`, `0.31 s`, `3:07`."""
    if value < 0.1:  # noqa: PLR2004 - a tenth of a second
        return f"{value * 1000:.2g} ms"
    return f"{value:.3g} s" if value < 60 else duration(value)  # noqa: PLR2004 - a minute


def _tokens_in_words(value: float) -> str:
    return amount(round(value))


def _least_tokens(value: float) -> str:
    return amount(ceil(value))


def _grid(title: str, charts: Sequence[str]) -> str:
    drawn = "".join(charts)
    return f'<h2>{title}</h2><div class="charts">{drawn}</div>' if drawn else ""
