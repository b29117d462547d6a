"""`simulate`: how long a run will take, what it costs and what holds it back, without asking.

The engine's own router, limiters, rate limits and retries are driven by a simulated clock,
against the continuous-batching model of `scaleinfer.testing`.

```python
from scaleinfer.simulate import simulate
from scaleinfer.testing import Batching

forecast = simulate(20_000, server=Batching(slots=64, step_s=0.02), answer_tokens=(150, 0.5))
print(forecast)
```
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Literal

from scaleinfer._simulate_fleet import Fleet, FleetTrace, Leases, Pace
from scaleinfer._simulate_forecast import EndpointForecast, Forecast, TimelinePoint
from scaleinfer._simulate_process import Process
from scaleinfer._simulate_settings import (
    EndpointModel,
    Price,
    Spread,
    Workload,
    check_spread,
    mean_of,
)
from scaleinfer._simulate_steady import Steady, bottleneck, mean_use, steady_part, timeline
from scaleinfer.engine import Concurrency, Retry
from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaleinfer._simulate_process import Trace
    from scaleinfer.testing import Batching

__all__ = ["EndpointForecast", "EndpointModel", "Forecast", "Price", "TimelinePoint", "simulate"]

_MESSAGE_BYTES = 1 << 20
_BYTES_PER_TOKEN = 4
_BYTES_PER_ITEM = 200
_COORDINATOR_BUSY = 0.25
_COORDINATOR_BUSY_AT_END = 0.5
_LEAST_SHARE = 16
_LEAST_LEASE = 16
_LEASES_EACH = 8
_KINDS = 8
_MARGIN = 1.3


def simulate(
    items: int,
    *,
    prompt_tokens: Spread = 400,
    answer_tokens: Spread = 150,
    endpoints: Sequence[EndpointModel] | None = None,
    server: Batching | None = None,
    workers: int | None = None,
    concurrency: Literal["auto"] | int | Concurrency = "auto",
    price: Price | None = None,
    worker_start_s: Spread = 0.0,
    worker_speed_cv: float = 0.0,
    lease_items: Literal["auto"] | int = "auto",
    lease_overhead_s: float = 0.002,
    exchange_s: float = 0.01,
    client_us_per_item: float = 250.0,
    retry: Retry | None = None,
    seed: int = 0,
    exact_items: int = 200_000,
) -> Forecast:
    """Forecast a run of `parallel_map`, by one process or by a fleet of workers.

    Without `workers`, one process drives all endpoints. With them, each worker is a process
    that drives endpoints of its own (one, unless `endpoints` names several) and pulls leases
    of items from one coordinator.

    Args:
        items: Items in all.
        prompt_tokens: Tokens of a prompt: a number, or `(mean, cv)` for a log-normal spread.
        answer_tokens: Tokens of an answer, likewise.
        endpoints: The endpoints of one process.
        server: Short for one endpoint that batches like this.
        workers: Workers in the fleet; `None` for one process without a fleet.
        concurrency: Calls in flight at each endpoint, as for `parallel_map`.
        price: What tokens and nodes cost.
        worker_start_s: Seconds until a worker can take items (its model is loaded), a number
            or `(mean, cv)`.
        worker_speed_cv: Coefficient of variation of the workers' speed; 0: all are alike.
        lease_items: Items in a lease, fewer towards the end. "auto": as many as keep the
            coordinator's core a quarter busy, below a message of 1 MiB and an eighth of a
            worker's share.
        lease_overhead_s: Seconds of the coordinator's core for one lease; an Academy exchange
            carries 350 to 580 messages a second.
        exchange_s: Seconds that a worker's question and its answer take on their way.
        client_us_per_item: Microseconds of a client process's core for one item; measure yours
            with `tests/benchmarks/bench_simulate.py`.
        retry: The rules for trying again, for endpoints with an `error_rate`.
        seed: Another seed, other lengths, errors and delays.
        exact_items: Items to simulate one by one at most; beyond that the forecast is
            extrapolated at the steady pace.

    Raises:
        ConfigError: A value that cannot be.
    """
    if endpoints is not None and server is not None:
        raise ConfigError("simulate: give either endpoints= or server=, not both.")
    models = list(endpoints) if endpoints is not None else [_one(server)]
    work = Workload(
        prompt_tokens,
        answer_tokens,
        None if concurrency == "auto" else concurrency,
        client_us_per_item / 1e6,
        retry or Retry(),
        known_end=workers is None,
    )
    _check(items, models, work, workers, exact_items)
    if workers is None:
        trace = Process(models, work, seed=f"{seed} 0").run(min(items, exact_items))
        made = _Made(items, work, price or Price(), [trace], [steady_part(trace, models)])
        return made.by_process()
    check_spread("worker_start_s", worker_start_s, least=0)
    for name, value in (
        ("worker_speed_cv", worker_speed_cv),
        ("lease_overhead_s", lease_overhead_s),
        ("exchange_s", exchange_s),
    ):
        check_spread(name, value, least=0)
    if lease_items != "auto" and lease_items < 1:
        raise ConfigError(f"simulate: lease_items must be at least 1, not {lease_items}.")
    kinds = min(workers, _KINDS, exact_items)
    each = _items_each(items, workers, exact_items // kinds)
    # All other workers are like one of these; none of these ever lacks items.
    traces = [Process(models, work, seed=f"{seed} {kind}").run(each) for kind in range(kinds)]
    steady = [steady_part(trace, models) for trace in traces]
    paces = [Pace(trace, part.items_per_s) for trace, part in zip(traces, steady, strict=True)]
    rate = workers * fmean(part.items_per_s for part in steady)
    if lease_items == "auto":
        lease_items = _lease(items, workers, rate, lease_overhead_s, mean_of(prompt_tokens))
    bearable = math.ceil(rate * lease_overhead_s / _COORDINATOR_BUSY_AT_END)
    least = min(lease_items, max(lease_items // _LEAST_SHARE, bearable, 1))
    leases = Leases(lease_items, least, lease_overhead_s, exchange_s)
    fleet = Fleet(
        paces, workers, leases, start_s=worker_start_s, speed_cv=worker_speed_cv, seed=seed
    )
    made = _Made(items, work, price or Price(), traces, steady)
    return made.by_fleet(fleet.run(items), workers, lease_items, mean_of(worker_start_s))


def _one(server: Batching | None) -> EndpointModel:
    return EndpointModel() if server is None else EndpointModel(server=server)


def _check(
    items: int,
    models: Sequence[EndpointModel],
    work: Workload,
    workers: int | None,
    exact_items: int,
) -> None:
    for name, number in (("items", items), ("workers", workers), ("exact_items", exact_items)):
        if number is not None and number < 1:
            raise ConfigError(f"simulate: {name} must be at least 1, not {number}.")
    if not models:
        raise ConfigError("simulate: endpoints= is empty; name at least one.")
    concurrency = work.concurrency
    known = concurrency is None or isinstance(concurrency, int | Concurrency)
    if not known or (isinstance(concurrency, int) and concurrency < 1):
        raise ConfigError(
            f"concurrency must be 'auto', a positive integer or a Concurrency, not {concurrency!r}."
        )
    check_spread("prompt_tokens", work.prompt_tokens, least=1)
    check_spread("answer_tokens", work.answer_tokens, least=1)
    check_spread("client_us_per_item", work.client_s * 1e6, least=0)


def _items_each(items: int, workers: int, most: int) -> int:
    # Some workers get more than their share.
    return min(items, math.ceil(_MARGIN * items / workers), most)


def _lease(items: int, workers: int, rate: float, overhead_s: float, prompt_tokens: float) -> int:
    message = _MESSAGE_BYTES / (_BYTES_PER_TOKEN * prompt_tokens + _BYTES_PER_ITEM)
    share = items / workers / _LEASES_EACH
    wanted = max(rate * overhead_s / _COORDINATOR_BUSY, _LEAST_LEASE)
    return max(1, math.ceil(min(wanted, message, max(share, 1))))


@dataclass(frozen=True, slots=True)
class _Made:
    """Turns what was simulated into a forecast."""

    items: int
    work: Workload
    price: Price
    traces: list[Trace]
    steady: list[Steady]

    def by_process(self) -> Forecast:
        trace, steady, items = self.traces[0], self.steady[0], self.items
        rate, simulated = steady.items_per_s, len(trace.done)
        beyond = (items - simulated) / rate if not trace.stopped else 0.0
        makespan = trace.end.at + beyond
        # What was not simulated lies in the middle of the run.
        cut = trace.begin.at if beyond else math.inf
        spans = [(at + beyond, at + beyond, 1) if at > cut else (at, at, 1) for at in trace.done]
        if beyond:
            spans.append((cut, cut + beyond, items - simulated))
        return self._forecast(
            makespan, rate, steady.ramp_up_s, steady.use, timeline(spans, makespan)
        )

    def by_fleet(self, fleet: FleetTrace, workers: int, lease: int, start_s: float) -> Forecast:
        makespan = max([*fleet.ends, *(end for _, end, _ in fleet.spans)])
        points = timeline(fleet.spans, makespan)
        rate, ramp_up = _fleet_pace(points, fleet.dry, self.items, makespan, start_s)
        use = mean_use(self.steady) | {"coordinator": fleet.coordinator}
        return self._forecast(
            makespan, rate, ramp_up, use, points, workers=workers, lease_items=lease
        )

    def _forecast(
        self,
        makespan: float,
        rate: float,
        ramp_up: float,
        use: dict[str, float],
        points: tuple[TimelinePoint, ...],
        *,
        workers: int | None = None,
        lease_items: int | None = None,
    ) -> Forecast:
        simulated = sum(len(trace.done) for trace in self.traces)
        scale = self.items / simulated
        prompt = round(sum(trace.prompt_tokens for trace in self.traces) * scale)
        answer = round(sum(trace.answer_tokens for trace in self.traces) * scale)
        node_hours = None if workers is None else workers * makespan / 3600
        steady_s = self.items / rate
        ramp_up = min(ramp_up, max(makespan - steady_s, 0.0))
        tail = max(makespan - steady_s - ramp_up, 0.0)
        price = self.price
        cost = None
        if price != Price():
            cost = (prompt * price.prompt + answer * price.answer) / 1e6
            cost += (node_hours or 0.0) * price.node_hour
        return Forecast(
            items=self.items,
            makespan_s=makespan,
            items_per_s=self.items / makespan,
            steady_items_per_s=rate,
            ramp_up_s=ramp_up,
            tail_s=tail,
            prompt_tokens=prompt,
            answer_tokens=answer,
            cost_usd=cost,
            node_hours=node_hours,
            bottleneck=bottleneck(
                use,
                capped=self.steady[0].capped,
                ramp_up_s=ramp_up,
                steady_s=steady_s,
                tail_s=tail,
            ),
            utilisation=use,
            endpoints=self.steady[0].endpoints,
            timeline=points,
            workers=workers,
            lease_items=lease_items,
            simulated_items=min(simulated, self.items),
            failed=round(sum(trace.failed for trace in self.traces) * scale),
            warnings=tuple(self._warnings()),
        )

    def _warnings(self) -> list[str]:
        found = []
        stopped = next((trace.stopped for trace in self.traces if trace.stopped), "")
        if stopped:
            found.append(f"the run would stop: {stopped}")
        longest, timeout = max(trace.longest_s for trace in self.traces), self.work.retry.timeout
        if timeout is not None and longest > timeout:
            found.append(
                f"calls take up to {longest:,.0f} s; the real run gives a call up after "
                f"{timeout:,.0f} s (Retry.timeout)"
            )
        return found


def _fleet_pace(
    points: Sequence[TimelinePoint], dry: float, items: int, makespan: float, start_s: float
) -> tuple[float, float]:
    """Return items a second in a fleet's steady part, and the seconds lost before it."""
    early = next(i for i, point in enumerate(points) if point.done >= 0.4 * items)
    late = max((i for i, point in enumerate(points) if point.at_s <= dry), default=0)
    first, last = points[early], points[late]
    if late > early and last.done - first.done >= 0.05 * items:
        rate = (last.done - first.done) / (last.at_s - first.at_s)
        return rate, max(first.at_s - first.done / rate, 0.0)
    # Each worker had a lease or two: there is no steady part.
    start = min(start_s, 0.99 * makespan)
    return items / (makespan - start), start
