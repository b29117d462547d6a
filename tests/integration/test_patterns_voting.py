"""Ensembles, sweeps, judges and semantic entropy against a simulated server."""

from __future__ import annotations

import json
from random import Random
from typing import TYPE_CHECKING, Any, Literal

import pytest
from pydantic import BaseModel

from scaleinfer import (
    AuthError,
    ConfigError,
    OpenAIBackend,
    Permanent,
    Prompt,
    PromptError,
    Result,
    Retry,
    SchemaError,
)
from scaleinfer.errors import RunStopped
from scaleinfer.fleet import Fleet
from scaleinfer.patterns import Member, ensemble
from scaleinfer.testing import Fault, SimulatedServer

if TYPE_CHECKING:
    from pathlib import Path

    from scaleinfer.patterns import EnsembleResult, Vote
    from scaleinfer.testing import RequestView

pytestmark = pytest.mark.anyio

QUIET: dict[str, Any] = {"progress": False}


def sampled(view: RequestView) -> str:
    """Answer as a good annotator does: most items are easy, some are not, a few are hopeless."""
    luck = Random(f"{view.text} {view.body.get('seed')} {view.model}").random()
    kind = Random(view.text).random()
    sure = 0.97 if kind < 0.75 else 0.8 if kind < 0.9 else 0.5
    wrong = "B" if luck < sure + (1 - sure) * 0.7 else "C"
    return "A" if luck < sure else wrong


def scripted(**answers: list[str]) -> Any:
    """Answer each prompt by its list, in the order of seeds."""
    return lambda view: answers[view.text][view.body["seed"]]


async def asked(items: Any, server: SimulatedServer, **options: Any) -> EnsembleResult:
    return await ensemble(items, "{}", base_url=server.base_url, **QUIET, **options)


async def test_the_majority_wins_and_spares_calls() -> None:
    answers = scripted(same=["x"] * 5, split=["x", "y", "y.", "Z", " y"], late=list("xyxyy"))
    async with SimulatedServer(answer=answers) as server:
        result = await asked(["same", "split", "late"], server, n=5)
        assert server.ledger.arrived == 3 + 5 + 5
    same, split, late = result
    assert result.values == ["x", "y", "y"]
    assert [outcome.asked for outcome in result] == [3, 5, 5]
    assert result.saved == pytest.approx(2 / 15)
    assert (same.confidence, same.agreement, same.saved) == (1.0, 1.0, 2)
    assert split.votes == {"y": 3, "x": 1, "Z": 1}
    assert split.confidence == pytest.approx(0.6)
    assert split.agreement == pytest.approx(3 / 10)
    assert [vote.answer for vote in late.ballots] == list("xyxyy")
    assert result.usage.requests == 13
    assert result[0].attempts == 3


async def test_stopping_early_saves_a_third_and_changes_no_winner() -> None:
    items = [f"record {number}" for number in range(200)]
    async with SimulatedServer(answer=sampled) as server:
        early = await asked(items, server, n=5)
        few = server.ledger.arrived
        full = await asked(items, server, n=5, stop="never")
        assert server.ledger.arrived == few + 5 * len(items)
    assert early.values == full.values
    assert [bool(outcome.tied) for outcome in early] == [bool(outcome.tied) for outcome in full]
    assert few == sum(outcome.asked for outcome in early)
    assert few <= 0.7 * 5 * len(items)


async def test_a_journal_keeps_the_samples_apart(tmp_path: Path) -> None:
    journal = tmp_path / "run.db"
    items = [f"record {number}" for number in range(20)]
    async with SimulatedServer(answer=sampled) as server:
        first = await asked(items, server, journal=journal)
        arrived = server.ledger.arrived
        again = await asked(items, server, journal=journal)
        assert server.ledger.arrived == arrived
        # More voters: those that have answered are not asked again.
        more = await asked(items, server, journal=journal, n=5, stop="never")
        assert server.ledger.arrived == 5 * len(items)
    assert again.values == first.values
    assert all(outcome.resumed for outcome in again)
    assert more.values == first.values


