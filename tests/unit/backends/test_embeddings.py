"""Embeddings: what is asked together, what is read from the answer, and who fails alone."""

from __future__ import annotations

import json
import struct
from array import array
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.backends._embeddings import Embedder, parse_embeddings
from scaleinfer.backends._wire import WireResponse
from scaleinfer.errors import EndpointError, Overloaded, Permanent, RateLimited, Transient
from scaleinfer.requests import Request, Sampling
from scaleinfer.results import Completion

pytestmark = pytest.mark.anyio


def coded(vector: list[float]) -> str:
    return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


class Server:
    """Answers with the length of each text; refuses what is marked as bad."""

    endpoint = "http://server/v1"
    model: str | None = "m"

    def __init__(self, *, most: int = 1000, base64: bool = True, status: int = 200) -> None:
        self.bodies: list[dict[str, Any]] = []
        self._most, self._base64, self._status = most, base64, status

    async def embed(self, body: bytes, timeout: float | None) -> WireResponse:
        asked = json.loads(body)
        self.bodies.append(asked)
        if self._status != 200:
            return WireResponse(self._status, {}, b"{}")
        if asked["encoding_format"] == "base64" and not self._base64:
            return WireResponse(400, {}, b'{"detail": "encoding_format is not supported"}')
        texts = asked["input"]
        if len(texts) > self._most or any("bad" in text for text in texts):
            return WireResponse(422, {}, b'{"error": "no"}')
        form = coded if asked["encoding_format"] == "base64" else list
        # Backwards, as nobody says that the order is kept.
        data = [{"index": i, "embedding": form([len(t), 0.5])} for i, t in enumerate(texts)][::-1]
        usage = {"prompt_tokens": sum(map(len, texts)), "total_tokens": 0}
        answer = {"data": data, "model": "m-1", "usage": usage}
        return WireResponse(200, {}, json.dumps(answer).encode())

    def refusal(self, response: WireResponse, model: str) -> EndpointError:
        kind = {429: RateLimited, 503: Overloaded}.get(response.status, Permanent)
        return kind(f"refused {model}", endpoint=self.endpoint, status=response.status)

    def without_secrets(self, response: WireResponse) -> WireResponse:
        return response


def requests(*texts: str, **more: Any) -> list[Request]:
    sampling = Sampling(extra=more)
    return [Request(input=text, sampling=sampling) for text in texts]


def lengths(outcomes: list[Completion | EndpointError]) -> list[int | None]:
    return [
        int(one.vector[0]) if isinstance(one, Completion) and one.vector else None
        for one in outcomes
    ]


async def test_texts_travel_together() -> None:
    server = Server()
    outcomes = await Embedder().ask(server, requests("a", "bbb", "cc", dimensions=2), 1.0)
    assert lengths(outcomes) == [1, 3, 2]
    assert server.bodies == [
        {"model": "m", "input": ["a", "bbb", "cc"], "encoding_format": "base64", "dimensions": 2}
    ]
    first, second, third = outcomes
    assert isinstance(first, Completion)
    assert isinstance(second, Completion)
    assert isinstance(third, Completion)
    assert first.vector == array("f", [1.0, 0.5])
    assert first.model == "m-1"
    assert [one.usage.prompt_tokens for one in (first, second, third)] == [1, 3, 2]
    assert [one.usage.requests for one in (first, second, third)] == [1, 0, 0]


async def test_those_of_another_model_or_setting_go_apart() -> None:
    server = Server()
    mixed = [*requests("a", dimensions=2), *requests("bb", dimensions=3), *requests("ccc")]
    mixed.append(Request(input="dddd", model="other"))
    assert lengths(await Embedder().ask(server, mixed, None)) == [1, 2, 3, 4]
    assert sorted(body["model"] for body in server.bodies) == ["m", "m", "m", "other"]


