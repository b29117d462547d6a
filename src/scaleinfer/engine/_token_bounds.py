"""How many tokens a request may use at most, before it is sent. No I/O.

A tokenizer makes at most one token of a byte, so a text's bytes bound its tokens; what the
server's chat template adds is bounded by the smallest prompt it has ever counted. The answer is
bounded by `max_tokens`, which the server enforces. Without it there is no bound but the model's
context; a guess from the answers so far stands in for it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from scaleinfer.requests import plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scaleinfer.requests import Message, Request, Sampling
    from scaleinfer.results import Usage

__all__ = ["UNKNOWN_ANSWER", "Bound", "TokenBounds"]

UNKNOWN_ANSWER = 32_768
"""Tokens reserved for an answer without `max_tokens` before any has come."""
_LEAST_ANSWER = 256
"""And at least so many afterwards."""
_TEMPLATE = 256
"""Tokens that a chat template adds at most, until an answer shows that it is fewer."""
_PER_MESSAGE = 16
_MEDIA = 50_000
"""Tokens of an image, a sound or a file at most; OpenAI's largest count for one image is 48,169
(gpt-4o-mini at high detail, platform.openai.com/docs/guides/images-vision)."""
_ENOUGH = 4
"""Prompts of about one size whose count says something about others of that size."""
_MARGIN = 2.0
"""Above the largest seen, by this over the square root of how many were seen."""
_CAPS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
_KEPT = 64
_SIZES = 40


class Bound(NamedTuple):
    """What one request may use at most."""

    bytes: int
    """Of everything that is sent as prompt, as far as it is text."""
    prompt: int
    """Tokens of the prompt."""
    answer: int
    """Tokens of all its answers."""
    answers: int
    """Answers that are asked for."""
    tight_prompt: int
    """Tokens of the prompt as prompts of its size have come out, with a margin."""
    tight_answer: int
    """Tokens of the answers, likewise; as `answer` if `max_tokens` is set."""


class _Shape(NamedTuple):
    """What requests of the same sampling and schema have in common."""

    bytes: int
    most: int | None
    answers: int
    kept: tuple[Any, ...]


class TokenBounds:
    """Bounds for one model's requests, which answers make closer."""

    __slots__ = ("_answered", "_longest", "_ratios", "_seen", "_shapes", "_template")

    def __init__(self) -> None:
        self._shapes: dict[tuple[int, int], _Shape] = {}
        self._template = _TEMPLATE
        self._ratios = [0.0] * _SIZES
        self._seen = [0] * _SIZES
        self._longest = 0
        self._answered = 0

    @property
    def knows_answers(self) -> bool:
        """True once an answer has shown how long answers are."""
        return self._answered > 0

    def capped(self, request: Request) -> bool:
        """Return whether an answer's length is bounded by what is asked."""
        shape = self._shape(request.sampling, request.schema)
        return request.input is not None or shape.most is not None

    def of(self, request: Request) -> Bound:
        """Return what a request may use."""
        shape = self._shape(request.sampling, request.schema)
        size, messages = shape.bytes, 1
        if request.messages is not None:
            messages = len(request.messages)
            for message in request.messages:
                content = message.get("content")
                size += _bytes(content) if type(content) is str else _parts(message)
        else:
            size += _bytes(request.prompt or request.input or "")
        prompt = size + self._template + _PER_MESSAGE * messages
        tight = prompt
        slot = size.bit_length()
        seen = self._seen[slot]
        if seen >= _ENOUGH:
            tight = min(prompt, math.ceil(size * self._ratios[slot] * _margin(seen)))
        if request.input is not None:
            return Bound(size, prompt, 0, 0, tight, 0)
        if shape.most is not None:
            answer = shape.most * shape.answers
            return Bound(size, prompt, answer, shape.answers, tight, answer)
        answer, likely = self._guess()
        count = shape.answers
        return Bound(size, prompt, answer * count, count, tight, likely * count)

    def observe(self, bound: Bound, usage: Usage) -> None:
        """Learn from an answer."""
        counted = usage.prompt_tokens
        if counted > 0:
            if counted > bound.prompt:
                # A template that writes more than thought; never again too little.
                self._template = max(self._template, 2 * (counted - bound.bytes))
            elif counted < self._template:
                # A template adds no more than the whole of a prompt.
                self._template = counted
            slot = bound.bytes.bit_length()
            self._seen[slot] += 1
            if counted > self._ratios[slot] * bound.bytes:
                self._ratios[slot] = counted / max(1, bound.bytes)
        if bound.answers and usage.completion_tokens:
            self._answered += 1
            longest = -(-usage.completion_tokens // bound.answers)
            self._longest = max(self._longest, longest)

    def _guess(self) -> tuple[int, int]:
        """Return what to reserve for an answer of no stated length, and what it likely needs."""
        if not self._answered:
            return UNKNOWN_ANSWER, UNKNOWN_ANSWER
        likely = math.ceil(self._longest * _margin(self._answered))
        return max(_LEAST_ANSWER, likely), likely

    def _shape(self, sampling: Sampling, schema: Mapping[str, Any] | None) -> _Shape:
        key = id(sampling), id(schema)
        known = self._shapes.get(key)
        if known is None:
            if len(self._shapes) >= _KEPT:
                self._shapes.clear()
            # The objects are kept so that nothing else gets their ids.
            known = self._shapes[key] = _shape_of(sampling, schema)
        return known


def _shape_of(sampling: Sampling, schema: Mapping[str, Any] | None) -> _Shape:
    extra = sampling.extra
    asked = [sampling.max_tokens, *(extra.get(name) for name in _CAPS)]
    caps = [cap for cap in asked if isinstance(cap, int)]
    several = [n for n in (sampling.n, extra.get("n"), extra.get("best_of")) if isinstance(n, int)]
    size = 0
    if schema is not None:
        # A server without schemas of its own gets it into the prompt, indented.
        size += 2 * len(orjson.dumps(schema, option=orjson.OPT_INDENT_2)) + _TEMPLATE
    for name in ("tools", "functions", "documents", "chat_template_kwargs"):
        if name in extra:
            text = orjson.dumps(extra[name], default=plain, option=orjson.OPT_NON_STR_KEYS)
            size += 2 * len(text) + _TEMPLATE
    # With several, the largest: which one a server goes by differs.
    return _Shape(size, max(caps, default=None), max([1, *several]), (sampling, schema))


def _bytes(text: str) -> int:
    # Whether it is ASCII is known without reading it.
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _parts(message: Message) -> int:
    """Return the bytes of a message that is more than a text; what is no text counts in tokens."""
    content = message.get("content")
    size = 0
    for part in content if isinstance(content, list) else ():
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            size += _bytes(part["text"])
        elif isinstance(part, str):
            size += _bytes(part)
        else:
            size += _MEDIA
    rest = {name: value for name, value in message.items() if name != "content"}
    return size + len(orjson.dumps(rest, default=plain, option=orjson.OPT_NON_STR_KEYS))


def _margin(seen: int) -> float:
    return 1.0 + _MARGIN / math.sqrt(seen)
