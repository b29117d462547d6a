"""What coordinator and workers tell each other survives the way, and nothing else is taken."""

from __future__ import annotations

import base64
import pickle
import zlib
from array import array
from dataclasses import fields
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scaleinfer.errors import EndpointError, Permanent, PromptError, RateLimited, SchemaError
from scaleinfer.fleet._messages import (
    MOST_CHARACTERS,
    FormReader,
    FormWriter,
    Pieces,
    answer_from,
    answer_of,
    cut,
    pack,
    unpack,
)
from scaleinfer.requests import Request, Sampling
from scaleinfer.results import Attempt, Completion, Usage

# What JSON in UTF-8 can say: no lone surrogates, integers of 64 bits, finite numbers.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
WHOLE = st.integers(0, 2**53)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
OBJECT = st.dictionaries(TEXT, JSON, max_size=3)
SAMPLING = st.builds(
    Sampling,
    temperature=st.none() | st.floats(0, 2),
    max_tokens=st.none() | st.integers(1, 10_000),
    seed=st.none() | WHOLE,
    n=st.none() | st.integers(1, 8),
    stop=st.none() | TEXT | st.lists(TEXT, max_size=2),
    extra=OBJECT.map(lambda extra: {f"x_{name}": value for name, value in extra.items()}),
)
ASKED = st.one_of(
    st.lists(OBJECT, max_size=3).map(lambda messages: {"messages": messages}),
    TEXT.map(lambda text: {"prompt": text}),
    TEXT.map(lambda text: {"input": text}),
)
REQUEST = st.builds(
    lambda asked, **common: Request(**asked, **common),
    asked=ASKED,
    sampling=SAMPLING,
    schema=st.none() | OBJECT,
    schema_name=TEXT,
    model=st.none() | TEXT,
)
ATTEMPT = st.builds(
    Attempt,
    number=WHOLE,
    endpoint=TEXT,
    started=st.floats(0, 2e9).map(lambda seconds: round(seconds, 3)),
    latency_s=st.floats(0, 1e4).map(lambda seconds: round(seconds, 4)),
    status=TEXT,
    http_status=st.none() | st.integers(100, 599),
    prompt_tokens=WHOLE,
    completion_tokens=WHOLE,
    error=TEXT,
)
COMPLETION = st.builds(
    Completion,
    text=TEXT,
    finish_reason=st.none() | TEXT,
    usage=st.builds(Usage, WHOLE, WHOLE, WHOLE, WHOLE, WHOLE),
    model=st.none() | TEXT,
    choices=st.none() | st.lists(TEXT, max_size=3),
    tool_calls=st.none() | st.lists(OBJECT, max_size=2),
    logprobs=st.none() | OBJECT,
    batch=st.none() | TEXT,
    vector=st.none() | st.lists(st.floats(width=32), max_size=4).map(lambda v: array("f", v)),
)


def sent(writer: FormWriter, reader: FormReader, requests: list[Request]) -> list[Request]:
    """Return what a worker gets of a message with these requests."""
    written = [writer.request(request) for request in requests]
    forms = {number for number, _ in written if number >= 0}
    give = [orjson.Fragment(data) for _, data in written]
    message = unpack(pack({"forms": writer.forms(forms), "give": give}))
    reader.learn(message["forms"])
    return [reader.request(data) for data in message["give"]]


@given(JSON)
def test_json_survives_the_way(data: Any) -> None:
    text = pack(data)
    assert text.isascii()
    assert '"' not in text
    assert "\\" not in text
    assert unpack(text) == data


@given(st.lists(st.lists(REQUEST, max_size=4), max_size=3))
def test_requests_survive_the_way(messages: list[list[Request]]) -> None:
    writer, reader = FormWriter(), FormReader()
    for requests in messages:
        assert sent(writer, reader, requests) == requests


def test_what_requests_have_in_common_is_said_once() -> None:
    writer = FormWriter()
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    sampling = Sampling(max_tokens=7)
    written = [
        writer.request(Request(prompt=str(n), sampling=sampling, schema=schema)) for n in range(9)
    ]
    assert {number for number, _ in written} == {0}
    assert not any(b"properties" in data for _, data in written)
    # Equal, though not the same objects.
    alike = Request(prompt="x", sampling=Sampling(max_tokens=7), schema=dict(schema))
    assert writer.request(alike)[0] == 0


def test_more_forms_than_are_kept_travel_with_their_requests() -> None:
    writer, reader = FormWriter(), FormReader()
    requests = [Request(prompt="x", sampling=Sampling(seed=number)) for number in range(300)]
    assert [writer.request(request)[0] for request in requests] == [*range(256), *[-1] * 44]
    assert sent(writer, reader, requests) == requests
    # Twice as many again, in other objects: what was numbered still is.
    again = [Request(prompt="y", sampling=Sampling(seed=number)) for number in range(300)]
    assert sent(writer, reader, again) == again


def test_a_new_worker_learns_the_forms_again() -> None:
    writer = FormWriter()
    request = Request(prompt="x", sampling=Sampling(seed=1))
    for _ in range(2):
        assert sent(writer, FormReader(), [request]) == [request]


def test_what_json_cannot_say_is_refused_at_once() -> None:
    with pytest.raises(PromptError, match="cannot be written as JSON"):
        FormWriter().request(Request([{"role": "user", "content": object()}]))


