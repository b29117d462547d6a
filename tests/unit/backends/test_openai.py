"""The adapter against a scripted wire: what it sends, and what it makes of the answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from scaleinfer.backends import OpenAIBackend
from scaleinfer.backends import openai as room
from scaleinfer.backends._wire import Failure, WireError, WireResponse, is_loopback
from scaleinfer.errors import ConfigError, Permanent, Transient
from scaleinfer.requests import Request, Sampling

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.anyio

URL = "http://127.0.0.1:9/v1"
CHAT = [{"role": "user", "content": "Is it?"}]
ANSWER = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}], "model": "m"}
SCHEMA = {"type": "object", "properties": {}, "additionalProperties": False}
FREE = {"type": "object", "additionalProperties": {"type": "integer"}}


class ScriptedWire:
    """Answers from a list, and remembers what was sent."""

    script: list[Any]
    sent: list[tuple[str, dict[str, Any], Mapping[str, str], float | None]]
    opened = closed = 0

    def __init__(self, url: str) -> None:
        type(self).opened += 1

    async def post(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        timeout: float | None,  # noqa: ASYNC109 - the wire's own
    ) -> WireResponse:
        self.sent.append((url, json.loads(body), headers, timeout))
        return self._next()

    async def get(
        self,
        url: str,
        headers: Mapping[str, str],
        timeout: float,  # noqa: ASYNC109 - the wire's own
    ) -> WireResponse:
        self.sent.append((url, {}, headers, timeout))
        return self._next()

    async def aclose(self) -> None:
        type(self).closed += 1

    def _next(self) -> WireResponse:
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(step, WireError):
            raise step
        status, body = step
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return WireResponse(status, {}, data)


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> type[ScriptedWire]:
    class Wire(ScriptedWire):
        script: list[Any] = [(200, ANSWER)]  # noqa: RUF012 - one wire class for each test
        sent: list[Any] = []  # noqa: RUF012

    monkeypatch.setattr(room, "AiohttpWire", Wire)
    return Wire


async def test_a_chat_as_it_is_sent(wire: type[ScriptedWire]) -> None:
    backend = OpenAIBackend(URL, api_key="secret", model="m", headers={"X-Team": "t"})
    sampling = Sampling(temperature=0.0, max_tokens=5, extra={"tools": [{"type": "function"}]})
    async with backend:
        completion = await backend.complete(Request(CHAT, sampling=sampling), timeout=3)
    assert completion.text == "yes"
    ((url, body, headers, timeout),) = wire.sent
    assert (url, timeout) == (f"{URL}/chat/completions", 3)
    assert body == {
        "model": "m",
        "messages": CHAT,
        "temperature": 0.0,
        "max_tokens": 5,
        "tools": [{"type": "function"}],
    }
    assert headers["Authorization"] == "Bearer secret"
    assert headers["X-Team"] == "t"


async def test_a_completion_and_another_model(wire: type[ScriptedWire]) -> None:
    wire.script[:] = [(200, {"choices": [{"text": "upon", "finish_reason": "stop"}]})]
    async with OpenAIBackend(URL, model="m") as backend:
        completion = await backend.complete(Request(prompt="Once", model="big"))
    assert completion.text == "upon"
    ((url, body, headers, _),) = wire.sent
    assert url == f"{URL}/completions"
    assert body == {"model": "big", "prompt": "Once"}
    assert "Authorization" not in headers


@pytest.mark.parametrize(("schema", "strict"), [(SCHEMA, True), (FREE, False)])
async def test_a_schema_is_asked_of_the_server(
    wire: type[ScriptedWire], schema: dict[str, Any], strict: bool
) -> None:
    async with OpenAIBackend(URL, model="m") as backend:
        await backend.complete(Request(CHAT, schema=schema, schema_name="Answer"))
    asked = wire.sent[0][1]["response_format"]
    inner = {"name": "Answer", "schema": schema, "strict": strict}
    assert asked == {"type": "json_schema", "json_schema": inner}


@pytest.mark.parametrize("status", [400, 422])
async def test_a_server_that_refuses_schemas_is_told_in_words(
    wire: type[ScriptedWire], status: int
) -> None:
    refusal = (status, {"error": {"message": "Unrecognized argument: response_format"}})
    wire.script[:] = [refusal, (200, ANSWER)]
    async with OpenAIBackend(URL, model="m") as backend:
        for _ in range(2):
            await backend.complete(Request(CHAT, schema=SCHEMA))
    assert not backend.json_schema
    first, again, second = (body for _, body, _, _ in wire.sent)
    assert "response_format" in first
    for body in (again, second):
        assert "response_format" not in body
        assert json.dumps(SCHEMA) in body["messages"][0]["content"]
    assert CHAT == [{"role": "user", "content": "Is it?"}]


async def test_another_bad_request_is_no_refusal_of_schemas(wire: type[ScriptedWire]) -> None:
    wire.script[:] = [(400, {"error": {"message": "max_tokens is too large"}})]
    async with OpenAIBackend(URL, model="m") as backend:
        with pytest.raises(Permanent, match="too large"):
            await backend.complete(Request(CHAT, schema=SCHEMA))
    assert backend.json_schema
    assert len(wire.sent) == 1


async def test_the_only_model_is_taken(wire: type[ScriptedWire]) -> None:
    wire.script[:] = [(200, {"data": [{"id": "only"}]})]
    async with OpenAIBackend(URL) as backend:
        assert backend.model == "only"


@pytest.mark.parametrize(
    ("models", "said"), [([], "offers none"), (["a", "b"], "offers a, b"), (list("x" * 30), "x")]
)
async def test_no_model_or_too_many(wire: type[ScriptedWire], models: list[str], said: str) -> None:
    wire.script[:] = [(200, {"data": [{"id": model} for model in models]})]
    with pytest.raises(ConfigError, match=f"{said}.*Pass model="):
        await OpenAIBackend(URL).open()
    assert wire.opened == wire.closed == 1


@pytest.mark.parametrize(
    "step",
    [
        (500, b""),
        (404, b"<html>"),
        (200, b"<html>"),
        (200, b"[]"),
        (200, b'{"data": null}'),
        (200, b'{"data": [1]}'),
        WireError(Failure.CONNECT, "refused"),
    ],
)
async def test_whatever_comes_of_opening_nothing_stays_open(
    wire: type[ScriptedWire], step: Any
) -> None:
    wire.script[:] = [step]
    with pytest.raises((Permanent, Transient)):
        await OpenAIBackend(URL).open()
    assert wire.opened == wire.closed == 1
    status = await OpenAIBackend(URL).check()
    assert not status.ok
    assert URL in status.detail
    assert wire.opened == wire.closed == 2


async def test_opened_twice_it_is_closed_with_the_last_user(wire: type[ScriptedWire]) -> None:
    backend = OpenAIBackend(URL, model="m")
    async with backend:
        async with backend:
            await backend.complete(Request(CHAT))
        await backend.complete(Request(CHAT))
        assert (wire.opened, wire.closed) == (1, 0)
    assert (wire.opened, wire.closed) == (1, 1)
    await backend.aclose()
    with pytest.raises(ConfigError, match="not open on this event loop"):
        await backend.complete(Request(CHAT))


async def test_nothing_but_web_pages_is_fatal_after_a_few(wire: type[ScriptedWire]) -> None:
    wire.script[:] = [(200, b"<html>Please sign in</html>")]
    async with OpenAIBackend(URL, model="m") as backend:
        fatal = []
        for _ in range(6):
            with pytest.raises(Transient) as caught:
                await backend.complete(Request(CHAT))
            fatal.append(caught.value.fatal)
    assert fatal == [False] * 4 + [True] * 2


async def test_a_page_now_and_then_is_not_fatal(wire: type[ScriptedWire]) -> None:
    wire.script[:] = [(200, ANSWER), (502, b"<html>"), (200, b"<html>")]
    async with OpenAIBackend(URL, model="m") as backend:
        await backend.complete(Request(CHAT))
        for _ in range(9):
            with pytest.raises(Transient) as caught:
                await backend.complete(Request(CHAT))
            assert not caught.value.fatal


async def test_check_says_what_is_there(wire: type[ScriptedWire]) -> None:
    wire.script[:] = [(200, {"data": [{"id": "a"}, {"id": "b"}]})]
    status = await OpenAIBackend(URL, model="a").check()
    assert status.ok
    assert status.models == ("a", "b")
    assert "2 models" in status.detail
    status = await OpenAIBackend(URL, model="c").check()
    assert not status.ok
    assert "does not offer c" in status.detail


def test_credentials_in_the_address_stay_out_of_the_name() -> None:
    backend = OpenAIBackend("https://user:CANARY@host:8443/v1", api_key="k", model="m")
    assert backend.endpoint == "https://host:8443/v1"
    assert "CANARY" not in repr(backend)
    # aiohttp takes one or the other.
    assert "Authorization" not in backend._headers


def test_a_key_read_from_a_file_may_end_in_a_newline() -> None:
    backend = OpenAIBackend(URL, api_key=" secret\n")
    assert backend._headers["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.1:80/v1", True),
        ("http://localhost/v1", True),
        ("http://[::1]:80/v1", True),
        ("http://10.0.0.1/v1", False),
        ("https://api.openai.com/v1", False),
        ("http://localhost.example.org/v1", False),
    ],
)
def test_this_machine(url: str, loopback: bool) -> None:
    assert is_loopback(url) is loopback
    assert OpenAIBackend(url, api_key="k").priced is not loopback
