"""When a job that cannot be had is given up on, and how often the scheduler is asked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.fleet._blocks import Block, Submissions, fatal, idle_blocks, scheduler_words

STATES = st.sampled_from(("live", "failed", "ended"))


def blocks(states: list[str]) -> list[Block]:
    return [
        Block(number, state == "live", state == "failed", f"why {number}")
        for number, state in enumerate(states)
    ]


def test_two_failures_in_a_row_with_nothing_alive_are_reported_with_the_last_reason() -> None:
    found = fatal(blocks(["ended", "failed", "failed"]))

    assert found is not None
    assert found.reason == "why 2"


def test_one_failure_is_tried_again() -> None:
    assert fatal(blocks(["failed"])) is None
    assert fatal([]) is None


def test_the_order_of_submission_counts_not_the_order_of_the_list() -> None:
    mixed = blocks(["failed", "failed", "ended"])

    assert fatal([mixed[2], mixed[0], mixed[1]]) is None


@given(st.lists(STATES))
def test_never_given_up_while_a_job_lives_or_after_one_that_worked(states: list[str]) -> None:
    given_up = fatal(blocks(states)) is not None

    assert given_up == ("live" not in states and states[-2:] == ["failed", "failed"])


def manager(block: str, idle: float = 0.0, tasks: int = 0) -> dict[str, object]:
    return {"block_id": block, "tasks": tasks, "idle_duration": idle}


def test_the_job_that_has_been_idle_longest_is_given_back_first() -> None:
    nodes = [manager("0", 40), manager("1", 90), manager("2", 60)]

    assert idle_blocks(nodes, 30, 2) == ["1", "2"]
    assert idle_blocks(nodes, 50, 3) == ["1", "2"]
    assert idle_blocks(nodes, 30, 0) == []


@given(
    st.lists(
        st.builds(
            manager,
            st.sampled_from("0123"),
            st.floats(0, 100),
            st.integers(0, 2),
        )
    ),
    st.floats(0, 100),
    st.integers(-1, 5),
)
def test_a_job_with_a_busy_node_or_one_that_was_just_busy_is_kept(
    nodes: list[dict[str, object]], idle_seconds: float, most: int
) -> None:
    chosen = idle_blocks(nodes, idle_seconds, most)

    assert len(chosen) == len(set(chosen)) <= max(0, most)
    for node in nodes:
        if node["block_id"] in chosen:
            assert node["tasks"] == 0
            assert float(str(node["idle_duration"])) > idle_seconds


def test_a_refusal_is_tried_again_at_once_and_then_every_half_minute_and_more() -> None:
    asked = Submissions()
    tries = []
    for second in range(1000):
        if asked.may_try(float(second)):
            tries.append(second)
            asked.refused(float(second))

    assert tries == [0, 1, 31, 91, 211, 511, 811]


@given(st.lists(st.tuples(st.floats(0, 1000), st.booleans())))
def test_an_accepted_job_forgets_the_refusals(steps: list[tuple[float, bool]]) -> None:
    asked, now, last_refused = Submissions(), 0.0, False
    for pause, accepted in steps:
        now += pause
        if not asked.may_try(now):
            assert last_refused
            continue
        if accepted:
            asked.accepted()
            assert asked.may_try(now)
        else:
            asked.refused(now)
            assert asked.may_try(now + 300)
        last_refused = not accepted


def test_the_schedulers_words_come_without_its_prefix_and_on_one_line() -> None:
    said = "sbatch: error: invalid partition specified: nope\nsbatch: error: Batch job failed\n"

    assert scheduler_words(said) == "invalid partition specified: nope; Batch job failed"
    assert scheduler_words(None) == ""
    assert len(scheduler_words("x" * 10_000 + " the end")) < 700
    assert scheduler_words("x" * 10_000 + " the end").endswith(" the end")
