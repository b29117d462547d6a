"""What prompt_fn returns, against a simulated server: prompts, keys, questions, parameters."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
from pydantic import BaseModel

from scaleinfer import Prompt, PromptError, parallel_map
from scaleinfer.testing import Fault, SimulatedServer

pytestmark = pytest.mark.anyio

NAMES = [f"molecule {number}" for number in range(12)]
ECHOES = [f"echo: About {name}." for name in NAMES]
TEMPLATE = "About {}."
QUIET: dict[str, Any] = {"progress": False}


async def test_async_prompt_fn(server: SimulatedServer) -> None:
    async def prompt(name: str) -> str:
        await asyncio.sleep(0.01)
        return f"About {name}."

    results = await parallel_map(NAMES, prompt, base_url=server.base_url, **QUIET)
    assert results.texts == ECHOES


def fragile(number: int) -> Any:
    if number % 3 == 0:
        raise KeyError("smiles")
    return None if number % 3 == 1 else f"About {number}."


async def test_prompt_fn_that_fails_for_some(server: SimulatedServer) -> None:
    results = await parallel_map(range(90), fragile, base_url=server.base_url, **QUIET)
    assert [result.ok for result in results] == [number % 3 == 2 for number in range(90)]
    assert all(isinstance(result.error, PromptError) for result in results.failed)
    assert str(results[3].error).startswith("item 3: prompt_fn raised KeyError: 'smiles'")
    assert str(results[4].error).startswith("item 4: prompt_fn returned None")
    assert results[3].item == 3
    assert (results.stats.ok, results.stats.failed, results.stats.calls) == (30, 60, 30)


BAD = ["\ud83d", {"content": "\udc00"}, 2**70, object()]


@pytest.mark.parametrize("bad", BAD, ids=["surrogate", "parts", "integer", "object"])
async def test_one_prompt_that_cannot_be_sent_costs_that_item(
    bad: Any, server: SimulatedServer, tmp_path: Any
) -> None:
    items = [*NAMES, bad, *NAMES]
    for journal in (None, tmp_path / "run.db"):
        results = await parallel_map(
            items,
            lambda item: [{"role": "user", "content": item}],
            base_url=server.base_url,
            journal=journal,
            **QUIET,
        )
        assert len(results) == 25
        assert [result.index for result in results.failed] == [12]


@pytest.mark.parametrize(
    "key", [lambda item: None, lambda item: "", lambda item: 1 / 0, lambda item: "\ud83d"]
)
async def test_a_key_that_identifies_nothing_costs_that_item(
    key: Any, server: SimulatedServer, tmp_path: Any
) -> None:
    for journal in (None, tmp_path / "run.db"):
        results = await parallel_map(
            ["good", "bad"],
            TEMPLATE,
            key=lambda item: item if item == "good" else key(item),
            base_url=server.base_url,
            journal=journal,
            **QUIET,
        )
        assert results[0].ok
        assert results[0].key == "good"
        assert isinstance(results[1].error, PromptError)


async def test_named_questions(server: SimulatedServer) -> None:
    results = await parallel_map(
        ["ice", "salt"],
        lambda name: {"colour": f"Colour of {name}?", "taste": f"Taste of {name}?"},
        base_url=server.base_url,
        **QUIET,
    )
    assert results.values == [
        {"colour": f"echo: Colour of {name}?", "taste": f"echo: Taste of {name}?"}
        for name in ("ice", "salt")
    ]
    assert results[0].text is None
    assert results[0].attempts == 2
    assert results[0].usage.requests == 2
    assert server.ledger.arrived == 4


async def test_one_named_question_that_fails_fails_the_item_and_keeps_the_others() -> None:
    faults = [Fault.status(400, match="Taste of ice")]
    async with SimulatedServer(faults=faults) as server:
        results = await parallel_map(
            ["ice", "salt"],
            lambda name: {"colour": f"Colour of {name}?", "taste": f"Taste of {name}?"},
            base_url=server.base_url,
            **QUIET,
        )
    assert [result.ok for result in results] == [False, True]
    assert results[0].value == {"colour": "echo: Colour of ice?", "taste": None}
    assert "taste" in str(results[0].error)


async def test_everything_asked_for_reaches_the_server(server: SimulatedServer) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    sampling = {"temperature": 0.0, "max_tokens": 50, "seed": 7, "n": 2, "logprobs": True}
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    content = [{"type": "text", "text": "What?"}, picture]
    (result,) = await parallel_map(
        [0],
        lambda item: [{"role": "user", "content": content}],
        base_url=server.base_url,
        system="Be brief.",
        sampling=sampling | {"extra": {"tools": tools, "top_k": 3}},
        **QUIET,
    )
    (record,) = server.ledger.requests
    body = json.loads(record.body or b"")
    assert body.pop("messages") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": content},
    ]
    assert body == {"model": "sim-model", **sampling, "tools": tools, "top_k": 3}
    assert result.choices is not None
    assert len(result.choices) == 2
    assert result.logprobs is not None


async def test_tool_calls_are_handed_over() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}

    class Unused(BaseModel):
        a: int

    async with SimulatedServer(answer=lambda view: {"content": None, "tool_calls": [call]}) as s:
        for schema in (None, Unused):
            (result,) = await parallel_map([1], "{}", base_url=s.base_url, schema=schema, **QUIET)
            assert result.ok
            assert result.tool_calls == [call]
            assert result.attempts == 1


async def test_plain_completions_and_another_model() -> None:
    async with SimulatedServer(models=["small", "big"], keep_bodies=True) as server:
        results = await parallel_map(
            ["a", "b"],
            lambda item: Prompt(item, completion=True, model="big" if item == "b" else None),
            base_url=server.base_url,
            model="small",
            **QUIET,
        )
        assert [result.model for result in results] == ["small", "big"]
        assert server.ledger.unknown_fields == Counter()
