"""`map_node`: a map as a node of a LangGraph graph."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config, var_child_runnable_config
from langgraph.errors import GraphBubbleUp
from langgraph.types import Command, Send

from scaleinfer.engine import Concurrency
from scaleinfer.errors import ConfigError, ScaleInferError
from scaleinfer.langgraph._announce import Announcer
from scaleinfer.langgraph._events import Tally, result_event
from scaleinfer.langgraph._journals import Place, claimed, folder_of, journal_path
from scaleinfer.langgraph._result import NodeResult
from scaleinfer.langgraph._state import check_keys, items_of, size_of
from scaleinfer.mapping import stream_map
from scaleinfer.program import is_program

if TYPE_CHECKING:
    import os
    from datetime import timedelta
    from typing import Unpack

    from pydantic import BaseModel

    from scaleinfer.batch import Batch
    from scaleinfer.engine import Budget, Dispatch, RateLimit, Retry
    from scaleinfer.fleet import Fleet
    from scaleinfer.policy import Policy
    from scaleinfer.prices import Price, Prices
    from scaleinfer.requests import Sampling

__all__ = ["Goto", "MapNode", "NodeOptions", "map_node"]

StateT = TypeVar("StateT")
T = TypeVar("T")

Goto = str | Send | Sequence[str | Send]
"""Where a `Command` leads: a node's name, a `Send`, or several of them."""


class NodeOptions(TypedDict, total=False):
    """The keyword arguments of `parallel_map`, as a node takes them."""

    backend: Any
    model: str | None
    base_url: str | None
    api_key: str | None
    system: str | None
    schema: type[BaseModel] | None
    sampling: Sampling | Mapping[str, Any] | None
    concurrency: int | Concurrency | Literal["auto"]
    rate_limit: RateLimit | None
    retry: Retry | None
    priority: int
    dispatch: Dispatch | None
    fleet: Fleet | None
    mode: Literal["online", "batch", "auto"] | Batch
    deadline: float | timedelta | None
    budget: Budget | None
    prices: Prices | Mapping[str, Price] | None
    policy: Policy | None
    journal: bool | str | os.PathLike[str] | None
    key: Callable[[Any], Any] | None
    ordered: bool
    on_error: Literal["return", "raise"]
    progress: bool | Literal["auto", "bar", "notebook", "log", "none"]
    name: str | None


