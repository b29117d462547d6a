"""`RunRecord`: what a run did, over time, in bounded memory."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from scaleinfer.observe._distribution import Distribution
from scaleinfer.observe._timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from scaleinfer.results import Attempt

__all__ = ["OTHERS", "Decision", "EndpointCalls", "Place", "RunRecord"]

OTHERS = "all others"
_MOST_ENDPOINTS = 24
_MOST_KINDS = 12
_MOST_LIMITS = 400
_MOST_DECISIONS = 300
_NOTABLE = 0.1


class Place(NamedTuple):
    """Where an endpoint's limiter stands."""

    endpoint: str
    """The endpoint's name."""
    limit: int
    """Calls that may be in flight there."""
    reason: str
    """Why the limit is what it is."""


class Decision(NamedTuple):
    """A limiter's decision."""

    time: float
    """Seconds from the start of the run."""
    endpoint: str
    """The endpoint's name."""
    limit: int
    """Calls that may be in flight there from now on."""
    reason: str
    """Why."""


class EndpointCalls:
    """What calls to one endpoint came to.

    Args:
        timeline: Where they are counted over time.

    Attributes:
        ok: Calls that were answered.
        failed: Calls that were not.
        tokens: Completion tokens.
        latency: Seconds of the answered ones.
        answers: Answered calls over time.
        in_flight: Calls that went on at once, over time.
    """

    __slots__ = ("answers", "failed", "in_flight", "latency", "ok", "tokens")

    def __init__(self, timeline: Timeline) -> None:
        self.ok = self.failed = self.tokens = 0
        self.latency = Distribution()
        self.answers = timeline.row()
        self.in_flight = timeline.steps()


