"""One question to its answer: ask, validate, show the model what is wrong, ask again.

Also the answer as the journal keeps it, and back.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from array import array
from base64 import b64decode, b64encode
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import orjson

from scaleinfer.engine import ITEM_CAP
from scaleinfer.errors import (
    BudgetExceeded,
    ConfigError,
    EndpointError,
    ScaleInferError,
    SchemaError,
    WorkerLost,
    error_from_dict,
)
from scaleinfer.policy import WITHHELD, withheld
from scaleinfer.results import CUT_OFF, Result, Usage

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaleinfer.engine import Engine, Purse
    from scaleinfer.journal import Claim, Journal
    from scaleinfer.policy import Audience, Policy
    from scaleinfer.prompts import Question
    from scaleinfer.results import Attempt, Completion
    from scaleinfer.structured import AnswerSchema

__all__ = ["Answer", "Keeper", "ask", "joint_result", "rejected", "single_result"]


_NO_USAGE = Usage()
_PLAIN_FIELDS = (
    "text", "endpoint", "worker", "model", "finish_reason", "choices", "tool_calls", "logprobs",
    "batch", "cost_usd", "label",
)  # fmt: skip


@dataclass(slots=True)
class Answer:
    """What became of one question.

    Attributes:
        text: The model's text; `None` without an answer.
        value: The validated object with a schema, an embedding's vector, else the text.
        error: Why there is no usable answer.
        usage: Tokens of every call that was answered.
        attempts: Calls made.
        latency_s: Seconds from the first call to the end.
        endpoint: Where it was asked.
        worker: The fleet worker that asked it.
        model: The model that answered.
        finish_reason: Why the model stopped.
        resumed: True if it came from the journal.
        choices: All texts, if several were asked for.
        tool_calls: Tool calls of the answer.
        logprobs: Log probabilities of the answer.
        batch: The batch that it was a row of.
        cost_usd: What its calls cost; `None` if no price is known.
        label: What the run's policy calls its item.
        restricted: True if the policy keeps it from some endpoints.
        redacted: Hash of an answer that the journal does not keep.
    """

    text: str | None = None
    value: Any = None
    error: ScaleInferError | None = None
    usage: Usage = _NO_USAGE
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
    cost_usd: float | None = None
    label: str | None = None
    restricted: bool = False
    redacted: str | None = None

    def to_payload(self, policy: Policy | None = None) -> bytes:
        """Return the answer as the journal keeps it: JSON without nulls.

        Args:
            policy: Says what is not kept.
        """
        data = self._data()
        if policy is not None and not policy.keeps_prompts:
            _redact(data, answers=not policy.keeps_answers)
        return orjson.dumps(data)

    def _data(self) -> dict[str, Any]:
        value, error = self.value, self.error
        known: dict[str, Any] = {
            "usage": tuple(self.usage),
            "attempts": self.attempts,
            "latency_s": round(self.latency_s, 6),
        }
        if isinstance(value, array):
            known["vector"] = b64encode(value.tobytes()).decode()
        elif value is not None and type(value) is not str:
            known["value"] = _plain(value)
        if error is not None:
            known["error"] = error.to_dict()
        for name in _PLAIN_FIELDS:
            field = getattr(self, name)
            if field is not None:
                known[name] = field
        if self.restricted:
            known["restricted"] = True
        return known

    @classmethod
    def from_payload(cls, payload: bytes, schema: AnswerSchema | None) -> Answer:
        """Return the answer a journal kept.

        Raises:
            SchemaError: The schema's validators no longer accept it, or it was not kept.
        """
        answer = cls.from_data(orjson.loads(payload))
        if answer.redacted is not None:
            raise SchemaError("the answer was not kept.")
        if schema is not None and answer.tool_calls is None:
            answer.value = schema.parse(answer.text or "")
        return answer

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Answer:
        """Return the answer in a payload's data; a validated value stays plain data."""
        error = data.get("error")
        answer = cls(
            text=data.get("text"),
            error=None if error is None else error_from_dict(error),
            usage=Usage(*data.get("usage", ())),
            attempts=data.get("attempts", 0),
            latency_s=data.get("latency_s", 0.0),
            endpoint=data.get("endpoint"),
            worker=data.get("worker"),
            model=data.get("model"),
            finish_reason=data.get("finish_reason"),
            resumed=True,
            choices=data.get("choices"),
            tool_calls=data.get("tool_calls"),
            logprobs=data.get("logprobs"),
            batch=data.get("batch"),
            cost_usd=data.get("cost_usd"),
            label=data.get("label"),
            restricted=data.get("restricted", False),
            redacted=data.get("redacted"),
        )
        answer.value = data.get("value", answer.text)
        if "vector" in data:
            answer.value = array("f", b64decode(data["vector"]))
        return answer

    def take(self, completion: Completion) -> None:
        """Take over what a call brought; usage adds up."""
        self.text = completion.text
        self.usage = (
            completion.usage if self.usage is _NO_USAGE else self.usage.plus(completion.usage)
        )
        self.model = completion.model
        self.worker = completion.worker
        self.finish_reason = completion.finish_reason
        self.choices = completion.choices
        self.tool_calls = completion.tool_calls
        self.logprobs = completion.logprobs
        self.batch = completion.batch


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


