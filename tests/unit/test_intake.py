"""The intake: every item is taken once, whatever the input does."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer._intake import Intake
from scaleinfer.data import source
from scaleinfer.prompts import Renderer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from scaleinfer._intake import Work

pytestmark = pytest.mark.anyio


def everything(intake: Intake) -> list[Work]:
    found = []
    while (work := intake.take_nowait()) is not None:
        found.append(work)
    return found


@given(
    texts=st.lists(st.text("ab", max_size=6) | st.just("same " * 60)),
    window=st.integers(0, 8),
    takes=st.integers(0, 12),
)
def test_each_item_is_taken_once_in_any_order(texts: list[str], window: int, takes: int) -> None:
    intake = Intake(source(texts), Renderer(lambda text: text or "-"), window=window)
    taken = [work for work in (intake.take_nowait() for _ in range(takes)) if work is not None]
    assert intake.pulled - len(taken) <= max(window, 0)
    left = list(intake.left())
    rest = everything(intake)
    found = [*taken, *left, *rest]
    assert sorted(work.index for work in found) == list(range(len(texts)))
    assert all(work.item == texts[work.index] for work in found)
    assert intake.ended
    if window < 2:
        assert [work.index for work in taken] == list(range(len(taken)))


def test_what_cannot_be_rendered_is_handed_out_with_its_error() -> None:
    def prompt(item: int) -> Any:
        return 1 / item if item != 2 else "two"

    works = everything(Intake(source([0, 1, 2]), Renderer(prompt), window=10))
    assert [work.questions is None for work in sorted(works, key=lambda w: w.index)] == [
        True, True, False,
    ]  # fmt: skip
    assert all(work.error is not None for work in works if work.questions is None)


@pytest.mark.parametrize("window", [0, 100])
def test_a_raising_input_ends_and_is_remembered_once(window: int) -> None:
    class Broken(list[int]):
        def __iter__(self) -> Iterator[int]:
            yield from range(3)
            raise LookupError("torn")

    intake = Intake(source(Broken(range(9))), Renderer("{}"), window=window)
    assert [work.item for work in everything(intake)] == [0, 1, 2]
    assert isinstance(intake.raised, LookupError)
    assert intake.raised.__notes__ == ["raised by the input after 3 items"]
    assert intake.ended
    assert intake.take_nowait() is None
    assert len(intake.raised.__notes__) == 1


def test_prefixes_are_ordered_where_it_pays_and_only_there() -> None:
    papers = [f"paper {n % 5} " + "text " * 100 for n in range(50)]
    ordered = Intake(source(papers), Renderer("{}"), window=50)
    groups = [work.affinity for work in everything(ordered)]
    assert len(set(groups)) == 5
    assert sum(one != other for one, other in itertools.pairwise(groups)) == 4
    plain = Intake(source([f"{n}" for n in range(50)]), Renderer("{}"), window=50)
    works = everything(plain)
    assert [work.index for work in works] == list(range(50))
    assert plain.ahead == 0
    assert {work.affinity for work in works} == {None}


@pytest.mark.parametrize("kind", ["generator", "async prompt_fn"])
async def test_nothing_is_pulled_ahead_where_it_cannot_be(kind: str) -> None:
    async def later(item: int) -> str:
        return f"{item}"

    items: Any = iter(range(9)) if kind == "generator" else list(range(9))
    intake = Intake(source(items), Renderer(later if kind != "generator" else "{}"), window=100)
    work = intake.take_nowait()
    assert work is not None
    assert (intake.pulled, intake.ahead) == (1, 0)
    if work.pending is not None:
        assert (await intake.finish(work))[""].request.messages is not None
        assert intake.prompt_s > 0
    for other in everything(intake):
        if other.pending is not None:
            await intake.finish(other)


async def test_waiting_for_an_async_input_is_counted_once_for_all_who_wait() -> None:
    release = asyncio.Event()

    async def items() -> AsyncIterator[int]:
        await release.wait()
        for number in range(3):
            yield number

    intake = Intake(source(items()), Renderer("{}"))
    assert intake.take_nowait() is None
    assert not intake.ended
    began = asyncio.get_running_loop().time()
    waiting = [asyncio.create_task(intake.take()) for _ in range(5)]
    await asyncio.sleep(0.02)
    waiting.pop().cancel()
    await asyncio.sleep(0.02)
    release.set()
    works = await asyncio.gather(*waiting)
    elapsed = asyncio.get_running_loop().time() - began
    assert sorted(work.index for work in works if work is not None) == [0, 1, 2]
    assert works.count(None) == 1
    assert intake.ended
    assert 0.02 <= intake.input_s <= elapsed
