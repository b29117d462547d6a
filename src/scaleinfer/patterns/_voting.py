"""Votes: what was answered how often, and when no further answer can change the winner."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Election", "Tally", "count_votes", "normalised"]

_QUOTES = "\"'`*"
_STOPS = ".,;:!?" + _QUOTES
_PAIR = 2


def normalised(answer: Any) -> str:
    """Return what two answers have in common that say the same.

    Texts lose quotes around them, the punctuation at their end, capital letters at the beginning
    of words, and the amount of white space. All other capitals count: `CO` is not `Co`, and
    `C1CCCCC1` not `c1ccccc1`. Structured values become JSON with sorted keys, whose strings are
    kept as they are.
    """
    if not isinstance(answer, str):
        return canonical(answer)
    words = unicodedata.normalize("NFKC", answer).split()
    text = " ".join(words).lstrip(_QUOTES).rstrip(_STOPS)
    return " ".join(_small(word) for word in text.split())


def _small(word: str) -> str:
    bare = word.strip(_STOPS)
    return word.lower() if len(bare) > 1 and bare.isalpha() and bare.istitle() else word


def canonical(value: Any) -> str:
    """Return a value as JSON with sorted keys; what JSON does not know, as its `repr`."""
    import orjson

    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json")
    try:
        options = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
        return orjson.dumps(value, option=options, default=_plain).decode()
    except TypeError:
        return repr(value)


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    raise TypeError


@dataclass(frozen=True, slots=True)
class Tally:
    """What votes came to.

    Attributes:
        value: The winner, as it was first answered; `None` if nobody voted.
        votes: Each answer's votes (sums of weights), most first; names are normalised.
        confidence: The winner's share of all votes that were cast, 0 to 1.
        agreement: Chance that two voters drawn at random gave the same answer, weights aside:
            Fleiss's `P_i`; 1 for a single voter.
        tied: Answers that have as many votes as the winner, in the order in which they were
            first given; empty if the winner is alone. The first given wins.
        voters: Voters that gave an answer.
    """

    value: Any
    votes: Mapping[str, float]
    confidence: float
    agreement: float
    tied: tuple[str, ...]
    voters: int


def count_votes(votes: Iterable[tuple[Any, float]]) -> Tally:
    """Return what votes come to.

    The answer with the most votes wins (a plurality); of several, the one that was given first.

    Args:
        votes: Answers and their weights, in the voters' order. `None` is no answer; answers
            that are the same once `normalised` count as one.
    """
    weights: dict[str, list[float]] = {}
    first: dict[str, Any] = {}
    for answer, weight in votes:
        if answer is None:
            continue
        name = normalised(answer)
        first.setdefault(name, answer)
        weights.setdefault(name, []).append(weight)
    # Floats are added in an order of their own so that equal votes give equal sums.
    sums = {name: math.fsum(given) for name, given in weights.items()}
    order = sorted(sums, key=lambda name: -sums[name])
    if not order:
        return Tally(None, {}, 0.0, 0.0, (), 0)
    winner, total = order[0], math.fsum(sums.values())
    tied = tuple(name for name in order if sums[name] == sums[winner])
    return Tally(
        value=first[winner],
        votes={name: sums[name] for name in order},
        confidence=sums[winner] / total if total else 0.0,
        agreement=_agreement([len(given) for given in weights.values()]),
        tied=tied if len(tied) > 1 else (),
        voters=sum(map(len, weights.values())),
    )


def _agreement(counts: Sequence[int]) -> float:
    n = sum(counts)
    if n < _PAIR:
        return 1.0
    return sum(count * (count - 1) for count in counts) / (n * (n - 1))


class Election:
    """Says which voters to ask, until no further answer can change the winner.

    Voters are asked in the order of their heaviest possible vote. `ask` names as many as would
    settle the matter if all of them chose the leader: fewer can never do, so they may be asked
    at once, and asking one after the other would not save a call. The matter is settled when the
    leader has more votes than any other answer could still reach; an answer that could still
    draw level keeps it open, so the winner is the one, and `Tally.tied` says what it would, had
    everybody been asked.

    Args:
        ceilings: For each voter, the most that its vote can weigh.
        early: False to ask everybody at once.
    """

    def __init__(self, ceilings: Sequence[float], *, early: bool = True) -> None:
        self._ceilings = list(ceilings)
        self._waiting = sorted(range(len(ceilings)), key=lambda voter: -ceilings[voter])
        self._early = early
        self._asked: set[int] = set()
        self._votes: dict[int, tuple[Any, float]] = {}
        self._weights: dict[str, list[float]] = {}

    @property
    def in_flight(self) -> int:
        """Voters that were asked and have not answered."""
        return len(self._asked)

    @property
    def unasked(self) -> int:
        """Voters that were not asked."""
        return len(self._waiting)

    @property
    def settled(self) -> bool:
        """True if no further answer can change the winner."""
        return self._lead() > self._sum(self._asked) + self._sum(self._waiting) or not (
            self._asked or self._waiting
        )

    def ask(self) -> list[int]:
        """Return the voters to ask now, besides those that are being asked."""
        if not self._early:
            now, self._waiting = self._waiting, []
            self._asked.update(now)
            return now
        now = []
        lead, coming, left = self._lead(), self._sum(self._asked), self._sum(self._waiting)
        # Even if all that is coming goes to the leader, the rest could still catch up.
        while self._waiting and lead + coming <= left:
            voter = self._waiting.pop(0)
            coming += self._ceilings[voter]
            left = self._sum(self._waiting)
            now.append(voter)
        self._asked.update(now)
        return now

    def cast(self, voter: int, answer: Any, weight: float = 1.0) -> None:
        """Take a vote.

        Args:
            voter: Who was asked.
            answer: Its answer; `None` for a voter that has none (it failed, or abstains).
            weight: What its vote weighs, from 0 to its ceiling.
        """
        self._asked.remove(voter)
        weight = min(max(weight, 0.0), self._ceilings[voter])
        self._votes[voter] = (answer, weight)
        if answer is not None:
            self._weights.setdefault(normalised(answer), []).append(weight)

    def tally(self) -> Tally:
        """Return what the votes come to so far."""
        return count_votes(self._votes[voter] for voter in sorted(self._votes))

    def _lead(self) -> float:
        """Return by how much the leader is before the next."""
        sums = sorted(map(math.fsum, self._weights.values()), reverse=True)
        first, second, *_ = [*sums, 0.0, 0.0]
        return first - second

    def _sum(self, voters: Iterable[int]) -> float:
        return math.fsum(self._ceilings[voter] for voter in voters)