async def test_without_seeds_the_samples_are_still_several(tmp_path: Path) -> None:
    def answer(view: RequestView) -> str:
        assert "seed" not in view.body
        return f"answer {view.attempt}"

    async with SimulatedServer(answer=answer) as server:
        result = await asked(["q"], server, n=3, seed=None, journal=tmp_path / "run.db")
        again = await asked(["q"], server, n=3, seed=None, journal=tmp_path / "run.db")
        assert server.ledger.arrived == 3
    assert sorted(result[0].votes) == ["answer 1", "answer 2", "answer 3"]
    assert len(result[0].tied) == 3
    assert again.values == result.values


async def test_votes_are_spread_over_models_and_backends() -> None:
    def answer(view: RequestView) -> str:
        return {"small": "x", "large": "y", "other": "y"}[view.model]

    async with (
        SimulatedServer(answer=answer, models=["small", "large"]) as server,
        SimulatedServer(answer=answer, models=["other"]) as second,
    ):
        backend = OpenAIBackend(second.base_url, model="other")
        result = await asked(["q"], server, n=3, models=["small", "large", backend], stop="never")
        assert second.ledger.arrived == 1
    [outcome] = result
    assert outcome.value == "y"
    assert [vote.member for vote in outcome.ballots] == ["small", "large", "other"]
    agreement = result.agreement()
    assert agreement.pairs["large", "other"][0] == 1
    assert agreement.pairs["small", "large"][0] == 0


async def test_weights_of_models() -> None:
    async with SimulatedServer(
        answer=lambda view: {"wise": "x"}.get(view.model, "y"), models=["a", "b", "wise"]
    ) as server:
        models = ["a", "b", Member("wise", weight=3)]
        weighted = await asked(["q"], server, n=3, models=models, vote="weighted")
        # Nobody can outvote the wise one, so nobody else is asked.
        assert server.ledger.arrived == 1
        plain = await asked(["q"], server, n=3, models=models)
    assert weighted.values == ["x"]
    assert plain.values == ["y"]


async def test_votes_weighed_by_probability() -> None:
    async with SimulatedServer(answer=scripted(q=["x", "y", "x"])) as server:
        [outcome] = await asked(["q"], server, n=3, vote="weighted", stop="never")
    assert [bool(vote.result and vote.result.logprobs) for vote in outcome.ballots] == [True] * 3
    assert all(0 < vote.weight <= 1 for vote in outcome.ballots)
    assert outcome.value == "x"
    x, y = outcome.votes["x"], outcome.votes["y"]
    assert outcome.confidence == pytest.approx(x / (x + y))


async def test_votes_weighed_by_a_function() -> None:
    def confidence(result: Result) -> float:
        return 1.0 if result.text == "y" else 0.25

    async with SimulatedServer(answer=scripted(q=["x", "y", "x"])) as server:
        result = await asked(["q"], server, n=3, vote="weighted", confidence=confidence)
        wrong = await asked(["q"], server, n=3, vote="weighted", confidence=lambda _: 7)
    assert result.values == ["y"]
    assert result[0].votes == {"y": 1, "x": 0.5}
    assert isinstance(wrong[0].error, PromptError)


async def test_a_vote_of_ones_own() -> None:
    def longest(votes: list[Vote]) -> str:
        return max((str(vote.answer) for vote in votes), key=len)

    async with SimulatedServer(answer=scripted(q=["x", "x", "long"])) as server:
        [outcome] = await asked(["q"], server, n=3, vote=longest)
        assert server.ledger.arrived == 3
    assert outcome.value == "long"
    assert outcome.confidence == pytest.approx(1 / 3)


class Matter(BaseModel):
    state: Literal["gas", "liquid"]
    why: str


