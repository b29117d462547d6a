"""One call to one endpoint: making it, and what it tells the endpoint's state machines."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from scaleinfer.engine._limiter import Outcome
from scaleinfer.errors import (
    AuthError,
    EndpointError,
    JournalError,
    Overloaded,
    Permanent,
    RateLimited,
    ScaleInferError,
    Starting,
    Transient,
)
from scaleinfer.results import CUT_OFF, Attempt, Usage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from scaleinfer.backends._base import Backend
    from scaleinfer.engine._budget import Spend
    from scaleinfer.engine._endpoint import Endpoint
    from scaleinfer.engine._purse import Purse
    from scaleinfer.engine._spender import Ticket
    from scaleinfer.engine._wants import Want
    from scaleinfer.policy import Audience
    from scaleinfer.requests import Request
    from scaleinfer.results import Completion

    Settle = Callable[[Completion], Awaitable[bool | None]]

__all__ = ["Call", "as_endpoint_error", "outcome_of", "settle_pack", "settle_place"]


@dataclass(slots=True, eq=False)
class Call:
    """A call on its way.

    Attributes:
        request: What is asked.
        number: Which call of its item this is, from 1.
        attempted: Told of the call as it ends.
        settle: Given the answer and awaited before the call's place is given back. What it raises
            goes to the caller.
        affinity: Group of requests that share a prompt prefix.
        account: What its item may use.
        audience: Who may see it, if not everybody.
        endpoint: Number of the endpoint in the pool.
        began: The monotonic clock as it was sent.
        started: Unix time then.
        superseded: True if a second copy answered it; what became of it has been told.
        ticket: What is reserved for it.
        used: What it has used, once that is known.
        cost_usd: What it cost; `None` if no price is known.
        error: Why it brought no answer.
    """

    request: Request
    number: int
    attempted: Callable[[Attempt], None]
    settle: Settle | None = None
    affinity: int | None = None
    account: Purse | None = None
    audience: Audience | None = None
    endpoint: int = -1
    began: float = 0.0
    started: float = 0.0
    superseded: bool = False
    ticket: Ticket | None = None
    used: Spend | None = None
    cost_usd: float | None = None
    error: ScaleInferError | None = None

    def again(self) -> Call:
        """Return the next call for the same."""
        return Call(
            self.request,
            self.number + 1,
            self.attempted,
            self.settle,
            self.affinity,
            self.account,
            self.audience,
        )

    def answered(self, endpoint: str, completion: Completion, took: float) -> None:
        """Tell of the answer, which took so many seconds."""
        usage = completion.usage
        if completion.attempts:
            self._replay(completion.attempts, completion)
            return
        self.attempted(
            Attempt(
                self.number,
                endpoint,
                self.started,
                took,
                "ok",
                None,
                usage.prompt_tokens,
                usage.completion_tokens,
                "",
                usage.cached_tokens,
                usage.reasoning_tokens,
                completion.model,
                self.cost_usd,
            )
        )

    def failed(self, endpoint: str, error: EndpointError) -> None:
        """Tell of the failure."""
        if error.attempts:
            self._replay(error.attempts)
            return
        took, kind, usage = time.monotonic() - self.began, type(error).__name__, error.usage
        self.attempted(
            Attempt(
                self.number,
                endpoint,
                self.started,
                took,
                kind,
                error.status,
                0 if usage is None else usage.prompt_tokens,
                0 if usage is None else usage.completion_tokens,
                error.message,
                cost_usd=self.cost_usd,
            )
        )

    def cut_off(self, endpoint: str, number: int) -> None:
        """Tell of a call that was ended before its answer came; the endpoint has seen it.

        Args:
            endpoint: Its name.
            number: Which call of its item it was as it was sent.
        """
        took = time.monotonic() - self.began
        with suppress(JournalError):  # it is on its way out, with whatever ended it
            self.attempted(Attempt(number, endpoint, self.started, took, CUT_OFF))

    def _replay(self, attempts: Sequence[Attempt], completion: Completion | None = None) -> None:
        """Tell of the calls that a fleet's worker made."""
        for attempt in attempts:
            told = replace(attempt, number=self.number)
            if completion is not None and attempt.status == "ok":
                told.cached_tokens = completion.usage.cached_tokens
                told.reasoning_tokens = completion.usage.reasoning_tokens
                told.model, told.cost_usd = completion.model, self.cost_usd
            self.attempted(told)
            self.number += 1
        self.number -= 1


def as_endpoint_error(backend: Backend, error: Exception) -> EndpointError:
    """Return what a backend raised, as an `EndpointError`."""
    if isinstance(error, EndpointError):
        return error
    # A defect in an adapter costs the item, never a run of millions.
    defect = Permanent(
        f"the {backend.kind} backend raised {type(error).__name__}: {error}",
        endpoint=backend.endpoint,
    )
    defect.__cause__ = error
    return defect


def outcome_of(error: EndpointError) -> Outcome:
    """Return what an error says about the endpoint's load."""
    if isinstance(error, RateLimited | Overloaded):
        return Outcome.REJECTED
    if error.timed_out:
        return Outcome.TIMEOUT
    return Outcome.FAILED


def settle_place(  # noqa: PLR0917 - all of a call's end
    endpoint: Endpoint,
    call: Call,
    want: Want,
    ended: float,
    outcome: Outcome,
    completion: Completion | None,
    error: EndpointError | None,
) -> None:
    """Tell an endpoint's state machines how a call ended, and give its place back."""
    if completion is not None:
        usage = completion.usage
        endpoint.ended(
            ended,
            outcome,
            began=call.began,
            reserved_tokens=want.tokens,
            # An embedding has no tokens of its own; what was read is the work.
            tokens=usage.completion_tokens if completion.vector is None else usage.prompt_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
            load=completion.load,
            rate=completion.rate,
        )
    else:
        endpoint.ended(
            ended,
            outcome,
            began=call.began,
            reserved_tokens=want.tokens,
            rate=None if error is None else error.rate,
            retry_after=None if error is None else error.retry_after,
            broken=isinstance(error, Transient | Starting | AuthError)
            or (error is not None and error.fatal),
        )


def settle_pack(  # noqa: PLR0917 - all of a call's end
    endpoint: Endpoint,
    call: Call,
    want: Want,
    outcome: Outcome,
    answers: Sequence[Completion],
    error: EndpointError | None,
) -> None:
    """Tell an endpoint's state machines how a call for several requests ended."""
    whole = None
    if answers:
        whole = replace(answers[0], usage=Usage.total(answer.usage for answer in answers))
    settle_place(endpoint, call, want, time.monotonic(), outcome, whole, error)
