"""The front door: one call that fans items out over an endpoint and the answers back in."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from scaleinfer._loop import run
from scaleinfer._opening import opened
from scaleinfer._options import Options
from scaleinfer.map_result import MapResult, RunStats

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
    from datetime import timedelta

    from pydantic import BaseModel

    from scaleinfer._batch_mode import Mode
    from scaleinfer._options import BackendSpec, ProgressMode, PromptFn
    from scaleinfer.engine import Budget, Concurrency, Dispatch, RateLimit, Retry
    from scaleinfer.fleet import Fleet
    from scaleinfer.policy import Policy
    from scaleinfer.prices import Price, Prices
    from scaleinfer.requests import Sampling
    from scaleinfer.results import Result

__all__ = ["MapOptions", "MapResult", "RunStats", "map_sync", "parallel_map", "stream_map"]


class MapOptions(TypedDict, total=False):
    """The keyword arguments of `parallel_map`, for functions that pass them on."""

    backend: BackendSpec | Sequence[BackendSpec] | None
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
    mode: Mode
    deadline: float | timedelta | None
    budget: Budget | None
    prices: Prices | Mapping[str, Price] | None
    policy: Policy | None
    journal: str | os.PathLike[str] | None
    key: Callable[[Any], Any] | None
    ordered: bool
    on_error: Literal["return", "raise"]
    progress: ProgressMode
    name: str | None


async def parallel_map(
    items: Any,
    prompt_fn: PromptFn,
    *,
    backend: BackendSpec | Sequence[BackendSpec] | None = None,
    model: str | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    system: str | None = None,
    schema: type[BaseModel] | None = None,
    sampling: Sampling | Mapping[str, Any] | None = None,
    concurrency: int | Concurrency | Literal["auto"] = "auto",
    rate_limit: RateLimit | None = None,
    retry: Retry | None = None,
    priority: int = 0,
    dispatch: Dispatch | None = None,
    fleet: Fleet | None = None,
    mode: Mode = "online",
    deadline: float | timedelta | None = None,
    budget: Budget | None = None,
    prices: Prices | Mapping[str, Price] | None = None,
    policy: Policy | None = None,
    journal: str | os.PathLike[str] | None = None,
    key: Callable[[Any], Any] | None = None,
    ordered: bool = True,
    on_error: Literal["return", "raise"] = "return",
    progress: ProgressMode = "auto",
    name: str | None = None,
) -> MapResult:
    """Ask a model about every item and return all results.

    Args:
        items: Any iterable or async iterable; frames give their rows as dicts. Pulled as
            needed, never more than a bounded window ahead.
        prompt_fn: A template (`"Classify: {title}"`) or a function of the item, plain or
            async, that returns a string, a list of chat messages, a `Prompt`, or a dict of
            name to any of these (several questions about one item).
        backend: A `Backend`, or `"local"`, `"openai"`, a URL, a configured `AsyncOpenAI`
            client; a set of endpoints (`"hosts:FILE"`, `"registry:URL"`, `"env:"`), ALCF's
            gateway (`"first:"`); or a list of these, over which the calls are spread. Default:
            `base_url` if given, else the variable `SCALEINFER_BACKEND`, else the embedded model.
        model: Model to ask; default the backend's own.
        base_url: Address of an OpenAI-compatible server, `/v1` included.
        api_key: Key for it; default `OPENAI_API_KEY`.
        system: System message of every prompt that brings none.
        schema: Pydantic model of the answer: asked of the server, validated, a bad answer
            shown to the model again at most `retry.repairs` times. `Result.value` is then an
            instance of it.
        sampling: `Sampling` or a dict of the same: temperature, max_tokens, seed, ...
        concurrency: Calls in flight at each endpoint. `"auto"` finds the number at which the
            endpoint is fastest; a `Concurrency` bounds the search, an int fixes the number.
        rate_limit: Requests and tokens a minute at each endpoint that has no limit of its own.
        retry: How failed calls are tried again, and how long one may take.
        priority: Calls of a map with a higher one overtake those of others that use the same
            backend object and wait for a place.
        dispatch: In which order calls go out: prefix affinity, hedging, deduplication.
        fleet: Workers on other nodes that ask instead of this process; see
            `scaleinfer.fleet.Fleet`. What they ask, and how, was said when it was made.
        mode: `"online"` asks each question in a call of its own; `"batch"` in batches, which cost
            less and take up to a day; `"auto"` takes what fits deadline and price, and says why.
            A `scaleinfer.batch.Batch` is `"batch"` with settings of your own.
        deadline: Seconds (or a `timedelta`) within which the answers are needed. After three
            quarters of it unfinished batches are cancelled and what they lack is asked online.
            Calls of their own are not ended by it.
        budget: Hard caps on dollars, tokens, calls, seconds or node-hours, reserved before a call
            is sent. What they do not reach is left with `BudgetExceeded`.
        prices: Prices of your own, for models that no public list has: a dict of model to
            `scaleinfer.prices.Price`, or `Prices`.
        policy: Which endpoints may see which items, and what is kept out of the journal and of
            telemetry; see `scaleinfer.policy.Policy`.
        journal: Path of a journal. Everything lands there as it happens; the same call again
            resumes.
        key: `key(item)` names an item in results and journal; default a hash of the request.
        ordered: True for results in input order, False in order of completion.
        on_error: `"return"` makes a failed item a `Result` with `ok=False`; `"raise"` raises
            the first failure.
        progress: `"auto"`, `"bar"`, `"notebook"`, `"log"`, or `"none"` (also True and False).
        name: Name of the run in progress and journal.

    Returns:
        A `MapResult`: a sequence of `Result`. After Ctrl-C, or when nothing can succeed
        (wrong key, no server), it holds what had landed; the other items have `ok=False` and
        `MapResult.stopped` says why.

    Raises:
        ConfigError: An argument or the environment is wrong; nothing was sent.
        JournalError: The journal cannot be opened or written.
        ScaleInferError: With `on_error="raise"`, the first item's failure.
    """
    options = Options.of(**locals())
    async with opened(options, in_order=False) as session:
        results = await session.collect()
    return MapResult(results, session.stats(), session.report_facts())


async def stream_map(
    items: Any,
    prompt_fn: PromptFn,
    *,
    backend: BackendSpec | Sequence[BackendSpec] | None = None,
    model: str | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    system: str | None = None,
    schema: type[BaseModel] | None = None,
    sampling: Sampling | Mapping[str, Any] | None = None,
    concurrency: int | Concurrency | Literal["auto"] = "auto",
    rate_limit: RateLimit | None = None,
    retry: Retry | None = None,
    priority: int = 0,
    dispatch: Dispatch | None = None,
    fleet: Fleet | None = None,
    mode: Mode = "online",
    deadline: float | timedelta | None = None,
    budget: Budget | None = None,
    prices: Prices | Mapping[str, Price] | None = None,
    policy: Policy | None = None,
    journal: str | os.PathLike[str] | None = None,
    key: Callable[[Any], Any] | None = None,
    ordered: bool = False,
    on_error: Literal["return", "raise"] = "return",
    progress: ProgressMode = "auto",
    name: str | None = None,
) -> AsyncGenerator[Result, None]:
    """Ask a model about every item and yield each result as it is ready.

    Takes what `parallel_map` takes. Memory does not grow with the number of items, which may
    be endless: when the consumer is slow, no more items are pulled. With `ordered=True`
    results come in input order, within a bounded window.

    Yields:
        A `Result` per item.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; what had landed was yielded before.
        ScaleInferError: Nothing can succeed (wrong key, no server), after yielding what had
            landed; or what `parallel_map` raises.
    """
    options = Options.of(**locals())
    async with (
        opened(options, in_order=ordered) as session,
        aclosing(session.stream()) as results,
    ):
        async for result in results:
            yield result


def map_sync(
    items: Any,
    prompt_fn: PromptFn,
    *,
    backend: BackendSpec | Sequence[BackendSpec] | None = None,
    model: str | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    system: str | None = None,
    schema: type[BaseModel] | None = None,
    sampling: Sampling | Mapping[str, Any] | None = None,
    concurrency: int | Concurrency | Literal["auto"] = "auto",
    rate_limit: RateLimit | None = None,
    retry: Retry | None = None,
    priority: int = 0,
    dispatch: Dispatch | None = None,
    fleet: Fleet | None = None,
    mode: Mode = "online",
    deadline: float | timedelta | None = None,
    budget: Budget | None = None,
    prices: Prices | Mapping[str, Price] | None = None,
    policy: Policy | None = None,
    journal: str | os.PathLike[str] | None = None,
    key: Callable[[Any], Any] | None = None,
    ordered: bool = True,
    on_error: Literal["return", "raise"] = "return",
    progress: ProgressMode = "auto",
    name: str | None = None,
) -> MapResult:
    """Do what `parallel_map` does, without `await`.

    Works with no event loop, and inside a running one too (a notebook cell, say), where the
    map runs on a loop of its own in another thread while the caller waits.

    Takes, returns and raises what `parallel_map` does.
    """
    arguments = locals()
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return run(parallel_map(**arguments))
    from scaleinfer._interrupt import run_in_thread

    return run_in_thread(lambda: parallel_map(**arguments))