@pytest.mark.parametrize("bad", [[0], [7], [3, 4], [0, 15], list(range(16))])
async def test_bad_texts_fail_alone(bad: list[int]) -> None:
    server = Server()
    texts = [("bad" if i in bad else "") + "x" * (i + 1) for i in range(16)]
    outcomes = await Embedder().ask(server, requests(*texts), None)
    assert lengths(outcomes) == [None if i in bad else i + 1 for i in range(16)]
    errors = [one for one in outcomes if isinstance(one, EndpointError)]
    assert len({id(error) for error in errors}) == len(bad)
    if len(bad) == 1:
        assert len(server.bodies) <= 9  # 1, then two for each halving


async def test_a_call_too_long_for_the_server_is_shorter_the_next_time() -> None:
    server, embedder = Server(most=5), Embedder()
    texts = requests(*(["x"] * 16))
    assert lengths(await embedder.ask(server, texts, None)) == [1] * 16
    before = len(server.bodies)
    assert lengths(await embedder.ask(server, texts, None)) == [1] * 16
    assert {len(body["input"]) for body in server.bodies[before:]} == {4}


async def test_a_server_without_base64_gets_numbers_from_then_on() -> None:
    server, embedder = Server(base64=False), Embedder()
    for _ in range(2):
        assert lengths(await embedder.ask(server, requests("a", "bb"), None)) == [1, 2]
    assert [body["encoding_format"] for body in server.bodies] == ["base64", "float", "float"]


async def test_a_format_that_is_asked_for_is_kept() -> None:
    server = Server()
    await Embedder().ask(server, requests("a", encoding_format="float"), None)
    assert server.bodies[0]["encoding_format"] == "float"


@pytest.mark.parametrize("status", [429, 503, 404])
async def test_what_is_wrong_with_the_server_is_everybodys_error(status: int) -> None:
    server = Server(status=status)
    outcomes = await Embedder().ask(server, requests("a", "b", "c"), None)
    assert len(server.bodies) == 1
    assert [type(one) for one in outcomes] == [type(outcomes[0])] * 3
    assert len({id(one) for one in outcomes}) == 3


def parsed(body: Any, texts: list[str]) -> list[Completion | EndpointError]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse_embeddings(WireResponse(200, {}, data), endpoint="http://x/v1", texts=texts)


def test_an_embedding_that_is_missing_is_its_texts_error() -> None:
    body = {"data": [{"index": 1, "embedding": [1.0]}, {"index": 2, "embedding": []}]}
    outcomes = parsed(body, ["a", "b", "c"])
    assert [type(one) for one in outcomes] == [Transient, Completion, Transient]


@pytest.mark.parametrize(
    "body",
    [b"<html>", b"[]", b"null", {}, {"data": None}, {"data": [{"embedding": "no base64!"}]},
     {"data": [{"embedding": "AAA="}]}, {"data": [{"embedding": ["a"]}]}, {"data": [{}]},
     {"data": [{"embedding": [1.0], "index": "x"}]}],
)  # fmt: skip
def test_what_is_no_embedding_may_pass(body: Any) -> None:
    with pytest.raises(Transient, match="answered 200"):
        parsed(body, ["a"])


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_both_formats_are_the_same_vector(vector: list[float]) -> None:
    found = [
        parsed({"data": [{"index": 0, "embedding": embedding}]}, ["a"])[0]
        for embedding in (vector, coded(vector))
    ]
    first, second = found
    assert isinstance(first, Completion)
    assert isinstance(second, Completion)
    assert first.vector == second.vector == array("f", vector)


def test_a_request_for_an_embedding_is_known_by_its_text_and_settings() -> None:
    one, same = Request(input="a"), Request(input="a")
    assert one.digest() == same.digest()
    others = [
        Request(input="b"),
        Request(prompt="a"),
        Request(input="a", model="m"),
        Request(input="a", sampling=Sampling(extra={"dimensions": 8})),
        Request([{"role": "user", "content": "a"}]),
    ]
    assert len({request.digest() for request in (one, *others)}) == 6
