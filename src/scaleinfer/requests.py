"""What is asked of an endpoint: messages, sampling parameters, a schema.

The foundation that prompts, engine, journal and backends share. It knows no HTTP.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields
from decimal import Decimal
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import orjson

from scaleinfer.errors import ConfigError, PromptError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Message", "Request", "Sampling"]

Message = dict[str, Any]
"""One chat message in the OpenAI form: `{"role": "user", "content": "..."}`; content may be a
list of parts (text, images), and tool calls pass through untouched."""


@dataclass(slots=True, frozen=True)
class Sampling:
    """How the model is to answer. `None` leaves a parameter to the server's default.

    Attributes:
        temperature: 0 is greedy decoding.
        max_tokens: Cap on the answer, in tokens.
        top_p: Nucleus sampling.
        seed: Asked of the server; not all servers honour it.
        n: Number of answers to one request.
        stop: Strings that end the answer.
        logprobs: Ask for log probabilities of the answer's tokens.
        top_logprobs: How many alternatives to each token.
        extra: Any further top-level field of the request's body (`tools`, `top_k`,
            `chat_template_kwargs`, ...), passed through untouched.
    """

    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    seed: int | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, not {self.max_tokens}.")
        if self.n is not None and self.n < 1:
            raise ConfigError(f"n must be at least 1, not {self.n}.")
        if self.temperature is not None and self.temperature < 0:
            raise ConfigError(f"temperature must not be negative, not {self.temperature}.")
        taken = sorted(_NOT_EXTRA.intersection(self.extra))
        if taken:
            raise ConfigError(
                f"Sampling.extra must not hold {', '.join(taken)}.",
                hint="Prompt, schema and model have arguments of their own; answers come whole.",
            )

    @classmethod
    def of(cls, value: Sampling | Mapping[str, Any] | None) -> Sampling:
        """Return `value` as a `Sampling`.

        Raises:
            ConfigError: A mapping names a parameter that does not exist.
        """
        if value is None:
            return cls()
        if isinstance(value, Sampling):
            return value
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(value) - known)
        if unknown:
            raise ConfigError(
                f"sampling has no parameter {', '.join(unknown)}.",
                hint=f"Known: {', '.join(sorted(known))}; a server's own parameters go into extra.",
            )
        return cls(**value)

    def to_body(self) -> dict[str, Any]:
        """Return the parameters that are set, as fields of a request body."""
        body = {
            name: value for name in _WIRE_PARAMETERS if (value := getattr(self, name)) is not None
        }
        body.update(self.extra)
        return body


_NOT_EXTRA = frozenset({"messages", "prompt", "model", "stream"})
_WIRE_PARAMETERS = tuple(f.name for f in fields(Sampling) if f.name != "extra")


def plain(value: Any) -> Any:
    """Return as JSON data what orjson does not know; for its `default=`.

    Raises:
        TypeError: No faithful JSON exists; an object's address, say, would be sent.
    """
    if isinstance(value, Decimal | PurePath):
        return str(value)
    if type(value).__module__ == "numpy":
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON data")


@dataclass(slots=True)
class Request:
    """One call to a model; not changed once made (`dataclasses.replace` makes a new one).

    Exactly one of `messages` (chat), `prompt` (plain completion) and `input` (embedding) is set.

    Attributes:
        messages: Chat messages.
        prompt: Text to be continued.
        sampling: How to answer.
        schema: JSON schema the answer must satisfy, if any.
        schema_name: Name of the schema, as servers want one.
        model: Model to ask; `None` for the backend's own.
        input: Text to be embedded.
        on_text: Told of the answer's text as it comes, where an adapter can; the answer is
            complete all the same.
        once: True if whoever sends it must not try again what may have been generated and
            charged: it is paid for one call, and who pays decides on another.
    """

    messages: list[Message] | None = None
    prompt: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    schema: dict[str, Any] | None = None
    schema_name: str = "answer"
    model: str | None = None
    input: str | None = None
    on_text: Callable[[str], None] | None = field(default=None, repr=False, compare=False)
    once: bool = field(default=False, repr=False, compare=False)
    _digest: bytes | None = field(default=None, init=False, repr=False, compare=False)

    def digest(self) -> bytes:
        """Return 16 bytes that identify what is asked, the same in every process.

        BLAKE2b over the request as canonical JSON. Everything that may change the answer is
        in it: messages or prompt, sampling, schema, model.

        Raises:
            PromptError: The request cannot be written as JSON.
        """
        if self._digest is not None:
            return self._digest
        tail = _tail_of(self.model, self.prompt, self.sampling, self.schema)
        text = b'{"messages":' + _canonical(self.messages) + tail
        if self.input is not None:
            text += b',"input":' + _canonical(self.input)
        self._digest = hashlib.blake2b(text, digest_size=16).digest()
        return self._digest


def _canonical(value: Any) -> bytes:
    try:
        return orjson.dumps(
            value, default=plain, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
        )
    except orjson.JSONEncodeError as error:
        raise PromptError(
            f"the prompt cannot be written as JSON: {error}.",
            hint="Text, numbers, dates, lists and dicts can; an image goes in as a data: URL.",
        ) from error


_KEPT_TAILS = 64
_Tail = tuple[bytes, Sampling, dict[str, Any] | None]
_tails: dict[tuple[str | None, int, int], _Tail] = {}


def _tail_of(
    model: str | None, prompt: str | None, sampling: Sampling, schema: dict[str, Any] | None
) -> bytes:
    """Return the canonical JSON that follows the messages; it is the same for most requests."""
    key = (model, id(sampling), id(schema))
    known = _tails.get(key) if prompt is None else None
    if known is None:
        rest = {"model": model, "prompt": prompt, "sampling": sampling.to_body(), "schema": schema}
        # The objects are kept so that nothing else gets their ids.
        known = (b"," + _canonical(rest)[1:], sampling, schema)
        if prompt is None:
            if len(_tails) >= _KEPT_TAILS:
                _tails.clear()
            _tails[key] = known
    return known[0]