def single_result(index: int, key: str, item: Any, answer: Answer) -> Result:
    """Return the result of an item with one question."""
    return Result(
        key=key,
        index=index,
        item=item,
        ok=answer.error is None,
        text=answer.text,
        value=answer.value,
        error=answer.error,
        usage=answer.usage,
        cost_usd=answer.cost_usd,
        attempts=answer.attempts,
        latency_s=answer.latency_s,
        endpoint=answer.endpoint,
        worker=answer.worker,
        model=answer.model,
        finish_reason=answer.finish_reason,
        resumed=answer.resumed,
        choices=answer.choices,
        tool_calls=answer.tool_calls,
        logprobs=answer.logprobs,
        batch=answer.batch,
        label=answer.label,
        restricted=answer.restricted,
    )


def joint_result(index: int, key: str, item: Any, answers: dict[str, Answer]) -> Result:
    """Return the result of an item with several named questions."""
    usage = Usage.total(answer.usage for answer in answers.values())
    # By name, not by order: a journal does not know in which they were asked.
    last = answers[max(answers)]
    error = None
    for name, answer in sorted(answers.items()):
        if error is None and answer.error is not None:
            error = answer.error
            error.message = f"question {name!r}: {error.message}"
    costs = [answer.cost_usd for answer in answers.values() if answer.cost_usd is not None]
    cut = any(answer.finish_reason == "length" for answer in answers.values())
    return Result(
        key=key,
        index=index,
        item=item,
        ok=error is None,
        value={name: answer.value for name, answer in answers.items()},
        error=error,
        usage=usage,
        cost_usd=sum(costs) if len(costs) == len(answers) else None,
        attempts=sum(answer.attempts for answer in answers.values()),
        latency_s=max(answer.latency_s for answer in answers.values()),
        endpoint=last.endpoint,
        worker=last.worker,
        model=last.model,
        finish_reason="length" if cut else last.finish_reason,
        resumed=all(answer.resumed for answer in answers.values()),
        batch=last.batch,
        label=last.label,
        restricted=last.restricted,
    )


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


_ANSWER_FIELDS = ("text", "value", "vector", "choices", "tool_calls", "logprobs")


def _redact(data: dict[str, Any], *, answers: bool) -> None:
    """Take out of a payload what may quote a prompt, and the answer itself if asked to."""
    if "error" in data:
        data["error"] = withheld(error_from_dict(data["error"])).to_dict()
    if not answers:
        return
    content = {name: data.pop(name) for name in _ANSWER_FIELDS if name in data}
    if content:
        text = orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
        data["redacted"] = hashlib.blake2b(text, digest_size=16).hexdigest()


def _plain(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    return value if dump is None else dump(mode="json")