@given(COMPLETION, st.lists(ATTEMPT, max_size=3))
def test_answers_survive_the_way(completion: Completion, attempts: list[Attempt]) -> None:
    told, calls = answer_from(unpack(pack(answer_of(completion, attempts))))
    assert isinstance(told, Completion)
    for one in fields(Completion):
        said, heard = getattr(completion, one.name), getattr(told, one.name)
        if one.name == "vector" and said is not None:
            said, heard = said.tobytes(), heard.tobytes()
        assert heard == said, one.name
    assert calls == attempts


@pytest.mark.parametrize(
    "error",
    [
        RateLimited("slow down", endpoint="http://a", status=429, retry_after=2.5),
        Permanent("no such model", fatal=True, hint="Look."),
        EndpointError("gone", reached=False),
    ],
)
def test_errors_survive_the_way(error: EndpointError) -> None:
    attempt = Attempt(2, "http://a", 1.5, 0.25, "RateLimited", 429, error="slow down")
    told, calls = answer_from(unpack(pack(answer_of(error, [attempt]))))
    assert type(told) is type(error)
    assert isinstance(told, EndpointError)
    assert told.to_dict() == error.to_dict()
    assert calls == [attempt]


def test_an_error_of_another_kind_keeps_its_type() -> None:
    told, _ = answer_from(unpack(pack(answer_of(SchemaError("no number"), []))))
    assert isinstance(told, SchemaError)
    assert told.message == "no number"


@pytest.mark.parametrize(
    "data",
    [None, 7, [], [0], [0, "text"], [1, "no error", []], [0, "x", None, 5, None, []],
     [0, "x", None, [1, 2, 3, 4], None, [], {"vector": "no base64!"}],
     [0, "x", None, [1, 2, 3, 4], None, [], {"vector": "YQ=="}],
     [0, "x", None, [1, 2, 3, 4], None, [], {"unknown": 1}], [1, {"type": "Permanent"}, 5]],
)  # fmt: skip
def test_what_is_no_answer_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="no answer"):
        answer_from(data)


class Trap:
    """Tells if it was unpickled."""

    sprung = False

    def __setstate__(self, state: object) -> None:
        Trap.sprung = True


def test_a_pickle_is_refused_and_never_loaded() -> None:
    trap = Trap()
    trap.state = 1  # type: ignore[attr-defined] # without state, nothing would be called
    data = pickle.dumps(trap)
    packed = base64.b64encode(zlib.compress(data)).decode()
    for text in (packed, base64.b64encode(data).decode(), data.decode("latin-1")):
        with pytest.raises(ValueError, match="no message"):
            unpack(text)
    assert not Trap.sprung


@given(st.text(max_size=60))
@example("")
@example("====")
def test_garbage_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="message"):
        unpack(text)


@given(JSON, st.data())
def test_a_message_that_was_cut_off_is_refused(data: Any, draw: st.DataObject) -> None:
    text = pack(data)
    with pytest.raises(ValueError, match="message"):
        unpack(text[: draw.draw(st.integers(0, len(text) - 1))])


@pytest.mark.parametrize("text", [None, 5, b"bytes", ["list"], {}])
def test_what_is_no_text_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="no message"):
        unpack(text)


def test_a_message_that_would_fill_the_memory_is_refused() -> None:
    bomb = base64.b64encode(zlib.compress(bytes(260 * 2**20), 1)).decode()
    with pytest.raises(ValueError, match="256 MiB"):
        unpack(bomb)


@given(st.integers(0, 4 * MOST_CHARACTERS))
@example(0)
@example(MOST_CHARACTERS)
@example(MOST_CHARACTERS + 1)
def test_pieces_make_the_message_again(length: int) -> None:
    text = ("abcdefghij" * (length // 10 + 1))[:length]
    cuts, pieces = cut(text), Pieces()
    assert all(len(piece) <= MOST_CHARACTERS for piece in cuts)
    whole = [pieces.add("a", piece, n, len(cuts)) for n, piece in enumerate(cuts)]
    assert whole == [None] * (len(cuts) - 1) + [text]


@given(st.lists(st.sampled_from(["next", "skip", "again", "whole"]), max_size=30))
def test_pieces_that_are_lost_or_doubled_never_make_a_wrong_message(events: list[str]) -> None:
    pieces, number = Pieces(), 0
    for event in events:
        if event == "whole":
            assert pieces.add("a", "whole", 0, 1) == "whole"
            number = 0
            continue
        number = {"next": number, "skip": number + 1, "again": max(0, number - 1)}[event] % 3
        whole = pieces.add("a", "xyz"[number], number, 3)
        assert whole in {None, "xyz"}
        number = (number + 1) % 3
    # Another sender's pieces have nothing to do with it.
    assert [pieces.add("b", c, n, 3) for n, c in enumerate("xyz")] == [None, None, "xyz"]


def test_a_reply_is_kept_until_the_next_message() -> None:
    pieces = Pieces()
    pieces.keep("a", ["one", "two"])
    assert [pieces.kept("a", 0), pieces.kept("a", 1)] == ["one", "two"]
    assert [pieces.kept("a", 2), pieces.kept("a", -1), pieces.kept("b", 0)] == ["", "", ""]
    pieces.keep("a", ["whole"])
    assert pieces.kept("a", 0) == ""
