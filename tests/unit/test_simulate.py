"""Forecasts of runs whose outcome is known by arithmetic, and what holds for all of them."""

from __future__ import annotations

import asyncio
import json
import math

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from scaleinfer import Concurrency, ConfigError, RateLimit, Retry
from scaleinfer.cli import cli
from scaleinfer.simulate import EndpointModel, Forecast, Price, simulate
from scaleinfer.testing import Batching


def test_waves_of_equal_answers() -> None:
    server = Batching(slots=32, step_s=0.01)
    found = simulate(320, answer_tokens=100, server=server, concurrency=32, client_us_per_item=0)
    assert found.makespan_s == pytest.approx(10 * 1.0)
    assert found.items_per_s == pytest.approx(32)
    assert (found.prompt_tokens, found.answer_tokens, found.tokens) == (128_000, 32_000, 160_000)
    assert found.cost_usd is None
    assert found.node_hours is None
    assert found.simulated_items == 320
    assert found.timeline[-1].done == 320


def test_price() -> None:
    price = Price(prompt=1.0, answer=10.0)
    found = simulate(1_000, prompt_tokens=1_000, answer_tokens=100, price=price)
    assert found.cost_usd == pytest.approx(1.0 + 1.0)


def test_fixed_concurrency_below_the_slots() -> None:
    server = Batching(slots=256, step_s=0.01)
    found = simulate(1_000, answer_tokens=100, server=server, concurrency=10)
    assert found.makespan_s == pytest.approx(100, rel=0.02)
    assert found.bottleneck.startswith("concurrency")
    assert found.utilisation["slots"] == pytest.approx(10 / 256, rel=0.05)


@pytest.mark.parametrize("concurrency", ["auto", Concurrency(start=8), 32])
def test_slots(concurrency: int) -> None:
    server = Batching(slots=20, step_s=0.01)
    found = simulate(4_000, answer_tokens=(100, 0.5), server=server, concurrency=concurrency)
    assert found.bottleneck == "endpoint slots"
    assert found.steady_items_per_s == pytest.approx(20, rel=0.1)
    assert found.endpoints[0].running == pytest.approx(20, rel=0.1)


def test_kv_cache() -> None:
    server = Batching(slots=1_000, step_s=0.01, kv_tokens=20_000)
    found = simulate(2_000, prompt_tokens=400, answer_tokens=100, server=server, concurrency=100)
    assert found.bottleneck.startswith("KV cache")
    assert found.steady_items_per_s == pytest.approx(40, rel=0.05)


def test_prefill() -> None:
    server = Batching(slots=256, step_s=0.01, prefill_tokens_per_s=10_000)
    found = simulate(2_000, prompt_tokens=500, answer_tokens=100, server=server, concurrency=200)
    assert found.bottleneck.startswith("prefill")
    assert found.steady_items_per_s == pytest.approx(20, rel=0.05)


def test_client_process() -> None:
    server = Batching(slots=10_000, step_s=0.001)
    found = simulate(
        20_000, answer_tokens=100, server=server, concurrency=2_000, client_us_per_item=500
    )
    assert found.bottleneck.startswith("client process")
    assert found.steady_items_per_s == pytest.approx(2_000, rel=0.02)
    assert found.utilisation["client"] == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("limit", "per_second"),
    [
        (RateLimit(requests_per_minute=600), 10),
        (RateLimit(tokens_per_minute=330_000), 10),
    ],
)
def test_rate_limit(limit: RateLimit, per_second: float) -> None:
    endpoint = EndpointModel(server=Batching(step_s=0.01), rate_limit=limit)
    found = simulate(2_000, prompt_tokens=400, answer_tokens=150, endpoints=[endpoint])
    assert found.bottleneck == "rate limit"
    assert found.steady_items_per_s == pytest.approx(per_second, rel=0.05)


def test_endpoints_share_by_speed() -> None:
    slow = EndpointModel(name="slow", server=Batching(slots=32, step_s=0.05))
    fast = EndpointModel(name="fast", server=Batching(slots=32, step_s=0.01))
    found = simulate(3_000, answer_tokens=(100, 0.3), endpoints=[slow, fast])
    by_name = {one.name: one for one in found.endpoints}
    ratio = by_name["fast"].items_per_s / by_name["slow"].items_per_s
    assert ratio == pytest.approx(5, rel=0.2)
    assert sum(one.items for one in found.endpoints) == 3_000
    assert found.makespan_s == pytest.approx(3_000 / (32 + 6.4), rel=0.15)


