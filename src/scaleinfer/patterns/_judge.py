"""`judge`: scores by a rubric, from several judges, and how far these agree."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from scaleinfer._identity import content_key
from scaleinfer.errors import ConfigError, PromptError
from scaleinfer.mapping import parallel_map
from scaleinfer.patterns._agreement import Agreement, Level, agreement_of
from scaleinfer.patterns._asking import gathered, prompt_maker
from scaleinfer.patterns._members import Member, ask, for_map, members_of
from scaleinfer.patterns._result import Outcome, PatternResult
from scaleinfer.patterns._rubric import Criterion, Rubric
from scaleinfer.patterns._tables import Table
from scaleinfer.patterns._voting import canonical
from scaleinfer.prompts import Prompt
from scaleinfer.results import Result

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from typing import Unpack

    from pydantic import BaseModel

    from scaleinfer.errors import ScaleInferError
    from scaleinfer.map_result import RunStats
    from scaleinfer.mapping import MapOptions
    from scaleinfer.program import LLM

__all__ = ["Criterion", "JudgeOutcome", "JudgeResult", "Rubric", "Verdict", "judge"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One judge's scores of one item.

    Attributes:
        judge: The judge's name.
        scores: Criterion -> score; empty if the call was given up.
        reasons: Why; empty if reasons were not asked for.
        result: The call's result; `None` if it was given up.
        error: Why there are no scores; `None` if there are.
    """

    judge: str
    scores: Mapping[str, int] = field(default_factory=dict)
    reasons: str = ""
    result: Result | None = None
    error: ScaleInferError | None = None


@dataclass(frozen=True, slots=True)
class JudgeOutcome(Outcome):
    """One item's scores.

    Attributes:
        value: Criterion -> mean score of the judges who gave one.
        total: Weighted mean of the criteria, each as its place on its scale: 0 to 1.
        spread: Criterion -> highest minus lowest score.
        verdicts: The judges' own scores.
    """

    total: float = 0.0
    spread: Mapping[str, int] = field(default_factory=dict)
    verdicts: tuple[Verdict, ...] = ()

    columns = ("total", "spread")

    def shown(self) -> Any:
        """Return the scores, in short."""
        return {name: round(score, 2) for name, score in (self.value or {}).items()} | {
            "total": round(self.total, 2)
        }


class JudgeResult(PatternResult[JudgeOutcome]):
    """Outcomes of `judge` in input order.

    Args:
        outcomes: One per item, in input order.
        stats: What the run came to.
        rubric: By what was scored.
        judges: Names of the judges.
    """

    def __init__(
        self,
        outcomes: list[JudgeOutcome],
        stats: RunStats,
        rubric: Rubric,
        judges: Sequence[str],
    ) -> None:
        super().__init__(outcomes, stats)
        self.rubric = rubric
        self.judges = tuple(judges)

    def ranked(self) -> list[JudgeOutcome]:
        """Return the outcomes that have scores, the best total first, equal ones in order."""
        return sorted(self.ok, key=lambda outcome: -outcome.total)

    def agreement(self, criterion: str | None = None, *, level: Level = "ordinal") -> Agreement:
        """Return how far the judges agree on a criterion.

        Args:
            criterion: Its name; may be left out if there is one only.
            level: What its scores mean, for Krippendorff's alpha.

        Raises:
            ConfigError: There is no such criterion.
        """
        names = [one.name for one in self.rubric.criteria]
        if criterion is None and len(names) == 1:
            criterion = names[0]
        if criterion not in names:
            raise ConfigError(
                f"there is no criterion {criterion!r}.", hint=f"There are: {', '.join(names)}."
            )
        return agreement_of(
            {
                judge: [
                    outcome.verdicts[place].scores.get(criterion) if outcome.ok else None
                    for outcome in self
                ]
                for place, judge in enumerate(self.judges)
            },
            level=level,
        )

    @cached_property
    def alphas(self) -> dict[str, float | None]:
        """Krippendorff's alpha of each criterion, as an ordinal one; `None` where undefined."""
        return {one.name: self.agreement(one.name).alpha for one in self.rubric.criteria}

    def tables(self) -> list[Table]:
        """Return what each criterion came to, and how each judge scores."""
        if not self.ok:
            return []
        rows = []
        for one in self.rubric.criteria:
            scores = [outcome.value[one.name] for outcome in self.ok]
            sd = stdev(scores) if len(scores) > 1 else None
            scale = f"{one.low}-{one.high}"
            rows.append((one.name, scale, fmean(scores), sd, self.alphas[one.name]))
        tables = [Table("Scores", ("criterion", "scale", "mean", "sd", "alpha"), rows)]
        if len(self.judges) > 1:
            tables.append(self._judges_table())
        return tables

    def _judges_table(self) -> Table:
        names = [one.name for one in self.rubric.criteria]
        rows = []
        for place, judge in enumerate(self.judges):
            given = [o.verdicts[place].scores for o in self.ok if o.verdicts[place].scores]
            means = [fmean(scores[name] for scores in given) if given else None for name in names]
            rows.append((judge, len(given), *means))
        return Table("Judges' mean scores", ("judge", "items", *names), rows)


