"""A Prometheus endpoint on this machine, with the names OpenTelemetry's metrics get there."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from scaleinfer.errors import ConfigError
from scaleinfer.observe._sinks import SECONDS, TOKENS, error_type, operation, server

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scaleinfer.observe._record import Place
    from scaleinfer.observe._sinks import RunFacts
    from scaleinfer.observe._snapshot import Snapshot
    from scaleinfer.requests import Request
    from scaleinfer.results import Attempt

__all__ = ["Exposition"]

_HOST = "127.0.0.1"
_CALL = (
    "gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "server_address",
    "server_port",
)  # fmt: skip


class Exposition:
    """The process's metrics, and the server that shows them.

    Args:
        port: Where it listens; 0 for a free one.

    Attributes:
        url: Its address.

    Raises:
        ConfigError: `prometheus_client` is not installed, or the port is taken.
    """

    def __init__(self, port: int) -> None:
        try:
            import prometheus_client as client
        except ImportError as error:
            raise ConfigError(
                "a Prometheus endpoint needs prometheus_client.",
                hint="Run: pip install 'scaleinfer[otel]'",
            ) from error
        registry = client.CollectorRegistry()
        self.calls = _Calls()
        registry.register(self.calls)
        self.items = client.Counter(
            "scaleinfer_items", "Items with a result.", ("run", "result"), registry=registry
        )
        self.cost = client.Counter(
            "scaleinfer_cost_usd", "What calls cost.", ("run",), registry=registry
        )
        self.in_flight = client.Gauge(
            "scaleinfer_calls_in_flight", "Calls being made.", ("run",), registry=registry
        )
        self.total = client.Gauge(
            "scaleinfer_items_to_do", "Items there are.", ("run",), registry=registry
        )
        self.limit = client.Gauge(
            "scaleinfer_calls_limit", "Calls that may be in flight.", ("run", "endpoint"),
            registry=registry,
        )  # fmt: skip
        try:
            self._server, self._thread = client.start_http_server(port, _HOST, registry)
        except OSError as error:
            raise ConfigError(
                f"the Prometheus endpoint cannot listen on {_HOST}:{port}: {error.strerror}.",
                hint="Choose another port; 0 takes a free one.",
            ) from error
        self.url = f"http://{_HOST}:{self._server.server_port}/metrics"

    def sink(self, facts: RunFacts) -> RunMetrics:
        """Return what is told of a run."""
        return RunMetrics(self, facts)

    def close(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Buckets:
    """How values are spread over buckets."""

    __slots__ = ("bounds", "numbers", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.numbers = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.numbers[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        names = [*(f"{float(bound)}" for bound in self.bounds), "+Inf"]
        return list(zip(names, accumulate(map(float, self.numbers)), strict=True))


class _Kind:
    """Calls of one kind."""

    __slots__ = ("completion", "prompt", "seconds")

    def __init__(self) -> None:
        self.seconds = _Buckets(SECONDS)
        self.prompt = _Buckets(TOKENS)
        self.completion = _Buckets(TOKENS)


class _Calls:
    """All calls of the process by kind: counted here, and made into metrics when asked for.

    The package's own histograms cost 2 us a value; there are three to a call.
    """

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, ...], _Kind] = {}

    def kind(self, labels: tuple[str, ...]) -> _Kind:
        """Return the calls with these labels, the last of them the error's type."""
        return self._kinds.setdefault(labels, _Kind())

    def collect(self) -> Iterator[Any]:
        """Yield the metrics; called by the package, in its own thread."""
        from prometheus_client.core import HistogramMetricFamily

        duration = HistogramMetricFamily(
            "gen_ai_client_operation_duration_seconds", "Duration of a call.",
            labels=(*_CALL, "error_type"),
        )  # fmt: skip
        usage = HistogramMetricFamily(
            "gen_ai_client_token_usage", "Tokens of a call.", labels=(*_CALL, "gen_ai_token_type")
        )
        for labels, kind in list(self._kinds.items()):
            duration.add_metric(labels, kind.seconds.cumulative(), kind.seconds.total)
            if not labels[-1]:
                call = labels[:-1]
                for name, tokens in (("input", kind.prompt), ("output", kind.completion)):
                    usage.add_metric((*call, name), tokens.cumulative(), tokens.total)
        yield duration
        yield usage


class RunMetrics:
    """One run's part of the process's metrics.

    Args:
        exposition: The process's.
        facts: The run.
    """

    def __init__(self, exposition: Exposition, facts: RunFacts) -> None:
        self._exposition = exposition
        self._facts = facts
        self._kinds: dict[tuple[str, str | None, str | None, str], _Kind] = {}
        self._before: dict[str, float] = {}
        self._limits: set[str] = set()

    def attempted(self, index: int, key: str, request: Request, attempt: Attempt) -> None:
        """Count a call that has ended."""
        kind = (attempt.endpoint, request.model, error_type(attempt), operation(request))
        calls = self._kinds.get(kind)
        if calls is None:
            calls = self._kinds[kind] = self._labelled(*kind)
        calls.seconds.add(attempt.latency_s)
        if attempt.status == "ok":
            calls.prompt.add(attempt.prompt_tokens)
            calls.completion.add(attempt.completion_tokens)

    def tick(self, snapshot: Snapshot, places: Sequence[Place]) -> None:
        """Tell where the run stands."""
        to, run = self._exposition, self._facts.name
        resumed = snapshot.resumed
        fresh = {"ok": snapshot.ok - resumed, "failed": snapshot.failed, "resumed": resumed}
        for result, number in fresh.items():
            more = number - self._before.get(result, 0)
            if more > 0:
                to.items.labels(run, result).inc(more)
                self._before[result] = number
        spent = (snapshot.cost_usd or 0.0) - self._before.get("cost", 0.0)
        if spent > 0:
            to.cost.labels(run).inc(spent)
            self._before["cost"] = snapshot.cost_usd or 0.0
        to.in_flight.labels(run).set(snapshot.in_flight)
        if snapshot.total is not None:
            to.total.labels(run).set(snapshot.total)
        for place in places:
            to.limit.labels(run, place.endpoint).set(place.limit)
            self._limits.add(place.endpoint)

    def close(self, snapshot: Snapshot, stopped: str) -> None:
        """Tell how the run ended, and take away what holds only while it goes on."""
        self.tick(snapshot, ())
        to, run = self._exposition, self._facts.name
        to.in_flight.labels(run).set(0)
        for endpoint in self._limits:
            to.limit.remove(run, endpoint)

    def _labelled(self, endpoint: str, model: str | None, error: str | None, what: str) -> _Kind:
        model = model or self._facts.model or ""
        host, port = server(endpoint)
        where = (host, "" if port is None else str(port))
        labels = (what, self._facts.provider, model, *where, error or "")
        return self._exposition.calls.kind(labels)
