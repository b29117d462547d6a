"""OpenTelemetry spans and metrics by the semantic conventions for generative AI.

Spans and metrics go to the providers that the process has set (`opentelemetry-instrument`, or
`set_tracer_provider`); without any they go nowhere.
Conventions: https://opentelemetry.io/docs/specs/semconv/gen-ai/
"""

from __future__ import annotations

import time
from importlib.util import find_spec
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

__all__ = ["Metrics", "Spans", "require"]

_SCOPE = "scaleinfer"
_NS = 10**9
_A_SECOND = 100
_SPREAD = 2654435761
_WORD = 2**32


def require() -> None:
    """Make sure that OpenTelemetry is there.

    Raises:
        ConfigError: It is not.
    """
    if find_spec("opentelemetry") is None:
        raise ConfigError(
            "spans and metrics need OpenTelemetry.", hint="Run: pip install 'scaleinfer[otel]'"
        )


class Spans:
    """A span for the run, and below it one for each call of a share of the items.

    Args:
        facts: The run.
        share: Of the items, 0 to 1; an item's calls are all there, or none.
        error_texts: True to keep the messages of errors.
    """

    def __init__(self, facts: RunFacts, share: float, *, error_texts: bool = False) -> None:
        from opentelemetry import trace

        self._facts = facts
        self._below = share * _WORD
        self._error_texts = error_texts
        self._tracer = trace.get_tracer(_SCOPE)
        attributes: dict[str, Any] = {
            "scaleinfer.run.id": facts.id,
            "gen_ai.provider.name": facts.provider,
        }
        if facts.name:
            attributes["scaleinfer.run.name"] = facts.name
        if facts.items is not None:
            attributes["scaleinfer.items"] = facts.items
        if facts.journal_run is not None:
            attributes["scaleinfer.journal.run"] = facts.journal_run
        name = f"map {facts.name}" if facts.name else "map"
        self._span = self._tracer.start_span(name, attributes=attributes)
        self._context = trace.set_span_in_context(self._span)
        self._client = trace.SpanKind.CLIENT
        self._failed = trace.StatusCode.ERROR

    def attempted(self, index: int, key: str, request: Request, attempt: Attempt) -> None:
        """Make a span of a call that has ended."""
        if (index * _SPREAD) % _WORD >= self._below:
            return
        what = operation(request)
        model = request.model or self._facts.model
        started = int(attempt.started * _NS)
        span = self._tracer.start_span(
            f"{what} {model}" if model else what,
            self._context,
            self._client,
            self._attributes(what, model, index, request, attempt),
            start_time=started,
        )
        if attempt.status != "ok":
            span.set_status(self._failed, attempt.error if self._error_texts else None)
        span.end(started + int(attempt.latency_s * _NS))

    def tick(self, snapshot: Snapshot, places: Sequence[Place]) -> None:
        """Do nothing: spans know their own times."""

    def close(self, snapshot: Snapshot, stopped: str) -> None:
        """End the run's span."""
        self._span.set_attributes(
            {
                "scaleinfer.items.ok": snapshot.ok,
                "scaleinfer.items.failed": snapshot.failed,
                "scaleinfer.items.resumed": snapshot.resumed,
            }
        )
        if stopped:
            self._span.set_status(self._failed, stopped if self._error_texts else "stopped")
        self._span.end()

    def _attributes(
        self, what: str, model: str | None, index: int, request: Request, attempt: Attempt
    ) -> dict[str, Any]:
        host, port = server(attempt.endpoint)
        sampling = request.sampling
        found = {
            "gen_ai.operation.name": what,
            "gen_ai.provider.name": self._facts.provider,
            "gen_ai.request.model": model,
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.request.max_tokens": sampling.max_tokens,
            "gen_ai.request.top_p": sampling.top_p,
            "gen_ai.request.seed": sampling.seed,
            "gen_ai.request.choice.count": sampling.n,
            "gen_ai.response.model": attempt.model,
            "gen_ai.usage.input_tokens": attempt.prompt_tokens or None,
            "gen_ai.usage.output_tokens": attempt.completion_tokens or None,
            "gen_ai.usage.cache_read.input_tokens": attempt.cached_tokens or None,
            "server.address": host,
            "server.port": port,
            "error.type": error_type(attempt),
            "scaleinfer.run.id": self._facts.id,
            "scaleinfer.item.index": index,
            "scaleinfer.attempt": attempt.number,
            "scaleinfer.cost_usd": attempt.cost_usd,
        }
        return {name: value for name, value in found.items() if value is not None}


