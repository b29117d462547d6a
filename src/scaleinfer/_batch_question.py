"""A question on its way through batches: what came of it so far, and what it asks next."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from scaleinfer._answers import Answer
from scaleinfer._asking import rejected
from scaleinfer.errors import AuthError, EndpointError, Permanent, SchemaError
from scaleinfer.results import Attempt

if TYPE_CHECKING:
    from scaleinfer._intake import Work
    from scaleinfer.engine import Ticket
    from scaleinfer.journal import Claim
    from scaleinfer.prompts import Question
    from scaleinfer.requests import Request
    from scaleinfer.results import Completion

__all__ = ["Asked", "Item"]


@dataclass(slots=True, eq=False)
class Item:
    """An item while some of its questions have no answer.

    Attributes:
        work: The item.
        key: Its key.
        single: True if it asks one question without a name.
        missing: Questions without an answer.
        answers: The answers by name, in the questions' order.
    """

    work: Work
    key: str = ""
    single: bool = True
    missing: int = 0
    answers: dict[str, Answer | None] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Asked:
    """A question of an item: the owner of its row.

    Attributes:
        item: The item.
        name: The question's name.
        question: What is asked.
        claim: Its place in the journal, if there is one.
        began: When it was put into a batch, on the monotonic clock.
        answer: What came of it so far.
        wrong: What is wrong with its last answer, if that does not fit the schema.
        repairs: How often the model was shown such an answer.
        ticket: What is reserved of the budget while it is in a batch.
    """

    item: Item
    name: str
    question: Question
    claim: Claim | None
    began: float
    answer: Answer = field(default_factory=Answer)
    wrong: SchemaError | None = None
    repairs: int = 0
    ticket: Ticket | None = None

    def take(self, outcome: Completion | EndpointError, endpoint: str) -> Attempt:
        """Note what a batch brought; return it as the journal keeps calls."""
        answer = self.answer
        answer.attempts += 1
        answer.latency_s = time.monotonic() - self.began
        answer.endpoint = endpoint
        self.wrong = answer.error = None
        attempt = Attempt(
            number=answer.attempts,
            endpoint=endpoint,
            started=time.time() - answer.latency_s,
            latency_s=answer.latency_s,
            status="ok",
        )
        if isinstance(outcome, EndpointError):
            answer.error = outcome
            attempt.status, attempt.error = type(outcome).__name__, outcome.message
            attempt.http_status = outcome.status
            return attempt
        answer.take(outcome)
        self._validate(outcome)
        attempt.prompt_tokens = outcome.usage.prompt_tokens
        attempt.completion_tokens = outcome.usage.completion_tokens
        return attempt

    def _validate(self, completion: Completion) -> None:
        schema = self.question.schema
        if schema is None or completion.tool_calls:
            self.answer.value = completion.text
            return
        try:
            self.answer.value = schema.parse(completion.text)
        except SchemaError as error:
            self.wrong = error

    def is_final(self, repairs: int) -> bool:
        """Return whether what a batch brought last is its answer, or its failure for good.

        Args:
            repairs: How often a bad answer may be shown to the model.
        """
        answer = self.answer
        if self.wrong is None:
            return answer.error is None or isinstance(answer.error, Permanent | AuthError)
        if self.repairs < repairs:
            return False
        assert self.question.schema is not None
        cut = answer.finish_reason == "length"
        answer.error = rejected(self.wrong, self.question.schema.name, self.repairs, cut=cut)
        return True

    def next_request(self) -> Request:
        """Return what to ask next: the same again, or what is wrong with the last answer."""
        schema, request = self.question.schema, self.question.request
        if self.wrong is None or schema is None:
            return request
        cut = self.answer.finish_reason == "length"
        return replace(request, messages=schema.repair(request.messages or [], self.wrong, cut=cut))
