"""Whether a model on a cluster of FIRST runs, as its jobs and its answers tell."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.backends._first_dialect import Condition
from scaleinfer.backends._first_listing import (
    Job,
    ModelLimits,
    Route,
    jobs_of,
    limits_of,
    routes_of,
    same,
)
from scaleinfer.backends._first_state import FirstState

MODEL = "openai/gpt-oss-120b"


def state(*, startable: bool = True, deadline_s: float = 100.0) -> FirstState:
    return FirstState("sophia", MODEL, startable=startable, deadline_s=deadline_s)


def job(status: str, start: str = "", model: str = MODEL) -> Job:
    return Job((model,), "vllm", status, start)


def test_a_model_that_runs_is_hot_at_once() -> None:
    watched = state()
    assert watched.places == 0
    watched.told([job("running")], "vllm", 0.0)
    assert watched.places is None
    assert watched.phase == ""


def test_a_cold_start_from_beginning_to_end() -> None:
    watched = state()
    watched.told([], "vllm", 0.0)
    assert watched.wants_warm_up
    watched.warm_up_began()
    assert not watched.wants_warm_up, "one warm-up at a time"
    watched.told([job("stopped")], "vllm", 10.0)
    assert (watched.phase, watched.wants_warm_up) == ("sophia: starting", False)
    watched.told([job("queued", "14:10")], "vllm", 20.0)
    assert watched.phase == "sophia: queued, estimated start 14:10"
    watched.told([job("starting")], "vllm", 30.0)
    assert watched.phase == "sophia: starting"
    assert watched.places == 0
    watched.told([job("running")], "vllm", 40.0)
    assert watched.places is None


def test_a_warm_up_that_came_to_nothing_is_repeated() -> None:
    watched = state()
    watched.told([], "vllm", 0.0)
    watched.warm_up_began()
    watched.warm_up_ended()
    watched.told([], "vllm", 330.0)
    assert watched.wants_warm_up


def test_a_model_that_no_request_starts_is_waited_for() -> None:
    watched = state(startable=False)
    watched.told([], "vllm", 0.0)
    assert (watched.phase, watched.wants_warm_up) == ("sophia: offline", False)


def test_a_refusal_is_newer_than_what_jobs_tell() -> None:
    watched = state()
    watched.told([job("running")], "vllm", 0.0)
    watched.refused(Condition.OFFLINE, 1.0)
    assert watched.places == 0
    watched.told([job("running")], "vllm", 2.0)
    assert watched.places == 1, "one call tries it"
    watched.refused(Condition.OFFLINE, 3.0)
    assert watched.places == 0
    watched.told([job("running")], "vllm", 4.0)
    watched.answered(5.0)
    assert watched.places is None


@pytest.mark.parametrize(
    ("condition", "phase"),
    [
        (Condition.NOT_READY, "sophia: starting"),
        (Condition.OFFLINE, "sophia: offline"),
        (Condition.NOT_LIVE, "sophia: offline"),
        (Condition.MAINTENANCE, "sophia: under maintenance"),
        (Condition.TOO_MANY_REQUESTS, ""),
        (Condition.TIMED_OUT, ""),
    ],
)
def test_what_refusals_mean(condition: Condition, phase: str) -> None:
    watched = state()
    watched.answered(0.0)
    watched.refused(condition, 1.0)
    assert watched.phase == phase


def test_a_cluster_that_does_not_tell_is_tried() -> None:
    watched = state()
    watched.not_told(0.0)
    assert watched.hot
    watched.refused(Condition.OFFLINE, 1.0)
    watched.not_told(2.0)
    assert watched.places == 1


def test_the_deadline_counts_from_when_it_went_away() -> None:
    watched = state(deadline_s=100.0)
    watched.told([], "vllm", 0.0)
    watched.told([job("queued")], "vllm", 99.0)
    assert not watched.overdue(99.0)
    assert watched.overdue(100.0)
    watched.answered(101.0)
    assert not watched.overdue(1000.0)
    watched.refused(Condition.OFFLINE, 1000.0)
    assert not watched.overdue(1099.0)
    assert watched.away_s(1050.0) == 50.0


def test_of_several_instances_one_that_runs_is_enough() -> None:
    watched = state()
    watched.told([job("queued"), job("running", model="gpt-oss-120b")], "vllm", 0.0)
    assert watched.hot


def test_other_models_and_frameworks_say_nothing() -> None:
    watched = state()
    watched.told([job("running", model="other"), Job((MODEL,), "api", "running")], "vllm", 0.0)
    assert not watched.hot


EVENTS = st.one_of(
    st.sampled_from(list(Condition)).map(lambda c: ("refused", c)),
    st.lists(
        st.sampled_from(["running", "starting", "queued", "stopped", "disconnected", "other"]),
        max_size=3,
    ).map(lambda statuses: ("told", statuses)),
    st.sampled_from([("answered", None), ("not_told", None), ("warm", None), ("ended", None)]),
)


@given(st.lists(EVENTS, max_size=40), st.booleans())
def test_an_answer_always_makes_it_hot(events: list[tuple[str, Any]], startable: bool) -> None:
    watched = state(startable=startable)
    for now, (what, given_) in enumerate(events):
        if what == "refused":
            watched.refused(given_, float(now))
        elif what == "told":
            watched.told([job(status) for status in given_], "vllm", float(now))
        elif what == "answered":
            watched.answered(float(now))
            assert watched.hot
        elif what == "not_told":
            watched.not_told(float(now))
        elif what == "warm" and watched.wants_warm_up:
            watched.warm_up_began()
        else:
            watched.warm_up_ended()
        assert (watched.places is None) == watched.hot
        assert watched.hot or watched.state == "unknown" or watched.phase.startswith("sophia: ")
        assert watched.hot or watched.state == "unknown" or watched.away_s(now + 1.0) > 0
    watched.answered(99.0)
    assert watched.places is None


# What the gateway tells.


def test_aliases() -> None:
    offered = ["openai/gpt-oss-120b", "meta/x", "other/x"]
    assert same("gpt-oss-120b", offered) == "openai/gpt-oss-120b"
    assert same("openai/gpt-oss-120b", ["gpt-oss-120b"]) == "gpt-oss-120b"
    assert same("meta/x", offered) == "meta/x", "its own name first"
    assert same("x", offered) is None, "which of them, nobody knows"
    assert same("none", offered) is None


def test_routes() -> None:
    body = {
        "clusters": {
            "metis": {
                "base_url": "/resource_server/metis",
                "frameworks": {"api": {"models": ["gpt-oss-120b"], "endpoints": []}},
            }
        }
    }
    assert routes_of(body) == [Route("metis", "api", ("gpt-oss-120b",))]


@pytest.mark.parametrize("body", [[], {}, {"clusters": []}, {"clusters": {"a": 1}}, None, "x"])
def test_what_is_no_list_of_routes(body: Any) -> None:
    with pytest.raises(ValueError, match="no clusters"):
        routes_of(body)


def test_limits() -> None:
    entry = {
        "id": "m",
        "framework": "vllm",
        "rate_limit_token_per_minute": 100000,
        "rate_limit_token_per_minute_per_user": 60000,
    }
    found = limits_of([entry, {"id": "n"}, entry | {"framework": "api", "id": "o"}], "vllm")
    assert found == {"m": ModelLimits(100000, 60000), "n": ModelLimits()}
    assert found["m"].least == 60000
    assert found["n"].least is None
    assert limits_of({"data": [entry]}, "vllm").keys() == {"m"}
    assert limits_of("nonsense", "vllm") == {}


def test_jobs() -> None:
    running = {
        "Models": "meta-llama/Meta-Llama-3.1-8B-Instruct, openai/gpt-oss-120b",
        "Framework": "vllm",
        "Model Status": "running",
        "Unknown": 1,
    }
    queued = {"Models": MODEL, "Estimated Start Time": "2026-11-21 14:10:00 (Chicago time)"}
    found = jobs_of({"running": [running], "queued": [queued], "stopped": [], "others": [{}]})
    assert found[0].models == ("meta-llama/Meta-Llama-3.1-8B-Instruct", MODEL)
    assert found[1] == Job((MODEL,), "", "queued", "14:10")
    assert found[2] == Job((), "", "other")


@pytest.mark.parametrize("body", [[], {}, None, {"detail": "x"}])
def test_what_are_no_jobs(body: Any) -> None:
    with pytest.raises(ValueError, match="no groups"):
        jobs_of(body)
