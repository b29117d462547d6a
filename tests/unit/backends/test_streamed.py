"""Pieces of an answer, however the bytes are cut, and the whole that they make."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.backends._completion import parse_completion
from scaleinfer.backends._streamed import Streamed, asking_for_pieces
from scaleinfer.backends._wire_base import WireResponse
from scaleinfer.errors import Permanent, Transient


def events(*payloads: Any, done: bool = True) -> bytes:
    lines = [b"data: " + orjson.dumps(payload) + b"\r\n\r\n" for payload in payloads]
    return b": a comment\n\n" + b"".join(lines) + (b"data: [DONE]\n\n" if done else b"")


def piece(text: str | None = None, reason: str | None = None, **delta: Any) -> dict[str, Any]:
    if text is not None:
        delta["content"] = text
    return {"model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}}


def read(data: bytes, *, cut: int = 7) -> tuple[list[str], Any]:
    texts: list[str] = []
    streamed = Streamed(texts.append)
    for at in range(0, len(data), cut):
        streamed.feed(data[at : at + cut])
    whole = streamed.whole(WireResponse(200, {}, data), endpoint="e")
    return texts, parse_completion(whole, endpoint="e", chat=True)


@given(st.lists(st.text(), max_size=8).filter(any), st.integers(1, 50))
def test_text_is_the_same_however_it_is_cut(texts: list[str], cut: int) -> None:
    data = events(piece("", role="assistant"), *map(piece, texts), piece(reason="stop"), USAGE)
    told, completion = read(data, cut=cut)
    assert completion.text == "".join(told) == "".join(texts)
    assert completion.finish_reason == "stop"
    assert completion.usage.completion_tokens == 5
    assert completion.model == "m"


def test_tool_calls_are_put_together() -> None:
    calls = [
        {"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"x":'}},
        {"index": 1, "id": "b", "function": {"name": "g", "arguments": "{}"}},
        {"index": 0, "function": {"arguments": "1}"}},
    ]
    data = events(*(piece(tool_calls=[call]) for call in calls), piece(reason="tool_calls"))
    told, completion = read(data)
    assert told == []
    assert completion.tool_calls == [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_an_answer_in_one_piece_is_taken_as_it_is() -> None:
    message = {"role": "assistant", "content": "whole"}
    body = {"choices": [{"message": message, "finish_reason": "stop"}]}
    told, completion = read(orjson.dumps(body))
    assert (told, completion.text) == ([], "whole")


def test_an_answer_without_an_end_is_none() -> None:
    with pytest.raises(Transient, match="in the middle"):
        read(events(piece(role="assistant"), done=False))
    with pytest.raises(Permanent, match="broke off after 4 characters"):
        read(events(piece("half"), done=False))


def test_text_that_was_given_out_makes_a_failure_final() -> None:
    streamed = Streamed(lambda _: None)
    failed = Transient("the connection broke", endpoint="e")
    assert streamed.broken(failed) is failed
    streamed.feed(events(piece("half"), done=False))
    assert isinstance(streamed.broken(failed), Permanent)


def test_the_body_asks_for_pieces_and_usage() -> None:
    body = orjson.loads(asking_for_pieces(b'{"model":"m"}'))
    assert body == {"model": "m", "stream": True, "stream_options": {"include_usage": True}}
