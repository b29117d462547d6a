"""A program per item: every call goes through the map's engine, limits and journal."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from scaleinfer import (
    AuthError,
    ConfigError,
    OpenAIBackend,
    Permanent,
    Prompt,
    PromptError,
    SchemaError,
    map_sync,
    parallel_map,
    stream_map,
)
from scaleinfer.journal import verify
from scaleinfer.testing import Fault, SimulatedServer

if TYPE_CHECKING:
    from pathlib import Path

    from scaleinfer.program import LLM

pytestmark = pytest.mark.anyio

QUIET: dict[str, Any] = {"progress": False}


class Judgement(BaseModel):
    score: int


async def two_steps(item: str, llm: LLM) -> dict[str, str]:
    draft = await llm(f"Draft {item}")
    final = await llm(f"Mend {draft.text}")
    return {"draft": draft.text or "", "final": final.text or ""}


async def test_a_program_runs_per_item(server: SimulatedServer) -> None:
    results = await parallel_map(["a", "b"], two_steps, base_url=server.base_url, **QUIET)
    assert results.values == [
        {"draft": f"echo: Draft {item}", "final": f"echo: Mend echo: Draft {item}"}
        for item in ("a", "b")
    ]
    assert all(result.ok and result.attempts == 2 for result in results)
    assert results.usage.requests == 4
    assert server.ledger.arrived == 4
    assert results[0].usage.completion_tokens > 0
    assert results[0].endpoint is not None


async def test_calls_of_one_item_run_at_the_same_time() -> None:
    async def both(item: str, llm: LLM) -> list[str | None]:
        answers = await asyncio.gather(*(llm(f"{item} {n}") for n in range(5)))
        return [answer.text for answer in answers]

    async with SimulatedServer(latency=0.1) as server:
        results = await parallel_map(["x"], both, base_url=server.base_url, **QUIET)
        assert results.values == [[f"echo: x {n}" for n in range(5)]]
        assert server.ledger.peak() == 5


async def test_what_was_answered_is_not_asked_again(server: SimulatedServer, journal: Path) -> None:
    broken = True

    async def program(item: str, llm: LLM) -> str:
        first = await llm(f"one {item}")
        if broken and item == "b":
            raise ValueError("no luck")
        second = await llm(f"two {first.text}")
        return second.text or ""

    options: dict[str, Any] = {"base_url": server.base_url, "journal": journal, **QUIET}
    first = await parallel_map(["a", "b"], program, **options)
    assert [result.ok for result in first] == [True, False]
    broken = False
    again = await parallel_map(["a", "b"], program, **options)
    assert again.values == ["echo: two echo: one a", "echo: two echo: one b"]
    assert [result.resumed for result in again] == [True, False]
    assert server.ledger.arrived == 4
    assert again.stats.usage.requests == 1
    assert verify(journal).ok


async def test_the_same_question_twice_is_asked_twice(
    server: SimulatedServer, journal: Path
) -> None:
    async def vote(item: str, llm: LLM) -> int:
        answers = await asyncio.gather(*(llm(item) for _ in range(3)))
        return len(answers)

    for _ in range(2):
        results = await parallel_map(
            ["x", "x"], vote, base_url=server.base_url, journal=journal, **QUIET
        )
        assert results.values == [3, 3]
    assert server.ledger.arrived == 6


async def test_what_a_program_raises_fails_its_item_alone(server: SimulatedServer) -> None:
    async def program(item: int, llm: LLM) -> str:
        await llm(f"question {item}")
        if item == 1:
            raise KeyError("mass")
        return "fine"

    results = await parallel_map(range(3), program, base_url=server.base_url, **QUIET)
    assert [result.ok for result in results] == [True, False, True]
    error = results[1].error
    assert isinstance(error, PromptError)
    assert "KeyError" in error.message
    assert error.index == 1
    assert isinstance(error.__cause__, KeyError)
    assert results[1].usage.requests == 1


async def test_an_error_of_a_call_reaches_the_program() -> None:
    async def careful(item: str, llm: LLM) -> str:
        try:
            return (await llm(item)).text or ""
        except Permanent as error:
            return f"refused with {error.status}"

    async def careless(item: str, llm: LLM) -> str:
        return (await llm(item)).text or ""

    async with SimulatedServer(faults=[Fault.status(400, match="bad")]) as server:
        caught = await parallel_map(["good", "bad"], careful, base_url=server.base_url, **QUIET)
        assert caught.values == ["echo: good", "refused with 400"]
        raised = await parallel_map(["good", "bad"], careless, base_url=server.base_url, **QUIET)
    assert raised[0].ok
    assert isinstance(raised[1].error, Permanent)
    assert raised[1].error.index == 1


async def test_schema_system_and_sampling_of_a_call() -> None:
    async def program(item: str, llm: LLM) -> Any:
        plain = await llm(item)
        typed = await llm(Prompt(item, system="Judge."), schema=Judgement, sampling={"seed": 3})
        return plain.text, typed.value

    async with SimulatedServer(keep_bodies=True) as server:
        results = await parallel_map(
            ["x"], program, base_url=server.base_url, system="Be brief.", **QUIET
        )
        bodies = [json.loads(record.body or b"") for record in server.ledger.requests]
    text, value = results.values[0]
    assert text == "echo: x"
    assert isinstance(value, Judgement)
    assert [body["messages"][0]["content"] for body in bodies] == ["Be brief.", "Judge."]
    assert [body.get("seed") for body in bodies] == [None, 3]


async def test_schema_that_is_never_met_reaches_the_program() -> None:
    async def program(item: str, llm: LLM) -> str:
        with pytest.raises(SchemaError):
            await llm(item, schema=Judgement)
        return "went on"

    async with SimulatedServer(answer=lambda _: "no json") as server:
        results = await parallel_map(["x"], program, base_url=server.base_url, **QUIET)
    assert results.values == ["went on"]


async def test_a_call_may_go_elsewhere() -> None:
    async with (
        SimulatedServer(answer=lambda _: "author") as author,
        SimulatedServer(answer=lambda _: "judge") as judge,
    ):
        judging = OpenAIBackend(judge.base_url)

        async def program(item: str, llm: LLM) -> tuple[str | None, ...]:
            draft = await llm(item)
            verdicts = await asyncio.gather(
                llm(f"{item} {draft.text}", backend=judging),
                llm(f"{item} again", backend=judge.base_url),
            )
            return draft.text, *(one.text for one in verdicts)

        results = await parallel_map(range(4), program_of(program), base_url=author.base_url)
        assert results.values == [("author", "judge", "judge")] * 4
        assert (author.ledger.arrived, judge.ledger.arrived) == (4, 8)


def program_of(program: Any) -> Any:
    class Agent:
        async def __call__(self, item: int, llm: LLM) -> Any:
            return await program(str(item), llm)

    return Agent()


async def test_an_endpoint_that_cannot_be_used_fails_the_items() -> None:
    async def program(item: str, llm: LLM) -> str | None:
        return (await llm(item, backend="nonsense:")).text

    async with SimulatedServer() as server:
        results = await parallel_map(["x", "y"], program, base_url=server.base_url, **QUIET)
    assert [type(result.error) for result in results] == [ConfigError, ConfigError]


async def test_embeddings_inside_a_program(server: SimulatedServer, journal: Path) -> None:
    async def program(item: str, llm: LLM) -> list[int]:
        answer = await llm(item)
        vectors = await llm.embed([item, answer.text or ""])
        return [len(vector) for vector in vectors]

    for _ in range(2):
        results = await parallel_map(
            ["x", "y"], program, base_url=server.base_url, journal=journal, **QUIET
        )
        assert len(results.ok) == 2
        assert results.values[0][0] == results.values[0][1] > 0
    chats = [text for text in server.ledger.asked() if not text.startswith("echo")]
    assert server.ledger.arrived < 2 + 4, "texts travel together, and once"
    assert sorted(chats) == ["x", "y"]


async def test_a_wrong_key_stops_the_run() -> None:
    async with SimulatedServer(api_key="right") as server:
        results = await parallel_map(
            range(200), two_steps_of, base_url=server.base_url, api_key="wrong", **QUIET
        )
        assert server.ledger.arrived < 200
    assert results.stats.stopped
    assert isinstance(results[0].error, AuthError)


async def two_steps_of(item: int, llm: LLM) -> Any:
    return await two_steps(str(item), llm)


async def test_more_programs_than_places_are_in_flight() -> None:
    """Programs that wait for something else leave their places to others."""
    waiting = 0
    most = 0

    async def program(item: int, llm: LLM) -> None:
        nonlocal waiting, most
        await llm(f"before {item}")
        waiting += 1
        most = max(most, waiting)
        await asyncio.sleep(0.5)
        waiting -= 1
        await llm(f"after {item}")

    async with SimulatedServer() as server:
        results = await parallel_map(
            range(200), program, base_url=server.base_url, concurrency=4, **QUIET
        )
    assert len(results.ok) == 200
    assert most > 8


async def test_results_as_they_come(server: SimulatedServer) -> None:
    seen = {
        result.index: result.value["draft"]
        async for result in stream_map(["a", "b"], two_steps, base_url=server.base_url, **QUIET)
    }
    assert seen == {0: "echo: Draft a", 1: "echo: Draft b"}


async def test_without_await() -> None:
    with SimulatedServer().in_thread() as server:
        results = map_sync(["a"], two_steps, base_url=server.base_url, **QUIET)
    assert len(results.ok) == 1


async def test_bad_input(server: SimulatedServer, journal: Path) -> None:
    options: dict[str, Any] = {"base_url": server.base_url, **QUIET}
    with pytest.raises(ConfigError, match="program"):
        await parallel_map(["x"], two_steps, mode="batch", **options)
    results = await parallel_map([object(), "x"], two_steps, journal=journal, **options)
    assert isinstance(results[0].error, PromptError)
    assert "key=" in results[0].error.hint
    assert results[1].ok


async def test_a_call_after_the_program_is_refused(server: SimulatedServer) -> None:
    kept: list[LLM] = []

    async def program(item: str, llm: LLM) -> str:
        kept.append(llm)
        return item

    results = await parallel_map(["x"], program, base_url=server.base_url, **QUIET)
    assert results.values == ["x"]
    with pytest.raises(PromptError, match="ended"):
        await kept[0]("late")


async def test_a_dead_endpoint_is_tried_once_for_all_items(server: SimulatedServer) -> None:
    opened = 0

    class Dead(OpenAIBackend):
        async def open(self) -> None:
            nonlocal opened
            opened += 1
            raise Permanent("nobody is there", endpoint="dead")

    dead = Dead("http://127.0.0.1:9/v1", model="m")

    async def program(item: int, llm: LLM) -> str | None:
        return (await llm(str(item), backend=dead)).text

    results = await parallel_map(range(20), program, base_url=server.base_url, **QUIET)
    assert opened == 1
    assert [result.error.index for result in results if result.error] == list(range(20))
