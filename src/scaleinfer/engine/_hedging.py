"""Second copies of the calls that straggle at the end of a run. Plain state machines."""

from __future__ import annotations

from collections import Counter
from math import exp, log

__all__ = ["Hedger", "Quantiles"]

_ENOUGH = 20
_FACTOR = 1.5
_TAIL = 0.02
_STEP = 0.05
_REMEMBERED = 4096


class Quantiles:
    """Quantiles of a stream of positive numbers, to within 2.5 %, of about its latest 4,096.

    A histogram with logarithmic buckets 5 % wide (as in DDSketch: Masson, Rim and Lee, VLDB
    2019), halved whenever it is full so that the old fades.
    """

    __slots__ = ("_buckets", "_count")

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self._count = 0

    def add(self, value: float) -> None:
        """Take in one number; one that is not positive counts as a very small one."""
        bucket = round(log(value) / _STEP) if value > 0 else -1000
        self._buckets[bucket] += 1
        self._count += 1
        if self._count >= _REMEMBERED:
            self._buckets = Counter({b: n // 2 for b, n in self._buckets.items() if n > 1})
            self._count = self._buckets.total()

    def at(self, share: float) -> float:
        """Return the number below which this share of the stream lies.

        Raises:
            ValueError: Nothing was taken in yet.
        """
        rank = share * self._count
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                return exp(bucket * _STEP)
        raise ValueError("no numbers to take a quantile of")


class Hedger:
    """Decides which calls of a run get a second copy, and how many.

    In the tail of a run of known length places stand empty while everybody waits for the few
    slowest calls. There, a call that takes much longer than the others is asked again, and
    the first answer counts.

    Args:
        share: Most second copies, as a share of the calls of the run.
        places: Calls that may be in flight; may be changed at any time.

    Attributes:
        places: The same.
        hedged: Second copies so far.
    """

    __slots__ = ("_answered", "_fresh", "_paces", "_seconds", "_share", "_started", "_straggling",
                 "_tokens", "hedged", "places")  # fmt: skip

    def __init__(self, share: float = 0.03, *, places: int = 1) -> None:
        self.places = places
        self.hedged = 0
        self._share = share
        self._started = 0
        self._answered = 0
        self._seconds = Quantiles()
        self._tokens = Quantiles()
        self._paces = Quantiles()
        self._straggling = 0.0
        self._fresh = 0

    def started(self) -> None:
        """A call starts; second copies do not count."""
        self._started += 1

    def answered(self, took: float, tokens: int) -> None:
        """A call was answered.

        Args:
            took: Seconds from sending to the answer; of a hedged call, of the copy that won.
            tokens: Completion tokens of the answer.
        """
        self._answered += 1
        tokens = max(1, tokens)
        self._seconds.add(took)
        self._tokens.add(tokens)
        self._paces.add(took / tokens)

    def in_tail(self, remaining: int | None) -> bool:
        """Return True if so few items are left that endpoints have room for second copies.

        Args:
            remaining: Items without an answer, those in flight included; `None` if unknown.
        """
        if remaining is None:
            return False
        return remaining <= max(self.places, _TAIL * (self._answered + remaining))

    def hedge_after(self, remaining: int | None) -> float | None:
        """Return the seconds after which a call is so late that it should be asked again.

        1.5 times what 95 % of the calls stay below, and not below the time that a long
        answer (one in a hundred) takes at the usual pace: such a call is not late.

        Args:
            remaining: Items without an answer, those in flight included; `None` if unknown.

        Returns:
            Seconds since the call's latest copy was sent: a copy can straggle as well as a
            call. `None` outside of the run's tail, or as long as too few answers are known.
        """
        if self._answered < _ENOUGH or not self.in_tail(remaining):
            return None
        if not self._straggling or self._answered - self._fresh >= _ENOUGH:
            usual = self._paces.at(0.5) * self._tokens.at(0.99)
            self._straggling = _FACTOR * max(self._seconds.at(0.95), usual)
            self._fresh = self._answered
        return self._straggling

    def take(self, shrinking: bool) -> bool:
        """Return True if a second copy may be sent now, and count it.

        Args:
            shrinking: True while load makes an endpoint's limit smaller.
        """
        if shrinking or self.hedged + 1 > self._share * self._started:
            return False
        self.hedged += 1
        return True
