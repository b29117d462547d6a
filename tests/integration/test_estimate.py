"""What a map would cost, against what it then costs."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from scaleinfer import ConfigError, Permanent, parallel_map
from scaleinfer._sampling_theory import quantile_t, spread, total_of
from scaleinfer.cli import cli
from scaleinfer.data import END, read_items
from scaleinfer.estimation import estimate
from scaleinfer.prices import Price
from scaleinfer.testing import Fault, RequestView, SimulatedServer

if TYPE_CHECKING:
    from scaleinfer.program import LLM

pytestmark = pytest.mark.anyio

DATA = Path(__file__).parents[2] / "examples" / "data"
SETS = {
    "papers.jsonl": "Summarise for a chemist: {title}. {citation}",
    "molecules.csv": "Is {name} ({smiles}) soluble in water? Say why.",
}
PRICES = {"*": Price(prompt=0.15, completion=0.60)}


def typical(view: RequestView) -> str:
    """Answer at lengths that grow a little with the prompt and scatter as a model's do."""
    luck = random.Random(view.text).lognormvariate(0.0, 0.35)
    return "word " * int((60 + 0.1 * len(view.text)) * luck)


def latency(view: RequestView) -> float:
    return 0.03 + 0.02 * random.Random(view.text).random()


async def items_of(name: str) -> list[Any]:
    rows, found = read_items(str(DATA / name)), []
    while (item := await rows.next()) is not END:
        found.append(item)
    return found


@pytest.mark.parametrize("name", SETS)
async def test_a_sample_tells_what_all_will_cost(name: str, journal: Path) -> None:
    items, prompt = await items_of(name), SETS[name]
    options: dict[str, Any] = {
        "prices": PRICES, "progress": "none", "concurrency": 8, "journal": journal,
    }  # fmt: skip
    async with SimulatedServer(answer=typical, latency=latency) as server:
        found = await estimate(items, prompt, sample=20, base_url=server.base_url, **options)
        assert server.ledger.arrived == found.sampled == 20
        real = await parallel_map(items, prompt, base_url=server.base_url, **options)
        # The sample's answers were in the journal.
        assert real.stats.resumed == 20
        assert server.ledger.arrived == len(items)
    assert found.items == len(items)
    assert found.prompt_tokens.value == pytest.approx(real.usage.prompt_tokens, rel=0.02)
    assert found.completion_tokens.value == pytest.approx(real.usage.completion_tokens, rel=0.15)
    assert found.cost_usd is not None
    assert found.cost_usd.value == pytest.approx(real.cost_usd, rel=0.15)
    assert real.cost_usd is not None
    assert found.cost_usd.low <= real.cost_usd <= found.cost_usd.high
    assert found.tokens.low <= real.usage.total_tokens <= found.tokens.high
    assert found.seconds is not None
    assert found.seconds.low < found.seconds.value < found.seconds.high
    assert found.concurrency == 8
    text = str(found)
    assert f"{len(items)} items (20 of them asked, 95% interval)" in text
    assert "8 calls in flight" in text


async def test_lengths_alone_give_bounds_and_send_nothing() -> None:
    items = [f"item {number}" for number in range(100)]
    async with SimulatedServer() as server:
        options: dict[str, Any] = {
            "base_url": server.base_url, "model": "sim-model", "prices": PRICES,
            "sampling": {"max_tokens": 30},
        }  # fmt: skip
        found = await estimate(items, "What is {}?", sample=0, **options)
        assert server.ledger.arrived == 0
        real = await parallel_map(items, "What is {}?", progress="none", **options)
    assert found.tokens.low <= real.usage.total_tokens <= found.tokens.high
    assert found.completion_tokens.high == 3_000
    assert found.cost_usd is not None
    assert real.cost_usd is not None
    assert found.cost_usd.low <= real.cost_usd <= found.cost_usd.high
    assert found.seconds is None
    where: dict[str, Any] = {"base_url": "http://127.0.0.1:9/v1", "model": "m"}
    unbounded = await estimate(items, "What is {}?", sample=0, **where)
    assert unbounded.completion_tokens.high == float("inf")
    assert "no bound" in str(unbounded)
    assert "unknown" in str(unbounded)


