"""`parallel_embed` against a server: packs, outcomes kept apart, journal, retries, formats."""

from __future__ import annotations

import json
import math
from array import array
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from scaleinfer import ConfigError, MapResult, OpenAIBackend, Retry, parallel_embed
from scaleinfer.errors import Permanent, PromptError
from scaleinfer.testing import Fault, SimulatedServer

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


async def embed(server: SimulatedServer, items: Any, *args: Any, **options: Any) -> MapResult:
    usual: dict[str, Any] = {"base_url": server.base_url, "progress": "none", "retry": QUICK}
    return await parallel_embed(items, *args, **(usual | options))


QUICK = Retry(initial=0.01)
TEXTS = [f"text number {number}" for number in range(500)]


async def test_many_texts_to_a_call(server: SimulatedServer) -> None:
    results = await embed(server, TEXTS, batch=50, concurrency=4, dimensions=8)
    assert len(results.ok) == 500
    assert [len(request.prompts) for request in server.ledger.requests] == [50] * 10
    assert server.ledger.counts() == dict.fromkeys(TEXTS, 1)
    assert results.stats.calls == 10
    assert results.usage.prompt_tokens == server.ledger.prompt_tokens
    vector = results[7].value
    assert isinstance(vector, array)
    assert len(vector) == 8
    assert math.isclose(sum(value * value for value in vector), 1.0, rel_tol=1e-5)
    assert results[7].text is None
    again = await embed(server, TEXTS[7:8], dimensions=8)
    assert again.vectors == [vector]


async def test_both_formats_give_the_same(server: SimulatedServer) -> None:
    base64 = await embed(server, TEXTS[:20])
    numbers = await embed(server, TEXTS[:20], extra={"encoding_format": "float"})
    assert base64.vectors == numbers.vectors
    formats = [
        json.loads(request.body or b"")["encoding_format"] for request in server.ledger.requests
    ]
    assert formats == ["base64", "float"]


async def test_one_bad_text_does_not_take_its_pack_with_it() -> None:
    items = [*TEXTS[:30], "much too long " * 100, *TEXTS[30:60], 3, "  "]
    async with SimulatedServer(max_prompt_tokens=50) as server:
        results = await embed(server, items, lambda item: item, batch=32, concurrency=2)
    assert len(results.ok) == 60
    kinds = {result.index: type(result.error) for result in results.failed}
    assert kinds == {30: Permanent, 61: PromptError, 62: PromptError}
    assert results[30].error is not None
    assert results[30].error.index == 30
    assert [vector is None for vector in results.vectors].count(True) == 3
    matrix = results.to_numpy()
    assert matrix.shape == (63, 64)
    assert matrix.dtype == "float32"
    assert [bool(row) for row in np.isnan(matrix).all(axis=1)] == [
        index in kinds for index in range(63)
    ]


async def test_packs_are_tried_again_together() -> None:
    faults = [Fault.status(503, rate=0.2), Fault.reset(rate=0.1)]
    async with SimulatedServer(faults=faults, latency=0.005) as server:
        results = await embed(server, TEXTS, batch=25, concurrency=4)
        assert len(results.ok) == 500
        sizes = [len(request.prompts) for request in server.ledger.requests]
        # Whose fault a broken connection is cannot be known: those packs are smaller later.
        assert sum(sizes) / len(sizes) > 5
        assert all(count >= 1 for count in server.ledger.counts().values())


async def test_a_text_that_breaks_the_server_fails_alone() -> None:
    def deadly(view: Any) -> bool:
        return any("deadly" in text for text in view.prompts)

    items = [*TEXTS[:40], "the deadly text"]
    async with SimulatedServer(faults=[Fault.status(500, match=deadly)]) as server:
        results = await embed(server, items, batch=64, retry=Retry(initial=0.01, attempts=4))
    assert [result.index for result in results.failed] == [40]
    assert len(results.ok) == 40


async def test_what_is_embedded_is_on_disk_and_resumed(
    server: SimulatedServer, journal: Path
) -> None:
    first = await embed(server, TEXTS[:100], journal=journal, batch=16)
    asked = len(server.ledger.requests)
    second = await embed(server, TEXTS[:120], journal=journal, batch=16)
    assert second.stats.resumed == 100
    assert second.vectors[:100] == first.vectors
    assert sum(len(r.prompts) for r in server.ledger.requests[asked:]) == 20
    other = await embed(server, TEXTS[:10], journal=journal, dimensions=16)
    assert other.stats.resumed == 0
    assert len(other[0].value) == 16


async def test_items_templates_and_several_texts(server: SimulatedServer) -> None:
    papers = [{"title": f"T{n}", "abstract": f"A{n}"} for n in range(5)]
    results = await embed(server, papers, "{title}. {abstract}")
    assert server.ledger.counts() == {f"T{n}. A{n}": 1 for n in range(5)}
    assert len(results.ok) == 5

    async def both(item: dict[str, str]) -> dict[str, str]:
        return {"title": item["title"], "abstract": item["abstract"]}

    named = await embed(server, papers, both)
    assert set(named[0].value) == {"title", "abstract"}
    assert isinstance(named[0].value["title"], array)
    assert named.vectors == [None] * 5


async def test_rows_hold_plain_numbers(server: SimulatedServer, tmp_path: Path) -> None:
    results = await embed(server, TEXTS[:3], dimensions=4)
    results.to_jsonl(tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert array("f", rows[1]["value"]) == results[1].value
    frame = results.to_pandas()
    assert len(frame["value"][0]) == 4
    assert "text number 1" in repr(results)


async def test_over_several_endpoints(server: SimulatedServer) -> None:
    async with SimulatedServer(models=["other-name"]) as other:
        backends = [
            OpenAIBackend(server.base_url, model="sim-model"),
            OpenAIBackend(other.base_url, model="other-name"),
            OpenAIBackend("http://127.0.0.1:9/v1", model="sim-model"),
        ]
        results = await parallel_embed(
            TEXTS, backend=backends, batch=10, concurrency=2, retry=QUICK, progress="none"
        )
        assert len(results.ok) == 500
        assert {result.model for result in results} == {"sim-model", "other-name"}


async def test_wrong_arguments(server: SimulatedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ({"batch": 0}, {"batch": 5_000}, {"dimensions": 0}, {"extra": {"model": "x"}}):
        with pytest.raises(ConfigError):
            await embed(server, TEXTS, **wrong)
    monkeypatch.setenv("SCALEINFER_BACKEND", "local")
    with pytest.raises(ConfigError, match="makes no embeddings"):
        await parallel_embed(TEXTS, progress="none")
    assert server.ledger.requests == []


async def test_no_items(server: SimulatedServer) -> None:
    results = await embed(server, [])
    assert results.to_numpy().shape == (0, 0)
