"""Runs the programs of a map: each item's in the lane that took it."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, defaultdict
from contextlib import AsyncExitStack
from copy import copy
from time import monotonic
from typing import TYPE_CHECKING, Any

from scaleinfer._answers import single_result
from scaleinfer._program import LLM, current_llm, is_graph
from scaleinfer.errors import ConfigError, PromptError, ScaleInferError
from scaleinfer.prompts import Question, Renderer
from scaleinfer.requests import Request, Sampling
from scaleinfer.results import Result, Usage, total_cost

if TYPE_CHECKING:
    from array import array
    from collections.abc import Awaitable, Callable, Sequence

    from scaleinfer._answers import Answer
    from scaleinfer.engine import Engine
    from scaleinfer.prompts import Prompt

    AskQuestion = Callable[[Question, bytes, str, LLM, Engine | None], Awaitable[Answer]]
    """Question, identity, name, who asks, where if not at the map's own endpoints."""
    OpenEngine = Callable[[Any, bool, AsyncExitStack], Awaitable[Engine]]
    """Backend (`None` for the map's own), whether for embeddings, what closes it."""

__all__ = ["ProgramRenderer", "Programs", "no_batches"]

_MOST_SHOWN = 500
_TRY_AGAIN_S = 30.0


class ProgramRenderer(Renderer):
    """A renderer for programs: an item has no questions before its program asks them."""

    def __init__(self, prompt_fn: Any, **options: Any) -> None:
        super().__init__(_nothing, **options)
        self.program = prompt_fn

    def start(self, item: Any) -> dict[str, Question]:
        """Return no questions."""
        return {}


def _nothing(_: Any) -> str:
    return ""


