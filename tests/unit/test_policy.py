"""Labels, patterns and what a policy keeps out; and the router under it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.engine._gate import Gate
from scaleinfer.engine._limiter import FixedLimiter
from scaleinfer.engine._pool import endpoint_of
from scaleinfer.engine._router import Router
from scaleinfer.errors import ConfigError, Permanent, PromptError
from scaleinfer.policy import WITHHELD, Audience, Policy, withheld


@pytest.mark.parametrize(
    ("pattern", "endpoint", "admitted"),
    [
        ("http://node7:8000/v1", "http://node7:8000/v1", True),
        ("http://node7:8000/v1/", "http://node7:8000/v1", True),
        ("http://node7:8000/v1", "http://node70:8000/v1", False),
        ("http://node7:8000/v1", "http://node7:8000/v1/other", False),
        ("http://node*:8000/v1", "http://node12:8000/v1", True),
        ("http://node*:8000/v1", "http://node1/x:8000/v1", False),
        ("http://node**", "http://node1/x:8000/v1", True),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1", True),
        ("http://node.:8000/v1", "http://nodex:8000/v1", False),
        ("fleet *", "fleet polaris", True),
        ("fleet *", "http://fleet polaris", False),
        ("*", "anything/at all", True),
    ],
)
def test_patterns(pattern: str, endpoint: str, admitted: bool) -> None:
    audience = Policy(label=str, allow={"x": pattern}).audience_of("x")
    assert audience.admits(endpoint) is admitted
    assert audience.admits(endpoint) is admitted
    assert audience.restricted is (pattern != "*")


def test_who_may_see_what() -> None:
    policy = Policy(
        label=lambda item: item, allow={"a": "tag:site", "b": ["*"], "c": []}, default="http://d/v1",
        tags={"site": ["http://s/v1", "http://t/v1"]},
    )  # fmt: skip
    assert policy.audience("a").admits("http://t/v1")
    assert not policy.audience("a").admits("http://d/v1")
    assert not policy.audience("b").restricted
    assert not policy.audience("c").admits("http://s/v1")
    for unnamed in (None, "", "z"):
        assert policy.audience(unnamed).admits("http://d/v1")
        assert not policy.audience(unnamed).admits("http://s/v1")
    assert policy.audience("a") is policy.audience("a")
    assert not Policy().audience(object()).restricted
    assert not Policy(label=str).audience("x").admits("http://anywhere/v1")


def test_labels_that_are_none() -> None:
    with pytest.raises(PromptError, match="raised ZeroDivisionError"):
        Policy(label=lambda item: 1 / 0).audience("secret text")  # type: ignore[arg-type,return-value]  # what the test is about
    with pytest.raises(PromptError, match="a int"):
        Policy(label=lambda item: 7).audience("x")  # type: ignore[arg-type,return-value]  # likewise


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"label": 7}, "must be a function"),
        ({"allow": {"a": "*"}}, "needs label="),
        ({"default": "*"}, "needs label="),
        ({"redact": ["keys"]}, "not keys"),
        ({"label": str, "allow": {"a": "tag:none"}}, "no 'none'"),
        ({"label": str, "allow": {"a": [""]}}, "no endpoint's name"),
    ],
)
def test_policies_that_contradict_themselves(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Policy(**arguments)


def test_what_redact_keeps() -> None:
    kept = [(p.keeps_prompts, p.keeps_answers) for p in map(Policy_of, ((), "prompts", "answers"))]
    assert kept == [(True, True), (False, True), (False, False)]


def Policy_of(redact: Any) -> Policy:  # noqa: N802 - it stands for the class
    return Policy(redact=redact)


def test_a_withheld_error_keeps_its_kind_and_numbers_only() -> None:
    error = Permanent(
        "said TEXT", endpoint="e", status=400, body="TEXT", hint="TEXT", index=3, key="k"
    )
    told = withheld(error)
    assert isinstance(told, Permanent)
    assert (told.status, told.endpoint, told.index, told.key) == (400, "e", 3, "k")
    assert "TEXT" not in str(told.to_dict())
    assert told.message == WITHHELD


@given(
    admitted=st.sets(st.integers(0, 11)),
    avoid=st.sets(st.integers(0, 11)),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 11)), max_size=40),
    affinity=st.none() | st.integers(0, 5),
    remaining=st.none() | st.integers(0, 50),
    count=st.integers(1, 12),
)
def test_the_router_never_chooses_who_is_not_admitted(  # noqa: PLR0917 - all are drawn
    admitted: set[int],
    avoid: set[int],
    steps: list[tuple[bool, int]],
    affinity: int | None,
    remaining: int | None,
    count: int,
) -> None:
    endpoints = [endpoint_of(f"http://e{n}/v1", 2, start=2) for n in range(count)]
    router = Router(endpoints)
    audience = Audience("x", [f"http://e{n}/v1" for n in admitted])
    now = 0.0
    for restricted, slowed in steps:
        now += 0.1
        chosen = router.choose(
            now,
            affinity=affinity,
            avoid=avoid,
            remaining=remaining,
            audience=audience if restricted else None,
        )
        if restricted and chosen is not None:
            assert chosen in admitted
        if chosen is not None and slowed != chosen:
            endpoints[chosen].started(now, 0)
    free = [n for n in admitted if n < count and endpoints[n].has_room(now)]
    if free and remaining is None:
        assert router.choose(now, audience=audience) in free
    assert isinstance(endpoints[0].limiter, FixedLimiter)


@pytest.mark.anyio
async def test_a_group_that_is_refused_does_not_hold_up_the_others() -> None:
    import asyncio

    free = {"a": 0, "b": 0}

    def take(want: str) -> str | None:
        if not free[want]:
            return None
        free[want] -= 1
        return want

    gate: Gate[str, str] = Gate(take, group=lambda want: want)
    waiting = [asyncio.create_task(gate.enter(w, leave=lambda _: None)) for w in ["a"] * 50 + ["b"]]
    await asyncio.sleep(0)
    free["b"] = 1
    gate.wake()
    assert await waiting[-1] == "b"
    free["a"] = 50
    gate.wake()
    assert await asyncio.gather(*waiting[:-1]) == ["a"] * 50


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        (Policy(), True),
        (Policy(label=str, default="*"), False),
        (Policy(redact="prompts"), False),
    ],
)
def test_messages_that_may_quote_a_restricted_prompt_are_not_told(
    policy: Policy, told: bool
) -> None:
    assert policy.tells_errors is told
