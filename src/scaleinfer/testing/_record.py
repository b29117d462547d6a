"""One request: while it is in flight, and as the ledger tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Entry", "RequestRecord"]


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request, as the server saw it.

    Attributes:
        prompt: The prompt; the first of several.
        prompts: All prompts, if a plain completion asked several at once.
        attempt: 1 for the first request with this prompt.
        arrived: Unix time at which the request was complete, in seconds.
        started: Unix time at which it got a slot; `None` if it got none, or is in flight.
        finished: Unix time of the answer's last byte, or of the connection's end; `None`
            while the request is in flight.
        model: Model that was asked for.
        status: HTTP status that was sent; `None` if none was.
        fault: Fault that was applied, such as `status 503` or `delay+drop`; empty if none.
        ok: True if a usable answer was written in full.
        aborted: True if the client went away before its answer; not if the server was closed.
        authorised: True if an `Authorization` header came along. Its value is not kept.
        stream: True if the answer was asked for as server-sent events.
        prompt_tokens: Tokens of the prompt, if it was served.
        completion_tokens: Tokens of the answer that was made for it, sent or not.
        cached_tokens: Prompt tokens that came from the prefix cache.
        client: Value of its `x-client` header; empty without one.
        headers: The headers without secrets, names in lower case.
        body: The request's body, if the server was told to keep bodies.
    """

    prompt: str
    prompts: tuple[str, ...]
    attempt: int
    arrived: float
    started: float | None
    finished: float | None
    model: str
    status: int | None
    fault: str
    ok: bool
    aborted: bool
    authorised: bool
    stream: bool
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    client: str
    headers: Mapping[str, str]
    body: bytes | None


class Entry:
    """A request in flight: where the ledger will write what becomes of it."""

    __slots__ = (
        "attempt", "cached_tokens", "client", "completion_tokens", "fault", "prompt_tokens",
        "prompts", "row", "started",
    )  # fmt: skip

    def __init__(self, row: int, prompts: tuple[int, ...], attempt: int, client: str) -> None:
        self.row = row
        self.prompts = prompts
        self.attempt = attempt
        self.client = client
        self.fault = ""
        self.started = 0.0
        self.prompt_tokens = self.completion_tokens = self.cached_tokens = 0
