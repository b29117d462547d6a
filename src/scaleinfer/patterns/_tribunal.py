"""Tribunals: drafts that several judges criticise, and that are revised until they accept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Unpack

from pydantic import BaseModel, Field

from scaleinfer.errors import ConfigError, EndpointError, SchemaError, WorkerLost
from scaleinfer.mapping import MapOptions, parallel_map
from scaleinfer.patterns._result import Outcome, PatternResult
from scaleinfer.patterns._roles import Role, all_of, function_of, prompt_function, words_of

if TYPE_CHECKING:
    from scaleinfer.errors import ScaleInferError
    from scaleinfer.patterns._roles import PromptOf
    from scaleinfer.patterns._tables import Table
    from scaleinfer.program import LLM
    from scaleinfer.results import Result

__all__ = ["Critique", "Opinion", "Round", "TribunalOutcome", "TribunalResult", "tribunal"]

Accept = Literal["majority", "all", "any"] | float | Callable[[list[Any]], bool]
"""How verdicts become a decision: a share of the judges, or a function of their verdicts."""

_RULES = {"majority": 0.5, "all": 1.0, "any": 0.0}
_JUDGE = "You are {name}, one of {count} judges. Judge on your own, strictly and in few words."
_CRITIQUE = """Task:
{task}

Draft:
{draft}

Criticise the draft: what is wrong, what is missing, what should change. Give it a score from 1 \
(useless) to 10 (perfect). Accept it only if nothing that matters needs to change."""
_REVISE = """Task:
{task}

Draft:
{draft}

Critiques:
{critiques}

Write the draft again so that it meets the critiques. Answer with the new draft only."""


class Opinion(BaseModel):
    """What a judge says of a draft."""

    critique: str = Field(description="what is wrong or missing, and what to change")
    score: int = Field(ge=1, le=10, description="1 is useless, 10 is perfect")
    accept: bool = Field(description="true only if nothing that matters needs to change")


@dataclass(frozen=True, slots=True)
class Critique:
    """One judge's part in a round.

    Attributes:
        judge: The judge's name.
        verdict: What the judge said: an `Opinion`, or what `verdict=` was; `None` without.
        error: Why there is no verdict.
    """

    judge: str
    verdict: Any = None
    error: ScaleInferError | None = None

    @property
    def score(self) -> float | None:
        """The verdict's `score`, if it has one."""
        score = getattr(self.verdict, "score", None)
        return None if score is None else float(score)


@dataclass(frozen=True, slots=True)
class Round:
    """A draft and what the judges said of it.

    Attributes:
        draft: The draft's text.
        critiques: One for each judge, in the order of the judges.
        accepted: The decision.
    """

    draft: str
    critiques: tuple[Critique, ...]
    accepted: bool

    @property
    def score(self) -> float | None:
        """Mean of the judges' scores; `None` if verdicts have none."""
        scores = [one.score for one in self.critiques if one.score is not None]
        return sum(scores) / len(scores) if scores else None


@dataclass(frozen=True, slots=True)
class TribunalOutcome(Outcome):
    """What the tribunal made of one item; `value` is the final draft.

    Attributes:
        accepted: True if the judges accepted it.
        transcript: Every round; of a failed item, those that were completed.
    """

    accepted: bool = False
    transcript: tuple[Round, ...] = ()

    columns: ClassVar[tuple[str, ...]] = ("accepted", "rounds", "score")

    @property
    def rounds(self) -> int:
        """How often the judges were heard."""
        return len(self.transcript)

    @property
    def score(self) -> float | None:
        """Mean score of the final draft."""
        return self.transcript[-1].score if self.transcript and self.ok else None


class TribunalResult(PatternResult[TribunalOutcome]):
    """A tribunal's outcomes in input order."""

    @property
    def accepted(self) -> list[TribunalOutcome]:
        """The outcomes whose final draft was accepted."""
        return [outcome for outcome in self if outcome.accepted]

    def ranked(self) -> list[TribunalOutcome]:
        """Return the outcomes with an answer, the best score first, accepted ones before others."""

        def rank(outcome: TribunalOutcome) -> tuple[float, bool, int]:
            score = outcome.score
            return (0.0 if score is None else -score, not outcome.accepted, outcome.index)

        return sorted(self.ok, key=rank)

    def tables(self) -> list[Table]:
        """Return a row for each judge."""
        from scaleinfer.patterns._tables import Table

        heard: dict[str, list[Critique]] = {}
        for outcome in self:
            for critique in (one for part in outcome.transcript for one in part.critiques):
                heard.setdefault(critique.judge, []).append(critique)
        title = f"{len(self.accepted)} of {len(self)} drafts accepted"
        names = ("judge", "verdicts", "accepted", "mean score", "failed")
        return [Table(title, names, [_judge_row(*one) for one in heard.items()])]


