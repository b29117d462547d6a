from __future__ import annotations

import copy
import inspect
import json
import pickle
import re
from typing import Any

import pytest

from scaleinfer import errors
from scaleinfer.errors import (
    AuthError,
    BudgetExceeded,
    ConfigError,
    EndpointError,
    JournalError,
    Overloaded,
    Permanent,
    PromptError,
    RateLimited,
    RunStopped,
    ScaleInferError,
    SchemaError,
    Starting,
    Transient,
    WorkerLost,
    error_from_dict,
)

ENDPOINT = (EndpointError, RateLimited, Overloaded, Starting, Transient, Permanent, AuthError)
PLAIN = (ScaleInferError, ConfigError, BudgetExceeded, PromptError, RunStopped, WorkerLost)


def filled(cls: type[ScaleInferError]) -> ScaleInferError:
    """Return an error with every field set to something of its own."""
    fields: dict[str, Any] = {"hint": "Do that.", "index": 7, "key": "mol-7"}
    if issubclass(cls, EndpointError):
        fields |= {"endpoint": "http://a/v1", "status": 418, "retry_after": 1.5, "body": "{}"}
        fields |= {"fatal": True, "reached": False}
    if issubclass(cls, JournalError):
        fields |= {"path": "run.db", "reason": "locked"}
    if issubclass(cls, SchemaError):
        fields |= {"text": "no json"}
    return cls("It happened.", **fields)


ALL = [*ENDPOINT, *PLAIN, JournalError, SchemaError]


def test_every_class_is_here_and_in_the_tree_of_the_docstring() -> None:
    classes = {
        cls
        for _, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, ScaleInferError)
    }
    assert classes == set(ALL)
    drawn = set(re.findall(r"[├└]── (\w+)", inspect.getdoc(errors) or ""))
    assert drawn == {cls.__name__ for cls in classes} - {"ScaleInferError"}
    assert {cls.__name__ for cls in classes} < set(errors.__all__)


@pytest.mark.parametrize("cls", ENDPOINT[1:])
def test_one_except_catches_all_that_an_endpoint_does(cls: type[EndpointError]) -> None:
    assert cls.__bases__ == (EndpointError,)


@pytest.mark.parametrize("cls", ALL)
def test_pickle_and_copy_keep_type_fields_and_text(cls: type[ScaleInferError]) -> None:
    error = filled(cls)
    error.add_note("seen on node 3")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is cls
        assert vars(twin) == vars(error)
        assert str(twin) == str(error)
        assert twin.args == error.args


@pytest.mark.parametrize("cls", ALL)
def test_plain_json_and_back(cls: type[ScaleInferError]) -> None:
    error = filled(cls)
    data = json.loads(json.dumps(error.to_dict()))
    twin = error_from_dict(data)
    assert type(twin) is cls
    assert vars(twin) == vars(error)
    bare = cls("It happened.")
    assert vars(error_from_dict(bare.to_dict())) == vars(bare)


def test_every_field_travels() -> None:
    for cls in ALL:
        accepted = set(inspect.signature(cls).parameters)
        assert accepted == set(cls._fields), f"{cls.__name__} loses a field in to_dict"


def test_what_a_newer_version_wrote_is_read_as_far_as_possible() -> None:
    error = error_from_dict({"type": "Novel", "message": "new", "index": 3, "shade": "blue"})
    assert type(error) is ScaleInferError
    assert (error.message, error.index) == ("new", 3)
    assert str(error_from_dict({})) == ""


def test_text_names_the_item_and_says_what_to_do() -> None:
    assert str(filled(PromptError)) == "item 7: It happened. Do that."
    assert str(PromptError("It happened.")) == "It happened."
    assert str(PromptError("It happened.", index=0)) == "item 0: It happened."


def test_only_the_start_of_a_body_is_kept() -> None:
    assert len(Transient("x", body="y" * 10_000).body) == 500
