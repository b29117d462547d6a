"""What a run's calls used and cost, by endpoint and model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaleinfer.engine._budget import NOTHING, Spend
from scaleinfer.prices import PICO
from scaleinfer.results import CUT_OFF, Usage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scaleinfer.backends._base import Backend
    from scaleinfer.errors import ScaleInferError
    from scaleinfer.prices import Pricer
    from scaleinfer.results import Attempt, Completion

__all__ = ["Bill", "Cost", "may_be_billed"]

_FIRST_ERROR = 400
_MAY_HAVE_BEEN_GENERATED = frozenset({"Transient", CUT_OFF})


@dataclass(frozen=True, slots=True)
class Cost:
    """What calls of one model at one endpoint came to.

    Attributes:
        endpoint: Where they were sent.
        model: The model, as it names itself, else as it was asked for.
        calls: Calls sent; failed and hedged ones included.
        failed: Those that brought no answer.
        usage: Tokens that the endpoint says were used.
        cost_usd: What these cost; `None` if no price is known.
        unsure_tokens: Tokens that calls which were cut off (timed out, cancelled, the connection
            broken) may have used besides, at the most.
        unsure_usd: What these may have cost; `None` if no price is known.
    """

    endpoint: str
    model: str | None
    calls: int
    failed: int
    usage: Usage
    cost_usd: float | None
    unsure_tokens: int
    unsure_usd: float | None


class _Line:
    __slots__ = (
        "cached", "calls", "completion", "failed", "pico", "priced", "prompt", "reasoning",
        "requests", "unsure_pico", "unsure_tokens",
    )  # fmt: skip

    def __init__(self) -> None:
        self.calls = self.failed = 0
        self.prompt = self.completion = self.cached = self.reasoning = self.requests = 0
        self.pico = self.unsure_pico = self.unsure_tokens = 0
        self.priced = False

    def add(self, usage: Usage, cost: int | None) -> None:
        prompt, completion, cached, requests, reasoning = usage
        self.prompt += prompt
        self.completion += completion
        self.cached += cached
        self.requests += requests
        self.reasoning += reasoning
        if cost is not None:
            self.pico += cost
            self.priced = True


class Bill:
    """Adds up what a run's calls used.

    Args:
        pricer: Knows prices.
    """

    def __init__(self, pricer: Pricer) -> None:
        self.pricer = pricer
        self._lines: dict[tuple[str, str | None], _Line] = {}

    def answered(
        self,
        backend: Backend,
        asked: str | None,
        completion: Completion,
        *,
        calls: int = 1,
        share: float = 1.0,
    ) -> tuple[Spend, float | None]:
        """Book an answered call; return what it used, and its price in dollars.

        Args:
            backend: Where it was answered.
            asked: The model that was asked for.
            completion: The answer.
            calls: Calls that it counts for.
            share: Of the usual price that was asked: a batch's discount.
        """
        usage, model = completion.usage, completion.model
        cost = self.pricer.cost(backend, asked, model, usage)
        if cost is not None and share != 1.0:
            cost = round(cost * share)
        line = self._line(backend.endpoint, model or asked)
        line.calls += calls
        line.add(usage, cost)
        used = Spend(usage.prompt_tokens + usage.completion_tokens, calls, cost or 0)
        if completion.attempts:
            used = used.plus(self._replayed(completion.attempts, backend, asked))
        return used, None if cost is None else cost / PICO

    def failed(
        self,
        backend: Backend,
        asked: str | None,
        error: ScaleInferError,
        most: Spend,
    ) -> Spend:
        """Book a call that brought no answer; return what it used, or may have used.

        Args:
            backend: Where it was sent.
            asked: The model that was asked for.
            error: What came of it.
            most: What it may have used.
        """
        attempts = getattr(error, "attempts", ())
        if attempts:
            return self._replayed(attempts, backend, asked, most)
        usage: Usage | None = getattr(error, "usage", None)
        if usage is not None:
            return self._booked(backend, asked, usage)
        if not getattr(error, "reached", True):
            return NOTHING
        return self.cut_off(backend, asked, most if may_be_billed(error) else NOTHING)

    def _booked(self, backend: Backend, asked: str | None, usage: Usage) -> Spend:
        """Book a call that used so much and brought no answer."""
        cost = self.pricer.cost(backend, asked, None, usage)
        line = self._line(backend.endpoint, asked)
        line.calls += 1
        line.failed += 1
        line.add(usage, cost)
        return Spend(usage.total_tokens, 1, cost or 0)

    def cut_off(self, backend: Backend, asked: str | None, most: Spend) -> Spend:
        """Book a call of which nobody knows what it used: at the most."""
        line = self._line(backend.endpoint, asked)
        line.calls += 1
        line.failed += 1
        line.unsure_tokens += most.tokens
        line.unsure_pico += most.pico
        return Spend(most.tokens, 1, most.pico)

    def lines(self) -> tuple[Cost, ...]:
        """Return what calls came to, for each endpoint and model."""
        return tuple(
            Cost(
                endpoint,
                model,
                line.calls,
                line.failed,
                Usage(line.prompt, line.completion, line.cached, line.requests, line.reasoning),
                line.pico / PICO if line.priced else None,
                line.unsure_tokens,
                line.unsure_pico / PICO if line.priced or line.unsure_pico else None,
            )
            for (endpoint, model), line in self._lines.items()
        )

    @property
    def uses_table(self) -> bool:
        """True if a price came from the public list."""
        return self.pricer.uses_table

    @property
    def cost_usd(self) -> float | None:
        """What calls cost for certain; `None` if no price is known."""
        priced = [line.pico for line in self._lines.values() if line.priced]
        return sum(priced) / PICO if priced else None

    @property
    def spent(self) -> Spend:
        """Everything that was used, or may have been."""
        total = NOTHING
        for line in self._lines.values():
            tokens = line.prompt + line.completion + line.unsure_tokens
            total = total.plus(Spend(tokens, line.calls, line.pico + line.unsure_pico))
        return total

    def _line(self, endpoint: str, model: str | None) -> _Line:
        line = self._lines.get((endpoint, model))
        if line is None:
            line = self._lines[endpoint, model] = _Line()
        return line

    def _replayed(
        self,
        attempts: Iterable[Attempt],
        backend: Backend,
        asked: str | None,
        most: Spend = NOTHING,
    ) -> Spend:
        """Book the calls of a fleet's worker that failed."""
        used = NOTHING
        for attempt in attempts:
            if attempt.status == "ok":
                continue
            if attempt.prompt_tokens or attempt.completion_tokens:
                usage = Usage(attempt.prompt_tokens, attempt.completion_tokens, 0, 1)
                used = used.plus(self._booked(backend, asked, usage))
                continue
            # A status is an answer, and one that says no costs nothing.
            unsure = attempt.http_status is None and attempt.status in _MAY_HAVE_BEEN_GENERATED
            used = used.plus(self.cut_off(backend, asked, most if unsure else NOTHING))
        return used


def may_be_billed(error: ScaleInferError) -> bool:
    """Return whether a call that failed like this may have been generated and charged.

    An answer with an error status is not: providers charge for what they answered. A call that
    timed out, or whose connection broke, or whose answer made no sense, may have been.
    """
    status = getattr(error, "status", None)
    return status is None or status < _FIRST_ERROR
