"""Runs a compiled LangGraph graph, or another LangChain runnable, for one item."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from scaleinfer.errors import PromptError

__all__ = ["run_graph"]

_INTERRUPT = "__interrupt__"


async def run_graph(graph: Any, item: Any, key: str) -> Any:
    """Return what the graph makes of the item.

    Raises:
        PromptError: It never ended, or waits for somebody's answer.
        Exception: What one of its nodes raised.
    """
    from langgraph.errors import GraphInterrupt, GraphRecursionError

    # A thread of its own: what an earlier run left in a checkpointer must not be added to.
    config = {"configurable": {"thread_id": f"{key}-{uuid4().hex}"}}
    try:
        state = await graph.ainvoke(item, config)
    except GraphRecursionError as error:
        raise PromptError(
            f"the graph did not end: {error}",
            hint="Give it a way to END, or more steps: graph.with_config(recursion_limit=...).",
        ) from error
    except GraphInterrupt as error:
        raise _interrupted(error.args[0] if error.args else ()) from error
    if isinstance(state, dict) and state.get(_INTERRUPT):
        raise _interrupted(state[_INTERRUPT])
    return state


def _interrupted(interrupts: Any) -> PromptError:
    values = ", ".join(repr(getattr(one, "value", one)) for one in interrupts)
    return PromptError(
        f"the graph was interrupted and waits for an answer to {values[:200]}.",
        hint="Nobody is there to answer inside a map; take interrupt() out of the mapped graph.",
    )