def _judge_row(judge: str, critiques: list[Critique]) -> tuple[Any, ...]:
    verdicts = [one.verdict for one in critiques if one.error is None]
    scores = [one.score for one in critiques if one.score is not None]
    accepted = sum(bool(getattr(verdict, "accept", False)) for verdict in verdicts)
    mean = sum(scores) / len(scores) if scores else None
    return judge, len(verdicts), accepted, mean, len(critiques) - len(verdicts)


async def tribunal(
    items: Any,
    draft: PromptOf,
    *,
    judges: int | Sequence[Role | str] = 3,
    rounds: int = 3,
    accept: Accept = "majority",
    critique: PromptOf | None = None,
    revise: PromptOf | None = None,
    drafter: Role | None = None,
    reviser: Role | None = None,
    verdict: type[BaseModel] = Opinion,
    quorum: int | None = None,
    **options: Unpack[MapOptions],
) -> TribunalResult:
    """Draft an answer for each item, have judges criticise it, and revise it until they accept.

    A round is one call for each judge, all at the same time; between two rounds the draft is
    revised. An item takes `1 + rounds * (judges + 1) - 1` calls at most.

    Args:
        items: As for `parallel_map`.
        draft: The task: a template, or a function of the item that returns a prompt.
        judges: How many, or who: each a `Role` (with a model, a backend, a system message of its
            own), or a string that says what this judge looks at.
        rounds: Rounds at most. The draft of the last one is the answer, accepted or not.
        accept: When a draft is accepted: `"majority"`, `"all"` or `"any"` of the judges who
            answered, a share of them (0.75: at least three quarters), or a function of the list
            of verdicts.
        critique: What judges are asked: a template or a function of item and draft.
        revise: What the reviser is asked: a template or a function of item, draft and the list
            of `Critique`. In both templates `{draft}` and `{task}` can be named, in this one
            `{critiques}` too.
        drafter: Who writes the first draft; default the map's model.
        reviser: Who revises; default the drafter.
        verdict: Pydantic model of a judge's answer, in place of `Opinion`. Without a field
            `accept` it needs `accept` to be a function; its field `score` makes the ranking.
        quorum: Verdicts that a round needs; with fewer the item fails with a judge's error.
            Default more than half of the judges.
        **options: As for `parallel_map`. `schema` and `system` are those of draft and revision.

    Returns:
        A `TribunalResult`: for each item the final draft, whether it was accepted, and the
        transcript.

    Raises:
        ConfigError: An argument is wrong; nothing was sent.
        JournalError: As for `parallel_map`.
    """
    bench = _bench(judges)
    if rounds < 1:
        raise ConfigError(f"rounds must be at least 1, not {rounds}.")
    quorum = len(bench) // 2 + 1 if quorum is None else quorum
    if not 1 <= quorum <= len(bench):
        raise ConfigError(f"quorum is 1 to the number of judges ({len(bench)}), not {quorum}.")
    trial = _Trial(
        draft=prompt_function(draft, (), what="draft"),
        critique=prompt_function(critique or _CRITIQUE, ("draft", "task"), what="critique"),
        revise=prompt_function(revise or _REVISE, ("draft", "critiques", "task"), what="revise"),
        drafter=drafter or Role(),
        reviser=reviser or drafter or Role(),
        judges=bench,
        rounds=rounds,
        accept=_decision(accept, verdict),
        verdict=verdict,
        quorum=quorum,
    )
    results = await parallel_map(items, trial.run, **options)
    return TribunalResult([trial.outcome(result) for result in results], results.stats)