def test_latency_adds_to_every_call() -> None:
    server = Batching(slots=8, step_s=0.01)
    endpoint = EndpointModel(server=server, latency_s=0.5)
    found = simulate(
        80, answer_tokens=50, endpoints=[endpoint], concurrency=8, client_us_per_item=0
    )
    assert found.makespan_s == pytest.approx(10 * 1.0)


def test_errors_are_tried_again() -> None:
    server = Batching(slots=64, step_s=0.001)
    endpoint = EndpointModel(server=server, error_rate=0.1)
    found = simulate(2_000, answer_tokens=100, endpoints=[endpoint], concurrency=64)
    well = simulate(2_000, answer_tokens=100, server=server, concurrency=64)
    assert found.failed == 0
    assert found.answer_tokens == well.answer_tokens == 200_000
    assert found.makespan_s > well.makespan_s


def test_errors_that_end_items() -> None:
    endpoint = EndpointModel(server=Batching(step_s=0.001), error_rate=0.3)
    found = simulate(1_000, endpoints=[endpoint], retry=Retry(attempts=1), concurrency=64)
    assert found.failed == pytest.approx(300, abs=60)
    assert found.timeline[-1].done == 1_000


def test_warns_of_calls_beyond_the_timeout() -> None:
    server = Batching(slots=4, step_s=1.0)
    found = simulate(200, answer_tokens=100, server=server, concurrency=100)
    assert any("Retry.timeout" in warning for warning in found.warnings)


def test_extrapolation_agrees_with_the_exact_run() -> None:
    server = Batching(slots=64, step_s=0.01)
    exact = simulate(20_000, answer_tokens=(100, 0.5), server=server)
    quick = simulate(20_000, answer_tokens=(100, 0.5), server=server, exact_items=4_000)
    assert (exact.simulated_items, quick.simulated_items) == (20_000, 4_000)
    assert quick.makespan_s == pytest.approx(exact.makespan_s, rel=0.03)
    assert quick.tokens == pytest.approx(exact.tokens, rel=0.03)
    assert quick.timeline[-1].done == 20_000


def test_fleet_of_equal_workers() -> None:
    server = Batching(slots=32, step_s=0.01)
    found = simulate(
        64_000, answer_tokens=100, server=server, workers=100, concurrency=32, worker_start_s=60
    )
    # 640 items each: 20 waves of a second.
    assert found.makespan_s == pytest.approx(60 + 20, rel=0.1)
    assert found.node_hours == pytest.approx(100 * found.makespan_s / 3600)
    assert found.ramp_up_s == pytest.approx(60, rel=0.1)
    assert found.bottleneck.startswith("ramp-up")


def test_fleet_of_one_is_like_a_process() -> None:
    server = Batching(slots=32, step_s=0.01)
    alone = simulate(4_000, answer_tokens=(100, 0.5), server=server)
    fleet = simulate(4_000, answer_tokens=(100, 0.5), server=server, workers=1)
    assert fleet.makespan_s == pytest.approx(alone.makespan_s, rel=0.05)


def test_coordinator() -> None:
    found = simulate(200_000, workers=500, lease_items=10, lease_overhead_s=0.01, concurrency=64)
    assert found.bottleneck.startswith("coordinator")
    assert found.steady_items_per_s == pytest.approx(1_000, rel=0.05)
    assert found.lease_items == 10


def test_stragglers_show_in_the_tail() -> None:
    def run(cv: float, lease: int) -> Forecast:
        return simulate(
            100_000,
            answer_tokens=(100, 0.3),
            server=Batching(slots=32, step_s=0.01),
            workers=100,
            concurrency=32,
            worker_speed_cv=cv,
            lease_items=lease,
        )

    alike, unlike, coarse = run(0.0, 50), run(0.3, 50), run(0.3, 500)
    assert alike.makespan_s < unlike.makespan_s < coarse.makespan_s
    assert alike.tail_s < coarse.tail_s


def test_ten_million_items_over_two_thousand_workers_take_few_events() -> None:
    found = simulate(10_000_000, workers=2_000, answer_tokens=(150, 0.5), worker_start_s=(60, 0.2))
    assert found.simulated_items < 100_000
    assert found.timeline[-1].done == 10_000_000
    # 85 items/s each (256 slots, 3 s an answer) at best.
    assert 60 + 59 < found.makespan_s < 2 * (60 + 59)


