"""A map as a node of real graphs, against the simulated server."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import pytest
from langchain_core.callbacks import AsyncCallbackHandler
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import InvalidUpdateError
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Send, interrupt
from pydantic import BaseModel

from scaleinfer import AuthError, ConfigError, Permanent, PromptError, Retry
from scaleinfer.langgraph import (
    NodeResult,
    append_in_order,
    gather_node,
    map_node,
    retry_policy,
)
from scaleinfer.testing import Fault, SimulatedServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from langchain_core.runnables import RunnableConfig

pytestmark = pytest.mark.anyio

NAMES = ["caffeine", "glucose", "benzene"]


class Typed(TypedDict, total=False):
    molecules: list[Any]
    answers: list[NodeResult]
    failed: list[NodeResult]


@dataclass
class Data:
    molecules: list[str]
    answers: list[NodeResult] = field(default_factory=list)


class Model(BaseModel):
    molecules: list[str]
    answers: list[Any] = []


class Gathered(TypedDict, total=False):
    molecules: list[Any]
    answers: Annotated[list[NodeResult], append_in_order()]
    table: list[NodeResult]


@pytest.fixture
def aside() -> Iterator[SimulatedServer]:
    """A simulated server in another thread, for graphs that block this one."""
    with SimulatedServer().in_thread() as running:
        yield running


def graph(schema: Any, node: Any, **compiling: Any) -> Any:
    return StateGraph(schema).add_node("ask", node).add_edge(START, "ask").compile(**compiling)


def ask(server: SimulatedServer, **options: Any) -> Any:
    given: dict[str, Any] = {"items": "molecules", "into": "answers", "base_url": server.base_url}
    return map_node(options.pop("prompt_fn", "Is {} soluble?"), **given | options)


def thread(number: str = "1", **more: Any) -> RunnableConfig:
    return {"configurable": {"thread_id": number}, **more}  # type: ignore[typeddict-item] # as a user


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - the server has no event to wait for
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("schema", [Typed, Data, Model])
async def test_every_kind_of_state(server: SimulatedServer, schema: type) -> None:
    state = await graph(schema, ask(server)).ainvoke({"molecules": NAMES})
    assert [answer.text for answer in state["answers"]] == [
        f"echo: Is {name} soluble?" for name in NAMES
    ]
    assert [answer.item for answer in state["answers"]] == NAMES


def test_a_sync_graph(aside: SimulatedServer) -> None:
    app = graph(Typed, ask(aside))
    events = list(app.stream({"molecules": NAMES}, stream_mode=["custom", "updates"]))
    assert events[-1][1]["ask"]["answers"][0].text == "echo: Is caffeine soluble?"
    assert {event["type"] for mode, event in events if mode == "custom"} == {"result", "progress"}
    assert aside.ledger.arrived == 3


async def test_a_sync_graph_inside_a_running_loop(aside: SimulatedServer) -> None:
    events = list(graph(Typed, ask(aside)).stream({"molecules": NAMES}, stream_mode="custom"))
    assert [event["done"] for event in events if event["type"] == "progress"][-1] == 3


async def test_results_and_progress_are_streamed(server: SimulatedServer) -> None:
    app = graph(Typed, ask(server))
    modes = ["custom", "updates"]
    parts = [part async for part in app.astream({"molecules": NAMES}, stream_mode=modes)]
    results = [event for mode, event in parts if mode == "custom" and event["type"] == "result"]
    assert sorted(event["index"] for event in results) == [0, 1, 2]
    assert {(event["node"], event["ok"], event["error"]) for event in results} == {
        ("ask", True, None)
    }
    mode, last = parts[-2]
    assert (mode, last["type"], last["done"], last["total"]) == ("custom", "progress", 3, 3)
    assert last["prompt_tokens"] > 0
    assert parts[-1][0] == "updates"
    assert len(parts[-1][1]["ask"]["answers"]) == 3
    quiet = graph(Typed, ask(server, stream=()))
    assert not [event async for event in quiet.astream({"molecules": NAMES}, stream_mode="custom")]


async def test_failures_apart_and_plain_values(server: SimulatedServer) -> None:
    items = [{"name": "urea"}, {"smiles": "C"}, {"name": "water"}]
    node = ask(server, prompt_fn=lambda item: f"Is {item['name']} soluble?", failures="failed")
    state = await graph(Typed, node).ainvoke({"molecules": items})
    assert [answer.item["name"] for answer in state["answers"]] == ["urea", "water"]
    [failure] = state["failed"]
    assert (failure.index, type(failure.error)) == (1, PromptError)
    assert "KeyError: 'name'" in str(failure.error)
    plain = await graph(Typed, ask(server, prompt_fn="Is {name}?", values=True)).ainvoke(
        {"molecules": items}
    )
    assert plain["answers"] == ["echo: Is urea?", None, "echo: Is water?"]
    both = ask(server, prompt_fn="Is {name}?", values=True, failures="failed")
    apart = await graph(Typed, both).ainvoke({"molecules": items})
    assert apart["answers"] == ["echo: Is urea?", "echo: Is water?"]
    assert [failed.index for failed in apart["failed"]] == [1]


async def test_bad_states_are_named(server: SimulatedServer) -> None:
    app = graph(Typed, ask(server, items="smiles"))
    with pytest.raises(ConfigError, match="Node 'ask': the state has no 'smiles'") as raised:
        await app.ainvoke({"molecules": NAMES})
    assert "It has: molecules" in raised.value.hint
    with pytest.raises(ConfigError, match="the state's 'molecules' is no list but str"):
        await graph(Typed, ask(server)).ainvoke({"molecules": "caffeine"})
    assert server.ledger.arrived == 0


async def test_nothing_to_ask_needs_no_endpoint() -> None:
    node = map_node("{}", items="molecules", into="answers", base_url="http://127.0.0.1:9/v1")
    assert (await graph(Typed, node).ainvoke({"molecules": []}))["answers"] == []


async def test_what_cannot_succeed_fails_the_node(server: SimulatedServer) -> None:
    refusing = SimulatedServer(api_key="right")
    async with refusing:
        with pytest.raises(AuthError):
            await graph(Typed, ask(refusing, api_key="wrong")).ainvoke({"molecules": NAMES})
    async with SimulatedServer(faults=[Fault.status(400, match="glucose")]) as faulty:
        with pytest.raises(Permanent, match="item 1"):
            await graph(Typed, ask(faulty, on_error="raise")).ainvoke({"molecules": NAMES})


async def test_goto(server: SimulatedServer) -> None:
    def after(results: list[NodeResult]) -> str:
        return "good" if all(result.ok for result in results) else "bad"

    def told(name: str) -> Any:
        return lambda state: {"failed": [*state["answers"], name]}

    node = ask(server, prompt_fn="Is {name}?", goto=after)
    builder = StateGraph(Typed).add_node("ask", node).add_edge(START, "ask")
    for name in ("good", "bad"):
        builder.add_node(name, told(name)).add_edge(name, END)
    app = builder.compile()
    assert (await app.ainvoke({"molecules": [{"name": "urea"}]}))["failed"][-1] == "good"
    assert (await app.ainvoke({"molecules": [{"smiles": "C"}]}))["failed"][-1] == "bad"
    plain = await ask(server, goto="good").ainvoke({"molecules": NAMES})
    assert isinstance(plain, Command)
    assert plain.update is not None
    assert (plain.goto, len(plain.update["answers"])) == ("good", 3)


async def test_send_and_gather(server: SimulatedServer) -> None:
    def split(state: Gathered) -> list[Send]:
        return [Send("ask", {"molecules": [name]}) for name in state["molecules"]]

    gather = gather_node(
        items="answers", into="table", expect="molecules", order=lambda one: one.item
    )
    builder = StateGraph(Gathered)
    builder.add_node("ask", ask(server)).add_node("gather", gather)
    builder.add_conditional_edges(START, split, ["ask"]).add_edge("ask", "gather")
    app = builder.compile(checkpointer=InMemorySaver())
    state = await app.ainvoke({"molecules": NAMES}, thread())
    assert [answer.item for answer in state["answers"]] == NAMES
    assert [answer.item for answer in state["table"]] == sorted(NAMES)
    assert server.ledger.arrived == 3


async def test_branches_without_a_reducer_are_refused(server: SimulatedServer) -> None:
    builder = StateGraph(Typed)
    for name in ("one", "two"):
        builder.add_node(name, ask(server)).add_edge(START, name)
    with pytest.raises(InvalidUpdateError, match=r"'answers'(.|\n)*Annotated key"):
        await builder.compile().ainvoke({"molecules": NAMES})


async def test_max_concurrency_is_kept() -> None:
    async with SimulatedServer(latency=0.01) as server:
        app = graph(Typed, ask(server))
        await app.ainvoke({"molecules": list(range(40))}, {"max_concurrency": 3})
        assert server.ledger.arrived == 40
        assert server.ledger.peak_in_flight <= 3


class Heard(AsyncCallbackHandler):
    """Keeps the custom events that reach a callback."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any, list[str], Any]] = []

    async def on_custom_event(
        self, name: str, data: Any, *, tags: Any = None, metadata: Any = None, **_: Any
    ) -> None:
        self.events.append((name, data, tags, metadata))


