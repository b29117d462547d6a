from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.engine._sharing import Sharing
from scaleinfer.errors import JournalError, Permanent, ScaleInferError, Transient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.anyio

KEY = b"same"


class Calls:
    """Calls whose outcome a test decides."""

    def __init__(self) -> None:
        self.open: list[asyncio.Future[str]] = []

    def __call__(self) -> Awaitable[str]:
        self.open.append(asyncio.get_running_loop().create_future())
        return self.open[-1]


def tasks(
    sharing: Sharing[str], make: Callable[[], Awaitable[str]], number: int, digest: bytes = KEY
) -> list[asyncio.Task[tuple[str, bool]]]:
    return [asyncio.create_task(sharing.call(digest, make)) for _ in range(number)]


async def turns(number: int = 3) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_one_call_answers_all_that_ask_the_same() -> None:
    sharing, make = Sharing[str](), Calls()
    same = tasks(sharing, make, 5)
    other = tasks(sharing, make, 1, b"other")
    await turns()
    assert len(make.open) == len(sharing) == 2
    make.open[0].set_result("yes")
    assert await asyncio.gather(*same) == [("yes", True), *[("yes", False)] * 4]
    make.open[1].set_result("no")
    assert await other[0] == ("no", True)
    assert len(sharing) == 0
    # What is over is not remembered.
    again = tasks(sharing, make, 1)
    await turns()
    assert len(make.open) == 3
    make.open[2].set_result("yes")
    assert await again[0] == ("yes", True)


async def test_a_cancelled_leader_hands_over() -> None:
    sharing, make = Sharing[str](), Calls()
    first, second, third = tasks(sharing, make, 3)
    await turns()
    first.cancel()
    await turns()
    assert make.open[0].cancelled()
    assert len(make.open) == 2
    make.open[1].set_result("yes")
    assert await second == ("yes", True)
    assert await third == ("yes", False)
    assert first.cancelled()
    assert len(sharing) == 0


async def test_cancelled_just_as_it_became_the_leader() -> None:
    sharing, make = Sharing[str](), Calls()
    first, second, third = tasks(sharing, make, 3)
    await turns()
    make.open[0].set_exception(Transient("broke"))
    await turns(1)
    second.cancel()
    await turns()
    assert isinstance(first.exception(), Transient)
    assert second.cancelled()
    assert len(make.open) == 2
    make.open[1].set_result("yes")
    assert await third == ("yes", True)
    assert len(sharing) == 0


async def test_cancelled_followers_change_nothing() -> None:
    sharing, make = Sharing[str](), Calls()
    first, second, third = tasks(sharing, make, 3)
    await turns()
    second.cancel()
    await turns()
    make.open[0].set_result("yes")
    third.cancel()
    assert await first == ("yes", True)
    await turns()
    assert second.cancelled()
    assert third.cancelled()
    assert len(sharing) == 0


async def test_what_is_permanent_holds_for_all_and_each_has_its_own_error() -> None:
    sharing, make = Sharing[str](), Calls()
    same = tasks(sharing, make, 3)
    await turns()
    error = Permanent("too long", status=400)
    make.open[0].set_exception(error)
    errors = await asyncio.gather(*same, return_exceptions=True)
    assert errors[0] is error
    assert len(set(map(id, errors))) == 3
    for one in errors:
        assert isinstance(one, Permanent)
        assert (one.status, one.message) == (400, "too long")
    assert len(sharing) == 0


async def test_another_error_is_the_leaders_own() -> None:
    sharing, make = Sharing[str](), Calls()
    first, second, third = tasks(sharing, make, 3)
    await turns()
    make.open[0].set_exception(JournalError("disk full"))
    with pytest.raises(JournalError):
        await first
    await turns()
    make.open[1].set_result("yes")
    assert await second == ("yes", True)
    assert await third == ("yes", False)


async def test_an_endpoint_that_fails_three_leaders_fails_all() -> None:
    sharing, make = Sharing[str](), Calls()
    same = tasks(sharing, make, 50)
    for number in range(3):
        await turns()
        make.open[number].set_exception(Transient(f"broke {number}"))
    errors = await asyncio.gather(*same, return_exceptions=True)
    assert len(make.open) == 3
    assert [str(error) for error in errors[:4]] == ["broke 0", "broke 1", "broke 2", "broke 2"]
    assert all(isinstance(error, Transient) for error in errors)
    assert len(sharing) == 0


@given(
    script=st.lists(
        st.sampled_from(["join", "join", "answer", "fail", "break", "cancel", "turn"])
        | st.integers(0, 9),
        max_size=40,
    )
)
def test_whatever_happens_everybody_gets_an_outcome(script: list[str | int]) -> None:
    async def main() -> None:
        sharing, make = Sharing[str](), Calls()
        asked: list[asyncio.Task[tuple[str, bool]]] = []
        for step in script:
            pending = [call for call in make.open if not call.done()]
            if step == "join":
                asked += tasks(sharing, make, 1)
            elif step == "turn":
                await turns(1)
            elif isinstance(step, int):
                if asked:
                    asked[step % len(asked)].cancel()
            elif pending and step == "answer":
                pending[0].set_result("yes")
            elif pending and step != "cancel":
                pending[0].set_exception((Permanent if step == "fail" else Transient)("x"))
            assert len(pending) <= 1, "one call at a time"
        while not all(task.done() for task in asked):
            await turns(1)
            for call in make.open:
                if not call.done():
                    call.set_result("yes")
        assert len(sharing) == 0
        for task in asked:
            error = None if task.cancelled() else task.exception()
            assert error is None or isinstance(error, ScaleInferError)

    with asyncio.Runner() as runner:
        runner.run(main())
