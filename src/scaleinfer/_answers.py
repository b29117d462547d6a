"""What became of a question: in memory, as the journal keeps it, and as an item's result."""

from __future__ import annotations

import hashlib
from array import array
from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from scaleinfer.errors import SchemaError, error_from_dict
from scaleinfer.policy import withheld
from scaleinfer.results import Result, Usage

if TYPE_CHECKING:
    from scaleinfer.errors import ScaleInferError
    from scaleinfer.policy import Policy
    from scaleinfer.results import Completion
    from scaleinfer.structured import AnswerSchema

__all__ = ["Answer", "joint_result", "single_result"]


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
