"""Budgets: the ledger, the line of calls that wait, bounds on tokens, bills."""

from __future__ import annotations

import asyncio
import gc
import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.engine.test_engine import Scripted

from scaleinfer.engine import (
    Bill,
    Budget,
    Dispatch,
    Endpoint,
    Engine,
    FixedLimiter,
    Ledger,
    Pool,
    Purse,
    Retry,
    Spend,
    Spender,
    TokenBounds,
    item_purse,
    purse_of,
)
from scaleinfer.engine._budget import cap_of
from scaleinfer.engine._purse import Most
from scaleinfer.errors import BudgetExceeded, ConfigError, Overloaded, Transient, error_from_dict
from scaleinfer.prices import PICO, Price, Pricer, Prices
from scaleinfer.requests import Request, Sampling
from scaleinfer.results import Attempt, Completion, Usage

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio

IN_FLIGHT = 512


def chat(text: str, **sampling: Any) -> Request:
    return Request([{"role": "user", "content": text}], sampling=Sampling(**sampling))


def always(needs: Most) -> Callable[[], Most]:
    return lambda: needs


# -- the caps ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [0, -1, float("inf"), float("nan"), True, "5"])
def test_a_cap_is_a_positive_number(cap: Any) -> None:
    with pytest.raises(ConfigError):
        Budget(usd=cap)


def test_a_budget_caps_something() -> None:
    with pytest.raises(ConfigError, match="caps nothing"):
        Budget()


def test_a_price_is_no_less_than_nothing() -> None:
    with pytest.raises(ConfigError):
        Price(prompt=-1.0)
    with pytest.raises(ConfigError):
        Prices({"m": 3.0})  # type: ignore[dict-item] # that is the point


# -- the ledger ----------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    tokens=st.integers(1, 200_000),
    requests=st.integers(1, 2_000),
    crashes=st.floats(0, 0.5),
)
def test_what_is_spent_never_passes_the_cap(
    seed: int, tokens: int, requests: int, crashes: float
) -> None:
    """512 calls at once, each using anything up to its most; some never come back."""
    draw = random.Random(seed)
    ledger = Ledger(cap_of(None, tokens, requests))
    cap, truth = ledger.cap, Spend()
    flying: list[tuple[Spend, Spend]] = []
    for _ in range(2_000):
        if len(flying) < IN_FLIGHT and draw.random() < 0.6:
            most = Spend(draw.randint(1, 2_000), 1, 0)
            if ledger.reserve(most):
                used = Spend(draw.choice([0, most.tokens, draw.randint(0, most.tokens)]), 1, 0)
                flying.append((most, used))
                truth = truth.plus(used)  # whatever becomes of us, it is used
        elif flying:
            most, used = flying.pop(draw.randrange(len(flying)))
            if draw.random() >= crashes:
                ledger.settle(most, used)
            # Else we crashed in between: it stays reserved.
        assert truth.within(cap)
        assert ledger.spent.within(ledger.committed)
        assert ledger.committed.within(cap)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32), hundreds=st.integers(100, 400))
def test_at_least_95_percent_of_a_cap_is_usable(seed: int, hundreds: int) -> None:
    """Answers of typical, lognormal lengths, far below the most that was reserved for them."""

    async def run() -> None:
        draw = random.Random(seed)
        cap = hundreds * 1_000
        purse = Purse(Ledger(cap_of(None, cap)))
        reached = 0

        async def lane() -> None:
            nonlocal reached
            while True:
                prompt = min(2_000, int(draw.lognormvariate(5, 0.6)))
                answer = min(512, 1 + int(draw.lognormvariate(4, 0.8)))
                most, likely = 4 * prompt + 512, int(1.2 * prompt) + 512
                needs = Most(Spend(most, 1, 0), Spend(likely, 1, 0))
                try:
                    reserved = needs.most
                    if not purse.reserve_nowait(needs.most):
                        reserved = await purse.reserve(always(needs))
                except BudgetExceeded:
                    reached += 1
                    return
                for _ in range(draw.randint(1, 5)):
                    await asyncio.sleep(0)
                assert purse.ledger.committed.tokens <= cap
                purse.settle(reserved, Spend(prompt + answer, 1, 0))

        await asyncio.gather(*(lane() for _ in range(IN_FLIGHT)))
        assert reached == IN_FLIGHT
        assert 0.95 * cap <= purse.ledger.spent.tokens <= cap

    asyncio.run(run())