@settings(max_examples=40, deadline=None)
@given(
    items=st.integers(1, 400),
    prompt=st.floats(1, 500),
    answer=st.floats(1, 200),
    cv=st.sampled_from([0.0, 0.5, 2.0]),
    slots=st.lists(st.integers(1, 64), min_size=1, max_size=12),
    concurrency=st.one_of(st.just("auto"), st.integers(1, 100)),
    workers=st.one_of(st.none(), st.integers(1, 20)),
    errors=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 5),
)
def test_every_item_is_accounted_for(
    *,
    items: int,
    prompt: float,
    answer: float,
    cv: float,
    slots: list[int],
    concurrency: int,
    workers: int | None,
    errors: float,
    seed: int,
) -> None:
    endpoints = [
        EndpointModel(server=Batching(slots=n, step_s=0.01), error_rate=errors) for n in slots
    ]

    def run() -> Forecast:
        return simulate(
            items,
            prompt_tokens=(prompt, cv),
            answer_tokens=(answer, cv),
            endpoints=endpoints,
            concurrency=concurrency,
            workers=workers,
            retry=Retry(initial=0.1),
            seed=seed,
        )

    found = run()
    assert found.timeline[-1].done == items
    assert found.timeline[-1].at_s == pytest.approx(found.makespan_s)
    assert math.isfinite(found.makespan_s)
    assert found.makespan_s > 0
    assert all(0 <= share <= 1 for share in found.utilisation.values())
    # Nobody can be faster than all slots together.
    places = sum(slots) * (workers or 1)
    if workers is None and not found.failed:
        assert found.makespan_s >= found.answer_tokens * 0.01 / places * 0.999
    parts = found.ramp_up_s + items / found.steady_items_per_s + found.tail_s
    assert parts >= found.makespan_s * 0.999
    assert found.to_dict()["items"] == items
    if not errors:  # the jitter of waits is not seeded
        assert run() == found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"items": 0}, "items must be at least 1"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"endpoints": []}, "endpoints= is empty"),
        ({"concurrency": 0}, "concurrency must be"),
        ({"concurrency": "many"}, "concurrency must be"),
        ({"prompt_tokens": 0}, "prompt_tokens must be at least 1"),
        ({"answer_tokens": (10, -1)}, "variation of answer_tokens"),
        ({"client_us_per_item": -1}, "client_us_per_item"),
        ({"workers": 2, "lease_items": 0}, "lease_items must be"),
        ({"workers": 2, "worker_start_s": -1}, "worker_start_s"),
        ({"workers": 2, "lease_overhead_s": math.nan}, "lease_overhead_s"),
        ({"endpoints": [EndpointModel()], "server": Batching()}, "either endpoints= or server="),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate(**({"items": 10} | given))  # type: ignore[arg-type] # wrong on purpose


@pytest.mark.parametrize("wrong", [{"error_rate": 0.9}, {"latency_s": -1.0}])
def test_endpoints_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        EndpointModel(**wrong)  # type: ignore[arg-type] # wrong on purpose


def test_prices_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="node_hour"):
        Price(node_hour=-1)


def test_works_within_a_running_loop() -> None:
    async def inside() -> float:
        return simulate(10).makespan_s

    assert asyncio.run(inside()) == simulate(10).makespan_s


# The command.


def test_command_prints_a_table() -> None:
    done = CliRunner().invoke(
        cli,
        "simulate --items 1k --answer-tokens 100,0.5 --workers 4 --slots 16 --step 0.01 "
        "--worker-start 30 --usd-per-node-hour 2",
    )
    assert done.exit_code == 0, done.output
    for name in ("takes", "bottleneck", "node hours", "costs", "1,000"):
        assert name in done.output


def test_command_prints_json() -> None:
    arguments = "simulate --items 320 --answer-tokens 100 --slots 32 --step 0.01 --client-us 0"
    done = CliRunner().invoke(cli, f"{arguments} --concurrency 32 --json")
    found = json.loads(done.output)
    assert found["makespan_s"] == pytest.approx(10.0)
    assert found["utilisation"]["slots"] == pytest.approx(1.0)
    assert len(found["timeline"]) == 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--items 10Q", "no positive whole number"),
        ("--items 0", "no positive whole number"),
        ("--items 1.5", "no positive whole number"),
        ("--items 10 --answer-tokens long", "neither a number nor MEAN,CV"),
        ("--items 10 --concurrency few", "no positive whole number"),
        ("", "Missing option '--items'"),
    ],
)
def test_command_refuses(arguments: str, message: str) -> None:
    done = CliRunner().invoke(cli, f"simulate {arguments}")
    assert done.exit_code == 2
    assert message in done.output
