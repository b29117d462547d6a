"""The adapter against a scripted wire: what it sends, and what it makes of the answers."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.backends import OpenAIBackend
from scaleinfer.backends import openai as room
from scaleinfer.backends._request_body import BodyWriter, request_body
from scaleinfer.backends._wire import Failure, WireError, WireResponse, is_loopback
from scaleinfer.errors import (
    AuthError,
    ConfigError,
    EndpointError,
    Permanent,
    RateLimited,
    Transient,
)
from scaleinfer.requests import Request, Sampling
from scaleinfer.results import Completion, Load, RateState

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

    def __init__(self, url: str, *, kind: str) -> None:
        type(self).opened += 1

    async def post(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        timeout: float | None,
        on_body: Any = None,
    ) -> WireResponse:
        self.sent.append((url, json.loads(body), headers, timeout))
        return self._next()

    async def get(
        self,
        url: str,
        headers: Mapping[str, str],
        timeout: float,
    ) -> WireResponse:
        self.sent.append((url, {}, headers, timeout))
        return self._next()

    async def aclose(self) -> None:
        type(self).closed += 1

    def _next(self) -> WireResponse:
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(step, WireError):
            raise step
        status, body, *headers = step
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return WireResponse(status, headers[0] if headers else {}, data)


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> type[ScriptedWire]:
    class Wire(ScriptedWire):
        script: list[Any] = [(200, ANSWER)]  # noqa: RUF012 - one wire class for each test
        sent: list[Any] = []  # noqa: RUF012

    monkeypatch.setattr(room, "open_wire", Wire)
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


async def test_a_load_report_is_asked_for_and_read(wire: type[ScriptedWire]) -> None:
    headers = {
        "endpoint-load-metrics": 'JSON {"named_metrics": {"num_requests_waiting": 2.0}}',
        "x-ratelimit-remaining-requests": "5",
    }
    wire.script[:] = [(200, ANSWER, headers)]
    async with OpenAIBackend(URL, model="m") as backend:
        completion = await backend.complete(Request(CHAT))
    assert completion.load == Load(waiting=2)
    assert completion.rate == RateState(remaining_requests=5)
    async with OpenAIBackend(URL, model="m", load_reports=False) as backend:
        await backend.complete(Request(CHAT))
    asked = [headers.get("endpoint-load-metrics-format") for _, _, headers, _ in wire.sent]
    assert asked == ["JSON", None]


async def test_query_and_timeout_of_its_own(wire: type[ScriptedWire]) -> None:
    async with OpenAIBackend(URL, model="m", query={"v": "1 2"}, timeout=5) as backend:
        for given in (None, 3, 9):
            await backend.complete(Request(CHAT), timeout=given)
    assert [timeout for _, _, _, timeout in wire.sent] == [5, 3, 5]
    assert {url for url, _, _, _ in wire.sent} == {f"{URL}/chat/completions?v=1+2"}


async def test_bodies_of_one_kind_after_another(wire: type[ScriptedWire]) -> None:
    warm, cold = Sampling(temperature=1.0), Sampling(extra={"top_k": 1})
    requests = [
        Request(CHAT, sampling=warm),
        Request(CHAT, sampling=cold),
        Request(CHAT, sampling=warm, model="other"),
        Request(CHAT),
        Request([{"role": "user", "content": {1: 2}}]),
    ]
    async with OpenAIBackend(URL, model="m") as backend:
        for request in requests:
            await backend.complete(request)
    assert [body for _, body, _, _ in wire.sent] == [
        {"model": "m", "messages": CHAT, "temperature": 1.0},
        {"model": "m", "messages": CHAT, "top_k": 1},
        {"model": "other", "messages": CHAT, "temperature": 1.0},
        {"model": "m", "messages": CHAT},
        {"model": "m", "messages": [{"role": "user", "content": {"1": 2}}]},
    ]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([None, 0.0, 0.7]),
            st.sampled_from([None, "a", ["a", "b"]]),
            st.dictionaries(st.sampled_from(["top_k", "tools", "temperature"]), st.integers(0, 9)),
            st.sampled_from([None, SCHEMA, FREE]),
            st.sampled_from([None, "other"]),
            st.booleans(),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_a_written_body_is_the_body(kinds: list[Any]) -> None:
    writer = BodyWriter()
    for temperature, stop, extra, schema, model, chat in kinds:
        sampling = Sampling(temperature=temperature, stop=stop, extra=extra)
        asked: Any = {"messages": CHAT} if chat else {"prompt": "Once"}
        request = Request(**asked, sampling=sampling, schema=schema, model=model)
        assert json.loads(writer.write(request, "m")) == request_body(request, "m")


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


class Turns:
    """A provider of keys that change with every call."""

    def __init__(self, *keys: Any) -> None:
        self.keys, self.calls = list(keys), 0

    def __call__(self) -> Any:
        self.calls += 1
        key = self.keys.pop(0) if len(self.keys) > 1 else self.keys[0]
        if isinstance(key, Exception):
            raise key
        return key

    async def later(self) -> Any:
        return self()


def keys_sent(wire: type[ScriptedWire]) -> list[str | None]:
    return [headers.get("Authorization") for _, _, headers, _ in wire.sent]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_key_that_changes_is_asked_for_once_a_second(
    wire: type[ScriptedWire], asynchronous: bool
) -> None:
    turns = Turns("first-key", "second-key", "third-key")
    provider = turns.later if asynchronous else turns
    async with OpenAIBackend(URL, model="m", api_key=provider) as backend:
        await asyncio.gather(*(backend.complete(Request(CHAT)) for _ in range(20)))
        assert turns.calls == 1
        # Refused, the key is renewed and the call made once more.
        wire.script[:] = [(401, b"{}"), (200, ANSWER)]
        await backend.complete(Request(CHAT))
        assert turns.calls == 2
    assert keys_sent(wire) == ["Bearer first-key"] * 21 + ["Bearer second-key"]


async def test_a_key_refused_although_it_is_new(wire: type[ScriptedWire]) -> None:
    refusal = (401, {"error": {"message": "the key only-key-there-is is wrong"}})
    wire.script[:] = [refusal]
    turns = Turns("only-key-there-is")
    async with OpenAIBackend(URL, model="m", api_key=turns) as backend:
        with pytest.raises(AuthError) as caught:
            await backend.complete(Request(CHAT))
    assert caught.value.fatal
    assert "only-key-there-is" not in str(caught.value)
    assert len(wire.sent) == 1
    assert turns.calls == 2


async def test_a_provider_that_raises(wire: type[ScriptedWire]) -> None:
    turns = Turns(RuntimeError("az login first"), "a-later-key")
    async with OpenAIBackend(URL, model="m", api_key=turns) as backend:
        with pytest.raises(Transient, match="raised RuntimeError: az login first"):
            await backend.complete(Request(CHAT))
        await backend.complete(Request(CHAT))
    assert keys_sent(wire) == ["Bearer a-later-key"]
    async with OpenAIBackend(URL, model="m", api_key=Turns(7)) as backend:
        with pytest.raises(ConfigError, match="must be a string"):
            await backend.complete(Request(CHAT))


def pack_of(n: int, *, texts: str = "abcdefgh", usage: Any = None) -> dict[str, Any]:
    choices = [{"index": i, "text": texts[i] * (i + 1), "finish_reason": "stop"} for i in range(n)]
    return {"model": "m", "choices": choices[::-1], "usage": usage}


PROMPTS = ["one", "three", "two"]
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


def asking(*prompts: str, **sampling: Any) -> list[Request]:
    return [Request(prompt=prompt, sampling=Sampling(**sampling)) for prompt in prompts]


def answers(outcomes: list[Completion | EndpointError]) -> list[Completion]:
    return [outcome for outcome in outcomes if isinstance(outcome, Completion)]


async def test_prompts_go_together_and_come_back_apart(wire: type[ScriptedWire]) -> None:
    wire.script[:] = [
        (200, pack_of(3, usage=USAGE), {"endpoint-load-metrics": "num_requests_waiting=1"})
    ]
    async with OpenAIBackend(URL, model="m", packing=16) as backend:
        outcomes = answers(await backend.complete_many(asking(*PROMPTS, max_tokens=5), timeout=3))
    ((url, body, _, timeout),) = wire.sent
    assert url == f"{URL}/completions"
    assert body == {"model": "m", "prompt": PROMPTS, "max_tokens": 5}
    assert timeout == 3
    assert [outcome.text for outcome in outcomes] == ["a", "bb", "ccc"]
    usages = [outcome.usage for outcome in outcomes]
    assert sum(usage.prompt_tokens for usage in usages) == 11
    assert sum(usage.completion_tokens for usage in usages) == 7
    assert [usage.requests for usage in usages] == [1, 0, 0]
    assert {outcome.load for outcome in outcomes} == {Load(waiting=1)}


async def test_several_choices_of_each_prompt(wire: type[ScriptedWire]) -> None:
    wire.script[:] = [(200, pack_of(6))]
    async with OpenAIBackend(URL, model="m", packing=16) as backend:
        outcomes = answers(await backend.complete_many(asking(*PROMPTS, n=2)))
    assert [outcome.choices for outcome in outcomes] == [
        ["a", "bb"],
        ["ccc", "dddd"],
        ["eeeee", "ffffff"],
    ]


async def test_a_prompt_without_its_choice_is_that_prompts_fault(wire: type[ScriptedWire]) -> None:
    body = pack_of(3, usage=USAGE)
    del body["choices"][1]
    wire.script[:] = [(200, body)]
    async with OpenAIBackend(URL, model="m", packing=16) as backend:
        outcomes = await backend.complete_many(asking(*PROMPTS))
    assert isinstance(outcomes[1], Transient)
    assert [outcome.text for outcome in answers(outcomes)] == ["a", "ccc"]
    assert sum(outcome.usage.prompt_tokens for outcome in answers(outcomes)) == 11


async def test_a_pack_refused_for_one_prompt_is_asked_one_by_one(wire: type[ScriptedWire]) -> None:
    long = (400, {"error": {"message": "too long", "code": "context_length_exceeded"}})
    one = (200, pack_of(1))
    wire.script[:] = [long, one, long, one]
    async with OpenAIBackend(URL, model="m", packing=16) as backend:
        outcomes = await backend.complete_many(asking(*PROMPTS))
        assert [type(outcome).__name__ for outcome in outcomes] == [
            "Completion",
            "Permanent",
            "Completion",
        ]
        assert [body["prompt"] for _, body, _, _ in wire.sent] == [PROMPTS, *PROMPTS]
        assert backend.packing == 16


async def test_a_prompt_that_is_no_text_fails_alone(wire: type[ScriptedWire]) -> None:
    wire.script[:] = [(200, pack_of(1))]
    async with OpenAIBackend(URL, model="m", packing=16) as backend:
        first, broken, last = await backend.complete_many(asking("one", "\ud800", "two"))
    assert isinstance(first, Completion)
    assert isinstance(last, Completion)
    assert isinstance(broken, Permanent)
    assert "surrogates" in broken.message
    assert len(wire.sent) == 2
    with pytest.raises(ConfigError, match="not open"):
        await backend.complete_many(asking("one", "two"))


async def test_a_server_that_takes_one_prompt_only_is_found_out(wire: type[ScriptedWire]) -> None:
    wire.script[:] = [(400, {"error": "prompt must be one text"}), (200, pack_of(1))]
    async with OpenAIBackend(URL, model="m", packing=16) as backend:
        assert len(answers(await backend.complete_many(asking(*PROMPTS)))) == 3
        assert backend.packing == 1
        assert len(answers(await backend.complete_many(asking(*PROMPTS)))) == 3
    assert len(wire.sent) == 1 + 3 + 3


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        ((429, b"", {"retry-after": "3"}), RateLimited),
        ((500, b""), Transient),
        ((200, b"{"), Transient),
        ((200, b'{"choices": null}'), Transient),
        ((200, b'{"choices": ["a"]}'), Transient),
        (WireError(Failure.BROKEN, "reset"), Transient),
    ],
)
async def test_what_befalls_a_call_befalls_each_of_its_prompts(
    wire: type[ScriptedWire], step: Any, kind: type[EndpointError]
) -> None:
    wire.script[:] = [step]
    async with OpenAIBackend(URL, model="m", packing=16) as backend:
        outcomes = await backend.complete_many(asking(*PROMPTS))
    assert {type(outcome) for outcome in outcomes} == {kind}
    assert len({id(outcome) for outcome in outcomes}) == 3
    assert len(wire.sent) == 1


async def test_an_empty_answer_within_a_pack_is_judged_as_any_other(
    wire: type[ScriptedWire],
) -> None:
    body = pack_of(3)
    body["choices"][0] |= {"text": "", "finish_reason": "length"}
    body["choices"][1] |= {"text": ""}
    wire.script[:] = [(200, body)]
    async with OpenAIBackend(URL, model="m", packing=16) as backend:
        first, empty, cut = await backend.complete_many(asking(*PROMPTS))
    assert isinstance(first, Completion)
    assert isinstance(empty, Completion)
    assert empty.text == ""
    assert isinstance(cut, Permanent)


async def test_chats_are_asked_side_by_side_whatever_the_packing(wire: type[ScriptedWire]) -> None:
    wire.script[:] = [(200, ANSWER)]
    async with OpenAIBackend(URL, model="m", packing=4) as backend:
        outcomes = await backend.complete_many([Request(CHAT)] * 3)
    assert [outcome.text for outcome in answers(outcomes)] == ["yes"] * 3
    assert len(wire.sent) == 3
    with pytest.raises(ConfigError, match="packing"):
        OpenAIBackend(URL, packing=0)


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


def test_no_key_on_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "from-the-environment")
    assert "Authorization" in OpenAIBackend(URL)._headers
    assert "Authorization" not in OpenAIBackend(URL, api_key="")._headers
    own = OpenAIBackend(URL, headers={"authorization": "Token mine"})
    assert [v for k, v in own._headers.items() if k.lower() == "authorization"] == ["Token mine"]


@pytest.mark.parametrize("url", ["uds:///run/vllm.sock:/v1", "unix:///run/vllm.sock:/v1"])
def test_a_socket_is_an_address(url: str) -> None:
    backend = OpenAIBackend(url, model="m")
    assert backend.endpoint == url
    assert not backend.priced


@pytest.mark.parametrize("url", ["uds://", "uds:///", "uds://host/sock", "uds:///a?b=c"])
def test_what_is_no_socket(url: str) -> None:
    with pytest.raises(ConfigError, match="base_url"):
        OpenAIBackend(url, model="m")


async def test_how_many_calls_it_can_hold(wire: type[ScriptedWire]) -> None:
    backend = OpenAIBackend(URL, model="m")
    assert backend.most_in_flight is None
    async with backend:
        assert backend.most_in_flight is not None
        assert backend.most_in_flight > 0
    async with OpenAIBackend(URL, model="m", wire="http2") as backend:
        assert backend.most_in_flight is None


def test_an_unknown_wire_is_named() -> None:
    with pytest.raises(ConfigError, match="carrier"):
        OpenAIBackend(URL, model="m", wire="carrier")  # type: ignore[arg-type] # on purpose


def test_a_weight_is_positive() -> None:
    with pytest.raises(ConfigError, match="weight"):
        OpenAIBackend(URL, model="m", weight=0)


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
