"""What the embedded engine reads from its runtime, which is another thread's work."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from scaleinfer.backends._local_engine import Job, _read

if TYPE_CHECKING:
    from collections.abc import Sequence


class Handle:
    """A request in the runtime: its status, and outputs of (token, finish reason)."""

    def __init__(self) -> None:
        self.status = "RUNNING"
        self.outputs: list[tuple[Sequence[int], str]] = []

    def get_status(self) -> Any:
        return SimpleNamespace(name=self.status)

    def can_read(self) -> bool:
        return bool(self.outputs)

    def read(self) -> dict[int, Any]:
        tokens, reason = self.outputs.pop(0)
        return {
            0: SimpleNamespace(
                generated_ids=list(tokens),
                generated_log_probs=[0.0] * len(tokens),
                finish_reason=SimpleNamespace(name=reason),
            )
        }


def started() -> tuple[Job, Handle]:
    job, handle = Job([1], {}), Handle()
    job._handle = handle
    return job, handle


def test_last_token_may_come_after_the_status() -> None:
    job, handle = started()
    handle.outputs = [((5,), "NONE"), ((6,), "NONE")]
    handle.status = "FINISHED"
    assert not _read(job)
    handle.outputs = [((7,), "LENGTH")]
    assert _read(job)
    assert job._result.token_ids == [5, 6, 7]
    assert job._result.finish_reason == "length"


def test_running_job_is_not_done() -> None:
    job, handle = started()
    handle.outputs = [((5,), "NONE")]
    assert not _read(job)
    handle.status = "FINISHED"
    handle.outputs.append(((2,), "STOP"))
    assert _read(job)
    assert job._result.token_ids == [5, 2]
    assert job._result.finish_reason == "stop"


def test_refused_job_is_done_without_a_token() -> None:
    job, handle = started()
    handle.status = "IGNORED"
    assert _read(job)
