"""A request's sampling parameters in the embedded engine's terms."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scaleinfer.backends._local_grammar import UnsupportedSchemaError, schema_to_grammar
from scaleinfer.errors import Permanent

if TYPE_CHECKING:
    from scaleinfer.requests import Message, Request

__all__ = ["MAX_CHOICES", "Plan", "flatten_messages", "plan_request"]

MAX_CHOICES = 64
_NUMBERS: dict[str, tuple[str, type[int] | type[float]]] = {
    "top_k": ("top_k", int),
    "min_p": ("min_p", float),
    "repetition_penalty": ("repetition_penalty", float),
    "presence_penalty": ("presence_penalty", float),
    "frequency_penalty": ("frequency_penalty", float),
    "min_tokens": ("min_new_tokens", int),
}
_SAMPLING_ONLY = ("top_k", "min_p")
_REFUSED = ("tools", "functions", "logit_bias", "audio", "best_of", "suffix", "echo")
_ROLES = {"system", "developer", "user", "assistant"}


@dataclass(slots=True)
class Plan:
    """How one request is to be generated.

    Attributes:
        max_tokens: Cap on the answer.
        options: Fields of OpenVINO GenAI's `GenerationConfig`, the cap and seed excepted.
        seed: Seed of the first choice; further choices count on.
        n: Number of choices.
        stop: Strings that end the answer.
        grammar: EBNF of the answer, if a schema was given.
        logprobs: True if log probabilities were asked for.
    """

    max_tokens: int
    options: dict[str, Any]
    seed: int
    n: int
    stop: tuple[str, ...]
    grammar: str | None
    logprobs: bool


def plan_request(request: Request, *, max_tokens: int) -> Plan:
    """Translate a request; `max_tokens` is the cap if it names none.

    Without a temperature decoding is greedy. Unknown extra parameters are ignored, as
    OpenAI-compatible servers do; those that would change the answer's meaning are refused.

    Raises:
        Permanent: A parameter is out of range or not supported; the message names it.
    """
    sampling = request.sampling
    extra = dict(sampling.extra)
    for name in _REFUSED:
        if extra.get(name):
            raise refused(f"The embedded model does not support {name}.")
    if sampling.top_logprobs:
        raise refused("The embedded model gives no top_logprobs, only those of the answer.")
    cap = sampling.max_tokens or extra.get("max_completion_tokens") or max_tokens
    if not isinstance(cap, int) or cap < 1:
        raise refused(f"max_completion_tokens must be a whole number above 0, not {cap!r}.")
    n = sampling.n or 1
    if n > MAX_CHOICES:
        raise refused(f"n is {n}; the embedded model gives at most {MAX_CHOICES} choices.")
    options = _options(sampling.temperature or 0.0, sampling.top_p, extra)
    if sampling.logprobs:
        options["logprobs"] = 1
    stop = _stop(sampling.stop)
    if stop:
        options["stop_strings"] = set(stop)
        # The adapter cuts the text itself: the engine can only drop whole tokens.
        options["include_stop_str_in_output"] = True
    seed = sampling.seed if sampling.seed is not None else secrets.randbits(31)
    grammar = _grammar(request.schema or _schema_of(extra.get("response_format")))
    return Plan(cap, options, seed % 2**63, n, stop, grammar, bool(sampling.logprobs))


def refused(message: str) -> Permanent:
    """Return the error for a request that the embedded model cannot serve."""
    return Permanent(message, endpoint="local", status=400)


def _options(temperature: float, top_p: float | None, extra: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature > 0:
        options["temperature"] = float(temperature)
        if top_p is not None:
            if not 0 < top_p <= 1:
                raise refused(f"top_p must be above 0 and at most 1, not {top_p}.")
            options["top_p"] = float(top_p)
    for name, (field, kind) in _NUMBERS.items():
        value = extra.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (kind, int)):
            raise refused(f"{name} must be a number, not {value!r}.")
        # -1 is how other servers spell "off".
        if name not in _SAMPLING_ONLY or (options["do_sample"] and value >= 0):
            options[field] = kind(value)
    if extra.get("ignore_eos"):
        options["ignore_eos"] = True
    return options


def _stop(stop: str | list[str] | None) -> tuple[str, ...]:
    strings = [stop] if isinstance(stop, str) else list(stop or ())
    if not all(isinstance(one, str) for one in strings):
        raise refused("stop must be a text or a list of texts.")
    return tuple(one for one in strings if one)


def _schema_of(response_format: Any) -> dict[str, Any] | None:
    if response_format is None or not isinstance(response_format, dict):
        return None
    kind = response_format.get("type")
    if kind in (None, "text"):
        return None
    if kind == "json_schema":
        schema = (response_format.get("json_schema") or {}).get("schema")
        if isinstance(schema, dict):
            return schema
        raise refused("response_format has no json_schema.schema.")
    raise refused(f"The embedded model does not support response_format {kind!r}; use json_schema.")


def _grammar(schema: dict[str, Any] | None) -> str | None:
    if schema is None:
        return None
    try:
        return schema_to_grammar(schema)
    except UnsupportedSchemaError as error:
        raise refused(f"The embedded model cannot enforce this schema: {error}.") from None


def flatten_messages(messages: list[Message]) -> list[dict[str, str]]:
    """Return chat messages as plain role and text.

    Raises:
        Permanent: A message holds something other than text, or has an unknown role.
    """
    if not messages:
        raise refused("There are no messages.")
    plain = []
    for message in messages:
        role = message.get("role")
        if role not in _ROLES:
            raise refused(f"The embedded model knows no message role {role!r}.")
        plain.append({"role": "system" if role == "developer" else role, "content": _text(message)})
    return plain


def _text(message: Message) -> str:
    content = message.get("content")
    if message.get("tool_calls"):
        raise refused("The embedded model does not support tool calls.")
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if not isinstance(content, list):
        raise refused("A message's content must be a text or a list of parts.")
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise refused(f"The embedded model reads text only, not {kind}.")
        texts.append(str(part.get("text", "")))
    return "".join(texts)