async def test_a_call_waits_for_others_rather_than_failing() -> None:
    purse = Purse(Ledger(cap_of(None, 100)))
    assert purse.reserve_nowait(Spend(60, 1))
    needs = Most(Spend(60, 1), Spend(60, 1))
    waiting = asyncio.ensure_future(purse.reserve(lambda: needs))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert not purse.reserve_nowait(Spend(1, 1))  # nobody overtakes
    purse.settle(Spend(60, 1), Spend(30, 1))
    assert await waiting == Spend(60, 1)
    purse.settle(Spend(60, 1), Spend(60, 1))
    with pytest.raises(BudgetExceeded, match="100 tokens is reached: 90 tokens are used") as raised:
        await purse.reserve(lambda: needs)
    assert (raised.value.cap, raised.value.limit, raised.value.spent) == ("tokens", 100, 90)
    assert error_from_dict(raised.value.to_dict()).to_dict() == raised.value.to_dict()


async def test_one_that_can_never_fit_does_not_hold_up_the_others() -> None:
    purse = Purse(Ledger(cap_of(None, 100)))
    assert purse.reserve_nowait(Spend(50, 1))
    huge, small = Most(Spend(500, 1), Spend(500, 1)), Most(Spend(40, 1), Spend(40, 1))
    first = asyncio.ensure_future(purse.reserve(lambda: huge))
    await asyncio.sleep(0)
    assert await purse.reserve(lambda: small) == Spend(40, 1)
    purse.settle(Spend(40, 1), Spend(40, 1))
    assert not first.done()
    purse.settle(Spend(50, 1), Spend(50, 1))
    with pytest.raises(BudgetExceeded):
        await first


async def test_the_last_calls_go_one_by_one_by_what_is_likely() -> None:
    purse = Purse(Ledger(cap_of(None, 100)))
    needs = [Most(Spend(400, 1), Spend(size, 1)) for size in (60, 30, 50)]
    calls = [asyncio.ensure_future(purse.reserve(always(n))) for n in needs]
    await asyncio.sleep(0)
    # The first came alone; of the others the smaller one.
    assert [call.done() for call in calls] == [True, False, False]
    purse.settle(Spend(60, 1), Spend(60, 1))
    await asyncio.sleep(0)
    assert [call.done() for call in calls] == [True, True, False]
    purse.settle(Spend(30, 1), Spend(30, 1))
    with pytest.raises(BudgetExceeded):
        await calls[2]


async def test_a_cancelled_wait_leaves_nothing_reserved() -> None:
    purse = Purse(Ledger(cap_of(None, 100)))
    assert purse.reserve_nowait(Spend(100, 1))
    needs = Most(Spend(100, 1), Spend(100, 1))
    calls = [asyncio.ensure_future(purse.reserve(lambda: needs)) for _ in range(3)]
    await asyncio.sleep(0)
    calls[0].cancel()
    await asyncio.sleep(0)
    purse.settle(Spend(100, 1), Spend(0, 1))
    calls[1].cancel()  # just as it was let go
    with pytest.raises(asyncio.CancelledError):
        await calls[1]
    assert await calls[2] == Spend(100, 1)
    assert purse.ledger.in_flight == 1


async def test_the_same_object_is_the_same_purse() -> None:
    budget = Budget(tokens=10)
    purse = purse_of(budget)
    assert purse_of(budget) is purse
    assert purse_of(Budget(tokens=10)) is not purse
    with pytest.raises(ConfigError, match="another event loop"):
        await asyncio.to_thread(lambda: asyncio.run(_purse(budget)))
    purse.runs = 0
    assert await asyncio.to_thread(lambda: asyncio.run(_purse(budget))) is purse
    del purse
    gc.collect()


async def _purse(budget: Budget) -> Purse:
    return purse_of(budget)


def test_an_items_own_cap_names_itself() -> None:
    error = item_purse(0.5).reached(Spend(10, 1, PICO))
    assert error.cap == "per_item_usd"
    assert "$0.5" in str(error)


# -- bounds on tokens ----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(max_size=500),
    template=st.integers(0, 200),
    share=st.floats(0, 1),
    most=st.integers(1, 1_000),
)
def test_a_bound_holds_for_any_tokenizer_of_bytes(
    text: str, template: int, share: float, most: int
) -> None:
    """At most a token a byte, and a template of any length: learned from, and still a bound."""
    bounds = TokenBounds()
    for size in (1.0, 0.5, 0.1):
        request = chat(text[: int(size * len(text))], max_tokens=most)
        assert request.messages is not None
        length = len(request.messages[0]["content"].encode("utf-8", "surrogatepass"))
        tokens = template + int(share * length)
        bound = bounds.of(request)
        assert bound.prompt >= tokens
        assert bound.answer == bound.tight_answer == most
        bounds.observe(bound, Usage(tokens, 1, 0, 1))


