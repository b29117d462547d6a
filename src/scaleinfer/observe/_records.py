"""Structured logs: records that say in fields which run, item and attempt they are of."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaleinfer.observe._record import Place
    from scaleinfer.observe._sinks import RunFacts
    from scaleinfer.observe._snapshot import Snapshot
    from scaleinfer.requests import Request
    from scaleinfer.results import Attempt

__all__ = ["JsonFormatter", "Records"]

_A_SECOND = 100
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Records:
    """A record for each run's start and end, and for its calls.

    Calls that failed are of level WARNING, others of level DEBUG. At most 100 a second are
    written; how many were left out is in the field `left_out` of the next.

    Args:
        facts: The run.
        error_texts: True to keep the messages of errors.
    """

    def __init__(self, facts: RunFacts, *, error_texts: bool = False) -> None:
        self._runs = logging.getLogger("scaleinfer.runs")
        self._calls = logging.getLogger("scaleinfer.calls")
        self._error_texts = error_texts
        self._run = {"run": facts.id, "run_name": facts.name, "journal_run": facts.journal_run}
        self._second = 0.0
        self._written = self._left_out = 0
        self._runs.info(
            "run %s begins", facts.name or facts.id,
            extra=self._run | {"model": facts.model, "items": facts.items},
        )  # fmt: skip

    def attempted(self, index: int, key: str, request: Request, attempt: Attempt) -> None:
        """Write a call down, if anybody wants to know and there were not too many."""
        good = attempt.status == "ok"
        level = logging.DEBUG if good else logging.WARNING
        if not self._calls.isEnabledFor(level) or not self._allowed():
            return
        extra: dict[str, Any] = self._run | {
            "item": index,
            "key": key,
            "attempt": attempt.number,
            "endpoint": attempt.endpoint,
            "model": attempt.model or request.model,
            "status": attempt.status,
            "http_status": attempt.http_status,
            "latency_s": round(attempt.latency_s, 4),
            "prompt_tokens": attempt.prompt_tokens,
            "completion_tokens": attempt.completion_tokens,
            "cost_usd": attempt.cost_usd,
        }
        if self._left_out:
            extra["left_out"], self._left_out = self._left_out, 0
        if self._error_texts and attempt.error:
            extra["error"] = attempt.error
        self._calls.log(
            level, "item %d, attempt %d at %s: %s", index, attempt.number, attempt.endpoint,
            attempt.status, extra=extra,
        )  # fmt: skip

    def tick(self, snapshot: Snapshot, places: Sequence[Place]) -> None:
        """Do nothing: progress has its own lines."""

    def close(self, snapshot: Snapshot, stopped: str) -> None:
        """Write down how the run ended."""
        extra = self._run | {
            "done": snapshot.done,
            "ok": snapshot.ok,
            "failed": snapshot.failed,
            "resumed": snapshot.resumed,
            "prompt_tokens": snapshot.prompt_tokens,
            "completion_tokens": snapshot.completion_tokens,
            "cost_usd": snapshot.cost_usd,
            "elapsed_s": round(snapshot.elapsed_s, 3),
            "left_out": self._left_out,
        }
        if stopped and self._error_texts:
            extra["stopped"] = stopped
        how = "was stopped" if stopped else "has ended"
        level = logging.WARNING if stopped else logging.INFO
        self._runs.log(level, "run %s %s", self._run["run_name"] or self._run["run"], how,
                       extra=extra)  # fmt: skip

    def _allowed(self) -> bool:
        now = time.monotonic()
        if now - self._second >= 1.0:
            self._second, self._written = now, 0
        self._written += 1
        if self._written > _A_SECOND:
            self._left_out += 1
            return False
        return True


class JsonFormatter(logging.Formatter):
    """Writes any log record as a line of JSON, with all of its extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        data: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        data |= {name: value for name, value in vars(record).items() if name not in _OWN}
        if record.exc_info:
            data["exception"] = self.formatException(record.exc_info)
        data = {name: value for name, value in data.items() if value is not None}
        try:
            return orjson.dumps(data, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
        except (TypeError, ValueError):  # a lone surrogate, or a number beyond 64 bits
            plain = {str(name): ascii(value) for name, value in data.items()}
            return orjson.dumps(plain).decode()
