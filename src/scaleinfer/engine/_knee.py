"""Finds an endpoint's knee from rounds of calls: the concurrency at which goodput stops rising."""

from __future__ import annotations

import math
from collections import deque
from itertools import pairwise

from scaleinfer.engine._rounds import SHARE_GROWING, Round

__all__ = ["Knee"]

_SHARE_HOLDING = 0.45
_USED = 0.8
_LINEAR = 0.9
_RELIABLE = 0.5
_WORTH = 0.15
_QUEUE = 0.7
_TROUGH = 0.94
_YIELD = 0.85
_QUEUED = 0.6
_DESCENT = 0.7
_STEEP = 0.7
_SAME = 0.02
_KV_FULL = 0.95
_MEMORY_S = 40.0
_TOLD = 0.5
_STEP = 0.8
_VAGUE = 0.25
_REST = 0.1
_NOISE = 1.5
_TRIED = 0.66
_RISE = 1.01
_LESS, _REAL = 0.95, 0.5
_EFFECT, _EFFECT_MOST = 0.15, 0.4
_BURST = 2.0
_SHALLOW = 0.85
_DEEPER = 0.62
_SOME = 0.3
_DEEP = 0.5


class Knee:
    """Moves a limit to an endpoint's knee and holds it there.

    Args:
        start: The first limit.
    """

    def __init__(self, start: float) -> None:
        self.limit = start
        self.reason = "finding the knee"
        self.cuts = 0
        self.holding = False
        self._points: list[tuple[float, float]] = []
        self._floors: deque[tuple[float, float]] = deque()
        self._rests: deque[tuple[float, float]] = deque()
        self._slope = self._found = self._cap = 0.0
        self._last = (0.0, math.inf)
        self._scaled = math.inf
        self._quiet = self._series = 0
        self._tried: tuple[float, float, float | None, float] | None = None
        self._fixed = 0.0
        self._scatter = math.inf

    def observe(self, now: float, seen: Round) -> None:
        """Take a round into account and set the limit anew."""
        if self.holding:
            self._hold(now, seen)
        else:
            self._grow(now, seen)

    def refused(self, now: float) -> None:
        """The endpoint refused calls: no more leaps."""
        if self.holding:
            return
        self.holding, self.reason = True, "at the knee"
        if self._points:
            self._slope = _relative_slope(self._points)
            self._cap = 1.25 * self._points[-1][0]
            floor = min(each / (1 + self._slope * n) for n, each in self._points)
            self._floors.append((now, floor))

    # -- growing ---------------------------------------------------------------------------

    @property
    def alarm(self) -> float:
        """Seconds per token that end a round early."""
        return math.inf if self.holding or not self._points else 1.5 * self._points[-1][1]

    @property
    def share(self) -> float:
        """Share of the calls in flight that must have been answered to end a round."""
        return _SHARE_HOLDING if self.holding else SHARE_GROWING

    def _grow(self, now: float, seen: Round) -> None:
        n, per_token = seen.in_flight, seen.per_token
        while self._points and self._points[-1][0] * 1.05 >= n:
            # The user's bounds held or lowered it: the newer round counts.
            self._points.pop()
        if seen.queued is not None and (self._crowded(seen) or seen.kv_cache > _KV_FULL):
            self._points.append((n, per_token))
            self._settle(now, seen, (n - seen.queued) / per_token)
            return
        if not self._points and seen.queued is None and seen.last > _BURST * seen.first:
            # The first burst: the first to be answered found free places, the last a queue.
            self._points.append((n, seen.first))
            self._settle(now, seen, seen.goodput)
            return
        if seen.peak < _USED * self.limit:
            return
        factor = 3.0
        if self._points:
            before, then = self._points[-1]
            if seen.early:
                self._settle(now, seen, seen.place / per_token)
                return
            gain = 1 - math.log(per_token / then) / math.log(n / before)
            if gain < _WORTH:
                self._settle(now, seen, n / per_token)
                return
            factor = 3 if gain >= _LINEAR else 2 if gain >= _RELIABLE else 1.25
        self._points.append((n, per_token))
        self.limit *= factor
        rest = _intercept(seen)
        if rest is not None:
            self._fixed = min(self._fixed or rest, rest)

    def _settle(self, now: float, seen: Round, goodput: float) -> None:
        self.refused(now)
        shape = 1 + self._slope * min(seen.in_flight, self._cap)
        slowest = max(seen.per_token, math.sqrt(seen.per_token * seen.last)) / shape
        self._tried = (seen.in_flight, slowest, None, self.limit)
        knee = self._knee(self._floors[0][1], goodput)
        self.limit = max(1.0, _TROUGH * min(knee, 1.25 * self.limit))

    def _knee(self, floor: float, goodput: float) -> float:
        """Calls in flight at which a server without a queue has this goodput."""
        return floor * goodput / max(1 - floor * self._slope * goodput, 0.2)

    # -- holding ---------------------------------------------------------------------------

    @staticmethod
    def _crowded(seen: Round) -> bool:
        """True if the endpoint says that more of our calls wait than is needed to keep it busy."""
        queued = seen.queued or 0.0
        return queued > max(1.0, _QUEUE * math.sqrt(seen.in_flight))

    def _hold(self, now: float, seen: Round) -> None:
        n, per_token = seen.in_flight, seen.per_token
        # Waiting scatters latencies too: the endpoint's own scatter is the least of late.
        self._scatter = min(seen.scatter, _RISE * self._scatter)
        noise = self._scatter / math.sqrt(seen.ended)
        # The line holds as far as it was seen; above the knee nothing gets slower but the queue.
        shape = 1 + self._slope * min(n, self._cap)
        floors = self._floors
        last, self._last = self._last, (n, per_token)
        if (
            floors
            and seen.queued is None
            and n < 0.9 * last[0]
            and per_token < 0.95 * floors[0][1] * shape
            and per_token < last[1] * (n / last[0]) ** _QUEUED
        ):
            # What was taken for the time without a queue was none.
            floors.clear()
            floors.append((now, per_token / shape))
            self.limit = max(1.0, _DESCENT * n)
            return
        scaled = self._remember(now, n, per_token, shape)
        floor = floors[0][1]
        unqueued = floor * shape
        allowed = max(1.0, _QUEUE * math.sqrt(n), _NOISE * noise * n)
        if self._was_no_queue(now, n, scaled, seen):
            return
        # While the limit climbs, the slope of answers over lengths is that of some calls less.
        lag = floor * self._slope * max(0.0, min(n, self._cap) - last[0]) if last[0] else 0.0
        rest, doubt = self._rest(now, seen, lag)
        told = doubt < _TOLD * allowed / n
        if told or n * (rest / per_token - 2 * doubt) > allowed:
            if not told:
                rest = max(rest - 2 * doubt * per_token, per_token - unqueued)
            unqueued = per_token - rest
            floors[-1] = (now, min(floors[-1][1], unqueued / shape))
        queued = n * (1 - unqueued / per_token)
        if seen.queued is not None:
            queued, rest = seen.queued, per_token
            if seen.kv_cache > _KV_FULL:
                queued = max(queued, 1.1 * allowed)
        if queued > allowed:
            knee = n - queued if rest > 0 else min(n, self._knee(floor, n / per_token))
            if self._tried is None:
                self._tried = (n, scaled, _intercept(seen), self.limit)
            self._cut_back(n, knee, 0.5 * allowed / n)
            self.reason = "at the knee" if seen.queued is None else "load report"
            return
        self._series, self._tried = 0, None
        self._cap = max(self._cap, 1.2 * n)
        if n < _USED * self.limit:
            self._quiet = 0
            return
        self._quiet = self._quiet + 1 if queued < 0.3 * allowed else 0
        step = _STEP * math.sqrt(n) * 2 ** max(0, self._quiet - 2)
        self.limit += max(0.5, min(step, 0.5 * n))

    def _cut_back(self, n: float, knee: float, noise: float) -> None:
        """More wait than is needed to keep the endpoint busy: go just below the knee."""
        # One noisy round must not cost much; the next one, if it agrees, cuts deeper.
        least = n * (_SHALLOW, _DEEPER, _DEEP)[min(self._series, 2)]
        self._series += 1
        # Less room than last time: somebody else wants it too. Give way.
        yielding = knee < self._found * (1 - max(_SAME, noise))
        self._found = knee
        self.limit = max(1.0, least, (_YIELD if yielding else _TROUGH) * knee)
        self.cuts += 1
        self._quiet = 0

    def _remember(self, now: float, n: float, per_token: float, shape: float) -> float:
        """Keep the least time per token of late, scaled to one call in flight; return this one."""
        floors = self._floors
        while floors and floors[0][0] < now - _MEMORY_S:
            floors.popleft()
        # Two rounds in a row must be that fast: a round can catch calls that came in a wave.
        scaled = per_token / shape
        fast, self._scaled = max(scaled, self._scaled), scaled
        while floors and floors[-1][1] >= fast:
            floors.pop()
        floors.append((now, fast))
        return scaled

    def _was_no_queue(self, now: float, n: float, scaled: float, seen: Round) -> bool:
        """Judge the cuts so far by their effect; undo them if there was none.

        A queue of ours gets shorter with every call less, and calls faster: seconds per token fall
        as the calls in flight do. If they did not fall, goodput did.
        """
        if self._tried is None or seen.queued is not None:
            return False
        before, then, rest, limit = self._tried
        if n > _LESS * before:
            return False
        now_rest = _intercept(seen)
        steeper = (1 + self._slope * min(before, self._cap)) / (1 + self._slope * min(n, self._cap))
        # 1 if all calls queue, a half if half of those that queue are others', 0 below the knee.
        fewer = math.log(before / n)
        effect = math.log(then * steeper / scaled) / fewer
        if rest is not None and now_rest is not None:
            fell = (rest - now_rest) / (seen.per_token * seen.tokens)
            effect = max(effect, fell / (before / n - 1))
        noise = 2 * seen.noise / fewer
        tested = n <= _TRIED * before
        if effect > _REAL or (tested and effect < -max(_EFFECT_MOST, noise)):
            # That was a queue, or others' calls came, or it got slower: the next cut must show
            # an effect of its own.
            self._tried = (n, scaled, now_rest, self.limit if effect > 0 else limit)
            return False
        if not tested or effect > min(max(_EFFECT, noise), _EFFECT_MOST):
            return False
        if steeper > 1 and then * steeper < scaled * (1 + _SOME * (steeper - 1)):
            # Nor does a call slow down the others as much as growing made it seem.
            scaled, self._slope = seen.per_token, 0.0
        self._floors.clear()
        self._floors.append((now, scaled))
        if now_rest is not None:
            self._rests.clear()
            self._fixed = now_rest
        self._series, self._tried = 0, None
        self.limit = limit
        return True

    def _rest(self, now: float, seen: Round, lag: float) -> tuple[float, float]:
        """Seconds per token that calls wait, as the lengths of answers tell; its relative doubt."""
        rest = max(0.0, seen.per_token - seen.working - lag)
        if seen.working_error > _VAGUE:
            return 0.0, math.inf
        doubt = seen.working_error
        fixed = min(self._fixed, (rest + 2 * doubt * seen.per_token) * seen.tokens)
        self._fixed = fixed
        rests = self._rests
        while rests and rests[0][0] < now - _MEMORY_S:
            rests.popleft()
        while rests and rests[-1][1] >= rest:
            rests.pop()
        rests.append((now, rest))
        known = max(min(rests[0][1], _REST * seen.per_token), fixed / seen.tokens)
        return max(0.0, rest - known), doubt


def _intercept(seen: Round) -> float | None:
    """Seconds of a call that do not depend on its length; `None` if unknown."""
    if seen.working_error > _VAGUE:
        return None
    return max(0.0, seen.per_token - seen.working) * seen.tokens


def _relative_slope(points: list[tuple[float, float]]) -> float:
    """How much slower each call makes a step: b / a of a line a + b n below the knee.

    The lower median of the slopes between neighbours: a queue shows in the last ones only.
    """
    slopes = sorted(
        (t2 - t1) / (n2 - n1)
        for (n1, t1), (n2, t2) in pairwise(points)
        if t2 / t1 < (n2 / n1) ** _STEEP  # steeper is a queue, or an endpoint that thrashes
    )
    if not slopes:
        return 0.0
    b = max(0.0, slopes[(len(slopes) - 1) // 2])
    n, per_token = points[0]
    return b / max(per_token - b * n, 0.2 * per_token)
