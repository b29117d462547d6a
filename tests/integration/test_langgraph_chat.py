"""`ChatScaleInfer`, alone and inside mapped graphs and agents."""

from __future__ import annotations

import csv
import json
import operator
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Send, interrupt
from pydantic import BaseModel

from scaleinfer import ConfigError, Permanent, PromptError, parallel_map
from scaleinfer.langgraph import ChatScaleInfer
from scaleinfer.testing import Fault, SimulatedServer

if TYPE_CHECKING:
    from scaleinfer.testing import RequestView

pytestmark = pytest.mark.anyio

QUIET: dict[str, Any] = {"progress": False}
MOLECULES = Path(__file__).parents[2] / "examples" / "data" / "molecules.csv"


class Judgement(BaseModel):
    score: int
    reason: str


class Messages(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


@tool
def weigh(smiles: str) -> str:
    """Return the molar mass of a molecule."""
    if smiles == "explode":
        raise ValueError("no such molecule")
    return str(len(smiles))


def calls_tool(view: RequestView) -> dict[str, Any]:
    """Play a model that weighs the molecule it is asked about, then says what it weighs."""
    last = view.messages[-1]
    if last["role"] == "tool":
        return {"content": f"It weighs {last['content']}."}
    function = {"name": "weigh", "arguments": json.dumps({"smiles": last["content"]})}
    return {"tool_calls": [{"id": "call_1", "type": "function", "function": function}]}


def agent_of(model: ChatScaleInfer, **options: Any) -> Any:
    bound = model.bind_tools([weigh])

    async def think(state: Messages) -> dict[str, Any]:
        return {"messages": [await bound.ainvoke(state["messages"])]}

    graph = StateGraph(Messages)
    graph.add_node("think", think)
    graph.add_node("tools", ToolNode([weigh]))
    graph.add_edge(START, "think")
    graph.add_conditional_edges("think", tools_condition)
    graph.add_edge("tools", "think")
    return graph.compile(**options)


def question(text: str) -> dict[str, Any]:
    return {"messages": [HumanMessage(text)]}


async def test_alone(server: SimulatedServer) -> None:
    async with ChatScaleInfer(base_url=server.base_url, temperature=0.5, max_tokens=50) as model:
        answer = await model.ainvoke([("system", "Be brief."), ("user", "Hello")])
    assert answer.text == "echo: Hello"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["total_tokens"] > 0
    assert answer.response_metadata["model_name"] == "sim-model"
    assert answer.response_metadata["finish_reason"] == "stop"
    body = json.loads(server.ledger.requests[0].body or b"")
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["max_tokens"]) == (0.5, 50)


def test_without_await() -> None:
    with SimulatedServer().in_thread() as server:
        model = ChatScaleInfer(base_url=server.base_url)
        assert model.invoke("Hello").text == "echo: Hello"
        texts = [answer.text for answer in model.batch(["a", "b", "c"])]
        pieces = [chunk.text for chunk in model.stream("one two three")]
    assert texts == ["echo: a", "echo: b", "echo: c"]
    assert "".join(pieces) == "echo: one two three"


def test_its_engine_ends_with_the_loop() -> None:
    code = """
import asyncio, sys
from scaleinfer.langgraph import ChatScaleInfer
model = ChatScaleInfer(base_url=sys.argv[1])
for _ in range(2):
    print(asyncio.run(model.ainvoke("Hello")).text)
"""
    with SimulatedServer().in_thread() as server:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, server.base_url],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "echo: Hello\n" * 2, "")


async def test_answers_come_in_pieces() -> None:
    async with (
        SimulatedServer(answer=lambda _: "one two three four", keep_bodies=True) as server,
        ChatScaleInfer(base_url=server.base_url) as model,
    ):
        chunks = [chunk async for chunk in model.astream("Count.")]
        assert server.ledger.requests[0].stream
    assert len([chunk for chunk in chunks if chunk.text]) > 1
    whole: Any = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.text == "one two three four"
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] > 0
    assert whole.response_metadata["finish_reason"] == "stop"


