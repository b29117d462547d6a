"""Whether a model on a cluster of FIRST runs. A plain state machine: the clock is passed in.

Two sources tell: `/jobs`, which the gateway caches for a minute, and the answers to requests,
which are newer. So a job that is told to run after a request was refused is tried with one
request first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from scaleinfer.backends._first_dialect import Condition
from scaleinfer.backends._first_listing import alias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaleinfer.backends._first_listing import Job

__all__ = ["FirstState", "State"]

State = Literal[
    "unknown", "hot", "trial", "starting", "queued", "stopped", "offline", "maintenance"
]

_AWAY: dict[Condition, State] = {
    Condition.NOT_READY: "starting",
    Condition.OFFLINE: "offline",
    Condition.NOT_LIVE: "offline",
    Condition.MAINTENANCE: "maintenance",
}
_WORDS = {
    "trial": "trying whether it runs again",
    "starting": "starting",
    "stopped": "not started yet",
    "offline": "offline",
    "maintenance": "under maintenance",
}


class FirstState:
    """One model on one cluster.

    Args:
        cluster: The cluster, for messages.
        model: The model's name there.
        startable: True if a request starts the model.
        deadline_s: Seconds that it may take to come.

    Attributes:
        state: What is known.
        start: When its job will probably start, as hours and minutes; empty if unknown.
    """

    def __init__(self, cluster: str, model: str, *, startable: bool, deadline_s: float) -> None:
        self.state: State = "unknown"
        self.start = ""
        self.model = model
        self._cluster = cluster
        self._startable = startable
        self._deadline_s = deadline_s
        self._away_since: float | None = None
        self._refused = False
        self._warming = False

    @property
    def hot(self) -> bool:
        """True if requests may be sent as they come."""
        return self.state == "hot"

    @property
    def places(self) -> int | None:
        """Requests that may be in flight: none, one to try, or any number (`None`)."""
        if self.state == "hot":
            return None
        return 1 if self.state == "trial" else 0

    @property
    def phase(self) -> str:
        """What is waited for, in words; empty if nothing is."""
        if self.state in ("hot", "unknown"):
            return ""
        if self.state == "queued":
            known = f", estimated start {self.start}" if self.start else ""
            return f"{self._cluster}: queued{known}"
        return f"{self._cluster}: {_WORDS[self.state]}"

    def told(self, jobs: Sequence[Job], framework: str, now: float) -> None:
        """Take over what `/jobs` tells."""
        own = [
            job
            for job in jobs
            if job.framework in ("", framework)
            and any(alias(model) == alias(self.model) for model in job.models)
        ]
        # Of several instances, one that runs is enough.
        statuses = {job.status for job in own}
        if "running" in statuses:
            if self.state != "hot":
                self._become("trial" if self._refused else "hot", now)
            return
        if self.state == "trial":
            self._refused = False
        for status in ("starting", "queued"):
            if status in statuses:
                self.start = next((job.start for job in own if job.status == status), "")
                self._become(status, now)
                return
        if "disconnected" in statuses:
            self._become("offline", now)
        elif self.state in ("offline", "maintenance") and not own:
            return
        elif self._startable:
            # What a warm-up has started may not be listed yet.
            self._become("starting" if self._warming else "stopped", now)
        else:
            self._become("offline", now)

    def not_told(self, now: float) -> None:
        """`/jobs` could not be had: requests will tell."""
        if self.state == "unknown":
            self._become("hot", now)
        elif self.state in ("offline", "maintenance", "starting"):
            self._become("trial", now)

    def answered(self, now: float) -> None:
        """The model's own server answered a request, well or not."""
        self._refused = False
        self._become("hot", now)

    def refused(self, condition: Condition, now: float) -> None:
        """The gateway refused a request."""
        away = _AWAY.get(condition)
        if away is not None:
            self._refused = True
            self._become(away, now)

    def warm_up_began(self) -> None:
        """A request is on its way that starts the model."""
        self._warming = True

    def warm_up_ended(self) -> None:
        """It has ended; the model may be on its way nevertheless."""
        self._warming = False

    @property
    def wants_warm_up(self) -> bool:
        """True if a request should be sent only to start the model."""
        return self._startable and self.state == "stopped" and not self._warming

    def overdue(self, now: float) -> bool:
        """Return whether it has been away for longer than the deadline."""
        since = self._away_since
        return since is not None and now - since >= self._deadline_s

    def away_s(self, now: float) -> float:
        """Return for how many seconds it has not run."""
        return 0.0 if self._away_since is None else now - self._away_since

    def _become(self, state: State, now: float) -> None:
        if state == "hot":
            self._away_since = None
        elif self._away_since is None:
            self._away_since = now
        if state != "queued":
            self.start = ""
        self.state = state
