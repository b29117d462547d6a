"""What a simulated run consists of: endpoints, lengths of prompts and answers, prices."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from scaleinfer.errors import ConfigError
from scaleinfer.testing import Batching

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaleinfer.engine import Concurrency, RateLimit, Retry

__all__ = ["EndpointModel", "Price", "Spread", "Workload", "check_spread", "drawn", "mean_of"]

Spread: TypeAlias = float | tuple[float, float]
"""A number that is always the same, or `(mean, cv)`: log-normal, with that mean and coefficient
of variation (standard deviation over mean)."""

_MOST_ERRORS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointModel:
    """An endpoint of a simulated run.

    Attributes:
        server: How it batches, and how fast it is.
        name: What it is called in the forecast; its number if empty.
        latency_s: Seconds of a call that are neither the batch's nor the client's: network,
            proxies, the server's own HTTP.
        rate_limit: Requests and tokens a minute that are kept to, as `parallel_map` is told.
        weight: Its share of the calls, relative to others of the same speed.
        load_report: True if answers carry a load report, as those of vLLM do.
        error_rate: Share of the calls that fail at once with a 500, and are tried again.

    Raises:
        ConfigError: A value that cannot be.
    """

    server: Batching = Batching()  # noqa: RUF009 - frozen
    name: str = ""
    latency_s: float = 0.0
    rate_limit: RateLimit | None = None
    weight: float = 1.0
    load_report: bool = True
    error_rate: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.latency_s < math.inf:
            raise ConfigError(f"EndpointModel.latency_s must not be negative: {self.latency_s}.")
        if not 0 <= self.error_rate <= _MOST_ERRORS:
            raise ConfigError(
                f"EndpointModel.error_rate is 0 to {_MOST_ERRORS}, not {self.error_rate}."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a run costs, in US dollars.

    Attributes:
        prompt: For a million prompt tokens.
        answer: For a million completion tokens.
        node_hour: For an hour of one worker's node.

    Raises:
        ConfigError: A price is negative.
    """

    prompt: float = 0.0
    answer: float = 0.0
    node_hour: float = 0.0

    def __post_init__(self) -> None:
        for name in ("prompt", "answer", "node_hour"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"Price.{name} must not be negative: {getattr(self, name)}.")


@dataclass(frozen=True, slots=True)
class Workload:
    """What one process is given to do.

    Attributes:
        prompt_tokens: Tokens of a prompt.
        answer_tokens: Tokens of an answer.
        concurrency: As for `parallel_map`; `None` is "auto".
        client_s: Seconds of the process's core for one call.
        retry: The rules for trying again.
        known_end: True if the number of items is known, so that the router plans for the end.
    """

    prompt_tokens: Spread
    answer_tokens: Spread
    concurrency: int | Concurrency | None
    client_s: float
    retry: Retry
    known_end: bool = True


def mean_of(spread: Spread) -> float:
    """Return the mean."""
    return spread[0] if isinstance(spread, tuple) else spread


def check_spread(name: str, spread: Spread, *, least: float) -> None:
    """Check a number that a user gave.

    Raises:
        ConfigError: It is below `least`, not finite, or its coefficient of variation is.
    """
    mean, cv = spread if isinstance(spread, tuple) else (spread, 0.0)
    if not least <= mean < math.inf:
        raise ConfigError(f"simulate: {name} must be at least {least:g}, not {mean!r}.")
    if not 0 <= cv < math.inf:
        raise ConfigError(f"simulate: the variation of {name} must not be negative: {cv!r}.")


def drawn(spread: Spread, seed: str) -> Callable[[], float]:
    """Return what draws such numbers, the same ones for the same seed."""
    mean, cv = spread if isinstance(spread, tuple) else (spread, 0.0)
    if not cv or not mean:
        return lambda: mean
    # The log-normal distribution's own parameters, from its mean and variation.
    sigma = math.sqrt(math.log1p(cv * cv))
    mu = math.log(mean) - sigma * sigma / 2
    draw = random.Random(seed).lognormvariate
    return lambda: draw(mu, sigma)