async def judge(
    items: Any,
    rubric: Rubric | Sequence[Criterion] | Mapping[str, str],
    *,
    text: str | Callable[[Any], Any] | None = None,
    task: str | Callable[[Any], Any] | None = None,
    judges: Iterable[Any] | None = None,
    **options: Unpack[MapOptions],
) -> JudgeResult:
    """Score items by a rubric.

    Each judge is asked once per item for all criteria, with a schema made from the rubric.

    Args:
        items: What is judged: texts, records, or results of an earlier map or pattern.
        rubric: A `Rubric`, criteria, or a dict of name to description (on a scale of 1 to 5).
        text: A template or function that gives the text to be judged; default the item, a
            result's text or value.
        task: A template or function that gives what the work was to do; shown to the judges.
        judges: Models, addresses, backends or `Member`s; default the map's own model alone.
        options: As for `parallel_map`; the schema is the rubric's.

    Returns:
        A `JudgeResult`. A judge who gave no scores for an item is left out of its means; an item
        without any scores is a failed one.

    Raises:
        ConfigError: An argument is wrong; nothing was sent.
    """
    rubric = Rubric.of(rubric)
    if options.get("schema") is not None:
        raise ConfigError("judge asks for its rubric's own schema.", hint="Leave schema out.")
    members = members_of(judges, what="judges")
    work_of = prompt_maker(_work_of if text is None else text, what="text")
    task_of = None if task is None else prompt_maker(task, what="task")
    options, members = for_map(options, members, "judge")
    if options.get("key") is None:
        options["key"] = _key_of
    panel = _Panel(rubric, members, work_of, task_of)
    results = await parallel_map(items, panel.run, **options)
    outcomes = [
        _outcome(result, rubric) if result.ok else JudgeOutcome(result) for result in results
    ]
    return JudgeResult(outcomes, results.stats, rubric, [member.name for member in members])


def _key_of(item: Any) -> str:
    """Return the key of an earlier result, or what a map makes of an item."""
    return item.key if isinstance(item, Outcome | Result) else content_key(item)


def _work_of(item: Any) -> str:
    if isinstance(item, Outcome | Result) and not item.ok:
        raise PromptError("this result has no answer that could be judged.")
    if isinstance(item, Outcome):
        item = item.value
    elif isinstance(item, Result):
        item = item.value if item.text is None else item.text
    return item if isinstance(item, str) else canonical(item)


class _Panel:
    """Asks the judges about one item after the other; keeps nothing between them."""

    def __init__(
        self,
        rubric: Rubric,
        members: tuple[Member, ...],
        work_of: Callable[[Any], Awaitable[Any]],
        task_of: Callable[[Any], Awaitable[Any]] | None,
    ) -> None:
        self._rubric = rubric
        self._schema: type[BaseModel] = rubric.schema()
        self._members = members
        self._work_of = work_of
        self._task_of = task_of

    async def run(self, item: Any, llm: LLM) -> tuple[Verdict, ...]:
        """Return the judges' verdicts on one item."""
        work = await self._work_of(item)
        task = None if self._task_of is None else await self._task_of(item)
        for what, made in (("text", work), ("task", task)):
            if not isinstance(made, str | None):
                raise PromptError(f"{what} returned {type(made).__name__}, not a string.")
        prompt = Prompt(self._rubric.prompt(work, task), schema=self._schema)
        results = await gathered(ask(llm, prompt, member) for member in self._members)
        verdicts = tuple(
            self._verdict(member.name, result)
            for member, result in zip(self._members, results, strict=True)
        )
        errors = [verdict.error for verdict in verdicts]
        if errors[0] is not None and all(errors):
            raise errors[0]
        return verdicts

    def _verdict(self, name: str, result: Result | ScaleInferError) -> Verdict:
        if not isinstance(result, Result):
            return Verdict(name, error=result)
        reasons = str(getattr(result.value, "reasons", ""))
        return Verdict(name, self._rubric.read(result.value), reasons, result)


def _outcome(result: Result, rubric: Rubric) -> JudgeOutcome:
    verdicts: tuple[Verdict, ...] = result.value
    given = [verdict.scores for verdict in verdicts if verdict.error is None]
    names = [one.name for one in rubric.criteria]
    means = {name: fmean(scores[name] for scores in given) for name in names}
    return JudgeOutcome(
        result,
        means,
        total=rubric.total(means),
        spread={name: max(s[name] for s in given) - min(s[name] for s in given) for name in names},
        verdicts=verdicts,
    )
