"""How a simulated server changes while it runs."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, fields
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

import orjson

from scaleinfer.errors import ConfigError
from scaleinfer.testing._refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Change", "Down", "Timeline", "What", "what_of"]

Down: TypeAlias = Literal["refuse", "503", "hang"]
_DOWN = (None, True, False, "refuse", "503", "hang")


class What(TypedDict, total=False):
    """What can change; what is not given stays. `math.inf` lifts a limit.

    Keys:
        slots: Requests served at once.
        slowdown: By how much everything takes longer than the settings say; 1: not at all.
        down: An outage begins (`"refuse"` or `True`: connections are refused and those that
            are open are cut; `"503"`: what is in flight is cut and everything is answered 503;
            `"hang"`: connections stay and are accepted, and nothing is answered until it
            ends) or ends (`False`).
        requests_per_second: Rate above which 429 comes.
        requests_per_minute: The same.
        tokens_per_minute: The same, by tokens.
        max_waiting: Length of the queue above which 503 comes.
        load_report: Answer requests for a load report.
    """

    slots: float
    slowdown: float
    down: bool | Down
    requests_per_second: float
    requests_per_minute: float
    tokens_per_minute: float
    max_waiting: float
    load_report: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A simulated server becomes another one at a time, for good or for a while.

    ```python
    from scaleinfer.testing import Change, SimulatedServer

    doubled = Change(at=30, slots=400)
    slow = Change(at=60, until=90, slowdown=3)
    outage = Change(at=120, until=180, down=True)
    SimulatedServer(slots=200, latency=1.0, changes=[doubled, slow, outage])
    ```

    Attributes:
        at: Seconds after the server's first request.
        until: When everything named here is again as it was at `at`; `None`: never.
        slots: See `What`; `None` for what stays.
        slowdown: The same.
        down: The same.
        requests_per_second: The same.
        requests_per_minute: The same.
        tokens_per_minute: The same.
        max_waiting: The same.
        load_report: The same.

    Raises:
        ConfigError: A value that cannot be.
    """

    at: float = 0.0
    until: float | None = None
    slots: float | None = None
    slowdown: float | None = None
    down: bool | Down | None = None
    requests_per_second: float | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_waiting: float | None = None
    load_report: bool | None = None

    def __post_init__(self) -> None:
        if self.until is not None and self.until < self.at:
            raise ConfigError(f"Change: until={self.until} lies before at={self.at}.")
        if self.down not in _DOWN:
            known = ", ".join(map(repr, _DOWN[1:]))
            raise ConfigError(f"Change: down={self.down!r} is unknown.", hint=f"Known: {known}.")
        slots = self.slots
        if slots is not None and (slots < 1 or (slots != math.inf and slots != int(slots))):
            raise ConfigError(f"Change: slots must be a whole number from 1, not {slots}.")
        if self.slowdown is not None and not 0 < self.slowdown < math.inf:
            raise ConfigError(
                f"Change: slowdown must be a finite number above 0, not {self.slowdown}.",
                hint='down="hang" makes a server stand still.',
            )
        for name in ("requests_per_second", "requests_per_minute", "tokens_per_minute"):
            rate = getattr(self, name)
            if rate is not None and not rate > 0:
                raise ConfigError(f"Change: {name} must be greater than 0, not {rate}.")
        if self.max_waiting is not None and not self.max_waiting >= 0:
            raise ConfigError(f"Change: max_waiting must not be negative, not {self.max_waiting}.")

    @property
    def what(self) -> What:
        """All that changes."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        del named["at"], named["until"]
        found: Any = {name: value for name, value in named.items() if value is not None}
        return found  # type: ignore[no-any-return] # the fields are those of `What`


def what_of(data: bytes) -> What:
    """Return what a message to `/control` asks for: JSON with the fields of `What`.

    `null` stands for infinity, which JSON has not.

    Raises:
        Refusal: It asks for what cannot be (400).
    """
    try:
        asked = orjson.loads(data)
        named: dict[str, Any] = {
            name: math.inf if value is None else value for name, value in asked.items()
        }
        return Change(**named).what
    except (ValueError, TypeError, AttributeError, ConfigError) as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, f"Not a change: {error}") from error


class Timeline:
    """Changes in the order of their times.

    Args:
        changes: What is to come.

    Attributes:
        due: When the next one comes; infinity if none does.
    """

    def __init__(self, changes: Sequence[Change]) -> None:
        self._number = 0
        self._order: list[tuple[float, int, Change]] = []
        self.due = math.inf
        for change in changes:
            self.add(change)

    def add(self, change: Change) -> None:
        """Let a change come at its time."""
        self._number += 1
        heapq.heappush(self._order, (change.at, self._number, change))
        self.due = self._order[0][0]

    def times(self) -> list[float]:
        """Return all times at which something will change."""
        until = [change.until for *_, change in self._order if change.until is not None]
        return sorted({*until, *(at for at, *_ in self._order)})

    def pop(self, elapsed: float) -> Change | None:
        """Return the next change that is due, if any."""
        if self.due > elapsed:
            return None
        change = heapq.heappop(self._order)[2]
        self.due = self._order[0][0] if self._order else math.inf
        return change
