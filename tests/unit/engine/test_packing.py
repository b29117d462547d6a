from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.engine._packing import Packer
from scaleinfer.errors import ConfigError, EndpointError, Permanent, Transient
from scaleinfer.requests import Request, Sampling
from scaleinfer.results import Completion

if TYPE_CHECKING:
    from scaleinfer.policy import Audience

pytestmark = pytest.mark.anyio


class Endpoint:
    """Answers packs with their prompts; a prompt "bad" fails alone."""

    def __init__(self) -> None:
        self.packs: list[list[str | None]] = []
        self.hold: asyncio.Event | None = None
        self.cancelled = 0

    async def __call__(
        self, requests: list[Request], audience: Audience | None
    ) -> list[Completion | EndpointError]:
        self.packs.append([request.prompt for request in requests])
        if self.hold is not None:
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return [
            Permanent("refused") if request.prompt == "bad" else Completion(str(request.prompt))
            for request in requests
        ]


def calls(packer: Packer[Completion], *prompts: str) -> list[asyncio.Task[Completion]]:
    return [asyncio.create_task(packer.call(Request(prompt=prompt))) for prompt in prompts]


async def turns(number: int = 4) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_what_waits_at_the_same_time_goes_together() -> None:
    endpoint = Endpoint()
    packer = Packer(endpoint, most=3)
    answers = await asyncio.gather(*calls(packer, *"abcdefg"))
    assert [answer.text for answer in answers] == list("abcdefg")
    assert endpoint.packs == [["a", "b", "c"], ["d", "e", "f"], ["g"]]
    await asyncio.gather(*calls(packer, "h"))
    assert endpoint.packs[3:] == [["h"]]


async def test_waiting_a_little_for_more() -> None:
    endpoint = Endpoint()
    packer = Packer(endpoint, most=3, linger=0.01)
    early = calls(packer, "a")
    await turns()
    await asyncio.gather(*early, *calls(packer, "b"))
    assert endpoint.packs == [["a", "b"]]


async def test_only_what_is_asked_in_the_same_way_goes_together() -> None:
    endpoint = Endpoint()
    packer = Packer(endpoint, most=10)
    warm, warm_too = Sampling(temperature=1.0), Sampling(temperature=1.0)
    requests = [
        Request(prompt="a", sampling=warm),
        Request(prompt="b", sampling=warm_too),
        Request(prompt="c", sampling=Sampling(temperature=1.0, extra={"top_k": 4})),
        Request(prompt="d", sampling=warm, model="other"),
        Request(prompt="e", sampling=warm, schema={"type": "object"}),
        Request(prompt="f", sampling=Sampling(temperature=1.0, n=2)),
        Request(prompt="g", sampling=Sampling(temperature=1.0, n=2)),
        Request(messages=[{"role": "user", "content": "h"}], sampling=warm),
    ]
    await asyncio.gather(*(packer.call(request) for request in requests))
    assert sorted(map(str, endpoint.packs)) == sorted(
        map(str, [["a", "b"], ["c"], ["d"], ["e"], ["f"], ["g"], [None]])
    )


async def test_outcomes_are_kept_apart() -> None:
    good, bad, fine = calls(Packer(Endpoint(), most=3), "a", "bad", "b")
    assert (await good).text == "a"
    assert (await fine).text == "b"
    with pytest.raises(Permanent, match="refused"):
        await bad


async def test_what_fails_the_call_fails_each_with_an_error_of_its_own() -> None:
    async def broken(
        requests: list[Request], audience: Audience | None
    ) -> list[Completion | EndpointError]:
        raise Transient("lost", status=502)

    errors = await asyncio.gather(*calls(Packer(broken, most=3), "a", "b"), return_exceptions=True)
    assert [repr(error) for error in errors] == ["Transient('lost')"] * 2
    assert errors[0] is not errors[1]


async def test_an_answer_for_too_few_is_nobodys() -> None:
    async def short(
        requests: list[Request], audience: Audience | None
    ) -> list[Completion | EndpointError]:
        return [Completion("x")]

    errors = await asyncio.gather(*calls(Packer(short, most=3), "a", "b"), return_exceptions=True)
    assert [str(error) for error in errors] == [
        "the endpoint gave 1 answers to 2 prompts sent in one call."
    ] * 2


async def test_one_that_leaves_does_not_take_the_others_along() -> None:
    endpoint = Endpoint()
    endpoint.hold = asyncio.Event()
    first, second = calls(Packer(endpoint, most=2), "a", "b")
    await turns()
    first.cancel()
    await turns()
    assert first.cancelled()
    assert endpoint.cancelled == 0
    endpoint.hold.set()
    assert (await second).text == "b"


async def test_the_call_ends_when_all_are_gone() -> None:
    endpoint = Endpoint()
    endpoint.hold = asyncio.Event()
    both = calls(Packer(endpoint, most=2), "a", "b")
    await turns()
    for task in both:
        task.cancel()
    await asyncio.wait(both)
    await turns()
    assert endpoint.cancelled == 1


async def test_one_that_leaves_before_the_pack_goes_is_not_sent() -> None:
    endpoint = Endpoint()
    packer = Packer(endpoint, most=5, linger=0.01)
    first, second = calls(packer, "a", "b")
    await turns()
    first.cancel()
    assert (await second).text == "b"
    alone = calls(packer, "c")
    await turns()
    alone[0].cancel()
    await asyncio.wait(alone)
    assert endpoint.packs == [["b"]]
    # The pack that nobody wanted is not joined.
    await asyncio.gather(*calls(packer, "d"))
    assert endpoint.packs == [["b"], ["d"]]


async def test_packs_need_room_for_one() -> None:
    with pytest.raises(ConfigError, match="packing"):
        Packer(Endpoint(), most=0)


@given(
    most=st.integers(1, 4),
    plan=st.lists(st.tuples(st.integers(0, 4), st.none() | st.integers(0, 20)), max_size=25),
)
def test_whatever_is_cancelled_each_other_has_its_own_answer(
    most: int, plan: list[tuple[int, int | None]]
) -> None:
    async def main() -> None:
        endpoint = Endpoint()
        packer = Packer(endpoint, most=most)
        tasks: list[asyncio.Task[Completion]] = []
        for number, (wait, cancel) in enumerate(plan):
            tasks += calls(packer, str(number))
            await turns(wait)
            if cancel is not None:
                tasks[cancel % len(tasks)].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for number, task in enumerate(tasks):
            assert task.cancelled() or task.result().text == str(number)
        sent = Counter(prompt for pack in endpoint.packs for prompt in pack)
        assert all(count == 1 for count in sent.values())
        assert all(1 <= len(pack) <= most for pack in endpoint.packs)
        await turns()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with asyncio.Runner() as runner:
        runner.run(main())
