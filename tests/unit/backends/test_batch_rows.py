"""Lines of input and output files, as OpenAI, vLLM and FIRST write them."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.backends import OpenAIBackend
from scaleinfer.backends._batch_openai import OpenAIBatches, _form, _state
from scaleinfer.backends._batch_rows import answers_in, chunks_of
from scaleinfer.errors import EndpointError, Permanent, PromptError, RateLimited, Transient
from scaleinfer.requests import Request, Sampling
from scaleinfer.results import Completion
from scaleinfer.testing._batch_files import form_parts

WHERE: dict[str, str] = {"endpoint": "http://e/v1", "batch": "b1", "model": "m"}


def batches() -> OpenAIBatches:
    return OpenAIBatches(OpenAIBackend("http://e/v1", model="m"))


def body(text: str = "yes", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    return {"object": "chat.completion", "model": "m-1", "choices": [choice], "usage": usage} | more


def line(response: Any = None, error: Any = None, name: str = "c1") -> bytes:
    return orjson.dumps({"id": "x", "custom_id": name, "response": response, "error": error})


def outcome(data: bytes) -> Any:
    (answer,) = answers_in(data, **WHERE)
    return answer.outcome


def test_an_input_line_is_openais() -> None:
    request = Request([{"role": "user", "content": "hi"}], sampling=Sampling(temperature=0))
    assert orjson.loads(batches().line("c1", request)) == {
        "custom_id": "c1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0,
        },
    }  # fmt: skip
    plain = Request(prompt="once upon", model="other")
    assert orjson.loads(batches().line("c2", plain))["url"] == "/v1/completions"
    assert batches().group(plain) == "/v1/completions other"
    assert batches().group(request) != batches().group(plain)


def test_a_request_that_is_no_json_is_that_items_fault() -> None:
    with pytest.raises(PromptError):
        batches().line("c1", Request([{"role": "user", "content": object()}]))


def test_an_answer_is_read_as_a_calls_would_be() -> None:
    data = line({"status_code": 200, "request_id": "r", "body": body()})
    found = outcome(data)
    assert isinstance(found, Completion)
    assert (found.text, found.model, found.batch) == ("yes", "m-1", "b1")
    assert found.usage.completion_tokens == 1
    plain = {"model": "m", "choices": [{"index": 0, "text": "more"}]}
    assert outcome(line({"status_code": 200, "body": plain})).text == "more"


@pytest.mark.parametrize(
    ("data", "kind", "said"),
    [
        (line(error={"code": "odd", "message": "too odd"}), Transient, "too odd"),
        (line(error="odd"), Transient, "odd"),
        (line({"status_code": 400, "body": {"error": {"message": "bad"}}}), Permanent, "bad"),
        (line({"status_code": 429, "body": {"error": {"message": "slow"}}}), RateLimited, "slow"),
        (line({"status_code": 500, "body": None}), Transient, "500"),
        (line({"status_code": 200, "body": {}}), Transient, "without a completion"),
        (line({"status_code": 200, "body": body("")}), Completion, ""),
        (line({"status_code": 200}), Transient, "without a completion"),
        (b'{"custom_id": "c1", "resp', Transient, "not JSON"),
        (b"[1, 2]", Transient, "not JSON"),
    ],
)
def test_every_kind_of_line(data: bytes, kind: type, said: str) -> None:
    found = outcome(data)
    assert isinstance(found, kind)
    if isinstance(found, EndpointError):
        assert said in str(found)


@given(data=st.binary(max_size=200))
def test_nothing_in_an_output_file_breaks_the_reader(data: bytes) -> None:
    for answer in answers_in(data, **WHERE):
        assert isinstance(answer.custom_id, str)


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers(-9, 600) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["custom_id", "response", "error", "status_code", "body", "choices", "message"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_nor_does_any_json(value: Any) -> None:
    list(answers_in(orjson.dumps(value), **WHERE))


def test_rows_that_were_never_worked_on_are_missing() -> None:
    data = line(error={"code": "batch_expired", "message": "too late"})
    assert list(answers_in(data, **WHERE)) == []


def test_answers_come_in_chunks() -> None:
    data = b"\n".join(line({"status_code": 200, "body": body()}, name=f"c{n}") for n in range(1201))
    sizes = [len(chunk) for chunk in chunks_of(answers_in(data, **WHERE))]
    assert sizes == [500, 500, 201]


def test_an_upload_is_a_form_that_can_be_read() -> None:
    kind, data = _form("t.jsonl", b'{"a": 1}\n')
    parts = {part.name: part for part in form_parts(kind, data)}
    assert parts["purpose"].data == b"batch"
    assert (parts["file"].filename, parts["file"].data) == ("t.jsonl", b'{"a": 1}\n')


def test_states_are_read_with_what_is_missing_in_them() -> None:
    assert _state({"status": "validating"}, "e").phase == "validating"
    full = {
        "status": "failed",
        "errors": {"data": [{"code": "c", "message": "why", "line": 3}]},
        "request_counts": {"total": 9, "completed": 4, "failed": 2},
        "output_file_id": None,
        "error_file_id": "f2",
    }
    state = _state(full, "e")
    assert (state.done, state.total, state.files, state.ended) == (6, 9, ("f2",), True)
    assert state.problems[0] == ("c", "why", 3)
    with pytest.raises(Transient, match="novel"):
        _state({"status": "novel"}, "e")


def test_only_openais_own_service_is_known_to_be_cheaper() -> None:
    assert batches().discount is None
    official = OpenAIBackend(api_key="sk-12345678", model="m").batches()
    assert official is not None
    assert official.discount == 0.5
