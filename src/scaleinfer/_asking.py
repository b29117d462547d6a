"""One question to its answer: ask, validate, show the model what is wrong, ask again."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scaleinfer._answers import Answer
from scaleinfer.engine import ITEM_CAP
from scaleinfer.errors import (
    BudgetExceeded,
    ConfigError,
    EndpointError,
    ScaleInferError,
    SchemaError,
    WorkerLost,
)
from scaleinfer.policy import WITHHELD
from scaleinfer.results import CUT_OFF

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaleinfer.engine import Engine, Purse
    from scaleinfer.journal import Claim, Journal
    from scaleinfer.policy import Audience, Policy
    from scaleinfer.prompts import Question
    from scaleinfer.results import Attempt, Completion
    from scaleinfer.structured import AnswerSchema

__all__ = ["Keeper", "ask", "rejected"]


async def ask(
    engine: Engine,
    question: Question,
    *,
    repairs: int,
    keeper: Keeper | None = None,
    affinity: int | None = None,
    begun: Answer | None = None,
    wrong: SchemaError | None = None,
    repaired: int = 0,
    account: Purse | None = None,
    audience: Audience | None = None,
    watch: Callable[[Attempt], None] | None = None,
) -> Answer:
    """Ask a question until the answer is valid or given up; errors are in the answer.

    Args:
        engine: Makes the calls.
        question: What to ask.
        repairs: How often a bad answer is shown to the model again.
        keeper: Records calls and answer. A valid answer is recorded while its call still holds
            its place at the endpoint, so that no more calls are unrecorded than may be in
            flight.
        affinity: Group of questions that share a prompt prefix.
        begun: What was asked of it before, to go on from.
        wrong: What is wrong with the last answer there; the model is shown it at once.
        repaired: How often the model was shown one before.
        account: What its item may use.
        audience: Who may see it; `None` for everybody.
        watch: Told of every call as it ends.
    """
    asking = _Asking(question.schema, keeper, begun, watch)
    answer = asking.answer
    if audience is not None:
        answer.label, answer.restricted = audience.label, audience.restricted
    try:
        try:
            if wrong is not None:
                raise wrong
            await engine.call(
                question.request,
                attempted=asking.count,
                number=answer.attempts,
                settle=asking.settle,
                affinity=affinity,
                account=account,
                audience=audience,
            )
        except SchemaError as error:
            left = range(repaired, repairs)
            await _repair(engine, question, asking, left, error, account=account, audience=audience)
    except BudgetExceeded as error:
        answer.error = error
        if keeper is not None and error.cap == ITEM_CAP:
            await keeper.keep(answer)
        elif keeper is not None:
            # The run has left it, rather than failed at it.
            keeper.release()
    except (ConfigError, EndpointError, SchemaError, WorkerLost) as error:
        answer.error = _at_rest(error)
        if keeper is not None:
            await keeper.keep(answer)
    return answer


def _at_rest(error: ScaleInferError) -> ScaleInferError:
    """Return an error without the frames it came through.

    It is kept as a value. A hundred thousand of them with their frames would have the garbage
    collector hold the event loop for tenths of a second.
    """
    error.__traceback__ = None
    cause = error.__cause__ or error.__context__
    if isinstance(cause, OSError):  # of others, a defect of an adapter, one wants to see where
        cause.__traceback__ = None
    return error


class Keeper:
    """Records one question's calls and its answer.

    Args:
        journal: Where.
        claim: The question's place there.
        recording: Tasks that must not be cancelled now; ours is added while it records.
        policy: Says what is not recorded.
    """

    __slots__ = ("_claim", "_journal", "_policy", "_recording")

    def __init__(
        self,
        journal: Journal,
        claim: Claim,
        recording: set[asyncio.Task[Any] | None],
        policy: Policy | None = None,
    ) -> None:
        self._journal = journal
        self._claim = claim
        self._recording = recording
        self._policy = policy

    def attempted(self, attempt: Attempt) -> None:
        """Record a call that has ended."""
        if self._policy is not None and not self._policy.keeps_prompts and attempt.error:
            attempt = replace(attempt, error=WITHHELD)
        self._journal.attempt(self._claim, attempt)

    async def keep(self, answer: Answer) -> None:
        """Record the answer, and return when it is on disk.

        Raises:
            JournalError: It could not be written.
        """
        task = asyncio.current_task()
        self._recording.add(task)
        try:
            payload = answer.to_payload(self._policy)
            await self._journal.recorded(self._claim, payload, ok=answer.error is None)
        finally:
            self._recording.discard(task)

    def release(self) -> None:
        """Give up: the question was not answered."""
        self._journal.release(self._claim)


class _Asking:
    """A question while it is being asked."""

    __slots__ = ("_began", "_keeper", "_schema", "_watch", "answer")

    def __init__(
        self,
        schema: AnswerSchema | None,
        keeper: Keeper | None,
        begun: Answer | None = None,
        watch: Callable[[Attempt], None] | None = None,
    ) -> None:
        self.answer = begun or Answer()
        self._schema = schema
        self._keeper = keeper
        self._watch = watch
        self._began = time.monotonic() - self.answer.latency_s

    def count(self, attempt: Attempt) -> None:
        """Take note of a call that has ended."""
        if attempt.status == CUT_OFF:
            # It brought nothing; only the journal is to know who saw the question.
            if self._keeper is not None:
                self._keeper.attempted(attempt)
            return
        answer, now = self.answer, time.monotonic()
        if not answer.attempts:
            self._began = now - attempt.latency_s
        answer.attempts += 1
        answer.latency_s = now - self._began
        answer.endpoint = attempt.endpoint
        if attempt.cost_usd is not None:
            answer.cost_usd = (answer.cost_usd or 0.0) + attempt.cost_usd
        if self._watch is not None:
            self._watch(attempt)
        if self._keeper is not None:
            self._keeper.attempted(attempt)

    async def settle(self, completion: Completion) -> None:
        """Take an answer over and have it recorded.

        Raises:
            SchemaError: It does not fit the schema.
        """
        answer, schema = self.answer, self._schema
        answer.take(completion)
        if completion.vector is not None:
            answer.text, answer.value = None, completion.vector
        elif schema is None or completion.tool_calls:
            answer.value = completion.text
        else:
            answer.value = schema.parse(completion.text)
        if self._keeper is not None:
            await self._keeper.keep(answer)


async def _repair(
    engine: Engine,
    question: Question,
    asking: _Asking,
    repairs: range,
    error: SchemaError,
    *,
    account: Purse | None = None,
    audience: Audience | None = None,
) -> None:
    """Show the model what is wrong with its answer until it is valid.

    Raises:
        SchemaError: It never was.
        EndpointError: A call was given up.
    """
    schema, answer = question.schema, asking.answer
    assert schema is not None
    for _ in repairs:
        cut = answer.finish_reason == "length"
        messages = schema.repair(question.request.messages or [], error, cut=cut)
        request = replace(question.request, messages=messages)
        try:
            await engine.call(
                request,
                attempted=asking.count,
                number=answer.attempts,
                settle=asking.settle,
                account=account,
                audience=audience,
            )
        except SchemaError as again:
            error = again
        else:
            return
    refused = rejected(error, schema.name, repairs.stop, cut=answer.finish_reason == "length")
    engine.authority.rejected(refused)
    raise refused from None


def rejected(error: SchemaError, name: str, repairs: int, *, cut: bool) -> SchemaError:
    """Return the error of a question whose last answer does not fit either.

    Args:
        error: What is wrong with it.
        name: Name of the schema.
        repairs: How often the model was shown a bad one.
        cut: True if the last one was cut off at `max_tokens`.
    """
    after = f" after {repairs} repair{'s' * (repairs != 1)}" if repairs else ""
    hint = (
        "Raise max_tokens: the answer was cut off."
        if cut
        else (
            "Simplify the schema, say in the prompt what each field means, or use a larger model."
        )
    )
    return SchemaError(
        f"the answer does not fit {name}{after}: {error.message}", text=error.text, hint=hint
    )
