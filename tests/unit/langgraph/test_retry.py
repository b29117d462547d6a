"""`retry_policy`: nothing is tried again that the map has tried as often as it may."""

from __future__ import annotations

from typing import Any

import pytest
from langgraph.types import RetryPolicy

from scaleinfer import (
    AuthError,
    BudgetExceeded,
    ConfigError,
    EndpointError,
    JournalError,
    Overloaded,
    Permanent,
    PromptError,
    RateLimited,
    ScaleInferError,
    SchemaError,
    Starting,
    Transient,
    WorkerLost,
)
from scaleinfer.errors import RunStopped
from scaleinfer.langgraph import retry_policy

WORTH_IT: list[Exception] = [
    Starting("loading"),
    WorkerLost("gone"),
    JournalError("somebody writes it", reason="locked"),
]
NOT_WORTH_IT: list[Exception] = [
    *(
        kind("no")
        for kind in (
            AuthError, BudgetExceeded, ConfigError, Overloaded, Permanent, PromptError,
            RateLimited, RunStopped, SchemaError, Transient, ScaleInferError,
        )
    ),
    *(JournalError("no", reason=reason) for reason in ("foreign", "damaged", "full", "io")),
]  # fmt: skip


def retried(error: Exception, **options: Any) -> bool:
    policy = retry_policy(**options)
    assert callable(policy.retry_on)
    return bool(policy.retry_on(error))


@pytest.mark.parametrize("error", WORTH_IT, ids=repr)
def test_what_passes_by_itself_is_worth_another_run(error: Exception) -> None:
    assert retried(error)


@pytest.mark.parametrize("error", NOT_WORTH_IT, ids=repr)
def test_what_the_map_has_tried_again_is_not(error: Exception) -> None:
    assert not retried(error)


def test_every_error_is_judged() -> None:
    def tree(kind: type) -> set[type]:
        return {kind}.union(*map(tree, kind.__subclasses__()))

    judged = {type(error) for error in [*WORTH_IT, *NOT_WORTH_IT]}
    public = {kind for kind in tree(ScaleInferError) if kind.__module__ == "scaleinfer.errors"}
    assert public - judged == {EndpointError}  # only its subclasses are raised


def test_others_are_judged_by_langgraph() -> None:
    default = RetryPolicy().retry_on
    assert callable(default)
    for error in (ConnectionError("reset"), ValueError("no"), Exception("any")):
        assert retried(error) is default(error)
    assert not retried(ValueError("no"))
    assert retried(ValueError("no"), also=[ValueError])


def test_it_is_a_policy() -> None:
    policy = retry_policy(max_attempts=5, initial_interval=0.1, jitter=False)
    assert isinstance(policy, RetryPolicy)
    assert (policy.max_attempts, policy.initial_interval, policy.jitter) == (5, 0.1, False)