def map_node(
    prompt_fn: Any,
    *,
    items: str | Callable[[Any], Any],
    into: str,
    failures: str | None = None,
    values: bool = False,
    goto: Goto | Callable[[list[NodeResult]], Goto] | None = None,
    stream: Sequence[Literal["progress", "result"]] = ("progress", "result"),
    state_schema: type | None = None,
    **options: Unpack[NodeOptions],
) -> MapNode:
    """Return a node that asks a model about every item of a list in the graph's state.

    ```python
    node = map_node("Is {text} soluble?", items="molecules", into="answers")
    update = await node.ainvoke({"molecules": items})
    assert all(answer.ok for answer in update["answers"])
    ```

    It works in async and sync graphs, and as the target of a `Send`, whose payload is then its
    state. A cancelled graph ends the calls in flight. What listens to the stream mode `custom`
    gets a `ProgressEvent` now and then and a `ResultEvent` per item; callbacks get the former as
    the custom event `scaleinfer_progress`. The `max_concurrency` of the graph's config caps the
    calls in flight at each endpoint; its tags and thread id are in the run's name.

    With a checkpointer the node keeps a journal for each thread, in `.scaleinfer/threads` or the
    folder that the variable `SCALEINFER_THREADS` names (for an `InMemorySaver` in a temporary
    folder that goes with it). A node that did not end, and is run again with the same thread id,
    then asks only for what is missing; a node that is come by once more asks anew.

    Args:
        prompt_fn: As for `parallel_map`: a template, a function of the item, a program, a graph.
            A function may call LangGraph's `interrupt`: the node is interrupted, and begins
            anew when the graph is resumed.
        items: Key of the state that holds the list, or a function of the state.
        into: Key of the state that gets the list of `NodeResult`, in the order of the items.
        failures: Key that gets the failed ones, which `into` then does not.
        values: True to write plain values into `into`; that of a failed item is `None`, unless
            `failures` takes it.
        goto: Node to go to, or a function of all results that names it: the node then returns a
            `Command`.
        stream: Types of the events that are written to the stream mode `custom`.
        state_schema: Class of the state, to have the keys checked now: LangGraph drops what is
            written to a key that does not exist.
        options: What `parallel_map` takes, and: `journal`, True or a folder for a file per
            thread and node whose answers are kept and used for good, a path with a suffix
            (`run.db`) for that file, False for none; `progress`, by default `"none"`; `name`,
            by default the node's.

    Raises:
        ConfigError: An argument cannot be used.
    """
    unknown = options.keys() - NodeOptions.__annotations__.keys()
    if unknown:
        raise ConfigError(
            f"map_node has no option {sorted(unknown)[0]!r}.",
            hint=f"It has those of parallel_map: {', '.join(NodeOptions.__annotations__)}.",
        )
    name = options.get("name") or "map_node"
    if not isinstance(items, str) and not callable(items):
        raise ConfigError(f"items must be a key of the state or a function of it, not {items!r}.")
    if failures is not None and failures == into:
        raise ConfigError(f"into and failures are the same key, {into!r}.")
    if state_schema is not None:
        key = items if isinstance(items, str) else None
        check_keys(state_schema, {"items": key, "into": into, "failures": failures}, name)
    chosen: dict[str, Any] = {"progress": "none", **options}
    return MapNode(_Plan(prompt_fn, items, into, failures, values, goto, tuple(stream), chosen))


@dataclass(frozen=True, slots=True)
class _Plan:
    """The arguments of `map_node`."""

    prompt_fn: Any
    items: str | Callable[[Any], Any]
    into: str
    failures: str | None
    values: bool
    goto: Goto | Callable[[list[NodeResult]], Goto] | None
    stream: tuple[str, ...]
    options: dict[str, Any]


class MapNode(Runnable[Any, Any]):
    """A map as a node; `map_node` makes it."""

    def __init__(self, plan: _Plan) -> None:
        self.name = plan.options.get("name")
        self._plan = plan

    def invoke(
        self, input: Any, config: RunnableConfig | None = None, **_: Any
    ) -> dict[str, Any] | Command[Any]:
        """Map in a loop of its own, and return the state's update.

        Raises:
            ConfigError: The state has no such list, or an option cannot be used.
            GraphBubbleUp: `prompt_fn` interrupted the graph.
            ScaleInferError: Nothing can succeed, or an item failed and `on_error` is `"raise"`.
        """
        return _run(lambda: self.ainvoke(input, config))

    async def ainvoke(
        self, input: Any, config: RunnableConfig | None = None, **_: Any
    ) -> dict[str, Any] | Command[Any]:
        """Map, and return the state's update.

        Raises:
            ConfigError: The state has no such list, or an option cannot be used.
            GraphBubbleUp: `prompt_fn` interrupted the graph.
            ScaleInferError: Nothing can succeed, or an item failed and `on_error` is `"raise"`.
        """
        plan, config = self._plan, ensure_config(config)
        place = Place.of(config, self.name or "map_node")
        items = items_of(input, plan.items, place.node)
        # Nothing to ask: no endpoint need be there.
        results = [] if size_of(items) == 0 else await self._mapped(items, config, place)
        if plan.options.get("ordered", True):
            results.sort(key=lambda result: result.index)
        return self._update(results)

    async def _mapped(self, items: Any, config: RunnableConfig, place: Place) -> list[NodeResult]:
        plan = self._plan
        listeners = Announcer(config, plan.stream)
        options = plan.options | {
            "name": _run_name(plan.options.get("name") or place.node, place, config),
            "concurrency": _capped(
                plan.options.get("concurrency", "auto"), config.get("max_concurrency")
            ),
            "ordered": False,
        }
        program = is_program(plan.prompt_fn)
        token = var_child_runnable_config.set(_outside(config)) if program else None
        try:
            chosen = plan.options.get("journal")
            path = _journal(chosen, place, items)
            with claimed(path, place.task if chosen is None else None) as options["journal"]:
                return await _collected(
                    stream_map(items, plan.prompt_fn, **options),
                    Tally(place.node, size_of(items), time.monotonic()),
                    listeners,
                    place.node,
                    bubbles=not program,
                )
        finally:
            if token is not None:
                var_child_runnable_config.reset(token)

    def _update(self, results: list[NodeResult]) -> dict[str, Any] | Command[Any]:
        plan = self._plan
        kept: Sequence[NodeResult] = results
        update: dict[str, Any] = {}
        if plan.failures is not None:
            kept = [result for result in results if result.ok]
            update[plan.failures] = [result for result in results if not result.ok]
        update[plan.into] = (
            [result.value if result.ok else None for result in kept] if plan.values else kept
        )
        if plan.goto is None:
            return update
        goto: Any = plan.goto(results) if callable(plan.goto) else plan.goto
        return Command(update=update, goto=goto)