async def test_programs_and_async_prompts_are_estimated_by_their_items() -> None:
    async def twice(item: str, llm: LLM) -> str | None:
        first = await llm(f"About {item}")
        return (await llm(f"More on {first.text}")).text

    async def prompt(item: str) -> str:
        return f"About {item}"

    items = ["x" * (10 + number) for number in range(60)]
    async with SimulatedServer() as server:
        for fn in (twice, prompt):
            options: dict[str, Any] = {"base_url": server.base_url, "progress": "none"}
            found = await estimate(items, fn, sample=10, **options)
            real = await parallel_map(items, fn, **options)
            assert found.tokens.value == pytest.approx(real.usage.total_tokens, rel=0.05)


async def test_what_fails_in_the_sample_is_said() -> None:
    items = [f"item {number}" for number in range(50)]
    faults = [Fault.status(400, match="item 2")]
    async with SimulatedServer(faults=faults) as server:
        found = await estimate(items, "{}", sample=20, base_url=server.base_url, progress="none")
        assert found.failed > 0
        assert found.sampled + found.failed == 20
        assert f"{found.failed} of the sample failed" in str(found)
    async with SimulatedServer(faults=[Fault.status(400)]) as server:
        with pytest.raises(Permanent):
            await estimate(items, "{}", sample=5, base_url=server.base_url, progress="none")


async def test_a_sample_is_a_number_of_items() -> None:
    with pytest.raises(ConfigError, match="number of items"):
        await estimate(["x"], "{}", sample=-1)
    async with SimulatedServer() as server:
        all_of_them = await estimate(["x", "y"], "{}", base_url=server.base_url, progress="none")
        assert all_of_them.tokens.low == all_of_them.tokens.high
        nothing = await estimate([], "{}", base_url=server.base_url, model="m")
    assert nothing.tokens.value == 0


def test_the_command_line_shows_it(tmp_path: Path) -> None:
    with SimulatedServer().in_thread() as server:
        command = [
            "map", str(DATA / "molecules.csv"), "--prompt", "Is {name} soluble?",
            "--base-url", server.base_url, "--price", "0.15", "0.6", "--limit", "100",
            "--journal", str(tmp_path / "run.db"), "--progress", "none",
        ]  # fmt: skip
        shown = CliRunner().invoke(cli, [*command, "--dry-run", "--sample", "10"])
        assert shown.exit_code == 0, shown.output
        assert "100 items (10 of them asked" in shown.output
        assert "cost" in shown.output
        capped = CliRunner().invoke(cli, [*command, "--budget", "requests=50"])
        assert capped.exit_code != 0
        assert "requests is reached" in capped.output
        # The sample's calls count: they are in the journal.
        assert server.ledger.arrived == 50
        wrong = CliRunner().invoke(cli, [*command, "--budget", "euros=5"])
        assert "euros=5" in wrong.output


# -- the theory ------------------------------------------------------------------------------------


def test_a_sample_is_spread_over_all_lengths() -> None:
    lengths = [number % 10 for number in range(1_000)]
    chosen = spread(lengths, 10)
    assert sorted(lengths[index] for index in chosen) == list(range(10))
    assert spread(lengths, 10) == chosen
    assert spread([5, 5], 20) == [0, 1]


@pytest.mark.parametrize(("freedom", "exact"), [(1, 12.706), (2, 4.303), (3, 3.182), (18, 2.101)])
def test_students_t_is_that_of_the_tables(freedom: int, exact: float) -> None:
    assert quantile_t(0.95, freedom) == pytest.approx(exact, rel=0.01)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    draw, held = random.Random(7), 0
    for _ in range(400):
        lengths = [draw.uniform(50, 500) for _ in range(300)]
        values = [20 + 0.2 * length + draw.gauss(0, 30) for length in lengths]
        chosen = set(draw.sample(range(300), 20))
        found = total_of(
            [values[i] for i in chosen],
            [lengths[i] for i in chosen],
            [lengths[i] for i in range(300) if i not in chosen],
            confidence=0.95,
        )
        held += found.low <= sum(values) <= found.high
    assert 0.92 <= held / 400 <= 0.98
