"""`NodeResult` goes through LangGraph's checkpoints whole."""

from __future__ import annotations

import inspect
import json
import pickle
from typing import Any

import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from pydantic import BaseModel

from scaleinfer import (
    JournalError,
    Overloaded,
    Permanent,
    PromptError,
    Result,
    SchemaError,
    WorkerLost,
)
from scaleinfer.langgraph import NodeResult
from scaleinfer.results import Usage


def serializer(*allowed: type) -> JsonPlusSerializer:
    """Return LangGraph's serialiser, let in what may be; the first versions let in all."""
    if "allowed_msgpack_modules" not in inspect.signature(JsonPlusSerializer).parameters:
        return JsonPlusSerializer()
    return JsonPlusSerializer(allowed_msgpack_modules=allowed or None)


class Answer(BaseModel):
    soluble: bool


RESULTS = [
    Result("k", 3, item={"smiles": "CCO"}, ok=True, text="yes", value="yes",
           usage=Usage(5, 2, 1, 1), cost_usd=0.25, attempts=2, latency_s=0.5,
           endpoint="http://x/v1", model="m", finish_reason="stop", resumed=True),
    Result("k", 0, ok=True, value={"a": 1}, tool_calls=[{"id": "1"}], choices=["a", "b"]),
    Result("k", 1, error=PromptError("no field", index=1, key="k", hint="give it")),
    Result("k", 2, error=Overloaded("busy", endpoint="http://x", status=503, retry_after=2.0)),
    Result("k", 2, error=Permanent("no", body="b", fatal=True, reached=False)),
    Result("k", 2, error=SchemaError("bad", text="{")),
    Result("k", 2, error=JournalError("locked", path="/a", reason="locked")),
    Result("k", 2, error=WorkerLost("gone")),
]  # fmt: skip


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: repr(result.error or result.value))
def test_a_checkpoint_keeps_all_of_it(result: Result) -> None:
    taken = NodeResult.of(result)
    strict = serializer(NodeResult)
    [back] = strict.loads_typed(strict.dumps_typed([taken]))
    assert type(back) is NodeResult
    fields = {name: getattr(back, name) for name in Result.__dataclass_fields__}
    error, before = fields.pop("error"), result.error
    assert type(error) is type(before)
    if error is not None and before is not None:
        assert error.to_dict() == before.to_dict()
    assert isinstance(back.usage, Usage)
    assert fields == {name: getattr(result, name) for name in fields}
    assert isinstance(back, Result)


def test_a_typed_value_comes_back_typed() -> None:
    strict = serializer(NodeResult, Answer)
    taken = NodeResult.of(Result("k", 0, ok=True, text="{}", value=Answer(soluble=True)))
    [back] = strict.loads_typed(strict.dumps_typed([taken]))
    assert back.value == Answer(soluble=True)


def test_it_is_written_as_plain_data() -> None:
    # What LangGraph hands out in place of a class that it does not let in.
    written = NodeResult.of(RESULTS[2])._asdict()
    assert json.loads(json.dumps(written)) == written == {
        "key": "k", "index": 1,
        "error": {"type": "PromptError", "message": "no field", "hint": "give it", "index": 1,
                  "key": "k"},
    }  # fmt: skip
    again = NodeResult(**written).error
    assert isinstance(again, PromptError)
    assert again.to_dict() == written["error"]


def test_it_pickles() -> None:
    taken: Any = NodeResult.of(RESULTS[0])
    assert pickle.loads(pickle.dumps(taken)) == taken
