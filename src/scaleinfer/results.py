"""What comes back: `Completion` from a backend, `Result` to the user, `Usage` in both."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable

    from scaleinfer.errors import ScaleInferError

__all__ = ["CUT_OFF", "Attempt", "Completion", "Load", "RateState", "Result", "Usage", "total_cost"]

CUT_OFF = "cancelled"
"""Status of a call that was ended before its answer came."""


class Usage(NamedTuple):
    """Tokens and calls that were used, as the endpoint counted them."""

    prompt_tokens: int = 0
    """Tokens of the prompt."""
    completion_tokens: int = 0
    """Tokens of the answer."""
    cached_tokens: int = 0
    """Tokens of the prompt that the server's prefix cache answered."""
    requests: int = 0
    """Calls that were answered."""
    reasoning_tokens: int = 0
    """Tokens of the answer that the model spent on thinking, where the endpoint tells."""

    @property
    def total_tokens(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt_tokens + self.completion_tokens

    def plus(self, other: Usage) -> Usage:
        """Return the sum of both."""
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.requests + other.requests,
            self.reasoning_tokens + other.reasoning_tokens,
        )

    @classmethod
    def total(cls, usages: Iterable[Usage]) -> Usage:
        """Return the sum of all of them."""
        return reduce(cls.plus, usages, cls())


def total_cost(costs: Iterable[float | None]) -> float | None:
    """Return the sum of the known costs; `None` if none is known."""
    known = [cost for cost in costs if cost is not None]
    return sum(known) if known else None


class Load(NamedTuple):
    """What an endpoint says about its own load (an ORCA load report, or its metrics)."""

    kv_cache: float | None = None
    """Share of the KV cache that is in use, 0 to 1."""
    waiting: int | None = None
    """Requests that wait in the endpoint's own queue."""
    running: int | None = None
    """Requests that it works on."""


class RateState(NamedTuple):
    """Where a client stands with an endpoint's rate limits (`x-ratelimit-*` headers)."""

    limit_requests: int | None = None
    """Requests allowed per minute."""
    remaining_requests: int | None = None
    """Requests left before the limit."""
    reset_requests_s: float | None = None
    """Seconds until the requests are all there again."""
    limit_tokens: int | None = None
    """Tokens allowed per minute."""
    remaining_tokens: int | None = None
    """Tokens left before the limit."""
    reset_tokens_s: float | None = None
    """Seconds until the tokens are all there again."""


@dataclass(slots=True)
class Completion:
    """One answer of an endpoint to one `Request`.

    Attributes:
        text: The first choice's text; empty if the model answered with tool calls only.
        finish_reason: Why the model stopped: `stop`, `length`, `tool_calls`, ...
        usage: Tokens, as the endpoint counted them.
        model: The model that answered, as the endpoint names it.
        choices: Texts of all choices if more than one was asked for.
        tool_calls: The first choice's tool calls, untouched.
        logprobs: The first choice's log probabilities, untouched.
        load: The endpoint's load report, if it sent one.
        rate: Where we stand with its rate limits, if it says.
        worker: The fleet worker that asked it; `None` without a fleet.
        attempts: The calls that a fleet's worker made for it; empty without a fleet, where the
            caller knows them.
        batch: The server's name for the batch that it was a row of; `None` for a call of its own.
        vector: The embedding, if that was asked for: an array of float32.
    """

    text: str
    finish_reason: str | None = None
    usage: Usage = field(default_factory=Usage)
    model: str | None = None
    choices: list[str] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    logprobs: dict[str, Any] | None = None
    load: Load | None = None
    rate: RateState | None = None
    worker: str | None = None
    attempts: tuple[Attempt, ...] = ()
    batch: str | None = None
    vector: array[float] | None = None


@dataclass(slots=True)
class Attempt:
    """One call that was made for an item, whatever came of it.

    Attributes:
        number: 1 for the first try; repairs count on.
        endpoint: Where it was sent.
        started: Unix time, in seconds.
        latency_s: Seconds until the answer or the error.
        status: `ok`, the error's class name, or `cancelled` of a call that was ended before its
            answer came: another was faster, or the run was stopped.
        http_status: HTTP status of an error, if there was one.
        prompt_tokens: Tokens of the prompt.
        completion_tokens: Tokens of the answer.
        error: The error's message; empty if it went well.
        cached_tokens: Tokens of the prompt that the prefix cache answered.
        reasoning_tokens: Tokens of the answer that were spent on thinking.
        model: The model that answered.
        cost_usd: What it cost; `None` if no price is known.
    """

    number: int
    endpoint: str
    started: float
    latency_s: float
    status: str
    http_status: int | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    model: str | None = None
    cost_usd: float | None = None


@dataclass(slots=True)
class Result:
    """What became of one item.

    Attributes:
        key: The item's identity (see `parallel_map`'s `key`).
        index: Position in the input, from 0.
        item: The item itself.
        ok: True if there is a usable answer.
        text: The answer's text; `None` if there is none. Several named questions: `None`.
        value: With a schema the validated object; with named questions a dict of name to
            text (or object); of an embedding the vector, an `array` of float32; otherwise the
            text.
        error: Why there is no answer; `None` if `ok`.
        usage: Tokens of all attempts that were answered.
        cost_usd: Price of that usage; `None` if no price is known.
        attempts: Calls that were made for the item in this run and, if resumed, before.
        latency_s: Seconds from the first call to the answer, waits included.
        endpoint: The endpoint that answered.
        worker: The fleet worker that asked it; `None` without a fleet.
        model: The model that answered.
        finish_reason: Why the model stopped; `length` means the answer was cut.
        resumed: True if the answer came from the journal and nothing was sent.
        choices: All texts, if `Sampling.n` asked for more than one.
        tool_calls: Tool calls of the answer, untouched.
        logprobs: Log probabilities of the answer, untouched.
        batch: The server's name for the batch that it was a row of; `None` if it was asked online.
        label: What the map's policy calls the item; `None` without a policy.
        restricted: True if the policy keeps the item from some endpoints, and so its text from
            reports, displays and logs.
    """

    key: str
    index: int
    item: Any = None
    ok: bool = False
    text: str | None = None
    value: Any = None
    error: ScaleInferError | None = None
    usage: Usage = field(default_factory=Usage)
    cost_usd: float | None = None
    attempts: int = 0
    latency_s: float = 0.0
    endpoint: str | None = None
    worker: str | None = None
    model: str | None = None
    finish_reason: str | None = None
    resumed: bool = False
    choices: list[str] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    logprobs: dict[str, Any] | None = None
    batch: str | None = None
    label: str | None = None
    restricted: bool = False
