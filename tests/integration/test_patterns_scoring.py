"""Sweeps, judges and semantic entropy against a simulated server."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest

from scaleinfer import ConfigError, Permanent, PromptError, Result, Retry, SchemaError, parallel_map
from scaleinfer.patterns import (
    Criterion,
    Member,
    Rubric,
    Variant,
    judge,
    semantic_entropy,
    sweep,
)
from scaleinfer.testing import Fault, SimulatedServer

if TYPE_CHECKING:
    from pathlib import Path

    from scaleinfer.patterns import EntropyResult, JudgeResult, SweepResult
    from scaleinfer.testing import RequestView

pytestmark = pytest.mark.anyio

QUIET: dict[str, Any] = {"progress": False}
MODELS = ["small", "large"]
NUMBERS = [1, 2, 3, 4]


def parity(view: RequestView) -> str:
    """The large model knows odd from even; the small one only when asked kindly."""
    number = int(view.text.split()[-1])
    knows = view.model == "large" or view.text.startswith("Please")
    return "odd" if not knows or number % 2 else "even"


def right(item: int, result: Result) -> bool:
    return result.text == ("odd" if item % 2 else "even")


async def swept(server: SimulatedServer, **options: Any) -> SweepResult:
    given: dict[str, Any] = {
        "prompts": {"plain": "Is it odd or even? {}", "kind": "Please, odd or even: {}"},
        "models": MODELS,
        "score": right,
        "retry": Retry(attempts=1),
    }
    return await sweep(NUMBERS, base_url=server.base_url, **QUIET, **(given | options))


async def test_a_sweep_compares_prompts_models_and_settings() -> None:
    samplings = {"greedy": {"temperature": 0}, "warm": {"temperature": 1}}
    async with SimulatedServer(answer=parity, models=MODELS, keep_bodies=True) as server:
        result = await swept(server, samplings=samplings)
        assert server.ledger.arrived == 4 * 2 * 2 * 2
        sent = [json.loads(record.body or b"") for record in server.ledger.requests]
    assert sorted({(body["model"], body["temperature"]) for body in sent}) == [
        ("large", 0), ("large", 1), ("small", 0), ("small", 1),
    ]  # fmt: skip
    scores = {cell.variant: cell.score for cell in result.cells}
    assert scores.pop(Variant("plain", "small", "greedy")) == 0.5
    assert scores.pop(Variant("plain", "small", "warm")) == 0.5
    assert set(scores.values()) == {1.0}
    worst = result.cell("plain", "small", "warm")
    # Two right of four: standard deviation sqrt(1/3), standard error half of it.
    assert worst.score_error == pytest.approx(math.sqrt(1 / 3) / 2)
    assert (worst.ok, worst.failed) == (4, 0)
    # Three are always right; the shortest prompt of these wins, and of equal ones the first.
    assert result.best().variant == Variant("plain", "large", "greedy")
    assert result.best(lambda cell: -(cell.score or 0)).model == "small"
    assert result.usage.requests == 32
    assert result[0].value[Variant("plain", "large", "warm")] == "odd"


async def test_models_are_compared_with_each_other() -> None:
    async with SimulatedServer(answer=parity, models=MODELS) as server:
        result = await swept(server)
    agreement = result.agreement()
    share, kappa, questions = agreement.pairs["small", "large"]
    assert (share, questions) == (0.75, 8)
    # p_o = 3/4, p_e = 3/4 * 1/2 + 1/4 * 1/2 = 1/2
    assert kappa == pytest.approx(0.5)
    assert result.agreement("prompt").pairs["plain", "kind"][0] == 0.75
    by_length = result.agreement(answer=lambda one: len(one.text or ""), level="interval")
    assert by_length.items == 8
    with pytest.raises(ConfigError):
        result.agreement("sampling")
    with pytest.raises(ConfigError):
        result.cell("plain")


async def test_an_answer_that_fails_fails_alone() -> None:
    faults = [
        Fault.status(400, match=lambda view: view.model == "small" and view.prompt.endswith("1")),
        Fault.status(400, match=lambda view: view.prompt.endswith("2")),
    ]

    def score(item: int, result: Result) -> float | None:
        if item == 3 and result.model == "large":
            raise ValueError("no idea")
        return None if item == 4 else 1

    async with SimulatedServer(answer=parity, models=MODELS, faults=faults) as server:
        result = await swept(server, prompts="Is it odd? {}", score=score)
    one, two, three, four = result
    assert [found.error is None for found in one.answers] == [False, True]
    assert isinstance(two.error, Permanent)
    assert isinstance(three.answers[1].error, PromptError)
    assert four.answers[0].score is None
    small, large = result.cells
    assert (small.ok, small.failed, small.score) == (2, 2, 1)
    assert (large.ok, large.failed, large.score) == (2, 2, 1)
    assert result.failed == [two]


async def test_a_prompt_that_raises_fails_its_variants() -> None:
    async def halved(item: int) -> str:
        return f"half of {1 // (item % 2)} 1"

    async with SimulatedServer(answer=parity, models=MODELS) as server:
        result = await swept(server, prompts={"a": "{}", "b": halved}, models=["large"])
    assert [cell.failed for cell in result.cells] == [0, 2]
    assert "prompt 'b' raised ZeroDivisionError" in str(result[1].answers[1].error)


async def test_a_sweep_resumes(tmp_path: Path) -> None:
    journal = tmp_path / "sweep.db"
    async with SimulatedServer(answer=parity, models=MODELS) as server:
        first = await swept(server, journal=journal, models=["large"])
        again = await swept(server, journal=journal)
        # Only what the second model was not asked is asked.
        assert server.ledger.arrived == 16
    assert again.cell("kind", "large").score == first.cell("kind").score


async def test_tables_of_a_sweep(tmp_path: Path) -> None:
    async with SimulatedServer(answer=parity, models=MODELS) as server:
        result = await swept(server)
        unscored = await swept(server, score=None)
    frame = result.to_pandas()
    assert list(frame["score"]) == [0.5, 1, 1, 1]
    assert list(frame.columns[:3]) == ["prompt", "model", "sampling"]
    assert len(result.answers_to_pandas()) == 16
    rows = list(result.rows())
    assert rows[1]["plain / small / default"] == "odd"
    text = repr(result)
    assert "plain   small   4       0    0.5" in text
    assert "small / large   0.75    0.5        8" in text
    assert "sampling" not in text
    assert "Models' agreement".replace("'", "&#x27;") in result._repr_html_()
    result.report(tmp_path / "sweep.html")
    assert "plain" in (tmp_path / "sweep.html").read_text(encoding="utf-8")
    assert unscored.cells[0].score is None
    with pytest.raises(ConfigError):
        unscored.best()


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompts": {}},
        {"prompts": {"a": 7}},
        {"models": []},
        {"models": ["small", "small"]},
        {"samplings": {}},
        {"samplings": {"temperature": 0}},
        {"samplings": {"warm": {"heat": 1}}},
    ],
    ids=str,
)
async def test_bad_sweeps(wrong: dict[str, Any], server: SimulatedServer) -> None:
    with pytest.raises(ConfigError):
        await swept(server, **wrong)
    assert server.ledger.arrived == 0


RUBRIC = Rubric((Criterion("merit", "Is it new?", weight=3), Criterion("clarity", high=3)))


def scores(view: RequestView) -> str:
    """Long works have merit; the lenient judge is one point kinder, and all write clearly."""
    work = view.text.partition("The work:\n")[2].partition("\n")[0]
    merit = min(len(work), 4) + (view.model == "lenient")
    return json.dumps({"reasons": f"{len(work)} letters", "merit": merit, "clarity": 3})


async def judged(works: Any, server: SimulatedServer, **options: Any) -> JudgeResult:
    return await judge(works, RUBRIC, base_url=server.base_url, **QUIET, **options)


async def test_judges_score_and_agree() -> None:
    judges = ["strict", "lenient"]
    async with SimulatedServer(answer=scores, models=judges) as server:
        result = await judged(["a", "abc", "ab"], server, judges=judges)
        assert server.ledger.arrived == 6
    assert result.values[0] == {"merit": 1.5, "clarity": 3}
    assert result[0].spread == {"merit": 1, "clarity": 0}
    assert result[0].total == pytest.approx((3 * 0.125 + 1) / 4)
    assert [outcome.item for outcome in result.ranked()] == ["abc", "ab", "a"]
    assert [verdict.scores["merit"] for verdict in result[1].verdicts] == [3, 4]
    assert result[1].verdicts[0].reasons == "3 letters"
    # Always one apart: no item has two equal scores, nor would chance have many.
    assert result.agreement("merit").pairs["strict", "lenient"][0] == 0
    assert result.alphas["clarity"] is None
    assert result.alphas["merit"] == result.agreement("merit").alpha
    assert "lenient      3      3" in repr(result)
    with pytest.raises(ConfigError):
        result.agreement("beauty")


async def test_results_of_a_map_are_judged_by_their_texts() -> None:
    async with SimulatedServer(
        answer=lambda view: scores(view) if "The work" in view.text else view.text.upper(),
        faults=[Fault.status(400, match="bad")],
    ) as server:
        works = await parallel_map(["abc", "bad"], "{}", base_url=server.base_url, **QUIET)
        result = await judged(works, server, task=lambda work: f"Write {work.item} large.")
        assert any("The task was:\nWrite abc large." in p for p in server.ledger.asked())
    good, bad = result
    assert good.value["merit"] == 3
    assert isinstance(bad.error, PromptError)
    assert "no answer that could be judged" in str(bad.error)


async def test_a_judge_who_fails_is_left_out() -> None:
    judges = ["strict", "lenient"]

    def answer(view: RequestView) -> str:
        return "no" if view.model == "lenient" or "lost" in view.text else scores(view)

    async with SimulatedServer(answer=answer, models=judges) as server:
        result = await judged(
            [{"text": "ab"}, {"text": "lost"}],
            server, judges=judges, text="{text}", retry=Retry(repairs=0),
        )  # fmt: skip
    one, lost = result
    assert one.value == {"merit": 2, "clarity": 3}
    assert isinstance(one.verdicts[1].error, SchemaError)
    assert isinstance(lost.error, SchemaError)
    assert list(result.to_pandas()["ok"]) == [True, False]


@pytest.mark.parametrize(
    "wrong", [{"judges": ["a", "a"]}, {"schema": Result}, {"text": 7}], ids=str
)
async def test_bad_judges(wrong: dict[str, Any], server: SimulatedServer) -> None:
    with pytest.raises(ConfigError):
        await judged(["a"], server, **wrong)
    with pytest.raises(ConfigError):
        await judge(["a"], {}, base_url=server.base_url, **QUIET)
    assert server.ledger.arrived == 0


CAPITALS = {
    "France?": ["Paris", "It is Paris.", "paris", "Paris!"],
    "Utopia?": ["Amaurot", "Paris", "It is Paris.", "Nowhere"],
}


def capital(view: RequestView) -> str:
    if view.text in CAPITALS:
        seed: int = view.body["seed"]
        return CAPITALS[view.text][seed]
    return json.dumps({"relation": relation(view.text)})


def relation(prompt: str) -> str:
    """Paris is Paris, with more words or fewer; anything else is something else."""
    _, first, second = (part.split("\n")[0] for part in prompt.split(": ")[-3:])
    return "entailment" if "Paris" in first and "Paris" in second else "contradiction"


async def uncertain(server: SimulatedServer, **options: Any) -> EntropyResult:
    given: dict[str, Any] = {"n": 4, "base_url": server.base_url} | QUIET
    return await semantic_entropy(list(CAPITALS), "{}", **(given | options))


async def test_entropy_by_entailment(tmp_path: Path) -> None:
    journal = tmp_path / "run.db"
    async with SimulatedServer(answer=capital) as server:
        result = await uncertain(server, journal=journal)
        asked = server.ledger.arrived
        again = await uncertain(server, journal=journal)
        assert server.ledger.arrived == asked
    france, utopia = result
    assert france.clusters == ((0, 1, 2, 3),)
    assert france.entropy == 0
    assert utopia.clusters == ((1, 2), (0,), (3,))
    assert utopia.entropy == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4))
    assert utopia.relative == pytest.approx(0.75)
    assert utopia.value == "Paris"
    assert result.ranked()[0] is utopia
    assert again[1].clusters == utopia.clusters
    # France: 4 answers, and one pair of other words, both ways. Utopia: 4 answers, then Paris and
    # Amaurot, It is Paris with both and back, Nowhere with both.
    assert asked == (4 + 2) + (4 + 1 + 3 + 2)
    assert "2 x Paris" in repr(result)


async def test_entropy_by_embedding_and_another_model() -> None:
    async with (
        SimulatedServer(answer=capital) as server,
        SimulatedServer(models=["embedder"]) as second,
    ):
        result = await uncertain(
            server, by="embedding", by_model=Member("embedder", backend=second.base_url)
        )
        assert server.ledger.arrived == 8
        assert second.ledger.arrived > 0
    # The simulated embedding of other words is another direction.
    assert [len(outcome.clusters) for outcome in result] == [4, 4]
    assert result[0].relative == pytest.approx(1)


async def test_entropy_weighed_by_probability() -> None:
    async with SimulatedServer(answer=capital) as server:
        [_, utopia] = await uncertain(server, weigh="probability")
    assert 0 < utopia.entropy < math.log(3)
    assert utopia.entropy != pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4))


async def test_entropy_of_items_with_too_few_answers() -> None:
    faults = [Fault.status(400, match=lambda v: v.prompt == "Utopia?" and v.body["seed"] > 0)]
    async with SimulatedServer(answer=capital, faults=faults) as server:
        france, utopia = await uncertain(server, retry=Retry(attempts=1))
    assert france.ok
    assert isinstance(utopia.error, Permanent)


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": 1},
        {"by": "magic"},
        {"weigh": "luck"},
        {"threshold": 2},
        {"sampling": {"temperature": 0}},
    ],
    ids=str,
)
async def test_bad_entropy(wrong: dict[str, Any], server: SimulatedServer) -> None:
    with pytest.raises(ConfigError):
        await uncertain(server, **wrong)
    assert server.ledger.arrived == 0