async def test_typed_answers_vote_by_a_field() -> None:
    def answer(view: RequestView) -> str:
        seed = view.body["seed"]
        return Matter(
            state="gas" if seed != 1 else "liquid", why=f"because {seed}"
        ).model_dump_json()

    async with SimulatedServer(answer=answer) as server:
        by_field = await asked(
            ["q"], server, n=3, schema=Matter, answer=lambda result: result.value.state
        )
        whole = await asked(["q"], server, n=3, schema=Matter)
    assert by_field.values == ["gas"]
    assert by_field[0].votes == {"gas": 2, "liquid": 1}
    assert len(whole[0].tied) == 3
    assert isinstance(whole[0].value, Matter)


async def test_lost_votes_do_not_count_and_lost_items_have_their_cause() -> None:
    def answer(view: RequestView) -> str:
        return "x" if view.body["seed"] < 2 else "y"

    faults = [
        Fault.status(400, match=lambda view: view.prompt == "part" and view.body["seed"] in {1, 3}),
        Fault.status(400, match="lost"),
    ]
    async with SimulatedServer(answer=answer, faults=faults) as server:
        result = await asked(["part", "lost", "fine"], server, n=5, retry=Retry(attempts=1))
    part, lost, fine = result
    assert part.ok
    assert [vote.error is None for vote in part.ballots] == [True, False, True, False, True]
    assert part.value == "y"
    assert isinstance(lost.error, Permanent)
    assert (lost.value, lost.asked) == (None, 0)
    assert fine.ok
    assert result.failed == [lost]


async def test_voters_that_abstain() -> None:
    def answer(result: Result) -> str | None:
        text = result.text or ""
        return text if text in {"yes", "no"} else None

    async with SimulatedServer(
        answer=scripted(some=["maybe", "yes", "hm", "no", "yes"], none=["hm"] * 5)
    ) as server:
        some, none = await asked(["some", "none"], server, answer=answer)
        [raises] = await asked(["none"], server, answer=lambda result: 1 / 0)
    assert some.value == "yes"
    assert some.confidence == pytest.approx(2 / 3)
    assert isinstance(none.error, PromptError)
    assert "abstained" in str(none.error)
    assert "answer raised ZeroDivisionError" in str(raises.error)


async def test_bad_prompts_fail_their_item_only() -> None:
    def prompt(item: str) -> Any:
        return {"bad": 7, "worse": 1 / 0 if item == "worse" else ""}.get(item, item)

    async with SimulatedServer() as server:
        result = await ensemble(
            ["good", "bad", "worse"], prompt, base_url=server.base_url, n=1, **QUIET
        )
    assert [outcome.ok for outcome in result] == [True, False, False]
    assert all(isinstance(outcome.error, PromptError) for outcome in result.failed)


async def test_an_async_prompt_with_sampling_of_its_own() -> None:
    async def prompt(item: str) -> Prompt:
        return Prompt(item, sampling={"temperature": 0.3, "seed": 7, "max_tokens": 2})

    async with SimulatedServer(keep_bodies=True, answer=lambda view: "x") as server:
        await ensemble(["q"], prompt, n=3, base_url=server.base_url, **QUIET)
        bodies = [record.body for record in server.ledger.requests]
    sent = [json.loads(body) for body in bodies if body]
    assert [body["seed"] for body in sent] == [7, 8]
    assert {(body["temperature"], body["max_tokens"]) for body in sent} == {(0.3, 2)}


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": 0},
        {"n": True},
        {"n": 2.5},
        {"vote": "loudest"},
        {"stop": "sometimes"},
        {"models": []},
        {"models": ["a", "a"]},
        {"models": ["a", "b"], "n": 1},
        {"models": [Member("a", weight=0)]},
        {"sampling": {"temperature": 0}},
        {"sampling": {"heat": 1}},
    ],
    ids=str,
)
async def test_bad_ensembles(wrong: dict[str, Any], server: SimulatedServer) -> None:
    with pytest.raises(ConfigError):
        await asked(["q"], server, **wrong)
    with pytest.raises(ConfigError):
        await ensemble(["q"], 7, base_url=server.base_url)  # type: ignore[arg-type]  # wrong on purpose
    assert server.ledger.arrived == 0