class Metrics:
    """Durations and tokens of calls, and where the run stands.

    A value in a histogram costs 20 us of CPU. So of more than 100 calls a second the histograms
    take 100; the counters take all of them.

    Args:
        facts: The run.
    """

    def __init__(self, facts: RunFacts) -> None:
        from opentelemetry import metrics

        meter = metrics.get_meter(_SCOPE)
        self._facts = facts
        self._kinds: dict[tuple[str, str | None, str | None, str], _Kind] = {}
        self._second = 0.0
        self._taken = 0
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration", "s", "Duration of a call.",
            explicit_bucket_boundaries_advisory=SECONDS,
        )  # fmt: skip
        self._usage = meter.create_histogram(
            "gen_ai.client.token.usage", "{token}", "Tokens of a call.",
            explicit_bucket_boundaries_advisory=TOKENS,
        )  # fmt: skip
        self._calls = meter.create_counter("scaleinfer.calls", "{call}", "Calls that have ended.")
        self._tokens = meter.create_counter("scaleinfer.tokens", "{token}", "Tokens of all calls.")
        self._items = meter.create_counter("scaleinfer.items", "{item}", "Items with a result.")
        self._cost = meter.create_counter("scaleinfer.cost", "USD", "What calls cost.")
        self._in_flight = meter.create_gauge("scaleinfer.calls.in_flight", "{call}")
        self._limit = meter.create_gauge("scaleinfer.calls.limit", "{call}")
        self._run = {"scaleinfer.run.name": facts.name}
        self._before: dict[str, float] = {}

    def attempted(self, index: int, key: str, request: Request, attempt: Attempt) -> None:
        """Count a call that has ended."""
        what = operation(request)
        kind = (attempt.endpoint, attempt.model, error_type(attempt), what)
        known = self._kinds.get(kind)
        if known is None:
            known = self._kinds[kind] = _Kind(self._labels(what, request, attempt))
        known.calls += 1
        known.prompt += attempt.prompt_tokens
        known.completion += attempt.completion_tokens
        now = time.monotonic()
        if now - self._second >= 1.0:
            self._second, self._taken = now, 0
        self._taken += 1
        if self._taken > _A_SECOND:
            return
        self._duration.record(attempt.latency_s, known.labels)
        if attempt.status == "ok":
            self._usage.record(attempt.prompt_tokens, known.input)
            self._usage.record(attempt.completion_tokens, known.output)

    def tick(self, snapshot: Snapshot, places: Sequence[Place]) -> None:
        """Tell where the run stands."""
        for kind in self._kinds.values():
            if kind.calls:
                self._calls.add(kind.calls, kind.labels)
                self._tokens.add(kind.prompt, kind.input)
                self._tokens.add(kind.completion, kind.output)
                kind.calls = kind.prompt = kind.completion = 0
        resumed = snapshot.resumed
        fresh = {"ok": snapshot.ok - resumed, "failed": snapshot.failed, "resumed": resumed}
        for result, number in fresh.items():
            more = number - self._before.get(result, 0)
            if more > 0:
                self._items.add(more, self._run | {"scaleinfer.result": result})
                self._before[result] = number
        spent = (snapshot.cost_usd or 0.0) - self._before.get("cost", 0.0)
        if spent > 0:
            self._cost.add(spent, self._run)
            self._before["cost"] = snapshot.cost_usd or 0.0
        self._in_flight.set(snapshot.in_flight, self._run)
        if snapshot.limit is not None:
            self._limit.set(snapshot.limit, self._run)

    def close(self, snapshot: Snapshot, stopped: str) -> None:
        """Tell how the run ended."""
        self.tick(snapshot, ())

    def _labels(self, what: str, request: Request, attempt: Attempt) -> dict[str, Any]:
        host, port = server(attempt.endpoint)
        found = {
            "gen_ai.operation.name": what,
            "gen_ai.provider.name": self._facts.provider,
            "gen_ai.request.model": request.model or self._facts.model,
            "gen_ai.response.model": attempt.model,
            "server.address": host,
            "server.port": port,
            "error.type": error_type(attempt),
        }
        return {name: value for name, value in found.items() if value is not None}


class _Kind:
    """Calls of one kind since the last tick, and what OpenTelemetry is told of them."""

    __slots__ = ("calls", "completion", "input", "labels", "output", "prompt")

    def __init__(self, labels: dict[str, Any]) -> None:
        self.calls = self.prompt = self.completion = 0
        self.labels = labels
        self.input = labels | {"gen_ai.token.type": "input"}
        self.output = labels | {"gen_ai.token.type": "output"}
