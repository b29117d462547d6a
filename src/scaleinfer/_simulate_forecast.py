"""`Forecast`: what a simulated run comes to, as figures, as JSON and as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["EndpointForecast", "Forecast", "TimelinePoint"]

_HOUR = 3600
_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 60


@dataclass(frozen=True, slots=True)
class EndpointForecast:
    """One endpoint of the forecast; with workers, one endpoint of a typical worker.

    Attributes:
        name: Its name.
        items: Items it answered, in what was simulated item by item.
        items_per_s: Items it answered a second in the steady part of the run.
        limit: Calls that may be in flight there, at the end.
        limit_reason: Why, as the limiter says.
        running: Mean number of sequences in its batch in the steady part.
        slots: Its slots.
        seconds_per_call: Mean time of a call in the steady part.
    """

    name: str
    items: int
    items_per_s: float
    limit: int
    limit_reason: str
    running: float
    slots: int
    seconds_per_call: float


@dataclass(frozen=True, slots=True)
class TimelinePoint:
    """A stretch of the run.

    Attributes:
        at_s: Where it ends, in seconds after the start.
        done: Items with a result by then.
        items_per_s: Items a second within it.
    """

    at_s: float
    done: int
    items_per_s: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run will come to.

    `makespan_s` is the sum of `ramp_up_s`, `items / steady_items_per_s` and `tail_s`.

    Attributes:
        items: Items.
        makespan_s: Seconds from the start to the last result.
        items_per_s: Items over `makespan_s`.
        steady_items_per_s: Items a second once the run is under way and until items run out.
        ramp_up_s: Seconds lost at the start: workers that load, limits that grow, first answers.
        tail_s: Seconds lost at the end, when some have nothing left to do.
        prompt_tokens: Prompt tokens.
        answer_tokens: Completion tokens.
        cost_usd: US dollars; `None` without prices.
        node_hours: Hours of the workers' nodes, all of them from start to end; `None` without
            workers.
        bottleneck: What to change to be done earlier, in a few words.
        utilisation: How much of what there is was in use in the steady part, 0 to 1: `slots`,
            `kv_cache`, `prefill`, `rate_limit`, `client` (a process's core), `coordinator`.
        endpoints: Each endpoint, or those of a typical worker.
        timeline: At most 60 stretches of equal length.
        workers: Workers; `None` if one process did it all.
        lease_items: Items in a full lease; `None` without workers.
        simulated_items: Items that were simulated one by one; the rest is extrapolated.
        failed: Items that were given up, extrapolated likewise.
        warnings: What in the real run would go otherwise than one may think.
    """

    items: int
    makespan_s: float
    items_per_s: float
    steady_items_per_s: float
    ramp_up_s: float
    tail_s: float
    prompt_tokens: int
    answer_tokens: int
    cost_usd: float | None
    node_hours: float | None
    bottleneck: str
    utilisation: dict[str, float]
    endpoints: tuple[EndpointForecast, ...]
    timeline: tuple[TimelinePoint, ...]
    workers: int | None = None
    lease_items: int | None = None
    simulated_items: int = 0
    failed: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt_tokens + self.answer_tokens

    def to_dict(self) -> dict[str, Any]:
        """Return the forecast as plain JSON data."""
        return asdict(self) | {"tokens": self.tokens}

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self._rows())
        lines = [f"{name:<{width}}  {value}" for name, value in self._rows()]
        return "\n".join(lines + [f"note: {warning}" for warning in self.warnings])

    def _rows(self) -> list[tuple[str, str]]:
        steady_s = self.items / self.steady_items_per_s
        rows = [
            ("items", f"{self.items:,}"),
            ("takes", duration(self.makespan_s)),
            ("  ramp-up", duration(self.ramp_up_s)),
            ("  steady", f"{duration(steady_s)} at {self.steady_items_per_s:,.1f} items/s"),
            ("  tail", duration(self.tail_s)),
            ("tokens", f"{self.prompt_tokens:,} prompt, {self.answer_tokens:,} answer"),
        ]
        if self.failed:
            rows.append(("given up", f"{self.failed:,} items"))
        if self.cost_usd is not None:
            rows.append(("costs", f"{self.cost_usd:,.2f} USD"))
        if self.node_hours is not None:
            rows.append(("node hours", f"{self.node_hours:,.1f} on {self.workers:,} workers"))
        if self.lease_items is not None:
            rows.append(("lease", f"{self.lease_items:,} items"))
        rows.append(("bottleneck", self.bottleneck))
        used = (f"{name.replace('_', ' ')} {part:.0%}" for name, part in self.utilisation.items())
        rows += [("in use", ", ".join(used)), ("items/s", self._sparkline())]
        for one in self.endpoints[:_SHOWN]:
            rows.append((one.name, _endpoint_line(one)))
        if len(self.endpoints) > _SHOWN:
            rows.append(("", f"and {len(self.endpoints) - _SHOWN:,} more endpoints"))
        if self.simulated_items < self.items:
            rows.append(("simulated", f"{self.simulated_items:,} items one by one"))
        return rows

    def _sparkline(self) -> str:
        top = max((point.items_per_s for point in self.timeline), default=0.0) or 1.0
        steps = len(_BARS) - 1
        bars = (_BARS[round(point.items_per_s / top * steps)] for point in self.timeline)
        return f"{''.join(bars)} up to {top:,.1f}"


_SHOWN = 8


def _endpoint_line(one: EndpointForecast) -> str:
    return (
        f"{one.items_per_s:,.1f} items/s, {one.running:,.0f} of {one.slots:,} slots, limit "
        f"{one.limit:,} ({one.limit_reason}), {one.seconds_per_call:,.2f} s a call"
    )


def duration(seconds: float) -> str:
    """Return `95.4 s`, `12 min 5 s` or `3 h 12 min`."""
    if seconds < 2 * 60:
        return f"{seconds:,.1f} s"
    if seconds < 2 * _HOUR:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes} min"
