"""What a program is, and what it calls: see `scaleinfer.program`."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from scaleinfer.prompts import Prompt

if TYPE_CHECKING:
    from array import array
    from collections.abc import Awaitable, Mapping, Sequence

    from pydantic import BaseModel

    from scaleinfer.requests import Message, Sampling
    from scaleinfer.results import Result

__all__ = ["LLM", "Graph", "Program", "current_llm", "is_graph", "is_program"]

_PARAMETERS = 2


class Graph(Protocol):
    """What is run by its `ainvoke`: a compiled LangGraph graph, a LangChain runnable."""

    def ainvoke(self, input: Any, config: Any = None) -> Awaitable[Any]:
        """Run it."""


class Asker(Protocol):
    """Makes the calls of programs."""

    sampling: Sampling
    """What the map asks for where a call says nothing."""

    async def ask(
        self, llm: LLM, prompt: Prompt, backend: Any, on_text: Callable[[str], None] | None
    ) -> Result:
        """Ask one question."""

    async def embed(
        self, llm: LLM, texts: Sequence[str], model: str | None, backend: Any
    ) -> list[array[float]]:
        """Embed texts."""


class LLM:
    """What a program calls: the map's engine, seen from one item.

    Calls may be made one after the other or at the same time (`asyncio.gather`). With a journal
    each is recorded as it ends. When the item is run again, what was answered before is given
    back from there, and only the rest is asked.

    Attributes:
        item: The item.
        index: Its position in the input, from 0.
        key: Its identity in results and journal.
        loop: The event loop that calls belong to.
        calls: What was answered so far, in that order; outside of a map the last only.
    """

    __slots__ = ("_asker", "calls", "index", "item", "key", "loop")

    def __init__(
        self, item: Any, index: int, key: str, asker: Asker, *, most_calls: int | None = None
    ) -> None:
        self.item = item
        self.index = index
        self.key = key
        self.loop = asyncio.get_running_loop()
        self.calls: deque[Result] = deque(maxlen=most_calls)
        self._asker = asker

    @property
    def sampling(self) -> Sampling:
        """The map's sampling parameters, which calls have that name none."""
        return self._asker.sampling

    async def __call__(
        self,
        prompt: str | Sequence[Message] | Prompt,
        *,
        system: str | None = None,
        schema: type[BaseModel] | None = None,
        sampling: Sampling | Mapping[str, Any] | None = None,
        model: str | None = None,
        backend: Any = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Result:
        """Ask the model, and return its answer.

        Args:
            prompt: A string, a list of chat messages, or a `Prompt`.
            system: System message; default the map's.
            schema: Pydantic model of the answer; default the map's.
            sampling: Sampling parameters; default the map's.
            model: Model to ask; default the map's.
            backend: Where to ask, if not where the map asks: as for `parallel_map`. The run
                opens it once, with limits of its own, and closes it in the end.
            on_text: Called with pieces of the answer's text as they come, from endpoints
                whose adapter can stream. A call that fails after the first piece is not made
                again.

        Returns:
            A `Result` with `ok=True`: `text`, `value`, `usage`, `tool_calls`, ...

        Raises:
            EndpointError: The call was given up.
            SchemaError: No answer fitted the schema.
            PromptError: The prompt is none.
            ConfigError: `backend` cannot be used.
        """
        given = prompt if isinstance(prompt, Prompt) else Prompt(prompt)
        asked = Prompt(
            given.content,
            system=given.system if system is None else system,
            schema=given.schema if schema is None else schema,
            sampling=given.sampling if sampling is None else sampling,
            model=given.model if model is None else model,
            completion=given.completion,
        )
        return await self._asker.ask(self, asked, backend, on_text)

    async def embed(
        self, texts: Sequence[str], *, model: str | None = None, backend: Any = None
    ) -> list[array[float]]:
        """Return a vector for each text, from `/v1/embeddings`.

        Args:
            texts: What to embed; many travel in one call.
            model: Embedding model; default the map's.
            backend: Where to ask, as for a call.

        Returns:
            Arrays of float32, in the order of `texts`.

        Raises:
            EndpointError: A call was given up.
            ConfigError: The endpoint makes no embeddings.
        """
        return await self._asker.embed(self, texts, model, backend)


Program = Callable[[Any, LLM], Coroutine[Any, Any, Any]]
"""An agent: `async def program(item, llm)`."""

current_llm: ContextVar[LLM | None] = ContextVar("current_llm", default=None)
"""The `LLM` of the item whose program runs in this context, for models that are called deep
inside it (`scaleinfer.langgraph.ChatScaleInfer`)."""


def is_program(prompt_fn: Any) -> bool:
    """Return whether `prompt_fn` is a program: `async def f(item, llm)`, or a graph.

    A graph is anything with `ainvoke`: a compiled LangGraph graph, a LangChain runnable.
    """
    if is_graph(prompt_fn):
        return True
    if not callable(prompt_fn):
        return False
    function = prompt_fn if inspect.isroutine(prompt_fn) else type(prompt_fn).__call__
    function = getattr(prompt_fn, "func", function)  # functools.partial
    if not inspect.iscoroutinefunction(inspect.unwrap(function)):
        return False
    try:
        parameters = inspect.signature(prompt_fn).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return (
        sum(one.kind in positional and one.default is inspect.Parameter.empty for one in parameters)
        == _PARAMETERS
    )


def is_graph(prompt_fn: Any) -> bool:
    """Return whether `prompt_fn` is run by its `ainvoke`."""
    return not isinstance(prompt_fn, type) and callable(getattr(prompt_fn, "ainvoke", None))
