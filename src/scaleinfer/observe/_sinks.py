"""`Sink`: what is told of a run as it goes on, and what all of them say of a call alike."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaleinfer.observe._record import Place
    from scaleinfer.observe._snapshot import Snapshot
    from scaleinfer.requests import Request
    from scaleinfer.results import Attempt

__all__ = ["SECONDS", "TOKENS", "RunFacts", "Sink", "error_type", "operation", "server"]

SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
"""Bounds of durations, by the semantic conventions of OpenTelemetry for generative AI."""
TOKENS = (
    1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864,
)  # fmt: skip
"""Bounds of token counts, by the same."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What identifies a run.

    Attributes:
        id: Unlike that of any other run.
        name: Its name; empty if it has none.
        provider: Kind of its first backend.
        model: Model it asks.
        journal_run: Its number in its journal; `None` without one.
        items: Items there are; `None` if that is not known.
    """

    id: str
    name: str = ""
    provider: str = "openai"
    model: str | None = None
    journal_run: int | None = None
    items: int | None = None


class Sink(Protocol):
    """Told of a run as it goes on; cheap, for it is called for every call."""

    def attempted(self, index: int, key: str, request: Request, attempt: Attempt) -> None:
        """A call has ended."""

    def tick(self, snapshot: Snapshot, places: Sequence[Place]) -> None:
        """A moment has gone by."""

    def close(self, snapshot: Snapshot, stopped: str) -> None:
        """The run has ended, if `stopped` is not empty for that reason."""


def operation(request: Request) -> str:
    """Return the kind of a call as `gen_ai.operation.name` has it."""
    if request.messages is not None:
        return "chat"
    return "embeddings" if request.input is not None else "text_completion"


def error_type(attempt: Attempt) -> str | None:
    """Return an error's kind: its HTTP status, else its class; `None` if there is none."""
    if attempt.status == "ok":
        return None
    return attempt.status if attempt.http_status is None else str(attempt.http_status)


@lru_cache(maxsize=4096)
def server(endpoint: str) -> tuple[str, int | None]:
    """Return an endpoint's host, or its name if it has none, and its port."""
    try:
        parts = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
        return parts.hostname or endpoint, parts.port
    except ValueError:
        return endpoint, None
