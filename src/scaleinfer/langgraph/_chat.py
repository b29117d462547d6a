"""A LangChain chat model whose calls go through scaleinfer's engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import aclosing, contextmanager
from dataclasses import replace
from functools import partial
from operator import itemgetter
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from weakref import WeakKeyDictionary

from anyio.from_thread import BlockingPortalProvider
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, convert_to_openai_messages
from langchain_core.output_parsers import JsonOutputParser
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableLambda, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr

from scaleinfer.backends import Backend, resolve_backend
from scaleinfer.errors import ConfigError
from scaleinfer.langgraph._chat_messages import chat_result, last_chunk
from scaleinfer.langgraph._own_engine import OwnEngine
from scaleinfer.program import LLM, current_llm
from scaleinfer.prompts import Prompt

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        Iterator,
        Sequence,
    )
    from concurrent.futures import Future

    from langchain_core.callbacks import (
        AsyncCallbackManagerForLLMRun,
        CallbackManagerForLLMRun,
    )
    from langchain_core.language_models import LanguageModelInput
    from langchain_core.messages import BaseMessage
    from langchain_core.runnables import Runnable
    from langchain_core.tools import BaseTool

    from scaleinfer.requests import Sampling
    from scaleinfer.results import Result

__all__ = ["ChatScaleInfer"]

_PARAMETERS = ("temperature", "max_tokens", "top_p", "seed", "logprobs", "top_logprobs")
_ENGINE = ("concurrency", "rate_limit", "retry", "priority", "fleet", "journal")
_TOOL_CHOICES = ("auto", "none", "required")

T = TypeVar("T")
Ask = Callable[[], Coroutine[Any, Any, T]]

_portals = BlockingPortalProvider()


class ChatScaleInfer(BaseChatModel):
    """A LangChain chat model over scaleinfer's engine.

    Inside a map (`parallel_map(items, graph)`, or a program) its calls go through that map's
    engine, with its endpoints, limits, retries, budget and journal. Outside of one, or with an
    endpoint of its own, it has an engine of its own, which all calls of the model share.

    ```python
    from scaleinfer.langgraph import ChatScaleInfer

    async with ChatScaleInfer(base_url="http://127.0.0.1:8000/v1", temperature=0) as model:
        answer = await model.ainvoke("Is caffeine soluble in water?")
    ```

    Tool calling, structured output, streaming, usage and callbacks work as in LangChain's own
    models. `AIMessage.response_metadata` holds `model_name`, `finish_reason`, `endpoint`,
    `attempts`, `cost_usd` and `resumed`.

    Attributes:
        backend: As for `parallel_map`; default the map's own, outside of a map its default.
        model: Model to ask; default the backend's.
        base_url: Address of an OpenAI-compatible server, `/v1` included.
        api_key: Key for it; default `OPENAI_API_KEY`.
        temperature: 0 is greedy decoding.
        max_tokens: Cap on an answer, in tokens.
        top_p: Nucleus sampling.
        seed: Asked of the server; not all servers honour it.
        stop: Strings that end an answer.
        logprobs: Ask for log probabilities.
        top_logprobs: How many alternatives to each token.
        extra: Any further field of a request's body.
        concurrency: Calls in flight at each endpoint, outside of a map.
        rate_limit: `RateLimit` outside of a map.
        retry: `Retry` outside of a map.
        priority: Of the calls outside of a map.
        fleet: `Fleet` that asks, outside of a map.
        journal: Path of a journal for calls outside of a map: repeated in the same order, they
            are answered from it.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, populate_by_name=True, extra="forbid")

    backend: Any = None
    model: str | None = Field(default=None, alias="model_name")
    base_url: str | None = None
    api_key: SecretStr | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    extra: dict[str, Any] = Field(default_factory=dict)
    concurrency: Any = "auto"
    rate_limit: Any = None
    retry: Any = None
    priority: int = 0
    fleet: Any = None
    journal: Any = None

    _own: Backend | None = PrivateAttr(default=None)
    _lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)
    _in_threads: int = PrivateAttr(default=0)
    _engines: WeakKeyDictionary[asyncio.AbstractEventLoop, OwnEngine] = PrivateAttr(
        default_factory=WeakKeyDictionary
    )

    @property
    def _llm_type(self) -> str:
        return "scaleinfer"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self.model, **self._parameters()}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        known = super()._get_ls_params(stop=stop, **kwargs)
        known["ls_provider"] = "scaleinfer"
        if self.model is not None:
            known["ls_model_name"] = self.model
        return known

    async def aclose(self) -> None:
        """Close what was opened on the running loop; a loop that ends does so by itself."""
        engine = self._engines.pop(asyncio.get_running_loop(), None)
        if engine is not None:
            await engine.aclose()

    async def __aenter__(self) -> ChatScaleInfer:
        """Return the model itself."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close what was opened on the running loop."""
        await self.aclose()

    # What LangChain calls.

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return chat_result(await self._ask(messages, stop, kwargs))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with self._elsewhere() as start:
            return start(partial(self._agenerate, messages, stop, **kwargs)).result()

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[ChatGenerationChunk, None]:
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        told = 0
        asked = asyncio.create_task(self._ask(messages, stop, kwargs, pieces.put_nowait))
        asked.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (text := await pieces.get()) is not None:
                told += len(text)
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=text))
                if run_manager is not None:
                    await run_manager.on_llm_new_token(text, chunk=chunk)
                yield chunk
            result = await asked
        finally:
            asked.cancel()
        # Where nothing could be streamed, the answer comes as one piece.
        yield last_chunk(result, "" if told else result.text or "")

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        pieces: SimpleQueue[ChatGenerationChunk | None] = SimpleQueue()

        async def consume() -> None:
            try:
                async with aclosing(self._astream(messages, stop, **kwargs)) as chunks:
                    async for chunk in chunks:
                        pieces.put(chunk)
            finally:
                pieces.put(None)

        with self._elsewhere() as start:
            asked = start(consume)
            try:
                while (chunk := pieces.get()) is not None:
                    if run_manager is not None and chunk.text:
                        run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk
                asked.result()
            finally:
                asked.cancel()

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return the model with tools that it may call.

        Args:
            tools: Functions, pydantic models, LangChain tools, or OpenAI's tool dicts.
            tool_choice: `"auto"`, `"none"`, `"any"` (or `"required"`, True), or a tool's name.
            kwargs: Further fields of the request's body, such as `parallel_tool_calls`.
        """
        if tool_choice:
            kwargs["tool_choice"] = _tool_choice(tool_choice)
        return super().bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: Literal["json_schema", "function_calling"] = "json_schema",
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """Return a runnable that gives answers of a shape.

        With a pydantic model and `"json_schema"`, a bad answer is shown to the model again, as
        in a map with `schema=`.

        Args:
            schema: A pydantic model, a `TypedDict`, or a JSON schema.
            include_raw: Give a dict of `raw`, `parsed` and `parsing_error` instead.
            method: `"json_schema"` asks the server for the shape; `"function_calling"` makes
                it a tool.
            kwargs: `strict`, with `"function_calling"`.
        """
        if method == "function_calling":
            return super().with_structured_output(schema, include_raw=include_raw, **kwargs)
        if method != "json_schema":
            raise ConfigError(f"method is 'json_schema' or 'function_calling', not {method!r}.")
        parser: Runnable[Any, Any]
        if isinstance(schema, type) and issubclass(schema, BaseModel):
            bound = self.bind(answer_schema=schema)
            parser = RunnableLambda(_parsed)
        else:
            json_schema = convert_to_json_schema(schema)
            name = str(json_schema.get("title", "answer"))
            shape = {"type": "json_schema", "json_schema": {"name": name, "schema": json_schema}}
            bound = self.bind(response_format=shape)
            parser = JsonOutputParser()
        if not include_raw:
            return bound | parser
        parsed = RunnablePassthrough.assign(
            parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
        )
        not_parsed = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=bound) | parsed.with_fallbacks(
            [not_parsed], exception_key="parsing_error"
        )

    # Where calls go.

    async def _ask(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        fields: dict[str, Any],
        on_text: Callable[[str], None] | None = None,
    ) -> Result:
        schema = fields.pop("answer_schema", None)
        fields.pop("ls_structured_output_format", None)
        llm = current_llm.get()
        elsewhere = None
        if llm is None or self._named():
            elsewhere = self._endpoint()
        if llm is None:
            llm, elsewhere = await self._own_llm(), None
        asked = convert_to_openai_messages(messages)
        assert isinstance(asked, list)
        sampling = self._sampling(llm.sampling, stop, fields)
        prompt = Prompt(asked, schema=schema, sampling=sampling, model=self.model)
        return await llm(prompt, backend=elsewhere, on_text=on_text)

    def _sampling(
        self, given: Sampling, stop: list[str] | None, fields: dict[str, Any]
    ) -> Sampling:
        ours = self._parameters()
        if stop is not None:
            ours["stop"] = stop
        ours |= {name: fields.pop(name) for name in _PARAMETERS if fields.get(name) is not None}
        extra = {**given.extra, **self.extra, **fields}
        return replace(given, **ours, extra=extra)

    def _parameters(self) -> dict[str, Any]:
        known = {name: getattr(self, name) for name in (*_PARAMETERS, "stop")}
        return {name: value for name, value in known.items() if value is not None}

    def _named(self) -> bool:
        return self.backend is not None or self.base_url is not None or self.fleet is not None

    def _endpoint(self) -> Backend:
        if self._own is None:
            if self.fleet is not None:
                self._own = self.fleet.backend(priority=self.priority)
            else:
                key = None if self.api_key is None else self.api_key.get_secret_value()
                self._own = resolve_backend(
                    self.backend, base_url=self.base_url, model=self.model, api_key=key
                ).backend
        return self._own

    async def _own_llm(self) -> LLM:
        loop = asyncio.get_running_loop()
        engine = self._engines.get(loop)
        if engine is None:
            options = {name: getattr(self, name) for name in _ENGINE if name != "fleet"}
            engine = self._engines[loop] = OwnEngine(options | {"backend": self._endpoint()})
        return await engine.llm()

    @contextmanager
    def _elsewhere(self) -> Iterator[Callable[[Ask[T]], Future[T]]]:
        """Give what starts a coroutine on a loop of another thread: the map's, or one of ours."""
        llm = current_llm.get()
        if llm is None:
            with _portals as portal:
                with self._lock:
                    self._in_threads += 1
                try:
                    yield portal.start_task_soon
                finally:
                    with self._lock:
                        self._in_threads -= 1
                        if not self._in_threads:
                            portal.call(self.aclose)
            return
        loop = llm.loop
        if asyncio._get_running_loop() is loop:
            raise ConfigError(
                "A synchronous call in a map's own thread would stop the map.",
                hint="Await ainvoke(), or make the node an ordinary function: it then runs in a "
                "thread of its own.",
            )
        yield lambda ask: asyncio.run_coroutine_threadsafe(ask(), loop)


def _tool_choice(choice: str | bool | dict[str, Any]) -> str | dict[str, Any]:
    if isinstance(choice, dict):
        return choice
    if choice is True or choice == "any":
        return "required"
    if choice in _TOOL_CHOICES:
        return str(choice)
    return {"type": "function", "function": {"name": choice}}


def _parsed(message: AIMessage) -> Any:
    return message.additional_kwargs["parsed"]
