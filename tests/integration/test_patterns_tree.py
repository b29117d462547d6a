"""Tree reductions, as the server saw them."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from scaleinfer import ConfigError, PromptError, parallel_map
from scaleinfer.errors import Permanent
from scaleinfer.patterns import tree_reduce
from scaleinfer.testing import Fault, SimulatedServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from scaleinfer.patterns import TreeResult
    from scaleinfer.testing import RequestView

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

QUIET: dict[str, Any] = {"progress": False}


def total(view: RequestView) -> str:
    """Answer with the sum of the numbers in the prompt, so that a leaf counted twice shows."""
    return str(sum(int(word) for word in view.prompt.split() if word.isdigit()))


def numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]


async def added(server: SimulatedServer, items: Any, **more: Any) -> TreeResult:
    options: dict[str, Any] = {"fan_in": 4, **QUIET, **more}
    return await tree_reduce(items, "Add:\n{text}", base_url=server.base_url, **options)


@pytest.mark.parametrize(
    ("count", "depth", "calls"), [(1, 1, 1), (2, 1, 1), (4, 1, 1), (5, 2, 3), (64, 3, 21),
                                  (65, 4, 23), (300, 5, 101)]
)  # fmt: skip
async def test_every_leaf_is_in_the_result(count: int, depth: int, calls: int) -> None:
    async with SimulatedServer(answer=total) as server:
        result = await added(server, numbers(count))
        assert server.ledger.arrived == calls
    assert result.text == result.value == str(sum(range(count)))
    assert (result.leaves, result.depth, len(result)) == (count, depth, calls)
    assert (result.missing, result.error) == ({}, None)
    assert max(outcome.item.texts for outcome in result) <= 4


async def test_nothing_to_reduce(server: SimulatedServer) -> None:
    result = await added(server, [])
    assert (result.text, result.leaves, result.depth, len(result)) == (None, 0, 0, 0)
    assert "no items" in str(result.error)
    assert server.ledger.arrived == 0


async def test_a_group_does_not_wait_for_later_leaves() -> None:
    async with SimulatedServer(answer=total) as server:

        async def leaves() -> AsyncIterator[str]:
            for number in range(32):
                if number == 17:
                    # By now two levels are done, though the input has not ended.
                    while server.ledger.answered < 5:  # noqa: ASYNC110 - the server does it
                        await asyncio.sleep(0.005)
                yield str(number)

        async with asyncio.timeout(30):
            result = await added(server, leaves())
    assert result.text == str(sum(range(32)))


async def test_leaves_are_pulled_as_needed() -> None:
    pulled = 0
    ahead: list[int] = []

    async with SimulatedServer(answer=total) as server:

        def leaves() -> Iterator[str]:
            nonlocal pulled
            for number in range(2_000):
                pulled += 1
                ahead.append(pulled - 4 * server.ledger.arrived)
                yield str(number)

        result = await added(server, leaves(), concurrency=2)
    assert result.text == str(sum(range(2_000)))
    assert max(ahead) < 1_000


async def test_texts_of_items_and_prompts_of_texts() -> None:
    papers = [{"title": f"Paper {number}", "id": number} for number in range(5)]
    seen = []

    async def ask(texts: Any) -> str:
        seen.append((texts.level, list(texts)))
        return f"{len(texts)} texts of level {texts.level}"

    async with SimulatedServer() as server:
        result = await tree_reduce(
            papers, ask, text="About {title}", fan_in=3, base_url=server.base_url, **QUIET
        )
    assert sorted(seen) == [
        (1, ["About Paper 0", "About Paper 1", "About Paper 2"]),
        (1, ["About Paper 3", "About Paper 4"]),
        (2, ["echo: 3 texts of level 1", "echo: 2 texts of level 1"]),
    ]
    assert result.text == "echo: 2 texts of level 2"


class Total(BaseModel):
    total: int


async def test_typed_summaries_and_the_results_of_a_map_as_leaves() -> None:
    def answer(view: RequestView) -> str | None:
        return json.dumps({"total": view.prompt.count("echo")}) if "Count" in view.prompt else None

    async with SimulatedServer(answer=answer, faults=[Fault.status(400, match="item 2")]) as server:
        options: dict[str, Any] = {"base_url": server.base_url, **QUIET}
        mapped = await parallel_map([f"item {number}" for number in range(4)], "{}", **options)
        result = await tree_reduce(mapped, "Count {text}", schema=Total, **options)
    assert result.value == Total(total=3)
    assert list(result.missing) == [2]
    assert "failed result" in str(result.missing[2])


async def test_what_is_refused_is_tried_in_halves_and_only_the_culprit_is_left_out() -> None:
    async with SimulatedServer(
        answer=total, faults=[Fault.status(400, match="\n\n13\n"), Fault.status(400, match="\n13")]
    ) as server:
        result = await added(server, numbers(16))
        strict = await added(server, numbers(16), on_missing="fail")
    assert result.text == str(sum(range(16)) - 13)
    assert list(result.missing) == [13]
    assert isinstance(result.missing[13], Permanent)
    assert result.error is None
    assert not result.failed
    assert strict.text is None
    assert isinstance(strict.error, Permanent)


async def test_a_prompt_that_is_too_long_after_all_is_halved() -> None:
    async with SimulatedServer(answer=total, max_prompt_tokens=20) as server:
        # Twelve numbers do not fit into 20 tokens, six do.
        result = await added(server, [f"{n:>12}" for n in range(36)], fan_in=12)
    assert result.text == str(sum(range(36)))
    assert result.missing == {}


async def test_a_lost_group_is_reported_leaf_by_leaf() -> None:
    async with SimulatedServer(answer=total, faults=[Fault.status(404, match="\n5\n")]) as server:
        result = await added(server, numbers(16))
    assert result.text == str(sum(range(16)) - (4 + 5 + 6 + 7))
    assert list(result.missing) == [4, 5, 6, 7]
    assert [outcome.item.number for outcome in result.failed] == [1]


async def test_leaves_without_text_are_left_out(server: SimulatedServer) -> None:
    result = await added(server, ["1", "", 3, "4"])
    assert list(result.missing) == [1, 2]
    assert all(isinstance(error, PromptError) for error in result.missing.values())
    assert server.ledger.arrived == 1
    strict = await added(server, ["1", "", 3, "4"], on_missing="fail")
    assert "item 1" in str(strict.error)
    assert server.ledger.arrived == 1


async def test_no_prompt_is_over_the_context() -> None:
    leaves = [f"Paragraph {number}. " * (1 + number % 40) for number in range(120)]
    leaves[7] = "A very long leaf indeed. " * 400
    async with SimulatedServer(answer_tokens=50, answer=lambda view: "summary " * 20) as server:
        result = await tree_reduce(
            leaves, "Summarise:\n{text}", context_tokens=600, base_url=server.base_url,
            sampling={"max_tokens": 100}, **QUIET,
        )  # fmt: skip
        sizes = [record.prompt_tokens for record in server.ledger.requests]
    assert result.error is None
    assert max(sizes) <= 500
    # The simulated server counts four characters to a token; that was found out.
    assert sorted(sizes)[len(sizes) // 2] > 350
    assert len(result) > 12
    firsts = [outcome.item.first for outcome in result if outcome.level == 1]
    assert firsts.count(7) >= 4


async def test_counted_tokens_are_kept_to_exactly() -> None:
    async with SimulatedServer(answer=lambda view: "w " * 10) as server:
        result = await tree_reduce(
            ["word " * (1 + number % 9) for number in range(60)], "".join,
            context_tokens=100, count_tokens=lambda text: len(text.split()),
            sampling={"max_tokens": 10}, base_url=server.base_url, **QUIET,
        )  # fmt: skip
        words = [len(record.prompt.split()) for record in server.ledger.requests]
    assert result.error is None
    assert max(words) <= 100 - 10
    assert max(words) >= 60


async def test_a_context_without_room_is_refused_before_anything_is_sent(
    server: SimulatedServer,
) -> None:
    with pytest.raises(ConfigError, match="no room for two summaries"):
        await added(server, numbers(5), context_tokens=100, sampling={"max_tokens": 40})
    assert server.ledger.arrived == 0


async def test_a_tree_is_resumed_and_changes_cost_one_path(journal: Path) -> None:
    async with SimulatedServer(answer=total) as server:
        first = await added(server, numbers(64), journal=journal)
        again = await added(server, numbers(64), journal=journal)
        assert server.ledger.arrived == 21
        assert again.text == first.text
        assert again.stats.resumed == 21
        changed = ["1000", *numbers(64)[1:]]
        other = await added(server, changed, journal=journal)
        assert other.text == str(sum(range(64)) + 1000)
        assert server.ledger.arrived == 24


async def test_an_interrupted_tree_asks_only_for_what_is_missing(journal: Path) -> None:
    async with SimulatedServer(answer=total, latency=0.01) as server:
        task = asyncio.create_task(added(server, numbers(400), journal=journal, concurrency=4))
        while server.ledger.answered < 40:
            assert not task.done()
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        result = await added(server, numbers(400), journal=journal, concurrency=4)
        asked = server.ledger.asked()
    assert result.text == str(sum(range(400)))
    assert sum(asked.values()) - len(asked) <= 8


async def test_the_inputs_own_error_is_raised(server: SimulatedServer) -> None:
    def leaves() -> Iterator[str]:
        yield from numbers(9)
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="disk went away"):
        await added(server, leaves())
    assert server.ledger.arrived >= 1
