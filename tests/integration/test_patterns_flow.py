"""Pipelines, broadcasts and blackboards, as the server saw them."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from scaleinfer import OpenAIBackend, PromptError, Retry
from scaleinfer.errors import Permanent, Transient
from scaleinfer.fleet import Fleet
from scaleinfer.patterns import Agent, Stage, blackboard, broadcast, pipeline
from scaleinfer.testing import Fault, SimulatedServer

if TYPE_CHECKING:
    from pathlib import Path

    from scaleinfer.patterns import BlackboardResult
    from scaleinfer.testing import RequestView

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

QUIET: dict[str, Any] = {"progress": False}
ONCE = Retry(attempts=1)
NOBODY = "http://127.0.0.1:9/v1"


class Kind(BaseModel):
    even: bool


async def test_stages_flow_without_a_barrier(server: SimulatedServer) -> None:
    results = await pipeline(
        range(40), ["A {item}", Stage("B {item}", "second")], base_url=server.base_url,
        concurrency=2, **QUIET,
    )  # fmt: skip
    order = [record.prompt[0] for record in server.ledger.requests]
    assert Counter(order) == {"A": 40, "B": 40}
    # With a barrier the first B would come after the last A.
    assert order.index("B") < 12
    assert results.values == [f"echo: B {number}" for number in range(40)]
    assert results[3].values == {"stage 1": "echo: A 3", "second": "echo: B 3"}


async def test_stages_see_what_came_before(server: SimulatedServer) -> None:
    async def length(item: dict[str, str], done: dict[str, Any]) -> int:
        await asyncio.sleep(0)
        return len(done["title"])

    results = await pipeline(
        [{"name": "caffeine"}],
        [
            Stage("A title for {name}", "title"),
            Stage.call(length),
            Stage(lambda item, done: f"{item['name']}: {done['length']}", "end", system="Brief."),
            Stage.call(lambda item: item["name"].upper(), "upper"),
        ],
        base_url=server.base_url, **QUIET,
    )  # fmt: skip
    assert results[0].values == {
        "title": "echo: A title for caffeine", "length": 26, "end": "echo: caffeine: 26",
        "upper": "CAFFEINE",
    }  # fmt: skip
    assert results[0].value == "CAFFEINE"
    last = json.loads(server.ledger.requests[1].body or b"")
    assert last["messages"][0] == {"role": "system", "content": "Brief."}


async def test_what_a_filter_drops_is_no_failure(server: SimulatedServer, journal: Path) -> None:
    def answer(view: RequestView) -> str | None:
        return json.dumps({"even": int(view.prompt[-1]) % 2 == 0}) if "Is" in view.prompt else None

    stages = [
        Stage("Is {item}", "kind", schema=Kind),
        Stage.keep(lambda item, done: done["kind"].even, "even"),
        Stage("Why {item}", "why"),
    ]
    async with SimulatedServer(answer=answer) as own:
        options: dict[str, Any] = {"base_url": own.base_url, "journal": journal, **QUIET}
        results = await pipeline(range(10), stages, **options)
        assert own.ledger.arrived == 15
        again = await pipeline(range(10), stages, **options)
        assert own.ledger.arrived == 15
    assert [outcome.index for outcome in results.dropped] == [1, 3, 5, 7, 9]
    assert [outcome.value for outcome in results.kept] == [
        f"echo: Why {n}" for n in (0, 2, 4, 6, 8)
    ]
    assert not results.failed
    assert {outcome.ended for outcome in results.dropped} == {"even"}
    kind, even, why = results.stages
    assert (kind.entered, kind.passed, kind.calls, kind.usage.requests) == (10, 10, 10, 10)
    assert (even.entered, even.passed, even.dropped, even.calls) == (10, 5, 5, 0)
    assert (why.entered, why.passed, why.failed) == (5, 5, 0)
    assert again.stages[0].resumed == 10
    assert again.values == results.values


async def test_a_function_that_raises_fails_its_item_only(server: SimulatedServer) -> None:
    def picky(item: int) -> int:
        return 10 // (item - 3)

    results = await pipeline(
        range(6), [Stage.call(picky), "Item {picky}"], base_url=server.base_url, **QUIET
    )
    assert [outcome.ok for outcome in results] == [True, True, True, False, True, True]
    failed = results[3]
    assert isinstance(failed.error, PromptError)
    assert "stage 'picky': the function raised ZeroDivisionError" in str(failed.error)
    assert isinstance(failed.error.__cause__, ZeroDivisionError)
    assert failed.ended == "picky"
    assert (results.stages[0].failed, results.stages[1].entered) == (1, 5)
    assert server.ledger.arrived == 5


async def test_stages_of_other_models_and_a_stage_that_fails() -> None:
    fault = Fault.status(400, match="Item 2")
    async with (
        SimulatedServer(models=["small", "large"]) as server,
        SimulatedServer(models=["other"], faults=[fault]) as elsewhere,
    ):
        results = await pipeline(
            range(4),
            [Stage("{item}?", "small"), Stage("{item}!", "large", model="large"),
             Stage("Item {item}", "away", backend=elsewhere.base_url)],
            base_url=server.base_url, model="small", **QUIET,
        )  # fmt: skip
        assert Counter(one.model for one in server.ledger.requests) == {"small": 4, "large": 4}
        assert elsewhere.ledger.arrived == 4
    assert [outcome.ok for outcome in results] == [True, True, False, True]
    assert results[2].values == {"small": "echo: 2?", "large": "echo: 2!"}
    assert "stage 'away'" in str(results[2].error)
    assert results.stages[2].failed == 1


async def test_a_pipeline_over_a_fleet(server: SimulatedServer, journal: Path) -> None:
    stages = ["A {item}", "B {item} after {stage 1}"]
    async with Fleet.local(2, backend=server.base_url) as fleet:
        await fleet.ready(2, timeout=60)
        results = await pipeline(range(20), stages, fleet=fleet, journal=journal, **QUIET)
    assert results.values == [f"echo: B {n} after echo: A {n}" for n in range(20)]
    assert {outcome.result.worker for outcome in results} - {None}
    assert server.ledger.arrived == 40
    again = await pipeline(
        range(20), stages, base_url=server.base_url, model="sim-model", journal=journal, **QUIET
    )
    assert len(again) == 20


async def test_a_broadcast_asks_everybody_once() -> None:
    async with SimulatedServer() as one, SimulatedServer(models=["b"]) as two:
        backends = [one.base_url, OpenAIBackend(two.base_url), OpenAIBackend(NOBODY, model="c")]
        results = await broadcast("What is {x}?", backends, retry=ONCE, **QUIET)
        assert (one.ledger.arrived, two.ledger.arrived) == (1, 1)
    assert [row.name for row in results] == [one_.endpoint for one_ in map(_backend, backends)]
    assert [row.model for row in results] == ["sim-model", "b", None]
    assert [row.text for row in results] == ["echo: What is {x}?"] * 2 + [None]
    assert isinstance(results[2].error, Transient)
    assert results[0].latency_s is not None
    assert results[2].latency_s is None
    assert "2 of 3 answered" in repr(results)


def _backend(given: Any) -> OpenAIBackend:
    return OpenAIBackend(given) if isinstance(given, str) else given


async def test_a_broadcast_to_models_and_to_the_members_of_a_set(tmp_path: Path) -> None:
    async with SimulatedServer(models=["a", "b"]) as one, SimulatedServer(models=["a"]) as two:
        rows = await broadcast("Hi", models=["a", "b"], base_url=one.base_url, **QUIET)
        assert [(row.name, row.model) for row in rows] == [("a", "a"), ("b", "b")]
        hosts = tmp_path / "hosts"
        hosts.write_text(f"127.0.0.1:{one.port}\n127.0.0.1:{two.port}\n127.0.0.1:9\n")
        rows = await broadcast("Ho", [f"hosts:{hosts}"], model="a", retry=ONCE, **QUIET)
        assert [row.name for row in rows] == [one.base_url, two.base_url, NOBODY]
        assert [row.ok for row in rows] == [True, True, False]
        assert one.ledger.asked()["Ho"] == two.ledger.asked()["Ho"] == 1


async def test_a_broadcast_is_resumed(server: SimulatedServer, journal: Path) -> None:
    async with SimulatedServer() as other:
        backends = [server.base_url, other.base_url]
        await broadcast("Hi", backends[:1], journal=journal, **QUIET)
        rows = await broadcast("Hi", backends, journal=journal, **QUIET)
        assert (server.ledger.arrived, other.ledger.arrived) == (1, 1)
    assert [row.resumed for row in rows] == [True, False]


def count_to(most: int) -> Agent:
    def update(state: dict[str, int], _: str) -> None:
        state["n"] = min(most, state["n"] + 1)

    return Agent("Count on from {n}", update)


async def board(server: SimulatedServer, agents: Any, state: Any, **more: Any) -> BlackboardResult:
    return await blackboard(agents, state, base_url=server.base_url, **QUIET, **more)


async def test_a_blackboard_ends_when_nothing_changes(
    server: SimulatedServer, journal: Path
) -> None:
    state = {"n": 0}
    results = await board(server, {"counter": count_to(3)}, state, journal=journal)
    assert state == {"n": 0}
    assert results.state == {"n": 3}
    assert (results.rounds, results.converged, results.error) == (4, True, None)
    assert [(turn.agent, turn.round, turn.value) for turn in results] == [
        ("counter", number + 1, f"echo: Count on from {number}") for number in range(4)
    ]
    again = await board(server, {"counter": count_to(3)}, state, journal=journal)
    assert server.ledger.arrived == 4
    assert again.state == results.state


async def test_answers_are_merged_in_the_order_of_the_agents() -> None:
    def add(state: dict[str, list[str]], value: str) -> dict[str, list[str]]:
        return {"said": [*state["said"], value]}

    # The first agent is the slowest.
    async with SimulatedServer(latency=lambda view: 0.1 if "A" in view.prompt else 0.0) as server:
        agents = {name: Agent(f"{name} of {{said}}", add) for name in "ABC"}
        results = await board(server, agents, {"said": []}, rounds=1)
        asked = {record.prompt for record in server.ledger.requests}
    assert asked == {"A of []", "B of []", "C of []"}
    assert results.state == {"said": ["echo: A of []", "echo: B of []", "echo: C of []"]}
    assert (results.rounds, results.converged) == (1, False)


async def test_an_agent_with_nothing_new_to_see_is_not_asked(server: SimulatedServer) -> None:
    agents = {
        "counter": count_to(5),
        "reader": lambda state: "Who is there?",
        "late": lambda state: "Five!" if state["n"] == 5 else None,
    }
    results = await board(server, agents, {"n": 0})
    assert results.converged
    assert server.ledger.asked()["Who is there?"] == 1
    assert server.ledger.asked()["Five!"] == 1
    assert results.state["reader"] == "echo: Who is there?"
    assert results.state["late"] == "echo: Five!"


async def test_until_and_rounds_end_a_blackboard(server: SimulatedServer) -> None:
    early = await board(server, {"c": count_to(9)}, {"n": 0}, until=lambda state: state["n"] == 2)
    assert (early.rounds, early.converged, early.state["n"]) == (2, True, 2)
    cut = await board(server, {"c": count_to(99)}, {"n": 0}, rounds=3)
    assert (cut.rounds, cut.converged, cut.error) == (3, False, None)


async def test_an_agent_that_cannot_be_asked_is_left_out_of_its_round() -> None:
    async with SimulatedServer(faults=[Fault.status(400, match="Deaf", times=2)]) as server:
        agents = {"counter": count_to(1), "deaf": lambda state: "Deaf to all"}
        results = await board(server, agents, {"n": 0})
    # An unchanged state means nothing as long as somebody could not be heard.
    assert results.converged
    assert results.state == {"n": 1, "deaf": "echo: Deaf to all"}
    assert [turn.ok for turn in results if turn.agent == "deaf"] == [False, False, True]


async def test_what_ends_a_blackboard_early(server: SimulatedServer) -> None:
    def broken(state: Any, value: Any) -> None:
        raise KeyError("n")

    results = await board(server, {"c": count_to(5), "bad": Agent("{n}?", broken)}, {"n": 0})
    assert isinstance(results.error, PromptError)
    assert "update of 'bad' raised KeyError" in str(results.error)
    assert (results.state, results.rounds, results.converged) == ({"n": 0}, 0, False)
    listed = await board(server, {"a": "Say {item}"}, ["x"])
    assert "update" in str(listed.error)
    async with SimulatedServer(faults=[Fault.status(400)]) as refusing:
        results = await board(refusing, {"c": count_to(5)}, {"n": 0})
    assert isinstance(results.error, Permanent)
    assert len(results) == 1
