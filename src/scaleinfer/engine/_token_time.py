"""Tells waiting from working by how latency depends on an answer's length."""

from __future__ import annotations

import math

__all__ = ["TokenTime"]

_FADE = 0.9
_FADE_FAST = 0.4
_EXACT = 0.02
_LEAST = 32
_VARIED = 0.05


class TokenTime:
    """Least squares of latency over completion tokens: latency = wait + tokens * seconds.

    A call that waits in an endpoint's line waits as long for a short answer as for a long one,
    so the slope is the time per token while it is worked on, whoever else the endpoint serves,
    and the rest is waiting (and prefill, and network). Needs answers of different lengths.

    Attributes:
        seconds: Seconds per token while a call is worked on.
        error: Standard error of `seconds` over the mean seconds per token; infinite if unknown.
        scatter: Standard deviation of a call's latency from what its length alone would make it,
            over the mean latency.
    """

    __slots__ = ("_count", "_ll", "_sum_l", "_sum_t", "_tl", "_tt", "error", "scatter", "seconds")

    def __init__(self) -> None:
        self._count = self._sum_t = self._sum_l = self._tt = self._tl = self._ll = 0.0
        self.seconds = 0.0
        self.error = math.inf
        self.scatter = 0.0

    def add(self, tokens: int, latency: float) -> None:
        """Take a call into account."""
        self._count += 1
        self._sum_t += tokens
        self._sum_l += latency
        self._tt += tokens * tokens
        self._tl += tokens * latency
        self._ll += latency * latency

    def fit(self) -> None:
        """Compute `seconds` and `error`, and let the calls so far count a little less."""
        count = self._count
        self.error = math.inf
        each = self._sum_l / self._sum_t
        left = self._ll - 2 * each * self._tl + each * each * self._tt
        self.scatter = math.sqrt(max(left, 0.0) * count) / self._sum_l
        if count >= _LEAST:
            tokens, latency = self._sum_t / count, self._sum_l / count
            varied = self._tt / count - tokens * tokens
            if varied > (_VARIED * tokens) ** 2 and latency > 0:
                self.seconds = (self._tl / count - tokens * latency) / varied
                left = self._ll / count - latency * latency - self.seconds**2 * varied
                self.error = math.sqrt(max(left, 0.0) / (count * varied)) * tokens / latency
        fade = _FADE if count < _LEAST or _EXACT < self.error < math.inf else _FADE_FAST
        self._count *= fade
        self._sum_t *= fade
        self._sum_l *= fade
        self._tt *= fade
        self._tl *= fade
        self._ll *= fade
