"""What runs tell OpenTelemetry, Prometheus and the log; and that none of it slows them."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from scaleinfer import ConfigError, Retry, parallel_map
from scaleinfer.observe import JsonFormatter, Telemetry, configure, metrics_url
from scaleinfer.testing import Fault, SimulatedServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

pytestmark = pytest.mark.anyio

SECRET = "the formula of "
ITEMS = [f"{SECRET}{number};" for number in range(60)]
QUIET: dict[str, Any] = {"progress": False, "retry": Retry(initial=0.01, maximum=0.02)}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # A process can set its provider only once.
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter
    configure(None)
    provider.shutdown()


@pytest.fixture
def meters(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    from opentelemetry import metrics
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    monkeypatch.setattr(metrics, "get_meter", provider.get_meter)
    yield reader
    configure(None)
    provider.shutdown()


@pytest.fixture
def prometheus() -> Iterator[None]:
    yield
    configure(None)


async def mapped(items: list[str] = ITEMS, **options: Any) -> Any:
    faults = [Fault.status(503, first=1, match="of 7;"), Fault.status(400, match="of 9;")]
    async with SimulatedServer(faults=faults) as server:
        return await parallel_map(
            items, "Is {} known?", base_url=server.base_url, name="molecules",
            sampling={"temperature": 0.5, "max_tokens": 16}, **QUIET | options,
        )  # fmt: skip


def by_item(finished: tuple[ReadableSpan, ...]) -> dict[Any, list[ReadableSpan]]:
    found: dict[Any, list[ReadableSpan]] = {}
    for span in finished:
        found.setdefault((span.attributes or {}).get("scaleinfer.item.index"), []).append(span)
    return found


async def test_each_call_is_a_span_below_its_run(spans: InMemorySpanExporter) -> None:
    configure(Telemetry(spans=1.0))
    results = await mapped()
    finished = spans.get_finished_spans()
    items = by_item(finished)
    [run] = items.pop(None)
    assert run.name == "map molecules"
    assert dict(run.attributes or {})["scaleinfer.items.failed"] == 1
    assert set(items) == set(range(60))
    assert len(finished) == results.stats.calls + 1
    for span in finished:
        if span is run:
            continue
        assert span.name == "chat sim-model"
        assert span.kind.name == "CLIENT"
        assert run.context is not None
        assert span.parent is not None
        assert span.parent.span_id == run.context.span_id
        assert (span.end_time or 0) >= (span.start_time or 0) > 0
    said = dict(items[3][0].attributes or {})
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "sim-model",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 16,
        "gen_ai.response.model": "sim-model",
        "gen_ai.usage.input_tokens": results[3].usage.prompt_tokens,
        "gen_ai.usage.output_tokens": results[3].usage.completion_tokens,
        "server.address": "127.0.0.1",
        "scaleinfer.attempt": 1,
    }
    assert {name: said.get(name) for name in expected} == expected
    first, second = items[7]
    assert dict(first.attributes or {})["error.type"] == "503"
    assert first.status.status_code.name == "ERROR"
    assert "error.type" not in dict(second.attributes or {})
    assert SECRET not in "".join(span.to_json() for span in finished)


async def test_spans_are_sampled_by_item(spans: InMemorySpanExporter) -> None:
    configure(Telemetry(spans=0.2))
    await mapped([f"of {number};" for number in range(500)])
    items = by_item(spans.get_finished_spans())
    assert 50 <= len(items) <= 150
    assert None in items


def points(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    data = reader.get_metrics_data()
    assert data is not None
    return {
        metric.name: list(metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


async def test_metrics_follow_the_conventions(meters: InMemoryMetricReader) -> None:
    configure(Telemetry(metrics=True))
    results = await mapped()
    found = points(meters)
    durations = found["gen_ai.client.operation.duration"]
    assert sum(point.count for point in durations) == results.stats.calls == 61
    assert {point.attributes.get("error.type") for point in durations} == {None, "503", "400"}
    assert durations[0].explicit_bounds[0] == 0.01
    tokens = {p.attributes["gen_ai.token.type"]: p for p in found["gen_ai.client.token.usage"]}
    assert tokens["input"].sum == results.stats.usage.prompt_tokens
    assert tokens["output"].sum == results.stats.usage.completion_tokens
    assert sum(point.value for point in found["scaleinfer.calls"]) == 61
    items = {p.attributes["scaleinfer.result"]: p.value for p in found["scaleinfer.items"]}
    assert items == {"ok": 59, "failed": 1}


async def test_counters_are_exact_where_histograms_are_thinned(
    meters: InMemoryMetricReader,
) -> None:
    configure(Telemetry(metrics=True))
    await mapped([f"of {number};" for number in range(1000)])
    found = points(meters)
    assert sum(point.value for point in found["scaleinfer.calls"]) == 1001
    assert sum(point.count for point in found["gen_ai.client.operation.duration"]) <= 1001


async def scraped() -> dict[str, float]:
    url = metrics_url()
    assert url is not None
    assert url.startswith("http://127.0.0.1:")
    text = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def total(samples: dict[str, float], name: str, *labels: str) -> float:
    return sum(
        value
        for sample, value in samples.items()
        if sample.startswith(name + "{") and all(label in sample for label in labels)
    )


@pytest.mark.usefixtures("prometheus")
async def test_prometheus_sees_every_run_of_the_process() -> None:
    configure(Telemetry(prometheus=0))
    results = await mapped()
    await mapped()
    samples = await scraped()
    duration, usage = "gen_ai_client_operation_duration_seconds", "gen_ai_client_token_usage"
    assert total(samples, f"{duration}_count") == 122
    assert total(samples, f"{duration}_bucket", 'le="+Inf"') == 122
    assert total(samples, f"{duration}_count", 'error_type="400"') == 2
    completion = results.stats.usage.completion_tokens
    assert total(samples, f"{usage}_sum", 'type="output"') == 2 * completion
    assert samples['scaleinfer_items_total{result="ok",run="molecules"}'] == 118
    assert samples['scaleinfer_calls_in_flight{run="molecules"}'] == 0
    taken = int((metrics_url() or "").split(":")[2].removesuffix("/metrics"))
    with pytest.raises(ConfigError, match="cannot listen"):
        configure(Telemetry(prometheus=taken, logs=True))
    configure(None)
    assert metrics_url() is None


async def test_the_variable_configures_a_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "scaleinfer")
    monkeypatch.setattr("scaleinfer.observe.telemetry._Process.read_variable", False)
    monkeypatch.setenv("SCALEINFER_TELEMETRY", "logs,nonsense=1")
    with pytest.raises(ConfigError, match="nonsense"):
        await mapped()
    monkeypatch.setenv("SCALEINFER_TELEMETRY", "logs")
    results = await mapped()
    configure(None)
    calls = [vars(record) for record in caplog.records if record.name == "scaleinfer.calls"]
    assert sorted((call["item"], call["http_status"]) for call in calls) == [(7, 503), (9, 400)]
    assert {call["run"] for call in calls} == {calls[0]["run"]}
    assert calls[0]["key"] in {results[7].key, results[9].key}
    assert SECRET not in "".join(JsonFormatter().format(record) for record in caplog.records)


@pytest.mark.alone
@pytest.mark.usefixtures("spans", "prometheus")
async def test_a_storm_of_errors_with_everything_on_does_not_hold_the_loop(
    tmp_path: Path,
    meters: InMemoryMetricReader,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    configure(Telemetry(spans=0.01, metrics=True, prometheus=0, logs=True, error_texts=True))
    handler = logging.FileHandler(tmp_path / "calls.log")
    handler.setFormatter(JsonFormatter())
    log = logging.getLogger("scaleinfer")
    log.addHandler(handler)
    monkeypatch.setattr(log, "propagate", False)
    caplog.set_level(logging.INFO, "scaleinfer")
    late: list[float] = []

    async def watch() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            late.append(time.monotonic() - before - 0.01)

    try:
        with SimulatedServer(faults=[Fault.status(400)], ledger="counts").in_process() as server:
            watching = asyncio.create_task(watch())
            results = await parallel_map(
                range(4000),
                "{}",
                base_url=server.base_url,
                retry=Retry(stop_after=None),
                progress="log",
                journal=tmp_path / "run.db",
                concurrency=32,
            )
            watching.cancel()
            samples = await scraped()
    finally:
        log.removeHandler(handler)
        handler.close()
    assert results.stats.failed == 4000
    assert total(samples, "gen_ai_client_operation_duration_seconds_count") == 4000
    assert sum(point.value for point in points(meters)["scaleinfer.calls"]) == 4000
    lines = [json.loads(line) for line in (tmp_path / "calls.log").read_text().splitlines()]
    calls = [line for line in lines if line["logger"] == "scaleinfer.calls"]
    left_out = sum(line.get("left_out", 0) for line in lines)
    assert len(calls) + left_out == 4000
    assert sorted(late)[int(len(late) * 0.99)] < 0.5  # 0.05 on a machine of one's own
