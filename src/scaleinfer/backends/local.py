"""The embedded model as a backend: no server, no key, no network."""

from __future__ import annotations

import asyncio
import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from scaleinfer.backends._base import Backend, EndpointStatus
from scaleinfer.backends._local_engine import Job
from scaleinfer.backends._local_files import MODEL, model_path
from scaleinfer.backends._local_gguf import read_header
from scaleinfer.backends._local_sampling import Plan, flatten_messages, plan_request, refused
from scaleinfer.backends._local_shared import shared_engine
from scaleinfer.backends._local_text import cut_at_stop
from scaleinfer.errors import ConfigError, ScaleInferError, Transient
from scaleinfer.requests import Request, Sampling
from scaleinfer.results import Completion, Usage

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from scaleinfer.backends._local_engine import Engine, Generated

__all__ = ["DEFAULT_MAX_TOKENS", "LocalBackend"]

DEFAULT_MAX_TOKENS = 256
"""Cap on an answer whose request sets no `max_tokens`; twice that if it has a schema."""


@dataclass(slots=True, eq=False)
class Started:
    """A request in the engine.

    Attributes:
        plan: How it is generated.
        prompt_tokens: Tokens of the prompt.
        engine: Where it runs.
        jobs: One for each choice.
    """

    plan: Plan
    prompt_tokens: int
    engine: Engine
    jobs: list[Job]

    def cancel(self) -> None:
        """End the request in the engine."""
        for job in self.jobs:
            job.future.cancel()


class LocalBackend(Backend):
    """Answers from a small model on this machine's CPU.

    The model is loaded at the first call (about 4 s) and shared by all backends of the
    process that name the same file. Calls in flight are batched; each may have its own
    sampling parameters and schema.

    Defaults where a request says nothing: greedy decoding (temperature 0) and at most
    `max_tokens` tokens. A cap that goes beyond the context is lowered to what is left of it.
    `n` answers are `n` requests to the engine; with a `seed`, choice i uses `seed + i`.

    Args:
        path: GGUF file; default `SCALEINFER_LOCAL_MODEL`, else the installed model.
        exact: Compute in 32-bit floats, so that a greedy answer does not depend on which other
            calls were in flight. Slower, and takes more memory.
        threads: CPU threads; default all cores.
        max_tokens: Cap on answers whose request sets none.

    Raises:
        ConfigError: `SCALEINFER_LOCAL_MODEL` names a file that is not there.
    """

    kind: ClassVar[str] = "local"
    adaptive = False
    endpoint = "local"
    json_schema = True
    concurrency = 32

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        exact: bool = False,
        threads: int | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
    ) -> None:
        if max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, not {max_tokens}.")
        if threads is not None and threads < 1:
            raise ConfigError(f"threads must be at least 1, not {threads}.")
        self._path = Path(path).expanduser() if path is not None else model_path()
        self._exact = exact
        self._threads = threads
        self._max_tokens = max_tokens
        self._in_flight: set[Started] = set()
        self._loading = 0
        self.model = self._path.stem if self._path is not None else MODEL

    async def open(self) -> None:
        """Check that the runtime and the model are there; the first call loads them.

        Raises:
            ConfigError: Either is missing; the message names the command that installs it.
        """
        self._checked_path()

    def _checked_path(self) -> Path:
        if importlib.util.find_spec("openvino_genai") is None:
            raise ConfigError(
                "The embedded model's runtime is not installed.",
                hint="Run: pip install 'scaleinfer[local]'",
            )
        if self._path is None:
            raise ConfigError(
                "The embedded model is not installed.", hint="Run: scaleinfer model install"
            )
        read_header(self._path)
        return self._path

    async def aclose(self) -> None:
        """End this backend's calls; the engine stays for the process's other maps."""
        for started in list(self._in_flight):
            started.cancel()

    async def complete(self, request: Request, *, timeout: float | None = None) -> Completion:
        """Answer one request; see `Backend.complete`.

        The time the model takes to load does not count towards `timeout`.

        Raises:
            ConfigError: The runtime or the model is missing or cannot be loaded.
            Permanent: The prompt is longer than the context, the schema or a parameter is not
                supported, or the request names another model.
            Transient: The engine failed, or `timeout` passed.
        """
        engine = await self.engine()
        try:
            async with asyncio.timeout(timeout):
                return await self._finish(self.start(request, engine))
        except TimeoutError:
            raise Transient(f"No answer within {timeout:g} s.", endpoint="local") from None

    @property
    def starting(self) -> bool:
        """True while the model is being loaded."""
        return self._loading > 0

    async def engine(self) -> Engine:
        """Return the engine, loaded."""
        path = self._checked_path()
        engine = shared_engine(path, exact=self._exact, threads=self._threads)
        self._loading += 1
        try:
            # The load goes on for the others when one caller is cancelled.
            await asyncio.shield(asyncio.wrap_future(engine.ready))
        finally:
            self._loading -= 1
        return engine

    def start(
        self,
        request: Request,
        engine: Engine,
        on_tokens: Callable[[int, list[int]], None] | None = None,
    ) -> Started:
        """Hand a request to the engine.

        Args:
            request: What to ask.
            engine: Loaded engine.
            on_tokens: Called in the engine's thread with a choice's number and new tokens.
        """
        if request.model not in (None, self.model):
            error = refused(f"The embedded model is {self.model}, not {request.model}.")
            error.status, error.fatal = 404, True
            raise error
        cap = self._max_tokens * (1 if request.schema is None else 2)
        plan = plan_request(request, max_tokens=cap)
        prompt = _encode(request, engine)
        room = engine.context_length - len(prompt)
        options = plan.options | {"max_new_tokens": min(plan.max_tokens, room)}
        jobs = [
            Job(
                prompt,
                options | {"rng_seed": plan.seed + choice},
                plan.grammar,
                None if on_tokens is None else _for_choice(on_tokens, choice),
            )
            for choice in range(plan.n)
        ]
        for job in jobs:
            engine.submit(job)
        return Started(plan, len(prompt), engine, jobs)

    async def _finish(self, started: Started) -> Completion:
        generated = await self.results(started)
        return completion_of(started, generated, self.model)

    async def results(self, started: Started) -> list[Generated]:
        """Wait for all choices; cancelling this ends them in the engine."""
        self._in_flight.add(started)
        try:
            return [await _result(job.future) for job in started.jobs]
        finally:
            self._in_flight.discard(started)
            started.cancel()

    async def check(self) -> EndpointStatus:
        """Load the model and have it write one token."""
        began = time.monotonic()
        request = Request(
            messages=[{"role": "user", "content": "Hi"}], sampling=Sampling(max_tokens=1)
        )
        try:
            await self.complete(request)
        except ScaleInferError as error:
            return EndpointStatus(self.endpoint, False, str(error))
        detail = f"{self._path} answers; no network is used"
        spent = time.monotonic() - began
        return EndpointStatus(self.endpoint, True, detail, (str(self.model),), spent)


