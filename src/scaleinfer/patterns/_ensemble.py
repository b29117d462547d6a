"""`ensemble`: several answers to each item, and what most of them say."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from scaleinfer.errors import ConfigError, PromptError
from scaleinfer.mapping import parallel_map
from scaleinfer.patterns._agreement import Agreement, agreement_of
from scaleinfer.patterns._asking import GIVEN_UP, called, prompt_maker, together
from scaleinfer.patterns._members import (
    Member,
    ask,
    check_chance,
    for_map,
    members_of,
    varied,
)
from scaleinfer.patterns._result import Outcome, PatternResult
from scaleinfer.patterns._tables import Table
from scaleinfer.patterns._voting import Election, Tally, normalised
from scaleinfer.requests import Sampling

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from typing import Unpack

    from scaleinfer.errors import ScaleInferError
    from scaleinfer.mapping import MapOptions
    from scaleinfer.program import LLM
    from scaleinfer.results import Result

__all__ = ["EnsembleOutcome", "EnsembleResult", "Vote", "ensemble", "probability"]


@dataclass(frozen=True, slots=True)
class Vote:
    """One voter's answer.

    Attributes:
        voter: Which of the `n` voters, from 0.
        member: Name of the model that was asked.
        answer: What it voted for; `None` if it has no vote.
        weight: What the vote weighs.
        result: The call's result; `None` if the call was given up.
        error: Why there is no vote; `None` if there is one, or the voter abstained.
    """

    voter: int
    member: str
    answer: Any = None
    weight: float = 1.0
    result: Result | None = None
    error: ScaleInferError | None = None


@dataclass(frozen=True, slots=True)
class EnsembleOutcome(Outcome):
    """What an ensemble made of one item.

    Attributes:
        value: The winning answer, as it was first given.
        votes: Each answer's votes (sums of weights), most first.
        confidence: The winner's share of the votes that were cast, 0 to 1.
        agreement: Chance that two of the voters, drawn at random, gave the same answer.
        tied: Answers with as many votes as the winner, which is the one of them that was given
            first; empty if the winner is alone.
        asked: Voters that were asked.
        saved: Voters that were not, because they could not have changed the winner.
        ballots: The votes one by one, in the voters' order.
    """

    votes: Mapping[str, float] = field(default_factory=dict)
    confidence: float = 0.0
    agreement: float = 0.0
    tied: tuple[str, ...] = ()
    asked: int = 0
    saved: int = 0
    ballots: tuple[Vote, ...] = ()

    columns = ("votes", "confidence", "agreement", "tied", "asked", "saved")

    def shown(self) -> Any:
        """Return the winner with its share of the votes."""
        from scaleinfer.observe import one_line

        value = self.value if isinstance(self.value, str) else normalised(self.value)
        tied = ", tied" if self.tied else ""
        return f"{one_line(value, 80)} ({self.confidence:.0%} of {self.asked}{tied})"


class EnsembleResult(PatternResult[EnsembleOutcome]):
    """Outcomes of an ensemble in input order."""

    @property
    def saved(self) -> float:
        """Share of the answers that were not asked for, 0 to 1."""
        asked = sum(outcome.asked for outcome in self.ok)
        saved = sum(outcome.saved for outcome in self.ok)
        return saved / (asked + saved) if asked + saved else 0.0

    @property
    def tied(self) -> list[EnsembleOutcome]:
        """The outcomes whose winner has a rival with as many votes."""
        return [outcome for outcome in self.ok if outcome.tied]

    def agreement(self) -> Agreement:
        """Return how far the voters agree over all items, as raters of nominal categories.

        A voter is a rater, named after its model, with a number if the model votes more than
        once. With `stop="early"` the last voters are asked only where the first ones differ,
        which lowers agreement: use `stop="never"` to measure it.
        """
        names: dict[int, str] = {}
        for outcome in self.ok:
            names |= {ballot.voter: ballot.member for ballot in outcome.ballots}
        several = len(set(names.values())) < len(names)
        columns = {
            f"{name} #{voter}" if several else name: [self._rated(o, voter) for o in self]
            for voter, name in sorted(names.items())
        }
        return agreement_of(columns)

    @staticmethod
    def _rated(outcome: EnsembleOutcome, voter: int) -> str | None:
        for ballot in outcome.ballots:
            if ballot.voter == voter and ballot.answer is not None:
                return normalised(ballot.answer)
        return None

    def tables(self) -> list[Table]:
        """Return what the votes came to over all items."""
        if not self.ok:
            return []
        n = len(self.ok)
        row = (
            n,
            math.fsum(outcome.confidence for outcome in self.ok) / n,
            sum(outcome.confidence == 1 for outcome in self.ok),
            len(self.tied),
            sum(outcome.asked for outcome in self.ok),
            self.saved,
        )
        names = ("items", "mean confidence", "unanimous", "tied", "answers asked", "share saved")
        return [Table("Votes", names, [row])]


async def ensemble(
    items: Any,
    prompt_fn: str | Callable[[Any], Any],
    *,
    n: int = 5,
    vote: Literal["majority", "weighted"] | Callable[[list[Vote]], Any] = "majority",
    stop: Literal["early", "never"] = "early",
    answer: Callable[[Result], Any] | None = None,
    models: Iterable[Any] | None = None,
    confidence: Callable[[Result], float] | None = None,
    seed: int | None = 0,
    **options: Unpack[MapOptions],
) -> EnsembleResult:
    """Ask for several answers to each item and return what most of them say.

    The `n` answers are samples of one prompt: each is asked with a seed of its own (`seed`,
    `seed + 1`, ...) at the map's temperature, which must not be 0 where a model answers more
    than once. Servers that ignore seeds draw anew anyway. A journal keeps the samples apart, by
    their seeds and, where these are equal, by their order.

    With `stop="early"` only as many voters are asked, all at once, as could settle the matter,
    and further ones only while they can change the winner. The winner (and whether there is a
    tie) is the one that all `n` answers would have given.

    Args:
        items: As for `parallel_map`.
        prompt_fn: A template or a function of the item, plain or async, that gives one prompt.
        n: Answers to each item at most.
        vote: `"majority"`: the answer with the most votes, also with less than half of them;
            of several the one that was given first. `"weighted"`: votes weigh as much as their
            model (`Member.weight`) and `confidence` say. Or a function of the votes that returns
            the winner; all are then asked.
        stop: `"early"`, or `"never"` to ask for all `n` answers.
        answer: What a result votes for; `None` abstains. Default its value. Answers that are
            equal but for capitals at the beginning of words, white space and punctuation at the
            end are one.
        models: Models, addresses, backends or `Member`s to spread the votes over, in turn;
            default the map's own.
        confidence: What a result's vote weighs with `vote="weighted"`, 0 to 1. Default: 1 if
            the members have weights; else the answer's probability, the geometric mean of its
            tokens' (X. Wang et al., Self-consistency improves chain of thought reasoning in
            language models, ICLR 2023, section 3.1), for which log probabilities are asked.
        seed: The first sample's seed, where the sampling names none; `None` to send no seeds.
        options: As for `parallel_map`.

    Returns:
        An outcome per item. An item none of whose voters has a vote is a failed one, with the
        first voter's error.

    Raises:
        ConfigError: An argument is wrong; nothing was sent.
    """
    members = members_of(models)
    _check(n, vote, stop, members, Sampling.of(options.get("sampling")))
    options, members = for_map(options, members, "ensemble")
    poll = _Poll(
        prompt_maker(prompt_fn), members, n=n, vote=vote, early=stop == "early",
        answer=answer, confidence=confidence, seed=seed,
    )  # fmt: skip
    results = await parallel_map(items, poll.run, **options)
    outcomes = [
        replace(result.value, result=result) if result.ok else EnsembleOutcome(result)
        for result in results
    ]
    return EnsembleResult(outcomes, results.stats)


def _check(n: Any, vote: Any, stop: Any, members: tuple[Member, ...], sampling: Sampling) -> None:
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ConfigError(f"n is a number of answers, at least 1, not {n!r}.")
    if not callable(vote) and vote not in {"majority", "weighted"}:
        raise ConfigError(
            f"vote={vote!r} is unknown.",
            hint="Known: 'majority', 'weighted', or a function of the votes.",
        )
    if stop not in {"early", "never"}:
        raise ConfigError(f"stop={stop!r} is unknown.", hint="Known: 'early', 'never'.")
    if n < len(members):
        raise ConfigError(
            f"n={n} answers cannot be spread over {len(members)} models.",
            hint=f"Use n={len(members)} or more.",
        )
    for place, member in enumerate(members):
        own = sampling if member.sampling is None else Sampling.of(member.sampling)
        check_chance(own, len(range(place, n, len(members))))


class _Poll:
    """Asks the voters of one item after the other; keeps nothing between them."""

    def __init__(
        self,
        prompt: Callable[[Any], Awaitable[Any]],
        members: tuple[Member, ...],
        *,
        n: int,
        vote: Any,
        early: bool,
        answer: Callable[[Result], Any] | None,
        confidence: Callable[[Result], float] | None,
        seed: int | None,
    ) -> None:
        self._prompt = prompt
        self._voters = [members[voter % len(members)] for voter in range(n)]
        self._members = len(members)
        self._vote = vote
        self._answer = answer
        self._seed = seed
        self._early = early and not callable(vote)
        weighted = vote == "weighted"
        self._ceilings = [member.weight if weighted else 1.0 for member in self._voters]
        unequal = any(member.weight != 1 for member in members)
        if weighted and confidence is None and not unequal:
            confidence = probability
        self._confidence = confidence if weighted else None

    async def run(self, item: Any, llm: LLM) -> EnsembleOutcome:
        """Hold the election of one item."""
        prompt = await self._prompt(item)
        changes = [
            varied(llm, prompt, member, voter // self._members, self._seed)
            for voter, member in enumerate(self._voters)
        ]
        election = Election(self._ceilings, early=self._early)
        votes: dict[int, Vote] = {}

        async def poll(voter: int) -> None:
            votes[voter] = vote = await self._poll(llm, prompt, voter, changes[voter])
            election.cast(voter, vote.answer, vote.weight)
            ask_more()

        async with together() as group:

            def ask_more() -> None:
                for voter in election.ask():
                    group.create_task(poll(voter))

            ask_more()
        ballots = tuple(votes[voter] for voter in sorted(votes))
        return self._outcome(ballots, election.tally())

    async def _poll(self, llm: LLM, prompt: Any, voter: int, changes: dict[str, Any]) -> Vote:
        member = self._voters[voter]
        if self._confidence is probability:
            changes["logprobs"] = True
        try:
            result = await ask(llm, prompt, member, **changes)
        except GIVEN_UP as error:
            return Vote(voter, member.name, error=error)
        try:
            answer, weight = self._read(result)
        except PromptError as error:
            return Vote(voter, member.name, result=result, error=error)
        weight *= self._ceilings[voter]
        return Vote(voter, member.name, answer, weight, result)

    def _read(self, result: Result) -> tuple[Any, float]:
        answer = result.value
        if self._answer is not None:
            try:
                answer = self._answer(result)
            except Exception as error:
                raise called("answer", error) from error
        if self._confidence is None:
            return answer, 1.0
        try:
            weight = float(self._confidence(result))
        except PromptError:
            raise
        except Exception as error:
            raise called("confidence", error) from error
        if not 0 <= weight <= 1:
            raise PromptError(f"confidence returned {weight}, which is not between 0 and 1.")
        return answer, weight

    def _outcome(self, ballots: tuple[Vote, ...], tally: Tally) -> EnsembleOutcome:
        cast = [ballot for ballot in ballots if ballot.answer is not None]
        if not cast:
            errors = [ballot.error for ballot in ballots if ballot.error is not None]
            raise errors[0] if errors else _nobody_voted(len(ballots))
        value, share = tally.value, tally.confidence
        if callable(self._vote):
            try:
                value = self._vote(cast)
            except Exception as error:
                raise called("vote", error) from error
            total = math.fsum(tally.votes.values())
            share = tally.votes.get(normalised(value), 0.0) / total if total else 0.0
        return EnsembleOutcome(
            result=_NOT_YET,
            value=value,
            votes=tally.votes,
            confidence=share,
            agreement=tally.agreement,
            tied=() if callable(self._vote) else tally.tied,
            asked=len(ballots),
            saved=len(self._voters) - len(ballots),
            ballots=ballots,
        )


_NOT_YET: Any = None
"""In place of the item's result, which there is when its program has ended."""


def _nobody_voted(n: int) -> PromptError:
    return PromptError(
        f"all {n} voters abstained: answer returned None for each.",
        hint="Look at what answer does with these texts.",
    )


def probability(result: Result) -> float:
    """Return an answer's probability: the geometric mean of its tokens'.

    Raises:
        PromptError: The endpoint gave no log probabilities.
    """
    logprobs = token_logprobs(result)
    if not logprobs:
        raise PromptError(
            f"{result.endpoint} gave no log probabilities.",
            hint="Weigh votes by something else: confidence=, or Member(weight=).",
        )
    return math.exp(math.fsum(logprobs) / len(logprobs))


def token_logprobs(result: Result) -> list[float]:
    """Return the log probabilities of an answer's tokens; none if the endpoint gave none."""
    given = result.logprobs or {}
    content = given.get("content")
    if content:
        return [float(token["logprob"]) for token in content]
    return [float(value) for value in given.get("token_logprobs") or () if value is not None]
