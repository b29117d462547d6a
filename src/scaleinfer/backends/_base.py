"""The contract between the engine and an endpoint."""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, Self

from scaleinfer.errors import ConfigError, EndpointError, Permanent

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from scaleinfer.backends._batch_base import BatchBackend
    from scaleinfer.engine import RateLimit
    from scaleinfer.requests import Request
    from scaleinfer.results import Completion

__all__ = ["Backend", "EndpointStatus", "Follower", "UserRate"]


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


class UserRate(NamedTuple):
    """Requests a second that one user may send, from all machines together."""

    name: str
    """Whose limit it is: all that name the same one share it."""
    per_second: float
    """Requests in any second."""


class Follower(Protocol):
    """Whoever sends calls to a set's members: told who comes and goes, asked how they fare."""

    def joined(self, member: Backend) -> None:
        """Calls may go to this one now; it is open."""

    def left(self, member: Backend) -> None:
        """No more calls may go there; those in flight end as they would have."""

    def mended(self, member: Backend) -> None:
        """A check says that one that was `troubled` may be back."""

    def troubled(self) -> Collection[Backend]:
        """Return those that are held to be broken and get no calls."""

    def busy(self, member: Backend) -> bool:
        """Return whether calls are in flight there."""

    def calls(self) -> int:
        """Return how many calls have been sent to all members so far."""


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
        packing: Most plain-completion prompts that one call carries; 1 for no packing. May
            fall to 1 while a run goes on, if the endpoint turns out not to take several.
        most_in_flight: Calls that can be in flight at once, whatever the endpoint can do (the
            process's limit of open files); `None` for no such bound. Known once open.
        timeout: Seconds for one call, where the adapter was told its own; else `None`.
        weight: The endpoint's share of the calls, relative to others of the same speed.
        rate_limit: Requests and tokens a minute that the endpoint allows, if it was told.
        adaptive: True if `concurrency="auto"` looks for the number of calls in flight at which
            the endpoint is fastest; False if `concurrency` is known to be that number.
        places: Says at each moment how many calls in flight are useful, where the adapter knows
            that better than any search: a fleet does. Else `None`.
        least_places: Calls that may be in flight whatever `places` says; 0 for an endpoint that
            is to get no call at all at times.
        many: True if this is a set of endpoints, each with an adapter of its own; calls go to
            these, see `follow`.
        embeds: True if it takes requests for embeddings.
        nodes: Nodes that work for it at the moment, of a fleet; else `None`.
        user_rate: Requests a second that the endpoint counts over all machines of the user, if it
            does. A fleet divides them among its workers, see `use_share`.
    """

    kind: ClassVar[str]
    endpoint: str
    model: str | None = None
    concurrency: int = 64
    json_schema: bool = True
    priced: bool = False
    packing: int = 1
    most_in_flight: int | None = None
    timeout: float | None = None
    weight: float = 1.0
    rate_limit: RateLimit | None = None
    adaptive: bool = True
    places: Callable[[], int] | None = None
    least_places: int = 1
    many: ClassVar[bool] = False
    embeds: bool = False
    nodes: int | None = None
    user_rate: UserRate | None = None

    def follow(self, follower: Follower) -> Sequence[Backend]:
        """Return a set's members, and tell the follower of those that come and go from now on.

        To be called while it is open, on the loop it is open on. The follower is held weakly.
        """
        del follower
        return ()

    @property
    def connection_wait_s(self) -> float:
        """Seconds that calls have waited for a connection so far, summed."""
        return 0.0

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

    @property
    def waits_for(self) -> str:
        """What calls wait for before they can be sent, in a few words; empty if for nothing."""
        return "starting the model" if self.starting else ""

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

    async def complete_many(
        self, requests: Sequence[Request], *, timeout: float | None = None
    ) -> list[Completion | EndpointError]:
        """Ask several requests, in as few calls as the endpoint allows.

        Each request has an outcome of its own: one that fails does not take the others with
        it. By default every request is a call.

        Args:
            requests: What to ask.
            timeout: Seconds for each call.

        Returns:
            One answer or error for each request, in the same order.

        Raises:
            ConfigError: No request can be sent at all.
        """
        return list(await asyncio.gather(*(self._outcome(one, timeout) for one in requests)))

    async def _outcome(self, request: Request, timeout: float | None) -> Completion | EndpointError:
        try:
            return await self.complete(request, timeout=timeout)
        except EndpointError as error:
            return error
        except ConfigError:
            raise
        except Exception as error:
            # What cannot be sent, for instance, is this request's fault and no other's.
            failed = Permanent(
                f"the {self.kind} backend raised {type(error).__name__}: {error}",
                endpoint=self.endpoint,
            )
            failed.__cause__ = error
            return failed

    def use_share(self, holder: object, requests: int, *, until: float = math.inf) -> None:  # noqa: B027 - most share no limit
        """Send no more than so many requests, of those that `user_rate` allows all together.

        Adapters of one process that share a limit may add up the shares of different holders.

        Args:
            holder: Who has the share; its next one replaces this one.
            requests: How many, in any window of the limit; 0 for none.
            until: When the share ends, on the monotonic clock; then it is 0.
        """

    def share_of(self, holder: object) -> int:
        """Return the requests that a holder's share allows now."""
        del holder
        return 0

    def batches(self) -> BatchBackend | None:
        """Return an adapter to the endpoint's batch API, if it may have one.

        It is open while this backend is.
        """
        return None

    @abstractmethod
    async def check(self) -> EndpointStatus:
        """Ask the endpoint whether it would answer; never raises for an endpoint's fault."""