async def test_callbacks_hear_of_progress(server: SimulatedServer) -> None:
    heard = Heard()
    config: RunnableConfig = {"callbacks": [heard], "tags": ["screening"]}
    await graph(Typed, ask(server)).ainvoke({"molecules": NAMES}, config)
    [(name, data, tags, metadata)] = heard.events
    assert (name, data["done"], metadata["langgraph_node"]) == ("scaleinfer_progress", 3, "ask")
    assert "screening" in tags


async def test_cancelling_the_graph_ends_the_calls() -> None:
    async with SimulatedServer(latency=30.0) as server:
        running = asyncio.create_task(
            graph(Typed, ask(server, concurrency=4)).ainvoke({"molecules": list(range(20))})
        )
        await until(lambda: server.ledger.arrived == 4)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await until(lambda: server.ledger.aborted == 4)
        assert server.ledger.arrived == 4


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_prompt_fn_may_interrupt(server: SimulatedServer, is_async: bool) -> None:
    def prompt(item: str) -> str:
        if item == "glucose":
            item = interrupt(f"Which name for {item}?")
        return f"Is {item} soluble?"

    async def prompt_later(item: str) -> str:
        await asyncio.sleep(0)
        return prompt(item)

    node = ask(server, prompt_fn=prompt_later if is_async else prompt, failures="failed")
    app = graph(Typed, node, checkpointer=InMemorySaver())
    paused = await app.ainvoke({"molecules": NAMES}, thread())
    [asked] = paused["__interrupt__"]
    assert asked.value == "Which name for glucose?"
    assert "answers" not in paused
    state = await app.ainvoke(Command(resume="dextrose"), thread())
    assert [answer.text for answer in state["answers"]] == [
        "echo: Is caffeine soluble?", "echo: Is dextrose soluble?", "echo: Is benzene soluble?",
    ]  # fmt: skip
    assert state["failed"] == []
    assert "Is glucose soluble?" not in server.ledger.asked()


