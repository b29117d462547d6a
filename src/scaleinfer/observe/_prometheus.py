"""A Prometheus endpoint on this machine, with the names OpenTelemetry's metrics get there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scaleinfer.errors import ConfigError
from scaleinfer.observe._sinks import SECONDS, TOKENS, error_type, operation, server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaleinfer.observe._record import Place
    from scaleinfer.observe._sinks import RunFacts
    from scaleinfer.observe._snapshot import Snapshot
    from scaleinfer.requests import Request
    from scaleinfer.results import Attempt

__all__ = ["Exposition"]

_HOST = "127.0.0.1"
_CALL = (
    "gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "server_address",
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
        self.duration = client.Histogram(
            "gen_ai_client_operation_duration_seconds", "Duration of a call.",
            (*_CALL, "error_type"), buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.usage = client.Histogram(
            "gen_ai_client_token_usage", "Tokens of a call.",
            (*_CALL, "gen_ai_token_type"), buckets=TOKENS, registry=registry,
        )  # fmt: skip
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


class RunMetrics:
    """One run's part of the process's metrics.

    Args:
        exposition: The process's.
        facts: The run.
    """

    def __init__(self, exposition: Exposition, facts: RunFacts) -> None:
        self._exposition = exposition
        self._facts = facts
        # Looking a child up by its labels costs more than to count; these are few.
        self._children: dict[tuple[str, str | None, str | None, str], Any] = {}
        self._before: dict[str, float] = {}
        self._limits: set[str] = set()

    def attempted(self, index: int, key: str, request: Request, attempt: Attempt) -> None:
        """Count a call that has ended."""
        kind = (attempt.endpoint, request.model, error_type(attempt), operation(request))
        children = self._children.get(kind)
        if children is None:
            children = self._children[kind] = self._labelled(*kind)
        duration, prompt, completion = children
        duration.observe(attempt.latency_s)
        if attempt.status == "ok":
            prompt.observe(attempt.prompt_tokens)
            completion.observe(attempt.completion_tokens)

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

    def _labelled(self, endpoint: str, model: str | None, error: str | None, what: str) -> Any:
        to = self._exposition
        model = model or self._facts.model or ""
        labels = (what, self._facts.provider, model, server(endpoint)[0])
        tokens = [to.usage.labels(*labels, kind) for kind in ("input", "output")]
        return to.duration.labels(*labels, error or ""), *tokens
