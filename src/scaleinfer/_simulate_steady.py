"""The steady part of a simulated run: how fast it goes, what is in use, what holds it back."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from scaleinfer._simulate_forecast import EndpointForecast, TimelinePoint
from scaleinfer._simulate_process import Moment

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from scaleinfer._simulate_process import Trace
    from scaleinfer._simulate_settings import EndpointModel

__all__ = ["Steady", "bottleneck", "mean_use", "steady_part", "timeline"]

_LEAST_SHARE = 0.05
_BUSY = 0.85
_FULL = 0.8
_POINTS = 60


@dataclass(frozen=True, slots=True)
class Steady:
    """The part of a process's run from 40 % of the results until the last item was sent.

    Attributes:
        items_per_s: Items a second in it.
        ramp_up_s: Seconds lost before it.
        use: How much of what there is was in use, 0 to 1.
        endpoints: Each endpoint.
        capped: True if a limit that the user set kept the calls in flight few.
    """

    items_per_s: float
    ramp_up_s: float
    use: dict[str, float]
    endpoints: tuple[EndpointForecast, ...]
    capped: bool


def steady_part(trace: Trace, models: Sequence[EndpointModel]) -> Steady:
    """Return the means over the steady part; over all of it if that is too short to have one."""
    start, end = trace.begin, trace.dry
    if end.done - start.done < _LEAST_SHARE * trace.end.done or end.at <= start.at:
        none, no_time = (0,) * len(models), (0.0,) * len(models)
        start = Moment(0.0, 0, 0.0, no_time, none, no_time, none, none)
        end = trace.end
    seconds = end.at - start.at
    rate = (end.done - start.done) / seconds
    found = [_endpoint(trace, models[i], i, start, end) for i in range(len(models))]
    use = {"slots": sum(one.running for one in found) / sum(one.slots for one in found)}
    tokens = (trace.prompt_tokens + trace.answer_tokens) / max(len(trace.done), 1)
    for name, shares in (
        ("kv_cache", _kv_shares(models, found, tokens)),
        ("prefill", _prefill_shares(models, start, end, seconds)),
        ("rate_limit", _rate_shares(models, start, end, seconds)),
    ):
        if shares:
            use[name] = min(fmean(shares), 1.0)
    use["client"] = min((end.busy_s - start.busy_s) / seconds, 1.0)
    return Steady(
        rate, max(start.at - start.done / rate, 0.0), use, tuple(found), any(trace.capped)
    )


def _endpoint(
    trace: Trace, model: EndpointModel, number: int, start: Moment, end: Moment
) -> EndpointForecast:
    statistics, seconds = trace.endpoints[number], end.at - start.at
    calls = end.calls[number] - start.calls[number]
    return EndpointForecast(
        statistics.name,
        trace.end.calls[number],
        calls / seconds,
        statistics.limiter.limit,
        statistics.limiter.reason,
        # A busy client is behind its servers: the two are not of exactly the same time.
        min((end.running_s[number] - start.running_s[number]) / seconds, model.server.slots),
        model.server.slots,
        (end.call_s[number] - start.call_s[number]) / max(calls, 1),
    )


def _kv_shares(
    models: Sequence[EndpointModel], found: Sequence[EndpointForecast], tokens: float
) -> list[float]:
    # A sequence takes room for its whole answer from the start.
    return [
        one.running * tokens / model.server.kv_tokens
        for model, one in zip(models, found, strict=True)
        if model.server.kv_tokens is not None
    ]


def _prefill_shares(
    models: Sequence[EndpointModel], start: Moment, end: Moment, seconds: float
) -> list[float]:
    return [
        (end.prompt_tokens[i] - start.prompt_tokens[i])
        / seconds
        / model.server.prefill_tokens_per_s
        for i, model in enumerate(models)
        if model.server.prefill_tokens_per_s is not None
    ]


def _rate_shares(
    models: Sequence[EndpointModel], start: Moment, end: Moment, seconds: float
) -> list[float]:
    shares, minutes = [], seconds / 60
    for i, model in enumerate(models):
        if model.rate_limit is None:
            continue
        calls = end.calls[i] - start.calls[i]
        tokens = (end.prompt_tokens[i] - start.prompt_tokens[i]) + (
            end.answer_tokens[i] - start.answer_tokens[i]
        )
        most_calls = model.rate_limit.requests_per_minute
        most_tokens = model.rate_limit.tokens_per_minute
        shares.append(
            max(
                calls / minutes / most_calls if most_calls else 0.0,
                tokens / minutes / most_tokens if most_tokens else 0.0,
            )
        )
    return shares


def mean_use(parts: Sequence[Steady]) -> dict[str, float]:
    """Return the mean use over several processes that are alike."""
    return {name: fmean(part.use[name] for part in parts) for name in parts[0].use}


def bottleneck(
    use: dict[str, float], *, capped: bool, ramp_up_s: float, steady_s: float, tail_s: float
) -> str:
    """Return what to change first, in a few words.

    The longest of the run's parts; of the steady one, the first thing on the way from the
    coordinator to the batch that is in use nearly all the time.
    """
    if ramp_up_s > max(steady_s, tail_s):
        return "ramp-up: the time until all workers and limits are up"
    if tail_s > steady_s:
        return "tail: the last items, while most have nothing left to do"
    for name, least, words in (
        ("coordinator", _BUSY, "coordinator: larger leases, or less time for each"),
        ("rate_limit", _BUSY, "rate limit"),
        ("client", _BUSY, "client process: more processes (workers) for the same endpoints"),
        ("prefill", _BUSY, "prefill: prompts come faster than they can be computed"),
        ("kv_cache", _BUSY, "KV cache: no room for more sequences"),
        ("slots", _FULL, "endpoint slots"),
    ):
        if use.get(name, 0.0) >= least:
            return words
    if capped:
        return "concurrency: its limit keeps slots empty"
    return "endpoint speed: more calls in flight would not make it faster"


def timeline(
    spans: Iterable[tuple[float, float, int]], makespan: float, scale: float = 1.0
) -> tuple[TimelinePoint, ...]:
    """Return the results over time.

    Args:
        spans: When the first and the last result of a group came, and how many it has.
        makespan: Where the last stretch ends.
        scale: Results that each of these stands for.
    """
    width = makespan / _POINTS
    bins = [0.0] * _POINTS
    for start, end, size in spans:
        first = min(int(start / width), _POINTS - 1)
        last = min(int(end / width), _POINTS - 1)
        if first == last:
            bins[first] += size
            continue
        pace = size / (end - start)
        bins[first] += pace * ((first + 1) * width - start)
        for number in range(first + 1, last):
            bins[number] += pace * width
        bins[last] += pace * (end - last * width)
    points, done = [], 0.0
    for number, count in enumerate(bins):
        done += count * scale
        points.append(TimelinePoint((number + 1) * width, round(done), count * scale / width))
    return tuple(points)
