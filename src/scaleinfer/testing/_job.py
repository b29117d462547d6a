"""A request on its way through the simulated server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from scaleinfer.testing._delivery import NO_ANSWER, End
from scaleinfer.testing._faults import NOTHING
from scaleinfer.testing._view import SECRET_HEADERS, RequestView

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scaleinfer.testing._batched import Work
    from scaleinfer.testing._record import Entry

__all__ = ["WAKE_UP", "Head", "Job", "Output"]


class Head:
    """The head of a request. The same ones come again and again, so they are parsed once.

    Attributes:
        method: `POST`, `GET`, ...
        path: Without the query.
        query: What came after the path's question mark.
        headers: By name in lower case, without secrets.
        kept: The same for the ledger: without the body's length.
        authorization: Value of the Authorization header; never kept elsewhere.
        client: Value of its `x-client` header, by which the ledger tells clients apart.
        keep_alive: False if the connection is to be closed after the answer.
    """

    __slots__ = (
        "authorization", "client", "headers", "keep_alive", "kept", "method", "path", "query",
    )  # fmt: skip

    def __init__(
        self,
        method: str,
        path: str,
        headers: Iterable[tuple[bytes, bytes]] = (),
        *,
        keep_alive: bool = True,
    ) -> None:
        texts = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
        self.method = method
        self.path = path
        self.query = ""
        self.authorization = texts.get("authorization")
        self.client = texts.get("x-client", "")
        self.headers = {k: v for k, v in texts.items() if k not in SECRET_HEADERS}
        self.kept = tuple((k, v) for k, v in self.headers.items() if k != "content-length")
        self.keep_alive = keep_alive


class Job:
    """One request on its way through the server.

    Attributes:
        client: Whatever the shell wants to find again: the connection.
        due: When `Service.advance` has something to do; `None` while it waits for a slot.
        trapped: The connection is to be closed when the next request arrives.
        done: It has its end.
        work: What the batch does for it, if the server batches.
        reserved: Tokens that a rate limit has taken for it.
    """

    # Defaults of the class: most of them stay, and setting each would cost more than the rest.
    verdict = NOTHING
    delivery = NO_ANSWER
    due: float | None = None
    started = 0.0
    sent = 0
    served = False
    trapped = False
    done = False
    work: Work | None = None
    reserved = 0

    def __init__(
        self, client: Any, view: RequestView, entry: Entry | None, keep_alive: bool
    ) -> None:
        self.client = client
        self.view = view
        self.entry = entry
        self.keep_alive = keep_alive


WAKE_UP = Job(None, RequestView("", {}), None, keep_alive=True)
"""Stands for no request: among the timers it only makes the service be asked at its time."""
WAKE_UP.done = True

Output: TypeAlias = tuple[bytes, End | None]
"""What the shell is to do for a job now: write the bytes; at an end, act on it."""
