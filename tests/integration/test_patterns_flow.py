"""Tribunals, pipelines, broadcasts and blackboards, as the server saw them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from scaleinfer import OpenAIBackend, PromptError, Retry
from scaleinfer.errors import EndpointError, Permanent, Transient
from scaleinfer.fleet import Fleet
from scaleinfer.patterns._blackboard import Agent, blackboard
from scaleinfer.patterns._broadcast import broadcast
from scaleinfer.patterns._pipeline import Stage, pipeline
from scaleinfer.patterns._roles import Role
from scaleinfer.patterns._tribunal import tribunal
from scaleinfer.testing import Fault, SimulatedServer

if TYPE_CHECKING:
    from pathlib import Path

    from scaleinfer.patterns._blackboard import BlackboardResult
    from scaleinfer.patterns._tribunal import TribunalResult
    from scaleinfer.testing import RequestView

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

QUIET: dict[str, Any] = {"progress": False}
ONCE = Retry(attempts=1)
NOBODY = "http://127.0.0.1:9/v1"
ITEMS = [f"item {number}" for number in range(6)]


def court(view: RequestView) -> str | None:
    """Draft, judge what was revised to be good, revise."""
    if "response_format" in view.body:
        good = "revised" in view.prompt
        return json.dumps({"critique": "too short", "score": 9 if good else 3, "accept": good})
    return f"revised {view.prompt[-1]}" if "Critiques:" in view.prompt else "a draft"


def everything(body: dict[str, Any]) -> str:
    """File requests under all they say: judges differ in their system messages."""
    return json.dumps([body.get("messages"), body.get("model")])


async def held(server: SimulatedServer, items: Any = ITEMS, **more: Any) -> TribunalResult:
    return await tribunal(items, "Task {}", base_url=server.base_url, **QUIET, **more)


async def test_a_tribunal_revises_until_its_judges_accept() -> None:
    async with SimulatedServer(answer=court) as server:
        results = await held(server)
        assert server.ledger.arrived == len(ITEMS) * (1 + 3 + 1 + 3)
    assert [outcome.rounds for outcome in results] == [2] * len(ITEMS)
    assert len(results.accepted) == len(ITEMS)
    assert results.values == ["revised ."] * len(ITEMS)
    first, second = results[0].transcript
    assert (first.draft, first.accepted, first.score) == ("a draft", False, 3.0)
    assert (second.draft, second.accepted, second.score) == ("revised .", True, 9.0)
    assert [one.judge for one in first.critiques] == ["judge 1", "judge 2", "judge 3"]
    assert results[0].usage.requests == 8
    assert results.tables()[0].rows[1] == ("judge 2", 12, 6, 6.0, 0)


async def test_what_judges_and_reviser_are_told() -> None:
    async with SimulatedServer(answer=court, keep_bodies=True) as server:
        await held(server, ITEMS[:1], judges=["clarity", "statistics"], rounds=2)
        bodies = [json.loads(record.body or b"") for record in server.ledger.requests]
    systems = sorted(body["messages"][0]["content"] for body in bodies[1:3])
    assert systems[0].endswith("Look at one thing only: clarity.")
    assert systems[1].endswith("Look at one thing only: statistics.")
    for body in bodies[1:3]:
        assert "Task item 0" in body["messages"][-1]["content"]
        assert "a draft" in body["messages"][-1]["content"]
    revision = bodies[3]["messages"][-1]["content"]
    assert "- clarity: too short\n- statistics: too short" in revision


async def test_a_tribunal_that_never_accepts_ends_at_its_rounds() -> None:
    async with SimulatedServer(answer=court) as server:
        results = await held(server, rounds=3, accept=lambda verdicts: False)
        assert server.ledger.arrived == len(ITEMS) * (1 + 3 * 3 + 2)
    assert [outcome.rounds for outcome in results] == [3] * len(ITEMS)
    assert not results.accepted
    assert len(results.ok) == len(ITEMS)


@pytest.mark.parametrize(
    ("accept", "votes", "accepted"),
    [
        ("majority", "yyn", True), ("majority", "ynn", False), ("all", "yyn", False),
        ("all", "yyy", True), ("any", "nny", True), ("any", "nnn", False),
        (2 / 3, "yyn", True), (0.7, "yyn", False),
    ],
)  # fmt: skip
async def test_how_votes_decide(accept: Any, votes: str, accepted: bool) -> None:
    def vote(view: RequestView) -> str | None:
        if "response_format" not in view.body:
            return None
        number = int(view.messages[0]["content"].split("judge ")[1][0]) - 1
        return json.dumps({"critique": "", "score": 5, "accept": votes[number] == "y"})

    async with SimulatedServer(answer=vote) as server:
        (outcome,) = await held(server, ["x"], accept=accept, rounds=1)
    assert outcome.accepted is accepted


async def test_roles_ask_models_and_backends_of_their_own() -> None:
    async with (
        SimulatedServer(models=["writer", "editor"], answer=court) as server,
        SimulatedServer(models=["other"], answer=court) as elsewhere,
    ):
        backend = OpenAIBackend(elsewhere.base_url, model="other")
        results = await held(
            server, model="writer", drafter=Role(model="writer"), reviser=Role(model="editor"),
            judges=[Role("here"), Role("there", backend=backend)],
        )  # fmt: skip
        models = Counter(record.model for record in server.ledger.requests)
        assert models == {"writer": 6 + 12, "editor": 6}
        assert Counter(record.model for record in elsewhere.ledger.requests) == {"other": 12}
    assert len(results.accepted) == len(ITEMS)


async def test_a_judge_whose_backend_is_down_is_left_out() -> None:
    judges = [Role("a"), Role("b"), Role("c", backend=OpenAIBackend(NOBODY, model="m"))]
    async with SimulatedServer(answer=court) as server:
        results = await held(server, ITEMS[:2], judges=judges, retry=ONCE)
        strict = await held(server, ITEMS[:2], judges=judges, retry=ONCE, quorum=3)
    assert len(results.accepted) == 2
    for outcome in results:
        for part in outcome.transcript:
            assert [one.error is None for one in part.critiques] == [True, True, False]
            assert isinstance(part.critiques[2].error, Transient)
    assert all(isinstance(outcome.error, EndpointError) for outcome in strict)
    assert not any(outcome.transcript for outcome in strict)


async def test_one_items_failure_stays_its_own(journal: Path) -> None:
    faults = [Fault.status(400, match="item 3", times=1)]
    async with SimulatedServer(answer=court, faults=faults) as server:
        first = await held(server, journal=journal)
        assert [outcome.ok for outcome in first] == [True, True, True, False, True, True]
        assert isinstance(first[3].error, Permanent)
        before = server.ledger.arrived
        again = await held(server, journal=journal)
        assert server.ledger.arrived == before + 8
    assert [outcome.resumed for outcome in again] == [True, True, True, False, True, True]
    assert again[0].transcript == first[0].transcript
    assert len(again.accepted) == len(ITEMS)


CLIENT = """
import asyncio, sys
from scaleinfer.patterns import tribunal

asyncio.run(tribunal([f"item {n}" for n in range(60)], "Task {}", base_url=sys.argv[1],
    journal=sys.argv[2], concurrency=4, progress=False))
"""


def test_a_killed_tribunal_asks_only_for_what_is_missing(journal: Path) -> None:
    settings = SimulatedServer(answer=court, prompt_of=everything, latency=0.01)
    with settings.in_thread() as server:
        process = subprocess.Popen([sys.executable, "-c", CLIENT, server.base_url, str(journal)])
        while server.ledger.answered < 60 * 8 // 2:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.wait()
        time.sleep(0.1)  # what it had sent reaches the server
        again = asyncio.run(
            held(server, [f"item {n}" for n in range(60)], journal=journal, concurrency=4)
        )
        asked = server.ledger.asked()
    assert len(again.accepted) == 60
    assert len(asked) == 60 * 8
    # In flight were four; what had been answered, and was not recorded yet, is as many at most.
    assert sum(asked.values()) - len(asked) <= 8


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
