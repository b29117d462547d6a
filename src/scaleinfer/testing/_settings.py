"""How a simulated server behaves: every choice, checked once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from scaleinfer.errors import ConfigError
from scaleinfer.testing._view import RequestView

if TYPE_CHECKING:
    from scaleinfer.testing._batch_settings import BatchApi
    from scaleinfer.testing._batching_settings import Batching
    from scaleinfer.testing._changes import Change
    from scaleinfer.testing._faults import Fault
    from scaleinfer.testing._rates import RetryAfter

__all__ = ["Answer", "Latency", "Settings"]

Latency: TypeAlias = float | tuple[float, float] | Callable[[RequestView], float]
"""Seconds; mean and jitter (uniform in mean +- jitter); or seconds for a request."""

_POSITIVE = (
    "tokens_per_second", "answer_tokens", "slots", "max_prompt_tokens", "requests_per_second",
    "requests_per_minute", "tokens_per_minute", "burst_s",
)  # fmt: skip

Answer: TypeAlias = Callable[[RequestView], str | dict[str, Any] | None]
"""A text, the fields of a chat message (`content`, `tool_calls`, and `finish_reason`), or `None`
for the answer the server would give by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `SimulatedServer` was told; its docstring explains each field.

    Raises:
        ConfigError: A value that cannot be.
    """

    latency: Latency = 0.0
    faults: tuple[Fault, ...] = ()
    models: tuple[str, ...] = ("sim-model",)
    answer: Answer | None = None
    json_schema: bool | Literal["refuse", "ignore"] = True
    tokens_per_second: float | None = None
    answer_tokens: int | None = None
    slots: int | None = None
    max_prompt_tokens: int | None = None
    api_key: str | None = field(default=None, repr=False)
    dialect: Literal["openai", "vllm"] = "openai"
    ledger: Literal["full", "counts"] = "full"
    keep_bodies: bool = False
    keep_headers: bool = True
    prompt_of: Callable[[dict[str, Any]], str] | None = None
    seed: int = 0
    port: int = 0
    batching: Batching | None = None
    load_report: bool | None = None
    requests_per_second: float | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    burst_s: float | None = None
    retry_after: RetryAfter | None = "seconds"
    rate_limit_headers: bool = False
    max_waiting: int | None = None
    changes: tuple[Change, ...] = ()
    batches: BatchApi | None = None

    def __post_init__(self) -> None:
        if isinstance(self.latency, tuple):
            mean, jitter = self.latency
            self._require(0 <= jitter <= mean, "latency=(mean, jitter) needs 0 <= jitter <= mean")
        elif not callable(self.latency):
            self._require(self.latency >= 0, "latency must not be negative")
        self._require(len(self.models) > 0, "models must name at least one model")
        for name in _POSITIVE:
            value = getattr(self, name)
            self._require(value is None or value > 0, f"{name} must be greater than 0")
        self._require(
            self.max_waiting is None or self.max_waiting >= 0, "max_waiting must not be negative"
        )
        if self.batching is not None:
            self._require(self.slots is None, "with batching, slots belong into Batching(slots=)")
            self._require(
                self.tokens_per_second is None, "with batching, Batching(step_s=) sets the pace"
            )
        self._one_of("retry_after", ("seconds", "date", "ms", None))
        self._one_of("json_schema", (True, False, "refuse", "ignore"))
        self._one_of("dialect", ("openai", "vllm"))
        self._one_of("ledger", ("full", "counts"))
        if self.ledger == "counts" and self.keep_bodies:
            raise ConfigError('keep_bodies=True needs ledger="full": counts hold no requests.')

    def _require(self, holds: bool, rule: str) -> None:
        if not holds:
            raise ConfigError(f"SimulatedServer: {rule}.")

    def _one_of(self, name: str, allowed: tuple[Any, ...]) -> None:
        if getattr(self, name) not in allowed:
            raise ConfigError(
                f"SimulatedServer: {name}={getattr(self, name)!r} is unknown.",
                hint=f"Known: {', '.join(map(repr, allowed))}.",
            )
