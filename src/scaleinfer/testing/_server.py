"""`SimulatedServer`: an OpenAI-compatible server without a model."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal, Self

from scaleinfer.errors import ConfigError
from scaleinfer.testing._changes import Change
from scaleinfer.testing._ledger import Ledger
from scaleinfer.testing._service import Service
from scaleinfer.testing._settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from typing import Unpack

    from scaleinfer.testing._batch_settings import BatchApi
    from scaleinfer.testing._batching_settings import Batching
    from scaleinfer.testing._changes import What
    from scaleinfer.testing._connection import Listener
    from scaleinfer.testing._faults import Fault
    from scaleinfer.testing._process import ServerProcess
    from scaleinfer.testing._rates import RetryAfter
    from scaleinfer.testing._settings import Answer, Latency

__all__ = ["SimulatedServer"]


class SimulatedServer:
    """An OpenAI-compatible server with latency and faults by script, and a truth ledger.

    It listens on 127.0.0.1 and serves `/v1/chat/completions`, `/v1/completions`,
    `/v1/embeddings`, `/v1/models`, `/health`, `/metrics` and `/ledger`. Nothing about it depends
    on luck or on the order of arrival: the same seed, prompt and attempt give the same answer,
    latency and fault.

    ```python
    import asyncio

    from openai import AsyncOpenAI
    from scaleinfer.testing import Fault, SimulatedServer


    async def main() -> None:
        faults = [Fault.status(503, first=1)]
        async with SimulatedServer(latency=0.01, faults=faults) as server:
            client = AsyncOpenAI(base_url=server.base_url, api_key="any", max_retries=2)
            async with client:
                answer = await client.chat.completions.create(
                    model="sim-model", messages=[{"role": "user", "content": "Is it soluble?"}]
                )
            assert answer.choices[0].message.content == "echo: Is it soluble?"
            assert server.ledger.counts() == {"Is it soluble?": 1}
            assert [request.status for request in server.ledger.requests] == [503, 200]


    asyncio.run(main())
    ```

    Three ways to run it: `async with` in the running loop, `with server.in_thread()` beside
    synchronous code, `with server.in_process()` on a core of its own, where it also outlives
    clients that are killed. `python -m scaleinfer.testing` runs it as a command.

    **Tokens** are not a real tokenizer's: one for every four characters begun, of the messages'
    texts (or prompts) and of the answers.

    **Embeddings** are made of the text alone, 64 numbers or as many as `dimensions` says; the
    ledger files each text of a call by itself.

    **Prompts.** The ledger files a request under its last user message. A later turn of a
    conversation whose first turn was asked here (a repair, a tool's result) is filed under that
    first turn, as its next attempt. `prompt_of` replaces this rule.

    Args:
        latency: Seconds from a slot to the answer (to the first token of a stream):
            a number, `(mean, jitter)` for a uniform choice in mean +- jitter, or a callable
            that gets a `RequestView`. Kept to 1 ms, never early.
        faults: What goes wrong, see `Fault`.
        models: Models it has; others are answered 404. A request that names none gets the first.
        answer: Called with a `RequestView`; returns the text, a dict with the message's fields
            (`content`, `tool_calls`, and `finish_reason`), or `None` for the default: JSON if
            a schema was asked for, else `echo: ` and the prompt. Texts longer than the request's
            `max_tokens` are cut, as a real server does.
        json_schema: `True`: a request with a JSON schema gets random JSON that satisfies it.
            `False` or `"refuse"`: it is answered 400, as by a server that does not know
            `response_format`. `"ignore"`: it is answered as if it had asked for no schema.
        tokens_per_second: Pace of each answer's tokens, after `latency`; streams come token by
            token. `None`: all at once.
        answer_tokens: Length of default answers.
        slots: How many requests are served at once; the rest wait in silence and in order, as
            vLLM lets them. `None`: all.
        max_prompt_tokens: Longer prompts are answered 400 `context_length_exceeded`.
        api_key: Key that requests must bear, or be answered 401.
        dialect: Whose error objects to send: `"openai"` or `"vllm"`.
        ledger: `"full"`, or `"counts"` to keep no single requests.
        keep_bodies: Keep the requests' bodies in the ledger.
        keep_headers: Keep the requests' headers, without secrets, in the ledger.
        prompt_of: Returns the prompt a request's body is filed under.
        seed: Another seed, another choice of faults, latencies and JSON.
        port: Port to listen on; 0 takes a free one.
        batching: Serve as a server with continuous batching does, see `Batching`, instead of
            with `slots` and `tokens_per_second`. `latency` then comes on top of the batch's time.
        load_report: Answer requests with `endpoint-load-metrics-format: JSON` (or `TEXT`) with
            the load in the header `endpoint-load-metrics`, as vLLM does. `None`: if it batches.
        requests_per_second: Rate above which requests are answered 429.
        requests_per_minute: The same by the minute; a whole minute's worth may come at once.
        tokens_per_minute: The same, by tokens: prompt and `max_tokens`, corrected by what the
            answer came to.
        burst_s: Seconds' worth of these rates that may come at once, instead of one unit.
        retry_after: What a 429 says of when to come again: `"seconds"`, `"date"`, `"ms"`
            (`retry-after-ms`), or `None` for nothing.
        rate_limit_headers: Send OpenAI's `x-ratelimit-*` headers with every answer.
        max_waiting: How many may wait; the next ones are answered 503.
        changes: How all this changes with time, see `Change`.
        batches: Serve `/v1/files` and `/v1/batches` too, see `BatchApi`. `None`: 404, as of a
            `vllm serve`.

    Raises:
        ConfigError: A value that cannot be.
    """

    def __init__(
        self,
        *,
        latency: Latency = 0.0,
        faults: Sequence[Fault] = (),
        models: Sequence[str] = ("sim-model",),
        answer: Answer | None = None,
        json_schema: bool | Literal["refuse", "ignore"] = True,
        tokens_per_second: float | None = None,
        answer_tokens: int | None = None,
        slots: int | None = None,
        max_prompt_tokens: int | None = None,
        api_key: str | None = None,
        dialect: Literal["openai", "vllm"] = "openai",
        ledger: Literal["full", "counts"] = "full",
        keep_bodies: bool = False,
        keep_headers: bool = True,
        prompt_of: Callable[[dict[str, Any]], str] | None = None,
        seed: int = 0,
        port: int = 0,
        batching: Batching | None = None,
        load_report: bool | None = None,
        requests_per_second: float | None = None,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        burst_s: float | None = None,
        retry_after: RetryAfter | None = "seconds",
        rate_limit_headers: bool = False,
        max_waiting: int | None = None,
        changes: Sequence[Change] = (),
        batches: BatchApi | None = None,
    ) -> None:
        self.settings = Settings(
            latency=latency,
            faults=tuple(faults),
            models=tuple(models),
            answer=answer,
            json_schema=json_schema,
            tokens_per_second=tokens_per_second,
            answer_tokens=answer_tokens,
            slots=slots,
            max_prompt_tokens=max_prompt_tokens,
            api_key=api_key,
            dialect=dialect,
            ledger=ledger,
            keep_bodies=keep_bodies,
            keep_headers=keep_headers,
            prompt_of=prompt_of,
            seed=seed,
            port=port,
            batching=batching,
            load_report=load_report,
            requests_per_second=requests_per_second,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            burst_s=burst_s,
            retry_after=retry_after,
            rate_limit_headers=rate_limit_headers,
            max_waiting=max_waiting,
            changes=tuple(changes),
            batches=batches,
        )
        self.ledger = Ledger(ledger)
        self._listener: Listener | None = None

    @property
    def port(self) -> int:
        """The port it listens on.

        Raises:
            ConfigError: It does not run.
        """
        return self._running.port

    @property
    def control_port(self) -> int:
        """The port that `open(control=True)` opened; 0 without.

        Raises:
            ConfigError: It does not run.
        """
        return self._running.control_port

    @property
    def _running(self) -> Listener:
        if self._listener is None:
            raise ConfigError(
                "This simulated server does not run.",
                hint="Use it as `async with SimulatedServer() as server:`.",
            )
        return self._listener

    def change(self, **what: Unpack[What]) -> None:
        """Become another server from now on: `server.change(slots=100, slowdown=2)`.

        May be called from any thread; returns when it is done. For a change at a certain time
        see `changes=` and `Change`.

        Args:
            **what: See `What`.

        Raises:
            ConfigError: A value that cannot be, or the server does not run.
        """
        self._running.change_from_thread(Change(**what).what)

    @property
    def base_url(self) -> str:
        """The URL to give to a client: `http://127.0.0.1:PORT/v1`."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def open(self, *, control: bool = False) -> None:
        """Begin to serve in the running loop. The ledger goes on where it was.

        Args:
            control: Serve on a second port too (`control_port`), which no outage closes.

        Raises:
            ConfigError: httptools is not installed, the port is taken, or it runs already.
        """
        from scaleinfer.testing._connection import Listener

        if self._listener is not None:
            raise ConfigError("This simulated server runs already.")
        listener = Listener(self._service())
        await listener.open(self.settings.port)
        if control:
            await listener.open_control()
        self._listener = listener

    def _service(self) -> Service:
        epoch = time.time() - time.monotonic()
        return Service(self.settings, self.ledger, epoch=epoch)

    async def aclose(self) -> None:
        """Stop serving; connections are cut, whatever is in flight. The ledger stays."""
        if self._listener is not None:
            listener, self._listener = self._listener, None
            await listener.aclose()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def in_thread(self) -> AbstractContextManager[Self]:
        """Run it in a thread with a loop of its own: `with server.in_thread() as server:`."""
        from scaleinfer.testing._thread import run_in_thread

        return run_in_thread(self)

    def in_process(self) -> ServerProcess:
        """Run it in a process of its own: `with server.in_process() as server:`.

        The process ends with the block, or when this process ends, however that happens.
        Callables must be importable from a module (no lambdas, nothing of `__main__`), because
        they are sent there by name.
        """
        from scaleinfer.testing._process import ServerProcess

        return ServerProcess(self.settings)