def test_prompts_of_a_size_make_the_bound_close() -> None:
    bounds = TokenBounds()
    first = bounds.of(chat("x" * 4_000, max_tokens=10))
    assert first.prompt == first.tight_prompt > 4_000
    for length in range(3_000, 4_000, 10):
        bound = bounds.of(chat("x" * length, max_tokens=10))
        bounds.observe(bound, Usage(length // 4 + 20, 5, 0, 1))
    bound = bounds.of(chat("x" * 3_900, max_tokens=10))
    assert 995 <= bound.tight_prompt <= 1.3 * 995
    assert bound.prompt > 3_900


def test_without_max_tokens_answers_say_how_long_answers_are() -> None:
    bounds = TokenBounds()
    assert bounds.of(chat("x")).answer == 32_768
    for _ in range(100):
        bounds.observe(bounds.of(chat("x")), Usage(5, 40, 0, 1))
    bound = bounds.of(chat("x"))
    assert (bound.answer, bound.tight_answer) == (256, 48)
    bounds.observe(bound, Usage(5, 4_000, 0, 1))
    assert bounds.of(chat("x", n=2)).answer > 8_000


def test_every_way_to_say_max_tokens_counts() -> None:
    bounds = TokenBounds()
    assert bounds.of(chat("x", extra={"max_completion_tokens": 70})).answer == 70
    assert bounds.of(chat("x", max_tokens=30, n=4)).answer == 120
    assert bounds.of(Request(input="text")).answer == 0


def test_what_is_no_text_is_reserved_as_a_large_image() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    content = [{"type": "text", "text": "What is this?"}, image]
    request = Request([{"role": "user", "content": content}], sampling=Sampling(max_tokens=5))
    assert TokenBounds().of(request).prompt > 50_000


def test_tools_and_schema_are_part_of_the_prompt() -> None:
    bounds, plain = TokenBounds(), chat("x", max_tokens=5)
    tools = chat("x", max_tokens=5, extra={"tools": [{"name": "y" * 1_000}]})
    assert bounds.of(tools).prompt > bounds.of(plain).prompt + 1_000


# -- an engine with a budget -----------------------------------------------------------------------

PRICES = Prices({"m": Price(prompt=1.0, completion=2.0, cached=0.5)})


def paid_engine(
    *script: Any, limit: int = 4, budget: Budget, dispatch: Dispatch | None = None, **rules: Any
) -> tuple[Engine, Scripted, Bill, Purse]:
    backend, purse = Scripted(*script), purse_of(budget)
    backend.model = "m"
    bill = Bill(Pricer(PRICES))
    engine = Engine(
        [backend],
        pool=Pool([Endpoint("memory", FixedLimiter(limit))], asyncio.get_running_loop()),
        retry=Retry(**({"initial": 0.0, "maximum": 0.0} | rules)),
        dispatch=dispatch,
        model="m",
        bill=bill,
        spender=Spender(budget, purse, bill, now=0.0),
    )
    return engine, backend, bill, purse


ANSWER = Completion("yes", usage=Usage(10, 3, 4, 1, 2), model="m")
ASK = chat("Is it soluble?", max_tokens=20)


async def test_an_answer_is_booked_at_what_it_used() -> None:
    seen: list[Attempt] = []
    engine, _, bill, purse = paid_engine(ANSWER, budget=Budget(usd=1))
    await engine.call(ASK, attempted=seen.append)
    pico = 6 * 10**6 + 4 * 5 * 10**5 + 3 * 2 * 10**6
    assert purse.ledger.spent == purse.ledger.committed == Spend(13, 1, pico)
    assert seen[0].cost_usd == pico / PICO
    assert (seen[0].cached_tokens, seen[0].reasoning_tokens, seen[0].model) == (4, 2, "m")
    [line] = bill.lines()
    assert (line.calls, line.failed, line.usage) == (1, 0, Usage(10, 3, 4, 1, 2))
    assert line.cost_usd == bill.cost_usd == pico / PICO


async def test_a_refusal_costs_a_request_and_no_tokens() -> None:
    script = (Overloaded("full", status=503), ANSWER)
    engine, _, bill, purse = paid_engine(*script, budget=Budget(tokens=1_000))
    await engine.call(ASK, attempted=lambda _: None)
    assert purse.ledger.spent[:2] == (13, 2)
    assert sum(line.failed for line in bill.lines()) == 1


async def test_one_that_was_never_reached_costs_nothing() -> None:
    script = (Transient("no server", reached=False), ANSWER)
    engine, _, _, purse = paid_engine(*script, budget=Budget(requests=1))
    await engine.call(ASK, attempted=lambda _: None)
    assert purse.ledger.spent.requests == 1


async def test_one_that_broke_counts_as_the_most_it_may_have_used() -> None:
    engine, _, bill, purse = paid_engine(
        Transient("it broke"), ANSWER, budget=Budget(tokens=100_000)
    )
    await engine.call(ASK, attempted=lambda _: None)
    most = TokenBounds().of(ASK)
    assert purse.ledger.spent.tokens == most.prompt + most.answer + 13
    assert sum(line.unsure_tokens for line in bill.lines()) == most.prompt + most.answer
    assert bill.spent == purse.ledger.spent


async def test_a_failure_that_says_what_it_used_is_booked_at_that() -> None:
    empty = Transient("the answer was empty", status=200)
    empty.usage = Usage(10, 20, 0, 1)
    engine, _, _, purse = paid_engine(empty, ANSWER, budget=Budget(tokens=100_000))
    await engine.call(ASK, attempted=lambda _: None)
    assert purse.ledger.spent.tokens == 43


async def test_a_cancelled_call_counts_as_the_most_it_may_have_used() -> None:
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    engine, _, _, purse = paid_engine(never, budget=Budget(tokens=100_000))
    call = asyncio.ensure_future(engine.call(ASK, attempted=lambda _: None))
    for _ in range(5):
        await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    most = TokenBounds().of(ASK)
    assert purse.ledger.spent == purse.ledger.committed
    assert purse.ledger.spent.tokens == most.prompt + most.answer


async def test_waiting_for_the_budget_holds_no_place() -> None:
    release: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    most = TokenBounds().of(ASK)
    cap = int(1.5 * (most.prompt + most.answer))
    engine, backend, _, purse = paid_engine(release, budget=Budget(tokens=cap))
    calls = [asyncio.ensure_future(engine.call(ASK, attempted=lambda _: None)) for _ in range(3)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert (backend.running, engine.in_flight, engine.queued) == (1, 1, 0)
    release.set_result(None)
    await asyncio.gather(*calls)
    assert backend.ended == 3
    assert purse.ledger.spent.tokens == 3 * 4


async def test_a_reached_budget_ends_waits_for_a_retry() -> None:
    budget = Budget(tokens=100_000)
    engine, _, _, _ = paid_engine(
        Overloaded("full", status=503, retry_after=3600.0), budget=budget, patience=7200.0
    )
    call = asyncio.ensure_future(engine.call(ASK, attempted=lambda _: None))
    for _ in range(5):
        await asyncio.sleep(0)
    assert engine.waiting == 1
    assert engine._spender is not None
    engine._spender.close(BudgetExceeded("reached", cap="seconds"))
    with pytest.raises(BudgetExceeded, match="reached"):
        await call


async def test_seconds_leave_time_to_land() -> None:
    budget, told = Budget(seconds=60.0), list[BudgetExceeded]()
    spender = Spender(budget, purse_of(budget), Bill(Pricer()), now=100.0)
    spender.on_close = told.append
    spender.tick(149.0, nodes=0, landing_s=10.0)
    assert not told
    spender.tick(150.0, nodes=0, landing_s=10.0)
    assert told[0].cap == "seconds"


async def test_node_hours_add_up_over_nodes_and_runs() -> None:
    budget = Budget(node_hours=10.0)
    spender = Spender(budget, purse_of(budget), Bill(Pricer()), now=0.0, node_seconds=5 * 3600.0)
    spender.tick(1800.0, nodes=8, landing_s=0.0)
    assert spender.closed is None
    spender.tick(2400.0, nodes=8, landing_s=0.0)
    assert spender.closed is not None
    assert spender.closed.cap == "node_hours"


async def test_a_second_copy_is_sent_only_if_it_can_be_paid_for() -> None:
    budget = Budget(requests=1)
    spender = Spender(budget, purse_of(budget), Bill(Pricer()), now=0.0)
    backends = [Scripted(ANSWER)]
    assert spender.reserve_nowait(ASK, "m", backends) is not None
    assert spender.reserve_nowait(ASK, "m", backends) is None


async def test_nothing_is_sent_before_the_journal_vouches_for_it() -> None:
    budget, vouched = Budget(tokens=100_000), list[Spend]()
    engine, backend, _, purse = paid_engine(ANSWER, budget=budget)
    spender = engine._spender
    assert spender is not None

    async def vouch(most: Spend) -> None:
        await asyncio.sleep(0)
        vouched.append(most)

    spender.vouch = vouch
    backend.complete = checked(backend.complete, lambda: spender.committed.within(_vast(vouched)))  # type: ignore[method-assign] # to look at each call
    for _ in range(30):
        await engine.call(ASK, attempted=lambda _: None)
    assert 1 <= len(vouched) < 10
    assert vouched[-1].tokens <= 100_000
    assert purse.ledger.spent.tokens == 30 * 13


def _vast(vouched: list[Spend]) -> Spend:
    return Spend(vouched[-1].tokens, 10**9, 10**30) if vouched else Spend()


def checked(complete: Callable[..., Any], holds: Callable[[], bool]) -> Callable[..., Any]:
    async def looked_at(*arguments: Any, **options: Any) -> Any:
        assert holds()
        return await complete(*arguments, **options)

    return looked_at