async def test_tool_calls_come_in_pieces_too() -> None:
    async with (
        SimulatedServer(answer=calls_tool) as server,
        ChatScaleInfer(base_url=server.base_url) as model,
    ):
        chunks = [chunk async for chunk in model.bind_tools([weigh]).astream("CCO")]
    whole: Any = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert isinstance(whole, AIMessage)
    assert [(call["name"], call["args"]) for call in whole.tool_calls] == [
        ("weigh", {"smiles": "CCO"})
    ]


async def test_a_stream_that_breaks_is_not_begun_again() -> None:
    faults = [Fault.truncate(first=1)]
    async with (
        SimulatedServer(answer=lambda _: "one two three four five", faults=faults) as server,
        ChatScaleInfer(base_url=server.base_url) as model,
    ):
        chunks = model.astream("Count.")
        assert (await anext(chunks)).text == "one "
        with pytest.raises(Permanent, match="broke off"):
            [chunk async for chunk in chunks]
        assert server.ledger.arrived == 1


async def test_structured_output(server: SimulatedServer) -> None:
    async with ChatScaleInfer(base_url=server.base_url) as model:
        judged = await model.with_structured_output(Judgement).ainvoke("Judge.")
        plain = await model.with_structured_output(Judgement.model_json_schema()).ainvoke("Judge.")
        raw = await model.with_structured_output(Judgement, include_raw=True).ainvoke("Judge.")
    assert isinstance(judged, Judgement)
    assert isinstance(plain, dict)
    assert set(plain) == {"score", "reason"}
    assert isinstance(raw, dict)
    assert isinstance(raw["parsed"], Judgement)
    assert isinstance(raw["raw"], AIMessage)


async def test_a_bad_answer_is_shown_to_the_model_again() -> None:
    good = Judgement(score=3, reason="fine").model_dump_json()

    def answer(view: RequestView) -> str:
        return good if len(view.messages) > 1 else "three"

    async with (
        SimulatedServer(answer=answer) as server,
        ChatScaleInfer(base_url=server.base_url) as model,
    ):
        judged = await model.with_structured_output(Judgement).ainvoke("Judge.")
    assert judged == Judgement(score=3, reason="fine")


async def test_structured_output_as_a_tool() -> None:
    def answer(view: RequestView) -> dict[str, Any]:
        name = view.body["tools"][0]["function"]["name"]
        assert view.body["tool_choice"] == "required"
        function = {"name": name, "arguments": '{"score": 1, "reason": "so"}'}
        return {"tool_calls": [{"id": "1", "type": "function", "function": function}]}

    async with (
        SimulatedServer(answer=answer) as server,
        ChatScaleInfer(base_url=server.base_url) as model,
    ):
        judged = await model.with_structured_output(Judgement, method="function_calling").ainvoke(
            "Judge."
        )
    assert judged == Judgement(score=1, reason="so")


async def test_agents_per_item_share_the_maps_engine(journal: Path) -> None:
    inputs = [question("C" * n) for n in range(1, 31)]
    async with SimulatedServer(answer=calls_tool, latency=0.01) as server:
        agent = agent_of(ChatScaleInfer(temperature=0))
        options = {"base_url": server.base_url, "journal": journal, **QUIET}
        results = await parallel_map(inputs, agent, concurrency=8, **options)
        assert [result.value["messages"][-1].text for result in results] == [
            f"It weighs {n}." for n in range(1, 31)
        ]
        assert all(result.attempts == 2 for result in results)
        assert server.ledger.peak() <= 8
        assert server.ledger.arrived == 60
        again = await parallel_map(inputs, agent, **options)
        assert len(again.ok) == 30
        assert all(result.resumed for result in again)
        assert server.ledger.arrived == 60


async def test_ordinary_nodes_run_in_threads() -> None:
    model = ChatScaleInfer()

    def think(state: Messages) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    graph = StateGraph(Messages).add_node("think", think).add_edge(START, "think").compile()
    async with SimulatedServer() as server:
        results = await parallel_map(
            [question("a"), question("b")], graph, base_url=server.base_url, **QUIET
        )
    assert [result.value["messages"][-1].text for result in results] == ["echo: a", "echo: b"]
    assert all(result.attempts == 1 for result in results)