def _for_choice(
    on_tokens: Callable[[int, list[int]], None], choice: int
) -> Callable[[list[int]], None]:
    return lambda token_ids: on_tokens(choice, token_ids)


def _encode(request: Request, engine: Engine) -> list[int]:
    if request.messages is None:
        text, special = request.prompt or "", True
    else:
        messages = flatten_messages(request.messages)
        try:
            text, special = engine.render(messages), False
        except Exception as error:
            reason = " ".join(str(error).split())[-200:]
            raise refused(f"The model's chat template failed: {reason}") from None
    prompt = engine.encode(text, special=special)
    if not prompt:
        raise refused("The prompt is empty.")
    # The tokenizer cuts what is longer than the context, without a word.
    if len(prompt) >= engine.context_length:
        raise refused(
            f"The prompt has about {engine.count(text)} tokens; prompt and answer together may "
            f"have {engine.context_length}."
        )
    return prompt


async def _result(future: Future[Generated]) -> Generated:
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise Transient("The embedded model was closed.", endpoint="local") from None


def completion_of(started: Started, generated: list[Generated], model: str | None) -> Completion:
    """Return the engine's results as a completion; usage counts the prompt once."""
    stop = started.plan.stop
    texts = [cut_at_stop(started.engine.decode(one.token_ids), stop) for one in generated]
    used = Usage(started.prompt_tokens, sum(len(one.token_ids) for one in generated), 0, 1)
    return Completion(
        text=texts[0],
        finish_reason=generated[0].finish_reason,
        usage=used,
        model=model,
        choices=texts if started.plan.n > 1 else None,
        logprobs=logprobs_of(started, generated[0]) if started.plan.logprobs else None,
    )


def logprobs_of(started: Started, generated: Generated) -> dict[str, Any]:
    """Return log probabilities in the form OpenAI's chat completions have."""
    content = []
    for token, logprob in zip(generated.token_ids, generated.logprobs, strict=False):
        text = started.engine.decode([token])
        entry = {"token": text, "logprob": logprob, "bytes": list(text.encode())}
        content.append(entry | {"top_logprobs": []})
    return {"content": content}
