"""What a fleet tells about itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Self

__all__ = ["FleetStatus", "WorkerFacts", "WorkerStatus"]


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What does not change about a worker.

    Attributes:
        node: Name of its node.
        pid: Its process there.
        endpoints: What it asks.
        model: The model it asks, if it names one.
        version: The scaleinfer it runs.
        log: Its log file on the node; empty if it has none.
        until: Unix time at which its job ends; 0 if unknown.
    """

    node: str = ""
    pid: int = 0
    endpoints: tuple[str, ...] = ()
    model: str | None = None
    version: str = ""
    log: str = ""
    until: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the facts in JSON data; what a newer worker adds is left out."""
        known = {f.name for f in fields(cls)}
        facts = {name: value for name, value in data.items() if name in known}
        facts["endpoints"] = tuple(facts.get("endpoints", ()))
        return cls(**facts)


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker at one moment.

    Attributes:
        name: Its name.
        facts: What does not change about it.
        state: `working`, `broken` (its endpoint does not answer) or `leaving`.
        in_flight: Calls it has in flight.
        limit: Calls that it may have in flight.
        held: Requests leased to it.
        answered: Answers it brought.
        failed: Requests that it gave up.
        tokens: Completion tokens it brought.
        items_per_s: Answers a second since it came.
        seen_s: Seconds since its latest message.
        problem: Why it is broken; else empty.
    """

    name: str
    facts: WorkerFacts
    state: str
    in_flight: int
    limit: int
    held: int
    answered: int
    failed: int
    tokens: int
    items_per_s: float
    seen_s: float
    problem: str


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """A fleet at one moment.

    Attributes:
        name: Its name.
        workers: Its workers.
        queued: Requests that no worker has.
        leased: Requests that a worker has.
        answered: Requests that were answered or given up.
        failed: Requests among them that were given up.
        tokens: Completion tokens of the answers.
        elapsed_s: Seconds since the fleet began.
        requeued: Leases that ended without an answer.
        doubled: Answers that came after another.
        copies: Requests that were given to a second worker.
        lost_workers: Workers that were given up.
    """

    name: str
    workers: tuple[WorkerStatus, ...]
    queued: int
    leased: int
    answered: int
    failed: int
    tokens: int
    elapsed_s: float
    requeued: int
    doubled: int
    copies: int
    lost_workers: int

    @property
    def in_flight(self) -> int:
        """Calls in flight at all workers together, as they last said."""
        return sum(worker.in_flight for worker in self.workers)

    @property
    def nodes(self) -> int:
        """Nodes on which there is a worker."""
        return len({worker.facts.node for worker in self.workers})

    def __str__(self) -> str:
        from scaleinfer.fleet._view import status_text

        return status_text(self)

    def _repr_html_(self) -> str:
        from scaleinfer.fleet._view import status_html

        return status_html(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the status as JSON data."""
        # asdict copies every value, which takes ten times as long for thousands of workers.
        workers = [_data(worker) | {"facts": _data(worker.facts)} for worker in self.workers]
        return _data(self) | {"workers": workers}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the status in JSON data."""
        workers = tuple(
            WorkerStatus(**{**one, "facts": WorkerFacts.from_dict(one["facts"])})
            for one in data["workers"]
        )
        return cls(**{**data, "workers": workers})


def _data(one: FleetStatus | WorkerStatus | WorkerFacts) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__slots__}