async def test_a_synchronous_call_in_the_maps_thread_is_refused(server: SimulatedServer) -> None:
    model = ChatScaleInfer()

    async def program(item: str, llm: object) -> str:
        return str(model.invoke(item).text)

    results = await parallel_map(["x"], program, base_url=server.base_url, **QUIET)
    assert isinstance(results[0].error, ConfigError)


async def test_a_model_with_an_endpoint_of_its_own() -> None:
    async with (
        SimulatedServer(answer=lambda _: "author") as author,
        SimulatedServer(answer=lambda _: "judge") as judge,
    ):
        writer, critic = ChatScaleInfer(), ChatScaleInfer(base_url=judge.base_url)

        async def both(state: Messages) -> dict[str, Any]:
            draft = await writer.ainvoke(state["messages"])
            verdict = await critic.ainvoke([draft])
            return {"messages": [draft, verdict]}

        graph = StateGraph(Messages).add_node("both", both).add_edge(START, "both").compile()
        results = await parallel_map(
            [question(str(n)) for n in range(5)], graph, base_url=author.base_url, **QUIET
        )
        for result in results:
            assert [m.text for m in result.value["messages"][1:]] == ["author", "judge"]
        assert (author.ledger.arrived, judge.ledger.arrived) == (5, 5)


async def test_what_goes_wrong_in_one_graph_leaves_the_others() -> None:
    agent = agent_of(ChatScaleInfer()).with_config(recursion_limit=6)

    def answer(view: RequestView) -> dict[str, Any]:
        if "forever" in str(view.messages[0]["content"]):
            function = {"name": "weigh", "arguments": '{"smiles": "C"}'}
            return {"tool_calls": [{"id": "c", "type": "function", "function": function}]}
        return calls_tool(view)

    faults = [Fault.status(400, match="refused")]
    async with SimulatedServer(answer=answer, faults=faults) as server:
        results = await parallel_map(
            [question(text) for text in ("CC", "forever", "explode", "refused")],
            agent, base_url=server.base_url, **QUIET,
        )  # fmt: skip
    fine, forever, explode, refused = results
    assert fine.ok
    assert isinstance(forever.error, PromptError)
    assert "recursion_limit" in forever.error.hint
    assert isinstance(explode.error, PromptError)
    assert "no such molecule" in explode.error.message
    assert isinstance(refused.error, Permanent)


async def test_an_interrupt_inside_a_mapped_graph_is_an_error_of_its_item() -> None:
    model = ChatScaleInfer()

    async def think(state: Messages) -> dict[str, Any]:
        if state["messages"][0].text == "ask me":
            interrupt("may I?")
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(Messages).add_node("think", think).add_edge(START, "think")
    async with SimulatedServer() as server:
        for compiled in (graph.compile(), graph.compile(checkpointer=InMemorySaver())):
            results = await parallel_map(
                [question("ask me"), question("go on")], compiled,
                base_url=server.base_url, **QUIET,
            )  # fmt: skip
            assert isinstance(results[0].error, PromptError)
            assert "may I?" in results[0].error.message
            assert results[1].ok


# A planner that hands tasks to executors with tools, in the way ChemGraph builds its graphs.


class Plan(BaseModel):
    smiles: list[str]


class Planned(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]
    tasks: list[str]
    worker_results: Annotated[list[str], operator.add]


class Task(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]
    smiles: str


def mass_of(smiles: str) -> float:
    chem: Any = pytest.importorskip("rdkit.Chem")
    descriptors: Any = pytest.importorskip("rdkit.Chem.Descriptors")
    return float(descriptors.MolWt(chem.MolFromSmiles(smiles)))


@tool
def molar_mass(smiles: str) -> str:
    """Return the molar mass in g/mol."""
    return f"{mass_of(smiles):.2f}"


