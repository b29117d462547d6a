"""A LangGraph graph one of whose nodes asks about every molecule in its state.

Run from the repository root, on the embedded model unless SCALEINFER_BACKEND names another:

    python examples/langgraph_node.py --limit 30

The graph asks for each molecule's state at room temperature, asks once more about those that
failed, and counts. The embedded model has 135 million parameters: expect it close to guessing.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from pydantic import BaseModel

from scaleinfer.langgraph import NodeResult, map_node, merge_by_key, retry_policy

DATA = Path(__file__).parent / "data" / "molecules.csv"
ROUNDS = 2


class Matter(BaseModel):
    """What a molecule is at 25 °C."""

    state: Literal["gas", "liquid", "solid"]


def name_of(result: NodeResult) -> str:
    return str(result.item["name"])


class State(TypedDict, total=False):
    """The graph's state: what is asked, and what is known by name."""

    molecules: list[dict[str, str]]
    answers: Annotated[dict[str, NodeResult], merge_by_key(name_of)]
    rounds: int


def missing(state: State) -> list[dict[str, str]]:
    answers = state.get("answers", {})
    known = {name for name, result in answers.items() if result.ok}
    return [molecule for molecule in state["molecules"] if molecule["name"] not in known]


def count_round(state: State) -> State:
    return {"rounds": state.get("rounds", 0) + 1}


def next_node(state: State) -> str:
    return "ask" if missing(state) and state["rounds"] < ROUNDS else "__end__"


def graph() -> Any:
    """Return the graph: ask, count the round, ask about what failed."""
    ask = map_node(
        "Is {name} a gas, a liquid or a solid at room temperature?",
        items=missing,
        into="answers",
        schema=Matter,
        sampling={"max_tokens": 20, "temperature": 0},
        state_schema=State,
    )
    builder = StateGraph(State)
    builder.add_node("ask", ask, retry_policy=retry_policy())
    builder.add_node("count_round", count_round)
    builder.add_edge(START, "ask").add_edge("ask", "count_round")
    builder.add_conditional_edges("count_round", next_node)
    return builder.compile(checkpointer=InMemorySaver())


def main() -> None:
    parser = argparse.ArgumentParser(description="Gas, liquid or solid, asked by a graph.")
    parser.add_argument("--limit", type=int, default=30, help="how many molecules (default 30)")
    limit = parser.parse_args().limit
    with DATA.open(encoding="utf-8", newline="") as file:
        molecules = list(csv.DictReader(file))[:limit]

    app = graph()
    config = {"configurable": {"thread_id": "states"}, "tags": ["example"]}
    for event in app.stream({"molecules": molecules}, config, stream_mode="custom"):
        if event["type"] == "progress":
            print(f"{event['node']}: {event['done']} of {event['total']}, {event['failed']} failed")

    state = app.get_state(config).values
    answers = state["answers"]
    right = sum(
        result.ok and result.value.state == result.item["state_25c"] for result in answers.values()
    )
    failed = sum(not result.ok for result in answers.values())
    print(f"{right} of {len(answers)} right, {failed} failed, in {state['rounds']} rounds")


if __name__ == "__main__":
    main()
