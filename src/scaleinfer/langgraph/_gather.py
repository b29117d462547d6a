"""`gather_node`: fan-in after `Send`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config
from langgraph.types import Command

from scaleinfer.errors import ConfigError, PromptError
from scaleinfer.langgraph._journals import Place
from scaleinfer.langgraph._state import check_keys, read_list, size_of
from scaleinfer.results import Result

if TYPE_CHECKING:
    from scaleinfer.langgraph._node import Goto

__all__ = ["GatherNode", "gather_node"]


def gather_node(
    gather: Callable[[list[Any]], Any] | None = None,
    *,
    items: str,
    into: str,
    failures: str | None = None,
    order: str | Callable[[Any], Any] | None = None,
    expect: int | str | Callable[[Any], int] | None = None,
    goto: Goto | Callable[[Any], Goto] | None = None,
    state_schema: type | None = None,
) -> GatherNode:
    """Return a node that brings together what the targets of `Send` wrote.

    LangGraph runs it once, after all of them. It takes the list that a reducer collected, puts
    apart what failed, sorts, checks that nothing is missing, and writes what `gather` makes of
    the rest.

    ```python
    node = gather_node(len, items="answers", into="how_many")
    assert node.invoke({"answers": ["yes", "no"]}) == {"how_many": 2}
    ```

    Args:
        gather: Function of the list without failures; by default the list itself is written.
        items: Key of the state that holds the list. Lists in it are taken as their elements.
        into: Key that gets the outcome; another one than `items`, which has a reducer.
        failures: Key that gets the results without an answer. Without it they go to `gather`
            with the others.
        order: Field of an element, or a function of it, to sort by; default the list's order.
        expect: How many elements there must be: a number, a key of the state that holds a list
            or a number, or a function of the state.
        goto: Node to go to, or a function of the outcome that names it: the node then returns a
            `Command`.
        state_schema: Class of the state, to have the keys checked now.

    Raises:
        ConfigError: An argument cannot be used.
    """
    if gather is not None and not callable(gather):
        raise ConfigError(f"gather must be a function of a list, not {gather!r}.")
    keys = {"items": items, "into": into, "failures": failures}
    named = [key for key in keys.values() if key is not None]
    if len(set(named)) < len(named):
        raise ConfigError(
            f"items, into and failures are three different keys, not {', '.join(named)}.",
            hint="What a reducer collects cannot be replaced by writing to the same key.",
        )
    if state_schema is not None:
        expected = expect if isinstance(expect, str) else None
        check_keys(state_schema, {**keys, "expect": expected}, "gather_node")
    return GatherNode(_Plan(gather, items, into, failures, order, expect, goto))


@dataclass(frozen=True, slots=True)
class _Plan:
    """The arguments of `gather_node`."""

    gather: Callable[[list[Any]], Any] | None
    items: str
    into: str
    failures: str | None
    order: str | Callable[[Any], Any] | None
    expect: int | str | Callable[[Any], int] | None
    goto: Goto | Callable[[Any], Goto] | None


class GatherNode(Runnable[Any, Any]):
    """Fan-in as a node; `gather_node` makes it."""

    def __init__(self, plan: _Plan) -> None:
        self._plan = plan

    def invoke(
        self, input: Any, config: RunnableConfig | None = None, **_: Any
    ) -> dict[str, Any] | Command[Any]:
        """Return the state's update.

        Raises:
            ConfigError: The state has no such list, or elements cannot be sorted.
            PromptError: Elements are missing, or there are too many.
        """
        plan = self._plan
        node = Place.of(ensure_config(config), "gather_node").node
        found = list(_flat(read_list(input, plan.items, node)))
        self._check(len(found), input, node)
        if plan.order is not None:
            found.sort(key=lambda element: _ordering(element, plan.order, node))
        update: dict[str, Any] = {}
        if plan.failures is not None:
            update[plan.failures] = [element for element in found if _failed(element)]
            found = [element for element in found if not _failed(element)]
        outcome = found if plan.gather is None else plan.gather(found)
        update[plan.into] = outcome
        if plan.goto is None:
            return update
        goto: Any = plan.goto(outcome) if callable(plan.goto) else plan.goto
        return Command(update=update, goto=goto)

    def _check(self, found: int, state: Any, node: str) -> None:
        expected: Any = self._plan.expect
        if expected is None:
            return
        if isinstance(expected, str):
            there = state.get(expected) if isinstance(state, Mapping) else getattr(state, expected)
            expected = there if isinstance(there, int) else size_of(there)
        elif callable(expected):
            expected = expected(state)
        if found != expected:
            raise PromptError(
                f"node {node!r}: {self._plan.items!r} holds {found} elements, not {expected}.",
                hint="Every Send must write one element for each that it got.",
            )


def _flat(elements: Sequence[Any]) -> Any:
    for element in elements:
        if isinstance(element, list):
            yield from _flat(element)
        else:
            yield element


def _failed(element: Any) -> bool:
    return isinstance(element, Result) and not element.ok


def _ordering(element: Any, order: str | Callable[[Any], Any] | None, node: str) -> Any:
    if callable(order):
        return order(element)
    assert order is not None
    if isinstance(element, Mapping):
        if order in element:
            return element[order]
    elif hasattr(element, order):
        return getattr(element, order)
    raise ConfigError(f"Node {node!r}: an element has no {order!r} to be sorted by.")