async def test_greedy_models_may_vote_once_each() -> None:
    async with SimulatedServer(models=["a", "b"], answer=lambda view: "x") as server:
        result = await asked(["q"], server, n=2, models=["a", "b"], sampling={"temperature": 0})
    assert result.values == ["x"]


async def test_a_schema_that_nobody_meets() -> None:
    async with SimulatedServer(answer=lambda view: "no JSON") as server:
        [outcome] = await asked(["q"], server, n=3, schema=Matter, retry=Retry(repairs=0))
    assert isinstance(outcome.error, SchemaError)


async def test_a_greedy_prompt_fails_its_item_before_anything_is_sent() -> None:
    async with SimulatedServer() as server:
        [outcome] = await ensemble(
            ["q"],
            lambda item: Prompt(item, sampling={"temperature": 0}),
            base_url=server.base_url,
            **QUIET,
        )
        assert server.ledger.arrived == 0
    assert isinstance(outcome.error, ConfigError)


async def test_causes_are_kept() -> None:
    def unlucky(item: str) -> str:
        return str(1 / 0)

    async with SimulatedServer() as server:
        [outcome] = await ensemble(["q"], unlucky, base_url=server.base_url, **QUIET)
        [silent] = await asked(["q"], server, answer=lambda result: result.nothing)
    assert isinstance(outcome.error and outcome.error.__cause__, ZeroDivisionError)
    assert isinstance(silent.error and silent.error.__cause__, AttributeError)


async def test_a_wrong_key_stops_the_run() -> None:
    items = [f"record {number}" for number in range(200)]
    async with SimulatedServer(api_key="right") as server:
        result = await asked(items, server, api_key="wrong")
        assert server.ledger.arrived < len(items)
    assert result.stopped
    assert not result.ok
    assert isinstance(result[0].error, AuthError | RunStopped)


async def test_an_ensemble_over_a_fleet(tmp_path: Path) -> None:
    items = [f"record {number}" for number in range(20)]
    async with SimulatedServer(answer=sampled, models=["a", "b"]) as server:
        here = await asked(items, server, models=["a", "b"], n=4)
        arrived = server.ledger.arrived
        async with Fleet.local(2, backend=server.base_url, model="a") as fleet:
            await fleet.ready(2, timeout=60)
            there = await ensemble(
                items, "{}", models=["a", "b"], n=4, fleet=fleet,
                journal=tmp_path / "run.db", **QUIET,
            )  # fmt: skip
        # The same seeds, so the same answers: nothing more was asked, and nothing less.
        assert server.ledger.arrived == 2 * arrived
    assert there.values == here.values
    assert [outcome.asked for outcome in there] == [outcome.asked for outcome in here]
    workers = {vote.result.worker for o in there for vote in o.ballots if vote.result}
    assert None not in workers


async def test_displays(tmp_path: Path) -> None:
    answers = scripted(a=["<b>x</b>"] * 3, b=list("xyz"))
    async with SimulatedServer(answer=answers) as server:
        result = await asked(["a", "b"], server, n=3, name="poll")
    text = repr(result)
    assert "poll: 2 ok" in text
    assert "x (33% of 3, tied)" in text
    assert "share saved" in text
    shown = result._repr_html_()
    assert "<b>x</b>" not in shown
    assert "&lt;b&gt;x" in shown
    result.report(tmp_path / "poll.html")
    assert "share saved" in (tmp_path / "poll.html").read_text(encoding="utf-8")
    frame = result.to_pandas()
    assert list(frame["confidence"]) == [1.0, pytest.approx(1 / 3)]
    assert list(frame["saved"]) == [1, 0]
    with pytest.raises(ConfigError):
        result.report(tmp_path / "no" / "such.html")
