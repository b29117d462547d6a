"""When to look at a batch, whatever the server says and whenever."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.backends import BatchState
from scaleinfer.backends._batch_base import BatchPhase
from scaleinfer.batch._job import Job

PHASES = get_args(BatchPhase)
ENDED = {"completed", "failed", "expired", "cancelled", "gone"}

looks = st.lists(
    st.one_of(
        st.builds(BatchState, st.sampled_from(PHASES), st.integers(0, 9), st.integers(0, 9)),
        st.none(),
        st.floats(0, 1000),
    ),
    max_size=40,
)


@given(looks=looks, first=st.floats(0.01, 10), factor=st.floats(1, 100))
def test_looks_go_on_until_the_end_and_not_longer(
    looks: list[Any], first: float, factor: float
) -> None:
    most = first * factor
    now, job = 0.0, Job(0.0, (first, most))
    order = {"submitted": -1, "validating": 0, "in_progress": 1, "cancelling": 2, "finalizing": 2}
    rank = -1
    for look in looks:
        if job.ended:
            break
        assert now < job.next_look < math.inf
        now = job.next_look
        if isinstance(look, BatchState):
            job.seen(look, now)
            assert job.failures == 0
        else:
            failures = job.failures
            job.unseen(now, look)
            assert job.failures == failures + 1
            assert job.next_look >= now + (look or 0.0)
        assert order.get(job.phase, 3) >= rank
        rank = order.get(job.phase, 3)
        assert job.ended == (job.phase in ENDED)
        if not job.ended:
            assert job.next_look - now <= max(most, look if isinstance(look, float) else 0.0) * 1.01
        assert 0.0 <= job.share <= 1.0
    if job.ended:
        assert job.next_look == math.inf
        phase = job.phase
        job.seen(BatchState("in_progress"), now)
        job.unseen(now)
        job.look_now(now)
        assert (job.phase, job.next_look) == (phase, math.inf)


def test_looks_become_rarer_with_age() -> None:
    job, now, pauses = Job(0.0, (1.0, 60.0)), 0.0, []
    while now < 5000:
        now = job.next_look
        job.seen(BatchState("in_progress", 1, 10), now)
        pauses.append(round(job.next_look - now, 6))
    assert pauses[0] == 1.0
    assert pauses == sorted(pauses)
    assert pauses[-1] == 60.0
    assert len(pauses) < 200


def test_an_older_state_that_comes_late_changes_nothing() -> None:
    job = Job(0.0, (1.0, 60.0))
    job.seen(BatchState("finalizing", 9, 10), 1.0)
    job.seen(BatchState("in_progress", 5, 10), 2.0)
    assert (job.phase, job.share) == ("finalizing", 0.9)


@pytest.mark.parametrize("phase", sorted(ENDED))
def test_an_end_is_an_end(phase: BatchPhase) -> None:
    job = Job(0.0, (1.0, 60.0))
    job.seen(BatchState(phase), 1.0)
    assert job.ended