async def test_an_interrupt_goes_before_on_error_raise(server: SimulatedServer) -> None:
    node = ask(server, prompt_fn=interrupt, on_error="raise")
    app = graph(Typed, node, checkpointer=InMemorySaver())
    state = await app.ainvoke({"molecules": ["one"]}, thread())
    assert [asked.value for asked in state["__interrupt__"]] == ["one"]


async def test_a_mapped_graph_that_interrupts_fails_its_item(server: SimulatedServer) -> None:
    class Inner(TypedDict):
        name: str

    def review(state: Inner) -> Inner:
        return {"name": interrupt("?") if state["name"] == "glucose" else state["name"].upper()}

    inner = StateGraph(Inner).add_node("review", review).add_edge(START, "review").compile()
    node = ask(server, prompt_fn=inner, failures="failed")
    app = graph(Typed, node, checkpointer=InMemorySaver())
    state = await app.ainvoke({"molecules": [{"name": name} for name in NAMES]}, thread())
    assert [answer.value["name"] for answer in state["answers"]] == ["CAFFEINE", "BENZENE"]
    [failure] = state["failed"]
    assert isinstance(failure.error, PromptError)
    assert "interrupted" in failure.error.message


async def test_a_program_per_item(server: SimulatedServer) -> None:
    async def review(item: str, llm: Any) -> str:
        first = await llm(f"Summarise {item}.")
        return str((await llm(f"Criticise {first.text}")).text)

    state = await graph(Typed, ask(server, prompt_fn=review)).ainvoke({"molecules": NAMES})
    assert state["answers"][0].value == "echo: Criticise echo: Summarise caffeine."
    assert server.ledger.arrived == 6


async def test_a_checkpoint_keeps_errors_typed(server: SimulatedServer) -> None:
    app = graph(Typed, ask(server, prompt_fn="Is {name}?"), checkpointer=InMemorySaver())
    await app.ainvoke({"molecules": [{"name": "urea"}, {}]}, thread())
    kept = (await app.aget_state(thread())).values["answers"]
    assert [type(answer) for answer in kept] == [NodeResult, NodeResult]
    assert kept[0].usage.completion_tokens > 0
    assert isinstance(kept[1].error, PromptError)
    assert kept[1].error.index == 1


async def test_the_retry_policy_does_not_repeat_the_map() -> None:
    async with SimulatedServer(faults=[Fault.status(500)]) as server:
        builder = StateGraph(Typed)
        node = ask(server, on_error="raise", retry=Retry(attempts=2, initial=0.01))
        builder.add_node("ask", node, retry_policy=retry_policy(initial_interval=0.01))
        with pytest.raises(Exception, match="500"):
            await builder.add_edge(START, "ask").compile().ainvoke({"molecules": ["one"]})
        assert server.ledger.arrived == 2
