from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.errors import ConfigError
from scaleinfer.testing import Fault, RequestView
from scaleinfer.testing._faults import FaultScript

if TYPE_CHECKING:
    from collections.abc import Callable


def view(prompt: str = "p", *, attempt: int = 1, elapsed: float = 0.0) -> RequestView:
    return RequestView("/v1/chat/completions", {}, (prompt,), attempt=attempt, elapsed=elapsed)


def test_no_fault_strikes_without_rules() -> None:
    verdict = FaultScript([]).decide(view())
    assert verdict.fault is None
    assert verdict.name == ""


def test_the_first_rule_that_strikes_decides() -> None:
    script = FaultScript([Fault.drop(match="other"), Fault.status(503), Fault.reset()])
    verdict = script.decide(view())
    assert verdict.name == "status 503"
    assert verdict.fault is not None
    assert verdict.fault.early


def test_delays_add_up_and_go_with_what_follows() -> None:
    script = FaultScript([Fault.delay(0.5), Fault.delay(0.25), Fault.malformed(), Fault.drop()])
    verdict = script.decide(view())
    assert verdict.delay == 0.75
    assert verdict.name == "delay+delay+malformed"
    assert verdict.fault is not None
    assert not verdict.fault.early


def test_keepalive_close_goes_with_what_follows() -> None:
    verdict = FaultScript([Fault.keepalive_close(), Fault.slow_drip()]).decide(view())
    assert verdict.trap is not None
    assert verdict.fault is not None
    assert verdict.fault.kind == "slow_drip"


def test_first_counts_attempts_of_each_prompt() -> None:
    script = FaultScript([Fault.status(429, first=2)])
    struck = [bool(script.decide(view(p, attempt=n)).name) for p in ("a", "b") for n in (1, 2, 3)]
    assert struck == [True, True, False, True, True, False]


def test_times_counts_all_requests() -> None:
    script = FaultScript([Fault.drop(times=2)])
    assert [bool(script.decide(view(str(i))).name) for i in range(4)] == [True, True, False, False]


def test_an_outage_has_a_beginning_and_an_end() -> None:
    script = FaultScript([Fault.status(503, after=1, until=2)])
    times = (0.0, 0.99, 1.0, 1.99, 2.0)
    assert [bool(script.decide(view(elapsed=t)).name) for t in times] == [
        False, False, True, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize("match", ["needle", lambda v: v.prompt.startswith("needle")])
def test_match_by_text_and_by_callable(match: str | Callable[[RequestView], bool]) -> None:
    script = FaultScript([Fault.drop(match=match)])
    assert script.decide(view("needle in hay")).name == "drop"
    assert script.decide(view("hay")).name == ""


def test_only_faults_meant_for_everything_strike_other_pages() -> None:
    assert FaultScript([Fault.drop()]).decide(view(), completion=False).name == ""
    script = FaultScript([Fault.drop(everywhere=True)])
    assert script.decide(view(), completion=False).name == "drop"


@given(seed=st.integers(0, 100), rate=st.sampled_from([0.05, 0.2, 0.5, 0.9]))
def test_rate_is_kept_and_does_not_depend_on_the_order(seed: int, rate: float) -> None:
    def struck(order: list[int]) -> set[int]:
        script = FaultScript([Fault.drop(rate=rate)], seed)
        return {i for i in order if script.decide(view(f"item {i}")).name}

    forward, backward = struck(list(range(400))), struck(list(range(400))[::-1])
    assert forward == backward
    # Six standard deviations of a binomial share with n = 400.
    assert abs(len(forward) / 400 - rate) < 6 * (rate * (1 - rate) / 400) ** 0.5


def test_another_attempt_and_another_rule_draw_anew() -> None:
    script = FaultScript([Fault.drop(rate=0.5), Fault.reset(rate=0.5)])
    attempts = {script.decide(view(attempt=n)).name for n in range(50)}
    assert attempts == {"", "drop", "reset"}


def test_rate_zero_never_strikes() -> None:
    script = FaultScript([Fault.drop(rate=0)])
    assert not any(script.decide(view(str(i))).name for i in range(100))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Fault.drop(rate=1.5),
        lambda: Fault.status(99),
        lambda: Fault.truncate(at=2),
        lambda: Fault.slow_drip(size=0),
        lambda: Fault.drop(after=3, until=1),
    ],
)
def test_impossible_rules_are_refused(make: Callable[[], Fault]) -> None:
    with pytest.raises(ConfigError):
        make()


def test_a_stall_after_a_part_of_the_answer_is_not_early() -> None:
    assert Fault.stall().early
    assert not Fault.stall(at=0.5).early