class RunRecord:
    """What a run did, over time; told of every call as it ends and, now and then, of limits.

    Memory is bounded: 600 points in time, 24 endpoints by name, 12 kinds of errors; what is
    beyond these is counted together.

    Args:
        started: Unix time at which the run began.

    Attributes:
        calls: The calls by endpoint.
        timeline: Time in bins.
        prompts: Prompt tokens of answered calls, over time.
        completions: Completion tokens of answered calls, over time.
        costs: Dollars over time.
        errors: Failed calls over time, by kind.
        prompt_tokens: Prompt tokens of an answered call.
        completion_tokens: Completion tokens of an answered call.
        cost_usd: What calls cost; `None` if no price was known.
        elapsed_s: Seconds until the last call ended.
    """

    def __init__(self, started: float) -> None:
        self.started = started
        self.calls: dict[str, EndpointCalls] = {}
        self.timeline = Timeline()
        self.prompts = self.timeline.row()
        self.completions = self.timeline.row()
        self.costs = self.timeline.row()
        self.errors: dict[str, list[float]] = {}
        self.prompt_tokens = Distribution()
        self.completion_tokens = Distribution()
        self.cost_usd: float | None = None
        self.elapsed_s = 0.0
        self._limits: dict[str, list[tuple[float, int]]] = {}
        self._first: list[Decision] = []
        self._later: list[Decision] = []
        self._last: dict[str, Place] = {}

    def attempted(self, *attempts: Attempt) -> None:
        """Take note of calls that have ended; many at once cost less than each by itself."""
        prompts, completions = list[int](), list[int]()
        went_on, began = self.timeline.went_on, self.started
        for attempt in attempts:
            calls = self.calls.get(attempt.endpoint) or self._calls(attempt.endpoint)
            took = attempt.latency_s
            start = attempt.started - began
            start = max(start, 0.0)  # the clock may have been set back
            end = start + took
            self.elapsed_s = max(self.elapsed_s, end)
            place = went_on(calls.in_flight, start, end)
            if attempt.status == "ok":
                prompt, completion = attempt.prompt_tokens, attempt.completion_tokens
                calls.ok += 1
                calls.tokens += completion
                calls.answers[place] += 1
                calls.latency.add(took)
                prompts.append(prompt)
                completions.append(completion)
                self.prompts[place] += prompt
                self.completions[place] += completion
            else:
                calls.failed += 1
                self._errors(attempt)[place] += 1
            if attempt.cost_usd is not None:
                self.cost_usd = (self.cost_usd or 0.0) + attempt.cost_usd
                self.costs[place] += attempt.cost_usd
        # Few lengths are common to many.
        for tokens, number in Counter(prompts).items():
            self.prompt_tokens.add(tokens, number)
        for tokens, number in Counter(completions).items():
            self.completion_tokens.add(tokens, number)

    def limits(self, now: float, places: Iterable[Place]) -> None:
        """Take note of where limiters stand, `now` seconds from the start."""
        for place in places:
            name = place.endpoint
            last = self._last.get(name)
            if last == place or (last is None and len(self._last) >= _MOST_ENDPOINTS):
                continue
            self._last[name] = place
            if last is None or last.limit != place.limit:
                limits = self._limits.setdefault(name, [])
                limits.append((now, place.limit))
                if len(limits) > _MOST_LIMITS:
                    limits[:] = [*limits[0:-2:2], *limits[-2:]]
            if last is None or _is_notable(last, place):
                self._decided(Decision(now, *place))

    def limits_of(self, endpoint: str) -> list[tuple[float, int]]:
        """Return an endpoint's limits: from when, how many."""
        return list(self._limits.get(endpoint, ()))

    @property
    def latency(self) -> Distribution:
        """Seconds of answered calls."""
        return Distribution.sum(calls.latency for calls in self.calls.values())

    @property
    def decisions(self) -> list[Decision]:
        """The limiters' decisions; of very many, the first and the last."""
        return [*self._first, *self._later]

    @property
    def endpoints(self) -> list[str]:
        """The endpoints that were called, the busiest first."""
        return sorted(self.calls, key=lambda name: -(self.calls[name].ok + self.calls[name].failed))

    def limits_to_data(self) -> dict[str, Any]:
        """Return the limiters' part as JSON data; all else can be told from the calls."""
        return {
            "started": self.started,
            "limits": {
                name: [[round(time, 3), limit] for time, limit in limits]
                for name, limits in self._limits.items()
            },
            "decisions": [[round(one.time, 3), *one[1:]] for one in self.decisions],
        }

    def take_limits(self, data: Mapping[str, Any]) -> None:
        """Take over what `limits_to_data` returned.

        Raises:
            ValueError: It is something else.
        """
        try:
            moved = float(data["started"]) - self.started
            self._limits = {
                str(name): [(float(time) + moved, int(limit)) for time, limit in limits]
                for name, limits in data["limits"].items()
            }
            self._first = [
                Decision(float(time) + moved, str(name), int(limit), str(reason))
                for time, name, limit, reason in data["decisions"]
            ]
            self._later = []
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError("these are no limits of a run") from error

    def _calls(self, name: str) -> EndpointCalls:
        if len(self.calls) >= _MOST_ENDPOINTS:
            name = OTHERS
        calls = self.calls.get(name)
        if calls is None:
            calls = self.calls[name] = EndpointCalls(self.timeline)
        return calls

    def _errors(self, attempt: Attempt) -> list[float]:
        status = attempt.http_status
        kind = attempt.status if status is None else f"{attempt.status} {status}"
        row = self.errors.get(kind)
        if row is None:
            if len(self.errors) >= _MOST_KINDS:
                kind = "other"
            row = self.errors.get(kind) or self.errors.setdefault(kind, self.timeline.row())
        return row

    def _decided(self, decision: Decision) -> None:
        if len(self._first) < _MOST_DECISIONS // 2:
            self._first.append(decision)
        else:
            self._later.append(decision)
            if len(self._later) > _MOST_DECISIONS // 2:
                del self._later[0]


def _is_notable(last: Place, place: Place) -> bool:
    changed = abs(place.limit - last.limit)
    return last.reason != place.reason or changed > _NOTABLE * last.limit
