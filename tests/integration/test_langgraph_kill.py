"""`kill -9` in the middle of a node's map: the thread goes on, and asks only what is missing."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from scaleinfer.testing import SimulatedServer

if TYPE_CHECKING:
    from pathlib import Path

    from scaleinfer.testing import ServerProcess

ITEMS, IN_FLIGHT = 300, 8

CLIENT = """
import sys
from typing import Annotated, TypedDict

from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import START, StateGraph
from langgraph.types import Send
from scaleinfer.langgraph import NodeResult, append_in_order, map_node

url, how, items = sys.argv[1], sys.argv[2], int(sys.argv[3])

class State(TypedDict, total=False):
    molecules: list[str]
    answers: Annotated[list[NodeResult], append_in_order()]

def thirds(state):
    third = len(state["molecules"]) // 3
    parts = [state["molecules"][at : at + third] for at in range(0, 3 * third, third)]
    return [Send("analyse", {"molecules": part}) for part in parts]

node = map_node("{}", items="molecules", into="answers", base_url=url, model="sim-model",
                concurrency=int(sys.argv[4]))
builder = StateGraph(State).add_node("analyse", node)
if how == "send":
    builder.add_conditional_edges(START, thirds, ["analyse"])
else:
    builder.add_edge(START, "analyse")
with SqliteSaver.from_conn_string("threads.sqlite") as saver:
    graph = builder.compile(checkpointer=saver)
    config = {"configurable": {"thread_id": "a/7"}}
    # A thread that is under way goes on; None is LangGraph's word for that.
    anew = how == "again" or not graph.get_state(config).next
    molecules = [f"molecule {number}" for number in range(items)]
    state = graph.invoke({"molecules": molecules} if anew else None, config)
assert [answer.item for answer in state["answers"]] == molecules
assert all(answer.ok for answer in state["answers"])
print(sum(answer.resumed for answer in state["answers"]))
"""


def client(server: ServerProcess, how: str, folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, server.base_url, how, str(ITEMS), str(IN_FLIGHT)],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", ["again", "send"])
def test_kill_dash_nine(tmp_path: Path, how: str) -> None:
    writers = 3 if how == "send" else 1
    with SimulatedServer(latency=0.02).in_process() as server:
        first = client(server, how, tmp_path)
        while server.statistics()["arrived"] < ITEMS // 3:
            assert first.poll() is None, first.communicate()
            time.sleep(0.005)
        first.kill()
        _, err = first.communicate(timeout=30)
        assert first.returncode == -9, err.decode()
        killed_at = server.statistics()["arrived"]
        out, err = client(server, how, tmp_path).communicate(timeout=60)
        assert out, err.decode()
        asked = server.ledger.asked()
    assert set(asked) == {f"molecule {number}" for number in range(ITEMS)}
    twice = sum(asked.values()) - ITEMS
    assert twice <= IN_FLIGHT * writers, "only what was in flight is asked again"
    assert max(asked.values()) == 2
    assert int(out) == killed_at - twice
    assert int(out) >= ITEMS // 3 - IN_FLIGHT * writers
    print(f"{how}: killed after {killed_at}, {int(out)} from the journal, {twice} asked again")
