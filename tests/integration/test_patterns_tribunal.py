"""Tribunals, as the server saw them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from scaleinfer import OpenAIBackend, Retry
from scaleinfer.errors import EndpointError, Permanent, Transient
from scaleinfer.patterns import Role, tribunal
from scaleinfer.testing import Fault, SimulatedServer

if TYPE_CHECKING:
    from pathlib import Path

    from scaleinfer.patterns import TribunalResult
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