async def _collected(
    mapped: Any, tally: Tally, listeners: Announcer, node: str, *, bubbles: bool
) -> list[NodeResult]:
    """Return a map's results in order of completion, and tell of each."""
    results: list[NodeResult] = []
    try:
        async with aclosing(mapped) as landed:
            async for result in landed:
                if bubbles and result.error is not None:
                    _raise_if_bubbling(result.error)
                results.append(NodeResult.of(result))
                tally.count(result)
                listeners.alive()
                if listeners.results:
                    listeners.result(result_event(node, results[-1]))
                if tally.due(now := time.monotonic()):
                    await listeners.progress(tally.event(now))
    except ScaleInferError as error:
        if bubbles:
            _raise_if_bubbling(error)
        raise
    finally:
        # Also of a map that ends early: it is the last that is heard of it.
        await listeners.progress(tally.event(time.monotonic()))
    return results


def _raise_if_bubbling(error: ScaleInferError) -> None:
    """Raise what `prompt_fn` raised if it was meant for the graph: an interrupt, a command."""
    if isinstance(error.__cause__, GraphBubbleUp):
        raise error.__cause__


def _journal(chosen: bool | str | os.PathLike[str] | None, place: Place, items: Any) -> Path | None:
    if chosen is not None and not isinstance(chosen, bool) and Path(chosen).suffix:
        return Path(chosen)
    folder = folder_of(place, chosen)
    return None if folder is None else journal_path(folder, place, items)


def _run_name(name: str, place: Place, config: RunnableConfig) -> str:
    """Return the run's name in progress and journal, with the graph's thread and tags."""
    thread = "" if place.thread is None else f", thread {place.thread}"
    tags = config.get("tags") or ()
    return f"{name}{thread}" + (f" [{', '.join(tags)}]" if tags else "")


def _capped(
    concurrency: int | Concurrency | Literal["auto"], most: int | None
) -> int | Concurrency | Literal["auto"]:
    """Return a map's concurrency within the graph's `max_concurrency`."""
    if most is None:
        return concurrency
    if concurrency == "auto":
        return Concurrency(max=most)
    if not isinstance(concurrency, Concurrency):
        return min(concurrency, most)
    if concurrency.max <= most:
        return concurrency
    start = None if concurrency.start is None else min(concurrency.start, most)
    return replace(concurrency, min=min(concurrency.min, most), start=start, max=most)


def _outside(config: RunnableConfig) -> RunnableConfig:
    """Return the config without the graph that the node is in.

    A graph that is mapped is no part of it: many run at once, each for itself.
    """
    kept: RunnableConfig = {}
    for name in ("callbacks", "tags", "metadata"):
        if name in config:
            kept[name] = config[name]
    return kept


def _run(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    from scaleinfer._interrupt import run_in_thread
    from scaleinfer._loop import run

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return run(make())
    return run_in_thread(make)
