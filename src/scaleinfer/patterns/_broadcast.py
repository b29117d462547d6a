"""Broadcasts: one prompt to every endpoint or model, the answers side by side."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from scaleinfer.backends import Backend, EndpointStatus, resolve_backends
from scaleinfer.errors import ConfigError, Permanent
from scaleinfer.mapping import MapOptions, parallel_map
from scaleinfer.patterns._result import Outcome, PatternResult

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from scaleinfer.patterns._tables import Table
    from scaleinfer.program import LLM
    from scaleinfer.prompts import Prompt
    from scaleinfer.requests import Message, Request
    from scaleinfer.results import Completion, Result

__all__ = ["BroadcastOutcome", "BroadcastResult", "broadcast"]

_MAY_JOIN_S = 1.0


@dataclass(frozen=True, slots=True)
class BroadcastOutcome(Outcome):
    """What one endpoint answered; `item` is its name.

    Attributes:
        model: The model that answered.
        latency_s: Seconds from the call to the answer; `None` without one.
    """

    model: str | None = None
    latency_s: float | None = None

    columns: ClassVar[tuple[str, ...]] = ("model",)

    @property
    def name(self) -> str:
        """Endpoint and model, as far as they were named."""
        return str(self.item)

    @property
    def text(self) -> str | None:
        """The answer's text."""
        return self.result.text


class BroadcastResult(PatternResult[BroadcastOutcome]):
    """The answers, in the order in which the endpoints were named."""

    def tables(self) -> list[Table]:
        """Return the answers side by side."""
        from scaleinfer.patterns._tables import Table

        names = ("endpoint", "model", "seconds", "tokens", "USD", "answer")
        rows = [
            (
                one.name, one.model, one.latency_s, one.usage.completion_tokens, one.cost_usd,
                str(one.value) if one.ok else f"{type(one.error).__name__}: {one.error}",
            )
            for one in self
        ]  # fmt: skip
        return [Table(f"{len(self.ok)} of {len(self)} answered", names, rows)]


async def broadcast(
    prompt: str | Sequence[Message] | Prompt,
    backends: Sequence[Any] | None = None,
    *,
    models: Sequence[str] | None = None,
    **options: Unpack[MapOptions],
) -> BroadcastResult:
    """Ask every endpoint, every model, or every model at every endpoint the same.

    Args:
        prompt: A string (braces mean nothing in it), a list of messages, or a `Prompt`.
        backends: Whom to ask, each as for `parallel_map`; of a set of endpoints every member.
            Default: where the map asks, which needs `models`.
        models: Models to ask of each. Default each one's own.
        **options: As for `parallel_map`. With `backends`, `fleet` and `base_url` cannot be given;
            `model` and `api_key` are for those that are strings. `key` has no meaning here.

    Returns:
        A `BroadcastResult` with a row for each. One that is down is a failed row.

    Raises:
        ConfigError: An argument is wrong; nothing was sent.
        JournalError: As for `parallel_map`.
    """
    if not backends and not models:
        raise ConfigError(
            "broadcast needs somebody to ask.", hint="Pass backends=[...] or models=[...]."
        )
    async with AsyncExitStack() as stack:
        rows: dict[str, tuple[Any, str | None]] = {}
        for name, backend in await _endpoints(backends, options, stack):
            asked: Sequence[str | None] = models or [None]
            for model in asked:
                label = " ".join(part for part in (name, model) if part)
                if label in rows:
                    raise ConfigError(f"{label} was named twice.")
                rows[label] = backend, model
        if not backends and options.get("model") is None and options.get("fleet") is None:
            options["model"] = models[0] if models else None
        if backends:
            options["backend"], options["model"], options["api_key"] = _Nowhere(), None, None
        options["key"] = str
        asking = _Asking(prompt, rows)
        results = await parallel_map(list(rows), asking.run, **options)
    return BroadcastResult([asking.outcome(result) for result in results], results.stats)


class _Asking:
    """The program of a broadcast, and when its rows were answered."""

    def __init__(self, prompt: Any, rows: dict[str, tuple[Any, str | None]]) -> None:
        self._prompt = prompt
        self._rows = rows
        self._answers: dict[int, Result] = {}

    async def run(self, name: str, llm: LLM) -> Any:
        """Return what one endpoint answers."""
        backend, model = self._rows[name]
        answer = await llm(self._prompt, backend=backend, model=model)
        self._answers[llm.index] = answer
        return answer.value

    def outcome(self, result: Result) -> BroadcastOutcome:
        """Return a row."""
        answer = self._answers.get(result.index)
        if answer is None:
            return BroadcastOutcome(result)
        return BroadcastOutcome(result, result.value, answer.model, answer.latency_s)


async def _endpoints(
    given: Sequence[Any] | None, options: MapOptions, stack: AsyncExitStack
) -> list[tuple[str, Any]]:
    """Return whom to ask, each with a name; sets are opened and give their members."""
    if not given:
        return [("", None)]
    for name in ("fleet", "backend", "base_url"):
        if options.get(name) is not None:
            raise ConfigError(f"{name}= and backends= both say whom to ask; pass one of them.")
    found: list[tuple[str, Any]] = []
    for one in given:
        model, key = options.get("model"), options.get("api_key")
        if not isinstance(one, str):
            model = key = None
        for resolved in resolve_backends(one, model=model, api_key=key):
            backend = resolved.backend
            members = [backend]
            if backend.many:
                await stack.enter_async_context(backend)
                members = await _members(backend)
            found += [(member.endpoint, member) for member in members]
    return _distinct(found)


def _distinct(found: list[tuple[str, Backend]]) -> list[tuple[str, Any]]:
    """Add the model to the name where one endpoint serves several adapters."""
    names = [name for name, _ in found]
    return [
        (f"{name} {backend.model}" if names.count(name) > 1 and backend.model else name, backend)
        for name, backend in found
    ]


async def _members(endpoints: Backend) -> list[Backend]:
    """Return a set's members; those that are asked for their model first get a moment."""
    follower = _Joining()
    there = list(endpoints.follow(follower))
    if not getattr(endpoints, "model_known", True):
        await asyncio.sleep(_MAY_JOIN_S)
    return [*there, *follower.found]


class _Joining:
    """Takes note of the members of a set that join."""

    def __init__(self) -> None:
        self.found: list[Backend] = []

    def joined(self, member: Backend) -> None:
        """Take note of it."""
        self.found.append(member)

    def left(self, member: Backend) -> None:
        """Let it be a row that fails."""

    def mended(self, member: Backend) -> None:
        """Do nothing."""

    def troubled(self) -> Collection[Backend]:
        """Return none."""
        return ()

    def busy(self, member: Backend) -> bool:
        """Return False."""
        del member
        return False

    def calls(self) -> int:
        """Return 0."""
        return 0


class _Nowhere(Backend):
    """The map's own endpoint, where every call names another: it is never asked."""

    kind: ClassVar[str] = "broadcast"

    def __init__(self) -> None:
        self.endpoint = "broadcast"

    async def complete(  # the timeout is the interface's own
        self,
        request: Request,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> Completion:
        """Refuse."""
        del request, timeout
        raise Permanent("a broadcast asks only those it names", endpoint=self.endpoint)

    async def check(self) -> EndpointStatus:
        """Say that there is nothing to check."""
        return EndpointStatus(self.endpoint, ok=True, detail="asks only those it names")
