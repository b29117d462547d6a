"""The contract between the engine and an endpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    from scaleinfer.requests import Request
    from scaleinfer.results import Completion

__all__ = ["Backend", "EndpointStatus"]


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """What `scaleinfer endpoints` tells about one endpoint.

    Attributes:
        endpoint: Its name, usually a URL without credentials.
        ok: True if it answered as it should.
        detail: One line: what it answered, or what is wrong and what to do.
        models: Models it offers, as far as it tells.
        latency_s: Seconds the check took.
    """

    endpoint: str
    ok: bool
    detail: str
    models: tuple[str, ...] = ()
    latency_s: float = 0.0


class Backend(ABC):
    """An adapter to one endpoint. Knows its dialect, nothing of retries, budgets or items.

    A backend is opened with `async with` (or `open`/`aclose`); opening twice is harmless. One
    instance may serve several maps at once on one event loop.

    Attributes:
        kind: The spec string's first part: `openai`, `local`, ...
        endpoint: Name of the endpoint in results and journals; never holds credentials.
        model: Model asked when a request names none.
        concurrency: Calls in flight that `concurrency="auto"` starts with.
        json_schema: True if the endpoint enforces JSON schemas. If not, the schema is put
            into the prompt instead.
        priced: True if the endpoint's owner may charge for tokens.
    """

    kind: ClassVar[str]
    endpoint: str
    model: str | None = None
    concurrency: int = 64
    json_schema: bool = True
    priced: bool = False

    async def open(self) -> None:  # noqa: B027 - a backend may need nothing
        """Acquire what calls need.

        Raises:
            ConfigError: Something that every call needs is missing.
        """

    async def aclose(self) -> None:  # noqa: B027 - a backend may need nothing
        """Give back what `open` acquired; calls in flight are ended."""

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    @property
    def starting(self) -> bool:
        """True while calls wait for the endpoint to load its model, as far as that is known."""
        return False

    @abstractmethod
    async def complete(self, request: Request, *, timeout: float | None = None) -> Completion:
        """Make one call: no retry, no waiting for a free place.

        Cancelling the awaiting task ends the call at the endpoint too.

        Args:
            request: What to ask. `request.model` overrides `model`.
            timeout: Seconds after which the call is given up as `Transient`.

        Raises:
            EndpointError: The subclass says what the engine should do next.
        """

    @abstractmethod
    async def check(self) -> EndpointStatus:
        """Ask the endpoint whether it would answer; never raises for an endpoint's fault."""
