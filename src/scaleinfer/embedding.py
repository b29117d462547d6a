"""`parallel_embed`: a vector for every item, many texts to a call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from scaleinfer._opening import opened
from scaleinfer._options import Options
from scaleinfer.engine import Dispatch
from scaleinfer.errors import ConfigError, PromptError
from scaleinfer.map_result import MapResult
from scaleinfer.prompts import Question, Renderer
from scaleinfer.requests import Request, Sampling

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from scaleinfer._options import BackendSpec, ProgressMode
    from scaleinfer.engine import Budget, Concurrency, RateLimit, Retry
    from scaleinfer.policy import Policy
    from scaleinfer.prices import Price, Prices

__all__ = ["parallel_embed"]

_MOST = 2048
"""Texts that OpenAI's own server takes in one call."""


async def parallel_embed(
    items: Any,
    text_fn: str | Callable[[Any], Any] = "{item}",
    *,
    backend: BackendSpec | Sequence[BackendSpec] | None = None,
    model: str | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    batch: int = 64,
    dimensions: int | None = None,
    extra: Mapping[str, Any] | None = None,
    concurrency: int | Concurrency | Literal["auto"] = "auto",
    rate_limit: RateLimit | None = None,
    retry: Retry | None = None,
    priority: int = 0,
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
    """Embed a text for every item and return all vectors.

    Goes the way of `parallel_map`: the same limits, retries, journal and routing. Texts travel
    many to a call, and each has an outcome of its own: one that the server refuses fails alone.
    `Result.value` is an `array` of float32; `MapResult.vectors` and `MapResult.to_numpy()` are
    all of them.

    Args:
        items: Any iterable or async iterable; frames give their rows as dicts.
        text_fn: A template (`"{title}. {abstract}"`) or a function of the item, plain or async,
            that returns the text, or a dict of name to text (several vectors for one item).
            Default: the item itself.
        backend: As for `parallel_map`; it must offer `/v1/embeddings`.
        model: Embedding model to ask; default the backend's own.
        base_url: Address of an OpenAI-compatible server, `/v1` included.
        api_key: Key for it; default `OPENAI_API_KEY`.
        batch: Texts in one call at most.
        dimensions: Length of the vectors, where the model can shorten them.
        extra: Further parameters of every call, such as `input_type` or `truncate_prompt_tokens`.
        concurrency: Calls in flight at each endpoint, as for `parallel_map`.
        rate_limit: Requests and tokens a minute at each endpoint that has no limit of its own.
        retry: How failed calls are tried again, and how long one may take.
        priority: Calls of a map with a higher one overtake those of others.
        budget: Hard caps on dollars, tokens, calls or seconds, as for `parallel_map`.
        prices: Prices of your own, as for `parallel_map`.
        policy: Which endpoints may see which items, as for `parallel_map`.
        journal: Path of a journal: what is embedded is on disk, the same call again resumes.
        key: `key(item)` names an item in results and journal; default a hash of the request.
        ordered: True for results in input order, False in order of completion.
        on_error: `"return"` makes a failed item a `Result` with `ok=False`; `"raise"` raises
            the first failure.
        progress: As for `parallel_map`.
        name: Name of the run in progress and journal.

    Returns:
        A `MapResult`, as `parallel_map` returns it.

    Raises:
        ConfigError: An argument or the environment is wrong, or a backend makes no embeddings;
            nothing was sent.
        JournalError: The journal cannot be opened or written.
        ScaleInferError: With `on_error="raise"`, the first item's failure.
    """
    if not isinstance(batch, int) or not 1 <= batch <= _MOST:
        raise ConfigError(f"batch is a number of texts, 1 to {_MOST:,}, not {batch!r}.")
    if dimensions is not None and dimensions < 1:
        raise ConfigError(f"dimensions must be at least 1, not {dimensions}.")
    asked = {} if dimensions is None else {"dimensions": dimensions}
    options = Options.of(
        items=items,
        prompt_fn=text_fn,
        backend=backend,
        model=model,
        base_url=base_url,
        api_key=api_key,
        system=None,
        schema=None,
        sampling=Sampling(extra={**asked, **(extra or {})}),
        concurrency=concurrency,
        rate_limit=rate_limit,
        dispatch=Dispatch(prefix_window=0, deduplicate=False),
        retry=retry,
        fleet=None,
        priority=priority,
        budget=budget,
        prices=prices,
        policy=policy,
        journal=journal,
        key=key,
        ordered=ordered,
        on_error=on_error,
        progress=progress,
        name=name,
        packing=batch,
        renderer=TextRenderer,
    )
    for chosen in options.chosen:
        if not chosen.backend.embeds:
            raise ConfigError(
                f"the backend {chosen.backend.kind!r} ({chosen.reason}) makes no embeddings.",
                hint="Name a server that offers /v1/embeddings: base_url=, or backend='openai'.",
            )
    async with opened(options, in_order=False) as session:
        results = await session.collect()
    return MapResult(results, session.stats(), session.report_facts())


class TextRenderer(Renderer):
    """Turns items into requests for embeddings."""

    def _question(self, returned: Any) -> Question:
        if not isinstance(returned, str):
            raise PromptError(
                f"text_fn returned {type(returned).__name__}, which is no text to be embedded.",
                hint="Return a string, or a dict of name to string.",
            )
        if not returned.strip():
            raise PromptError("text_fn returned an empty string: there is nothing to embed.")
        return Question(Request(input=returned, sampling=self._sampling, model=self.model))
