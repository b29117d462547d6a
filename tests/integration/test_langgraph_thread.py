"""A node's journal belongs to its thread: what is missing is asked, and nothing else is used."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import RetryPolicy, Send

from scaleinfer import Permanent
from scaleinfer.journal import list_runs
from scaleinfer.langgraph import NodeResult, append_in_order, map_node
from scaleinfer.testing import Fault, SimulatedServer

if TYPE_CHECKING:
    from pathlib import Path

    from langchain_core.runnables import RunnableConfig

pytestmark = pytest.mark.anyio

NAMES = [f"molecule {number}" for number in range(8)]


class State(TypedDict, total=False):
    molecules: list[str]
    answers: Annotated[list[NodeResult], append_in_order()]
    rounds: Annotated[int, lambda a, b: a + b]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def thread(number: str = "1") -> RunnableConfig:
    return {"configurable": {"thread_id": number}}


def node(server: SimulatedServer, **options: Any) -> Any:
    given: dict[str, Any] = {"items": "molecules", "into": "answers", "concurrency": 1}
    return map_node("{}", base_url=server.base_url, **given | options)


def graph(*nodes: Any, saver: Any = None) -> Any:
    builder = StateGraph(State)
    before = START
    for number, one in enumerate(nodes):
        builder.add_node(f"n{number}", one).add_edge(before, f"n{number}")
        before = f"n{number}"
    return builder.compile(checkpointer=saver)


def breaks_once(*after: str) -> list[Fault]:
    """Answer 400 the first time that a prompt is asked: it fails the item, and so the node."""
    return [Fault.status(400, match=name, times=1) for name in after]


@pytest.mark.parametrize("how", [None, "input"])
async def test_a_node_that_failed_goes_on(how: str | None) -> None:
    async with SimulatedServer(faults=breaks_once("molecule 5")) as server:
        app = graph(node(server, on_error="raise"), saver=InMemorySaver())
        with pytest.raises(Permanent):
            await app.ainvoke({"molecules": NAMES}, thread())
        state = await app.ainvoke(None if how is None else {"molecules": NAMES}, thread())
        assert [answer.item for answer in state["answers"]] == NAMES
        assert all(answer.ok for answer in state["answers"])
        asked = server.ledger.asked()
        assert [asked[name] for name in NAMES[:6]] == [1, 1, 1, 1, 1, 2]
        other = await app.ainvoke({"molecules": NAMES[:1]}, thread("2"))
        assert not other["answers"][0].resumed


async def test_langgraphs_own_retry_goes_on() -> None:
    async with SimulatedServer(faults=breaks_once("molecule 5")) as server:
        builder = StateGraph(State)
        policy = RetryPolicy(initial_interval=0.0, jitter=False, retry_on=Permanent)
        builder.add_node("ask", node(server, on_error="raise"), retry_policy=policy)
        app = builder.add_edge(START, "ask").compile(checkpointer=InMemorySaver())
        state = await app.ainvoke({"molecules": NAMES}, thread())
        assert sum(answer.resumed for answer in state["answers"]) == 5
        assert all(server.ledger.asked()[name] == 1 for name in NAMES[:5])


async def test_a_loop_asks_anew(server: SimulatedServer) -> None:
    builder = StateGraph(State)
    builder.add_node("ask", node(server)).add_node("count", lambda _: {"rounds": 1})
    builder.add_edge(START, "ask").add_edge("ask", "count")
    builder.add_conditional_edges("count", lambda state: "ask" if state["rounds"] < 3 else END)
    app = builder.compile(checkpointer=InMemorySaver())
    state = await app.ainvoke({"molecules": NAMES[:2]}, thread())
    assert len(state["answers"]) == 6
    assert not any(answer.resumed for answer in state["answers"])
    await app.ainvoke({"molecules": NAMES[:2]}, thread())
    assert server.ledger.asked() == Counter({NAMES[0]: 4, NAMES[1]: 4})


async def test_a_folder_of_ones_own_keeps_the_answers(
    server: SimulatedServer, tmp_path: Path
) -> None:
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "threads.sqlite")) as saver:
        app = graph(node(server, journal=tmp_path / "kept", name="ask"), saver=saver)
        await app.ainvoke({"molecules": NAMES[:2]}, thread())
        state = await app.ainvoke({"molecules": NAMES[:4]}, thread() | {"tags": ["v2"]})
        assert [answer.resumed for answer in state["answers"][2:]] == [True, True, False, False]
        kept = (await app.aget_state(thread())).values["answers"]
        assert [answer.item for answer in kept] == NAMES[:2] + NAMES[:4]
    assert server.ledger.arrived == 4
    runs = list_runs(tmp_path / "kept" / "1" / "n0.db")
    assert [run.name for run in runs] == ["ask, thread 1", "ask, thread 1 [v2]"]
    assert not (tmp_path / ".scaleinfer").exists()


async def test_the_default_is_in_the_working_folder(
    server: SimulatedServer, tmp_path: Path
) -> None:
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "threads.sqlite")) as saver:
        await graph(node(server), saver=saver).ainvoke({"molecules": NAMES[:2]}, thread("x"))
        assert (tmp_path / ".scaleinfer" / "threads" / "x" / "n0.db").exists()
        await graph(node(server, journal=False), saver=saver).ainvoke(
            {"molecules": NAMES[:2]}, thread("y")
        )
        assert not (tmp_path / ".scaleinfer" / "threads" / "y").exists()
    await graph(node(server)).ainvoke({"molecules": NAMES[:2]}, thread("z"))
    assert not (tmp_path / ".scaleinfer" / "threads" / "z").exists()
    single = graph(node(server, journal="one.db"))
    await single.ainvoke({"molecules": NAMES[:2]})
    await single.ainvoke({"molecules": NAMES[:2]})
    assert (tmp_path / "one.db").is_file()
    assert server.ledger.arrived == 8


async def test_sends_that_run_at_once_have_a_writer_each() -> None:
    def split(state: State) -> list[Send]:
        pairs = [state["molecules"][at : at + 2] for at in range(0, 8, 2)]
        return [Send("ask", {"molecules": pair}) for pair in [*pairs, pairs[0]]]

    async with SimulatedServer(latency=0.01, faults=breaks_once("molecule 5")) as server:
        builder = StateGraph(State).add_node("ask", node(server, on_error="raise"))
        builder.add_conditional_edges(START, split, ["ask"])
        app = builder.compile(checkpointer=InMemorySaver())
        with pytest.raises(Permanent):
            await app.ainvoke({"molecules": NAMES}, thread())
        before = server.ledger.counts()
        state = await app.ainvoke({"molecules": NAMES}, thread())
        assert [answer.item for answer in state["answers"]] == [*NAMES, *NAMES[:2]]
        # Those sends that had not ended when the other one failed go on where they were.
        resumed = [answer.item for answer in state["answers"] if answer.resumed]
        assert set(resumed) <= set(before)
        assert "molecule 4" in resumed


async def test_a_graph_within_a_graph_may_be_sent(server: SimulatedServer) -> None:
    class Answered(TypedDict):
        answers: list[str]

    asking = StateGraph(State, output_schema=Answered)
    inner = asking.add_node("ask", node(server, values=True)).add_edge(START, "ask").compile()

    def split(state: State) -> list[Send]:
        return [Send("inner", {"molecules": [name]}) for name in state["molecules"]]

    builder = StateGraph(State).add_node("inner", inner)
    builder.add_conditional_edges(START, split, ["inner"])
    app = builder.compile(checkpointer=InMemorySaver())
    state = await app.ainvoke({"molecules": NAMES}, thread())
    assert state["answers"] == [f"echo: {name}" for name in NAMES]
    assert server.ledger.arrived == 8
