"""LangGraph and LangChain: a map as a node, reducers and a retry policy, a chat model.

```python
from typing import TypedDict

from langgraph.graph import START, StateGraph
from scaleinfer.langgraph import NodeResult, map_node


class State(TypedDict):
    molecules: list[dict]
    answers: list[NodeResult]


node = map_node("Is {text} soluble in water?", items="molecules", into="answers")
graph = StateGraph(State).add_node("ask", node).add_edge(START, "ask").compile()
state = await graph.ainvoke({"molecules": items})
assert all(answer.ok for answer in state["answers"])
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaleinfer._lazy import lazy_exports

if TYPE_CHECKING:
    from scaleinfer.langgraph._chat import ChatScaleInfer
    from scaleinfer.langgraph._events import ProgressEvent, ResultEvent
    from scaleinfer.langgraph._gather import GatherNode, gather_node
    from scaleinfer.langgraph._node import MapNode, map_node
    from scaleinfer.langgraph._reducers import (
        append_in_order,
        best_of,
        keep_failures,
        keep_ok,
        merge_by_key,
        statistics,
        tally,
        top_k,
    )
    from scaleinfer.langgraph._result import NodeResult
    from scaleinfer.langgraph._retry import retry_policy, worth_another_run

__all__ = [
    "ChatScaleInfer",
    "GatherNode",
    "MapNode",
    "NodeResult",
    "ProgressEvent",
    "ResultEvent",
    "append_in_order",
    "best_of",
    "gather_node",
    "keep_failures",
    "keep_ok",
    "map_node",
    "merge_by_key",
    "retry_policy",
    "statistics",
    "tally",
    "top_k",
    "worth_another_run",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "ChatScaleInfer": "_chat",
        "GatherNode": "_gather",
        "MapNode": "_node",
        "NodeResult": "_result",
        "ProgressEvent": "_events",
        "ResultEvent": "_events",
        "append_in_order": "_reducers",
        "best_of": "_reducers",
        "gather_node": "_gather",
        "keep_failures": "_reducers",
        "keep_ok": "_reducers",
        "map_node": "_node",
        "merge_by_key": "_reducers",
        "retry_policy": "_retry",
        "statistics": "_reducers",
        "tally": "_reducers",
        "top_k": "_reducers",
        "worth_another_run": "_retry",
    },
)
