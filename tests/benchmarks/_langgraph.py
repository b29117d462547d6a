"""One way of asking in graphs, in this process; prints what it took.

`python -m tests.benchmarks._langgraph --only NAME --url URL --items N --wide N`. Run by
bench_langgraph. `node` and `send` are one graph that asks about all items of its state;
`graphs`, `abatch` and `abatch-ours` run a graph of three calls per item.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import operator
import resource
import time
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

from tests.benchmarks._measure import cpu_seconds, raise_file_limit, rss_mb

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MODEL = "sim-model"
FILLER = "x" * 70
CALLS = 3


class Wide(TypedDict, total=False):
    """The state of a graph that asks about many items."""

    items: list[str]
    answers: Annotated[list[str], operator.add]


class One(TypedDict, total=False):
    """The state of a graph that works on one item."""

    text: str


def prompts(count: int, first: int = 0) -> list[str]:
    return [f"{number} {FILLER}" for number in range(first, first + count)]


def openai_model(url: str) -> Any:
    package: Any = import_module("langchain_openai")
    return package.ChatOpenAI(model=MODEL, base_url=url, api_key="any", max_retries=0)


def our_model(**options: Any) -> Any:
    from scaleinfer.langgraph import ChatScaleInfer

    return ChatScaleInfer(**options)


def node_graph(url: str, wide: int) -> Any:
    from langgraph.graph import START, StateGraph

    from scaleinfer.langgraph import map_node

    node = map_node(
        "{}", items="items", into="answers", values=True, base_url=url, model=MODEL,
        concurrency=wide,
    )  # fmt: skip
    return StateGraph(Wide).add_node("ask", node).add_edge(START, "ask").compile()


def send_graph(url: str) -> Any:
    from langgraph.graph import START, StateGraph
    from langgraph.types import Send

    model = openai_model(url)

    async def ask(payload: dict[str, str]) -> dict[str, list[str]]:
        answer = await model.ainvoke(payload["text"])
        return {"answers": [str(answer.content)]}

    def fan_out(state: Wide) -> list[Any]:
        return [Send("ask", {"text": text}) for text in state["items"]]

    builder: Any = StateGraph(Wide)
    return builder.add_node("ask", ask).add_conditional_edges(START, fan_out, ["ask"]).compile()


def chain(model: Any) -> Any:
    """Return a graph of three calls, one after the other."""
    from langgraph.graph import START, StateGraph

    async def call(state: One) -> One:
        return {"text": str((await model.ainvoke(state["text"])).content)}

    builder: Any = StateGraph(One)
    before = START
    for number in range(CALLS):
        builder.add_node(f"call{number}", call).add_edge(before, f"call{number}")
        before = f"call{number}"
    return builder.compile()


def wide_ask(graph: Any, wide: int) -> Callable[[list[str]], Awaitable[None]]:
    async def ask(texts: list[str]) -> None:
        state = await graph.ainvoke({"items": texts}, {"max_concurrency": wide})
        assert state["answers"] == [f"echo: {text}" for text in texts]

    return ask


def mapped_ask(url: str, wide: int) -> Callable[[list[str]], Awaitable[None]]:
    from scaleinfer import OpenAIBackend, parallel_map

    graph = chain(our_model())
    backend = OpenAIBackend(url, model=MODEL, api_key="any")

    async def ask(texts: list[str]) -> None:
        async with backend:
            states = await parallel_map(
                [{"text": text} for text in texts], graph, backend=backend, concurrency=wide,
                progress="none",
            )  # fmt: skip
        assert all(state.value["text"].startswith("echo: echo: ") for state in states), states[0]

    return ask


def batch_ask(graph: Any, wide: int) -> Callable[[list[str]], Awaitable[None]]:
    async def ask(texts: list[str]) -> None:
        states = await graph.abatch([{"text": text} for text in texts], {"max_concurrency": wide})
        assert all(state["text"].startswith("echo: echo: ") for state in states)

    return ask


ASKS: dict[str, Callable[[str, int], Callable[[list[str]], Awaitable[None]]]] = {
    "node": lambda url, wide: wide_ask(node_graph(url, wide), wide),
    "send": lambda url, wide: wide_ask(send_graph(url), wide),
    "graphs": mapped_ask,
    "abatch": lambda url, wide: batch_ask(chain(openai_model(url)), wide),
    "abatch-ours": lambda url, wide: batch_ask(
        chain(our_model(base_url=url, model=MODEL, concurrency=wide)), wide
    ),
}


async def measure(name: str, url: str, items: int, wide: int) -> dict[str, float]:
    """Return items a second, CPU seconds an item, and how much memory came on top.

    Everything is imported and has worked once before; connections for all are made within.
    """
    ask = ASKS[name](url, wide)
    await ask(prompts(8, first=items))
    gc.collect()
    # The peak before is of the imports.
    base = max(rss_mb(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)
    began, busy = time.perf_counter(), cpu_seconds()
    await ask(prompts(items))
    elapsed, busy = time.perf_counter() - began, cpu_seconds() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return {"rate": items / elapsed, "cpu": busy / items, "growth": peak - base, "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=ASKS, required=True)
    parser.add_argument("--url", required=True)
    for name in ("items", "wide"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    raise_file_limit()
    job = measure(options.only, options.url, options.items, options.wide)
    print(json.dumps(asyncio.run(job)), flush=True)


if __name__ == "__main__":
    main()