class Programs:
    """The programs of one map.

    Args:
        renderer: Holds the program, and turns its prompts into requests.
        open_engine: Makes an engine for an endpoint that the map did not name.
        price: Fills in what a call cost.

    Attributes:
        sampling: The map's sampling parameters.
        engines: Those of further endpoints.
        ask_question: Asks, with the journal's help; set by the run.
        recorded: True if there is a journal; set by the run.
    """

    ask_question: AskQuestion
    recorded = False

    def __init__(
        self,
        renderer: ProgramRenderer,
        *,
        sampling: Sampling,
        open_engine: OpenEngine,
        price: Callable[[Result], None],
    ) -> None:
        self.sampling = sampling
        self.engines: dict[tuple[Any, bool], tuple[Any, Engine]] = {}
        self._renderer = renderer
        self._graph = is_graph(renderer.program)
        self._open_engine = open_engine
        self._price = price
        self._opening: defaultdict[tuple[Any, bool], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._failed: dict[tuple[Any, bool], tuple[ScaleInferError | None, float]] = {}
        self._stack = AsyncExitStack()
        self._asked: dict[LLM, Counter[bytes]] = {}

    def outside(self, key: str) -> LLM:
        """Return what makes calls that belong to no item."""
        llm = LLM(None, 0, key, self, most_calls=1)
        self._asked[llm] = Counter()
        return llm

    async def result(self, item: Any, index: int, key: str) -> Result:
        """Run the program for one item; what it raises is in the result."""
        llm = LLM(item, index, key, self)
        self._asked[llm] = Counter()
        began = monotonic()
        token = current_llm.set(llm)
        value: Any = None
        error: ScaleInferError | None = None
        try:
            value = await self._run(item, llm)
        except ScaleInferError as raised:
            error = raised
            error.index, error.key = index, key
        except Exception as raised:
            error = _failed(raised, graph=self._graph)
            error.index, error.key = index, key
        finally:
            current_llm.reset(token)
            del self._asked[llm]
        return _joined(llm, value, error, monotonic() - began)

    async def _run(self, item: Any, llm: LLM) -> Any:
        program = self._renderer.program
        if not self._graph:
            return await program(item, llm)
        from scaleinfer._graphs import run_graph

        return await run_graph(program, item, llm.key)

    async def ask(
        self, llm: LLM, prompt: Prompt, backend: Any, on_text: Callable[[str], None] | None
    ) -> Result:
        """Ask one question of an item's program.

        Raises:
            ScaleInferError: There is no usable answer.
        """
        engine, model = await self._engine(backend, embeds=False)
        question = self._renderer.question(prompt, model=model)
        if question.schema is None:
            question.request.on_text = on_text
        return await self._asked_by(llm, question, engine)

    async def embed(
        self, llm: LLM, texts: Sequence[str], model: str | None, backend: Any
    ) -> list[array[float]]:
        """Embed texts for an item's program.

        Raises:
            ScaleInferError: A text has no vector.
        """
        engine, own = await self._engine(backend, embeds=True)
        model = model or own or self._renderer.model
        questions = [Question(Request(input=text, model=model)) for text in texts]
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_outcome(self._asked_by(llm, question, engine)))
                for question in questions
            ]
        vectors = []
        for task in tasks:
            outcome = task.result()
            if isinstance(outcome, ScaleInferError):
                raise outcome
            vectors.append(outcome.value)
        return vectors

    async def _asked_by(self, llm: LLM, question: Question, engine: Engine | None) -> Result:
        asked = self._asked.get(llm)
        if asked is None:
            raise PromptError("llm was called after its program had ended.")
        identity, name = b"", ""
        if self.recorded:
            digest = question.request.digest()
            occurrence = asked[digest]
            asked[digest] += 1
            identity = hashlib.blake2b(
                b"%b\0%b%d" % (llm.key.encode(), digest, occurrence), digest_size=16
            ).digest()
            name = str(asked.total())
        answer = await self.ask_question(question, identity, name, llm, engine)
        result = single_result(llm.index, llm.key, llm.item, answer)
        self._price(result)
        llm.calls.append(result)
        if result.error is not None:
            raise result.error
        return result

    async def _engine(self, backend: Any, *, embeds: bool) -> tuple[Engine | None, str | None]:
        """Return where to ask, `None` for the map's own engine, and the model there."""
        if backend is None and not embeds:
            return None, None
        key = (backend if isinstance(backend, str) else id(backend), embeds)
        if key not in self.engines:
            async with self._opening[key]:
                await self._opened(key, backend, embeds=embeds)
        engine = self.engines[key][1]
        return engine, None if backend is None else engine.adapters()[0].model

    async def _opened(self, key: tuple[Any, bool], backend: Any, *, embeds: bool) -> None:
        """Open an endpoint; one that has just failed is not tried again by every item."""
        if key in self.engines:
            return
        error, when = self._failed.get(key, (None, 0.0))
        if error is not None and monotonic() < when + _TRY_AGAIN_S:
            raise copy(error)
        try:
            engine = await self._open_engine(backend, embeds, self._stack)
        except ScaleInferError as failure:
            self._failed[key] = failure, monotonic()
            raise copy(failure) from failure
        self.engines[key] = backend, engine

    def tick(self) -> None:
        """Let the other engines see that time goes by."""
        for _, engine in self.engines.values():
            engine.tick()

    async def aclose(self) -> None:
        """Close what was opened for programs."""
        await self._stack.aclose()


async def _outcome(asked: Awaitable[Result]) -> Result | ScaleInferError:
    try:
        return await asked
    except ScaleInferError as error:
        return error


def _joined(llm: LLM, value: Any, error: ScaleInferError | None, seconds: float) -> Result:
    calls = llm.calls
    last = calls[-1] if calls else None
    return Result(
        key=llm.key,
        index=llm.index,
        item=llm.item,
        ok=error is None,
        text=value if isinstance(value, str) else None,
        value=value,
        error=error,
        usage=Usage.total(call.usage for call in calls),
        cost_usd=total_cost(call.cost_usd for call in calls),
        attempts=sum(call.attempts for call in calls),
        latency_s=seconds,
        endpoint=None if last is None else last.endpoint,
        worker=None if last is None else last.worker,
        model=None if last is None else last.model,
        finish_reason=None if last is None else last.finish_reason,
        resumed=bool(calls) and all(call.resumed for call in calls),
    )


def _failed(error: Exception, *, graph: bool) -> PromptError:
    what = "graph" if graph else "program"
    text = str(error)
    if len(text) > _MOST_SHOWN:
        text = f"{text[:_MOST_SHOWN]}..."
    failed = PromptError(
        f"the {what} raised {type(error).__name__}: {text}",
        hint=f"The other items go on; mend the {what} or the item and call again.",
    )
    failed.__cause__ = error
    return failed


def no_batches() -> ConfigError:
    """Return the error of a program in batch mode."""
    return ConfigError(
        "A program's calls depend on each other's answers; batches take up to a day each.",
        hint="Use mode='online'.",
    )