def chemgraph() -> Any:
    model = ChatScaleInfer(temperature=0)
    planner = model.with_structured_output(Plan)
    executor = model.bind_tools([molar_mass])

    async def plan(state: Planned) -> dict[str, Any]:
        planned = await planner.ainvoke([("system", "Plan."), *state["messages"]])
        assert isinstance(planned, Plan)
        return {"tasks": planned.smiles}

    def hand_out(state: Planned) -> list[Send]:
        return [Send("worker", {"smiles": one, "messages": []}) for one in state["tasks"]]

    async def execute(state: Task) -> dict[str, Any]:
        asked = state["messages"] or [HumanMessage(f"Mass of {state['smiles']}")]
        answer = await executor.ainvoke(asked)
        return {"messages": [*([] if state["messages"] else asked), answer]}

    def route(state: Task) -> Literal["tools", "__end__"]:
        last = state["messages"][-1]
        return "tools" if isinstance(last, AIMessage) and last.tool_calls else "__end__"

    inner = StateGraph(Task)
    inner.add_node("execute", execute)
    inner.add_node("tools", ToolNode([molar_mass]))
    inner.add_edge(START, "execute")
    inner.add_conditional_edges("execute", route)
    inner.add_edge("tools", "execute")
    compiled = inner.compile()

    async def worker(state: Task) -> dict[str, Any]:
        done = await compiled.ainvoke(state)
        return {"worker_results": [f"{state['smiles']}: {done['messages'][-1].text}"]}

    async def aggregate(state: Planned) -> dict[str, Any]:
        found = "; ".join(sorted(state["worker_results"]))
        return {"messages": [await model.ainvoke(f"Report: {found}")]}

    graph = StateGraph(Planned)
    graph.add_node("plan", plan)
    graph.add_node("worker", worker)
    graph.add_node("aggregate", aggregate)
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", hand_out, ["worker"])
    graph.add_edge("worker", "aggregate")
    return graph.compile()


def chemist(view: RequestView) -> dict[str, Any] | str:
    first, last = view.messages[0], view.messages[-1]
    if first["content"] == "Plan.":
        return Plan(smiles=last["content"].split()[1:]).model_dump_json()
    if last["role"] == "tool":
        return {"content": last["content"]}
    if last["content"].startswith("Mass of "):
        arguments = json.dumps({"smiles": last["content"].removeprefix("Mass of ")})
        function = {"name": "molar_mass", "arguments": arguments}
        return {"tool_calls": [{"id": "1", "type": "function", "function": function}]}
    return str(last["content"])


async def test_graphs_built_like_chemgraphs_with_real_molecules(journal: Path) -> None:
    with MOLECULES.open(encoding="utf-8") as rows:
        smiles = [row["smiles"] for row in csv.DictReader(rows)][:40]
    pairs = list(zip(smiles[::2], smiles[1::2], strict=True))
    inputs = [question(f"Compare {a} {b}") for a, b in pairs]
    async with SimulatedServer(answer=chemist) as server:
        options: dict[str, Any] = {"base_url": server.base_url, "journal": journal, **QUIET}
        results = await parallel_map(inputs, chemgraph(), **options)
        assert len(results.failed) == 0
        for pair, result in zip(pairs, results, strict=True):
            lines = sorted(f"{one}: {mass_of(one):.2f}" for one in pair)
            assert result.value["messages"][-1].text == f"Report: {'; '.join(lines)}"
            # A plan, two calls for each molecule, a report.
            assert result.attempts == 6
        arrived = server.ledger.arrived
        assert arrived == 6 * len(pairs)
        again = await parallel_map(inputs, chemgraph(), **options)
        assert len(again.ok) == len(pairs)
        assert server.ledger.arrived == arrived


def test_tool_messages_keep_their_place() -> None:
    from langchain_core.messages import convert_to_openai_messages

    turned = convert_to_openai_messages([ToolMessage("42", tool_call_id="call_1")])
    assert turned == [{"role": "tool", "tool_call_id": "call_1", "content": "42"}]