class _Trial:
    """The program of a tribunal, and the transcripts of its items."""

    def __init__(
        self,
        *,
        draft: Callable[..., Any],
        critique: Callable[..., Any],
        revise: Callable[..., Any],
        drafter: Role,
        reviser: Role,
        judges: list[Role],
        rounds: int,
        accept: Callable[[list[Any]], Any],
        verdict: type[BaseModel],
        quorum: int,
    ) -> None:
        self._draft = draft
        self._critique = critique
        self._revise = revise
        self._drafter = drafter
        self._reviser = reviser
        self._judges = judges
        self._rounds = rounds
        self._accept = accept
        self._verdict = verdict
        self._quorum = quorum
        self._transcripts: dict[int, list[Round]] = {}

    async def run(self, item: Any, llm: LLM) -> Any:
        """Return the final draft of one item."""
        transcript = self._transcripts[llm.index] = []
        prompt = await self._draft(item)
        task = words_of(prompt)
        current = await self._drafter.ask(llm, prompt)
        while True:
            text = _text(current)
            critiques = await self._hear(item, text, task, llm)
            verdicts = [one.verdict for one in critiques if one.error is None]
            accepted = bool(await self._accept(verdicts))
            transcript.append(Round(text, critiques, accepted))
            if accepted or len(transcript) == self._rounds:
                return current.value
            prompt = await self._revise(item, text, _Critiques(critiques), task)
            current = await self._reviser.ask(llm, prompt)

    async def _hear(self, item: Any, draft: str, task: str, llm: LLM) -> tuple[Critique, ...]:
        """Hear all judges at once.

        Raises:
            ScaleInferError: Too few of them answered.
        """
        prompt = await self._critique(item, draft, task)
        critiques = await all_of([self._judge(one, llm, prompt) for one in self._judges])
        failures = [one.error for one in critiques if one.error is not None]
        if len(critiques) - len(failures) < self._quorum:
            raise failures[0]
        return tuple(critiques)

    async def _judge(self, judge: Role, llm: LLM, prompt: Any) -> Critique:
        try:
            answer = await judge.ask(llm, prompt, schema=self._verdict)
        except (EndpointError, SchemaError, WorkerLost) as error:
            return Critique(judge.name, error=error)
        return Critique(judge.name, answer.value)

    def outcome(self, result: Result) -> TribunalOutcome:
        """Return what became of an item."""
        transcript = tuple(self._transcripts.get(result.index, ()))
        accepted = result.ok and transcript[-1].accepted
        return TribunalOutcome(result, result.value, accepted, transcript)


class _Critiques(list[Critique]):
    """The critiques of a round; as text, what each judge had to say."""

    def __str__(self) -> str:
        return "\n".join(f"- {one.judge}: {_said(one.verdict)}" for one in self if not one.error)


def _said(verdict: Any) -> str:
    said = getattr(verdict, "critique", None)
    return str(said) if said is not None else str(verdict.model_dump_json())


def _text(answer: Result) -> str:
    return answer.text or ""


def _bench(judges: int | Sequence[Role | str]) -> list[Role]:
    """Return the judges, each with a name and instructions of its own."""
    given: list[Role | str] = [Role()] * judges if isinstance(judges, int) else list(judges)
    if not given:
        raise ConfigError("A tribunal needs at least one judge.")
    bench = []
    for number, one in enumerate(given, 1):
        if isinstance(one, str):
            system = _JUDGE.format(name=f"judge {number}", count=len(given))
            bench.append(Role(one, system=f"{system} Look at one thing only: {one}."))
            continue
        if not isinstance(one, Role):
            raise ConfigError(f"a judge is a Role or a string, not {one!r}.")
        name = one.name or f"judge {number}"
        system = one.system or _JUDGE.format(name=name, count=len(given))
        bench.append(replace(one, name=name, system=system))
    names = [one.name for one in bench]
    if len(set(names)) < len(names):
        raise ConfigError(f"two judges have the same name: {', '.join(names)}.")
    return bench


def _decision(accept: Accept, verdict: type[BaseModel]) -> Callable[[list[Any]], Any]:
    """Return a coroutine function of the verdicts."""
    if callable(accept):
        return function_of(accept, 1, what="accept")
    if isinstance(accept, str):
        if accept not in _RULES:
            raise ConfigError(
                f"accept={accept!r} is unknown.",
                hint="Known: 'majority', 'all', 'any', a share, or a function of the verdicts.",
            )
    elif not 0 < accept <= 1:
        raise ConfigError(f"accept is a share above 0, at most 1, not {accept}.")
    if "accept" not in getattr(verdict, "model_fields", {}):
        raise ConfigError(
            "verdict= has no field 'accept' to count.",
            hint="Give it one (bool), or pass accept= as a function of the list of verdicts.",
        )

    async def decided(verdicts: list[Any]) -> bool:
        share = sum(bool(one.accept) for one in verdicts) / len(verdicts)
        if isinstance(accept, str):
            needed = _RULES[accept]
            return share >= needed if accept == "all" else share > needed
        return share >= accept

    return decided
