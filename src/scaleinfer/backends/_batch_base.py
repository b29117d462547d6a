"""The contract between batch mode and an endpoint that answers whole files of requests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from scaleinfer.errors import EndpointError
    from scaleinfer.requests import Request
    from scaleinfer.results import Completion

    Stage = Callable[[bytes, str], Awaitable[None] | None]
    Fetch = Callable[[str], Awaitable[bytes] | bytes]

__all__ = [
    "BatchAnswer",
    "BatchBackend",
    "BatchLimits",
    "BatchPhase",
    "BatchProblem",
    "BatchState",
]

BatchPhase = Literal[
    "validating", "in_progress", "finalizing", "cancelling", "completed", "failed", "expired",
    "cancelled", "gone",
]  # fmt: skip
"""What a server says of a batch, in OpenAI's words; `gone` if it does not know it any more."""

_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What an endpoint takes.

    Attributes:
        rows: Requests of one batch.
        bytes: Bytes of one input file.
        open: Unfinished batches at once; `None` if that is not known.
        window_s: Seconds in which a batch is answered or expires.
        poll_s: Seconds between two looks at a batch: right after it was submitted, and at most.
    """

    rows: int = 50_000
    bytes: int = 200 << 20
    open: int | None = None
    window_s: float = _DAY_S
    poll_s: tuple[float, float] = (1.0, 60.0)


class BatchProblem(NamedTuple):
    """Why a server failed a batch as a whole."""

    code: str
    """Its code for it, such as `token_limit_exceeded`."""
    message: str
    """In its words."""
    line: int | None = None
    """The input's line that is to blame, from 1."""


@dataclass(frozen=True, slots=True)
class BatchState:
    """A batch as its server shows it.

    Attributes:
        phase: Where it is.
        done: Rows that were worked on, well or not.
        total: Rows that it has; 0 while that is not known.
        problems: Why it failed, if it did.
        begun: Of a failed one: rows may have been worked on before it failed.
        files: What the adapter needs to fetch its output; of no meaning to others.
    """

    phase: BatchPhase
    done: int = 0
    total: int = 0
    problems: tuple[BatchProblem, ...] = ()
    begun: bool = False
    files: tuple[str, ...] = field(default=())

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.phase in {"completed", "failed", "expired", "cancelled", "gone"}


class BatchAnswer(NamedTuple):
    """What became of one row; rows that were not worked on have none."""

    custom_id: str
    """The row's name; empty if the line could not be read."""
    outcome: Completion | EndpointError
    """The answer, or why there is none."""


class BatchBackend(ABC):
    """An adapter to an endpoint's batch API.

    One that a backend made is open while that is.

    Attributes:
        endpoint: Name of the endpoint in results and journals; never holds credentials.
        limits: What it takes.
        discount: Price of a token in a batch over its price online; `None` if that is not known.
    """

    endpoint: str
    limits: BatchLimits
    discount: float | None = None

    async def open(self) -> None:  # noqa: B027 - most live off the backend that made them
        """Acquire what calls need, if the adapter has connections of its own."""

    async def aclose(self) -> None:  # noqa: B027 - as for open
        """Give back what `open` acquired."""

    def keep_files(
        self, folder: str | None, stage: Stage | None = None, fetch: Fetch | None = None
    ) -> None:
        """Keep input and output elsewhere than the adapter was told.

        Args:
            folder: Folder that the endpoint reads and writes; `None` for the one it was told.
            stage: Brings bytes to a path there; may be async. `None` for the one it was told.
            fetch: Returns the bytes of a file there; may be async. Goes with `stage`.

        Raises:
            ConfigError: The endpoint keeps files itself.
        """
        raise ConfigError(
            f"{self.endpoint} keeps a batch's files itself.",
            hint="Leave folder=, stage= and fetch= of Batch out; they are for FIRST.",
        )

    def check_settings(self) -> None:  # noqa: B027 - most need none
        """See whether batches can be submitted at all.

        Raises:
            ConfigError: A setting is missing.
        """

    @abstractmethod
    def group(self, request: Request) -> str:
        """Return what requests must have in common to share a batch: route and model."""

    @abstractmethod
    def line(self, custom_id: str, request: Request) -> bytes:
        """Return a request as a line of an input file, newline included.

        Raises:
            PromptError: It cannot be written as JSON.
        """

    @abstractmethod
    async def available(self) -> bool:
        """Return whether the endpoint has a batch API at all.

        Raises:
            EndpointError: It did not tell.
        """

    @abstractmethod
    async def upload(self, token: str, lines: list[bytes]) -> str:
        """Bring an input file to where the endpoint reads it; costs nothing and starts nothing.

        Args:
            token: Our own name for the batch, unique everywhere.
            lines: What `line` returned for each request.

        Returns:
            What `create` needs to find it.

        Raises:
            EndpointError: It is not there; status 413 means that the file is too large.
        """

    @abstractmethod
    async def create(self, token: str, group: str, upload: str) -> str:
        """Start a batch and return the server's name for it.

        After a `Transient` error the server may have accepted it all the same; `find` tells.

        Args:
            token: Our own name for it, kept by the server.
            group: What `group` returned for all its requests.
            upload: What `upload` returned.

        Raises:
            RateLimited: The quota of batches is full; later there may be room.
            EndpointError: Anything else.
        """

    @abstractmethod
    async def find(self, token: str) -> str | None:
        """Return the server's name for the batch that we named so; `None` if it has none.

        Raises:
            EndpointError: It did not tell.
        """

    @abstractmethod
    async def poll(self, batch: str) -> BatchState:
        """Return where a batch is.

        Raises:
            EndpointError: The server did not tell.
        """

    @abstractmethod
    def fetch(self, batch: str, state: BatchState) -> AsyncGenerator[list[BatchAnswer], None]:
        """Yield the answers of an ended batch, some at a time; rows may be missing.

        Args:
            batch: The server's name for it.
            state: What `poll` returned last.

        Raises:
            EndpointError: The output could not be fetched.
        """

    @abstractmethod
    async def cancel(self, batch: str) -> None:
        """Ask the server to end a batch early; what it has answered by then can be fetched.

        Does nothing where that is not possible.

        Raises:
            EndpointError: The server did not answer.
        """
