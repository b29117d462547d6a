"""What a sweep found: a table of prompts x models x samplings."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean, median, stdev
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from scaleinfer.errors import ConfigError
from scaleinfer.patterns._agreement import Agreement, Level, agreement_of
from scaleinfer.patterns._result import Outcome, PatternResult
from scaleinfer.patterns._tables import Table, frame
from scaleinfer.patterns._voting import normalised
from scaleinfer.results import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pandas as pd

    from scaleinfer.errors import ScaleInferError
    from scaleinfer.map_result import RunStats
    from scaleinfer.results import Result

__all__ = ["SweepAnswer", "SweepCell", "SweepOutcome", "SweepResult", "Variant"]

Axis = Literal["prompt", "model", "sampling"]


class Variant(NamedTuple):
    """One way to ask."""

    prompt: str
    """Name of the prompt."""
    model: str
    """Name of the model."""
    sampling: str
    """Name of the sampling parameters."""


@dataclass(frozen=True, slots=True)
class SweepAnswer:
    """One item's answer to one variant.

    Attributes:
        variant: How it was asked.
        result: The call's result; `None` if the call was given up.
        score: What `score` said of it; `None` if nothing.
        error: Why there is no answer, or no score; `None` if all is well.
    """

    variant: Variant
    result: Result | None = None
    score: float | None = None
    error: ScaleInferError | None = None

    @property
    def value(self) -> Any:
        """The answer's value; `None` if there is none."""
        return None if self.result is None else self.result.value


@dataclass(frozen=True, slots=True)
class SweepOutcome(Outcome):
    """One item's answers.

    Attributes:
        value: Each variant's value.
        answers: The answers themselves, in the variants' order.
    """

    answers: tuple[SweepAnswer, ...] = ()

    def shown(self) -> Any:
        """Return how many variants have which answer."""
        given = [normalised(a.value) for a in self.answers if a.error is None]
        return {name: given.count(name) for name in dict.fromkeys(given)}

    def row(self) -> dict[str, Any]:
        """Return the outcome as one row, with a column per variant."""
        row = Outcome.row(replace(self, value=None))
        del row["value"]
        return row | {" / ".join(a.variant): a.value for a in self.answers}


@dataclass(frozen=True, slots=True)
class SweepCell:
    """What one variant came to over all items.

    Attributes:
        prompt: Name of the prompt.
        model: Name of the model.
        sampling: Name of the sampling parameters.
        ok: Items with an answer (and a score, if answers are scored).
        failed: Items without.
        score: Mean score of the answers that have one; failed items do not count. `None` if
            there is none.
        score_error: Standard error of that mean; `None` for fewer than two scores.
        prompt_tokens: Tokens of all prompts.
        completion_tokens: Tokens of all answers.
        cost_usd: Their price; `None` if it is not known.
        latency_s: Median seconds from the call to its answer.
    """

    prompt: str
    model: str
    sampling: str
    ok: int
    failed: int
    score: float | None
    score_error: float | None
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    latency_s: float | None

    @property
    def variant(self) -> Variant:
        """The way to ask that this is about."""
        return Variant(self.prompt, self.model, self.sampling)


class SweepResult(PatternResult[SweepOutcome]):
    """A sweep's outcomes in input order, and the comparison of its variants.

    Args:
        outcomes: One per item, in input order.
        stats: What the run came to.
        variants: All ways that were asked.
    """

    def __init__(
        self, outcomes: list[SweepOutcome], stats: RunStats, variants: Sequence[Variant]
    ) -> None:
        super().__init__(outcomes, stats)
        self.variants = tuple(variants)

    @cached_property
    def cells(self) -> list[SweepCell]:
        """What each variant came to, in the order of prompts, models and samplings."""
        return [
            _cell(variant, [o.answers[place] if o.ok else None for o in self])
            for place, variant in enumerate(self.variants)
        ]

    def cell(
        self, prompt: str | None = None, model: str | None = None, sampling: str | None = None
    ) -> SweepCell:
        """Return the one cell of these names; a name may be left out where there is one only.

        Raises:
            ConfigError: There is no such cell, or several.
        """
        wanted = (prompt, model, sampling)
        found = [
            cell
            for cell in self.cells
            if all(w in {None, name} for w, name in zip(wanted, cell.variant, strict=True))
        ]
        if len(found) != 1:
            raise ConfigError(f"{len(found)} cells have the names {wanted}.")
        return found[0]

    def best(self, by: Callable[[SweepCell], float] | None = None) -> SweepCell:
        """Return the best cell.

        Args:
            by: What is to be highest; default the mean score. Of equal cells the cheapest is
                best, then the one with fewest tokens.

        Raises:
            ConfigError: No cell has a score.
        """
        cells = [cell for cell in self.cells if by is not None or cell.score is not None]
        if not cells:
            raise ConfigError(
                "no answer has a score.", hint="Pass score= to sweep, or by= to best."
            )

        def rank(cell: SweepCell) -> tuple[float, float, int]:
            value = by(cell) if by is not None else cell.score or 0.0
            cost = math.inf if cell.cost_usd is None else cell.cost_usd
            return -value, cost, cell.prompt_tokens + cell.completion_tokens

        return min(cells, key=rank)

    def agreement(
        self,
        by: Axis = "model",
        *,
        answer: Callable[[Result], Any] | None = None,
        level: Level = "nominal",
    ) -> Agreement:
        """Return how far models (or prompts, or samplings) agree on the same questions.

        Args:
            by: What to compare. Each item under each choice of the other two is one question.
            answer: What of a result counts as its answer; default its value, `normalised`.
            level: What the answers mean, for Krippendorff's alpha.

        Raises:
            ConfigError: Unknown `by` or `level`, or there is only one to compare.
        """
        if by not in get_args(Axis):
            raise ConfigError(f"by={by!r} is unknown.", hint=f"Known: {', '.join(get_args(Axis))}.")
        raters = dict.fromkeys(getattr(variant, by) for variant in self.variants)
        if len(raters) < 2:  # noqa: PLR2004 - one rater has nobody to agree with
            raise ConfigError(f"there is only one {by} in this sweep.")

        def rating(found: SweepAnswer) -> Any:
            if found.error is not None or found.result is None:
                return None
            return normalised(found.value) if answer is None else answer(found.result)

        return agreement_of(
            {
                name: [
                    rating(found)
                    for outcome in self.ok
                    for found in outcome.answers
                    if getattr(found.variant, by) == name
                ]
                for name in raters
            },
            level=level,
        )

    def to_pandas(self) -> pd.DataFrame:
        """Return the comparison: a frame with a row per variant.

        Raises:
            ConfigError: pandas is not installed.
        """
        return frame({name: getattr(cell, name) for name in _COLUMNS} for cell in self.cells)

    def answers_to_pandas(self) -> pd.DataFrame:
        """Return a frame with a row per answer.

        Raises:
            ConfigError: pandas is not installed.
        """
        return frame(self._answers())

    def _answers(self) -> Iterator[dict[str, Any]]:
        for outcome in self:
            for found in outcome.answers:
                usage = Usage() if found.result is None else found.result.usage
                yield {
                    "index": outcome.index,
                    "key": outcome.key,
                    **found.variant._asdict(),
                    "value": found.value,
                    "score": found.score,
                    "error": None if found.error is None else str(found.error),
                    "prompt_tokens": usage.prompt_tokens,
                    "completion_tokens": usage.completion_tokens,
                    "cost_usd": None if found.result is None else found.result.cost_usd,
                    "latency_s": None if found.result is None else found.result.latency_s,
                }

    def tables(self) -> list[Table]:
        """Return the comparison, and how far the models agree."""
        names = [
            name
            for name in _COLUMNS
            if name not in get_args(Axis) or len({getattr(v, name) for v in self.variants}) > 1
        ]
        # What is not known of any cell is no column.
        names = [n for n in names if any(getattr(cell, n) is not None for cell in self.cells)]
        rows = [[getattr(cell, name) for name in names] for cell in self.cells]
        tables = [Table("Variants", names, rows)]
        if self.ok and len({variant.model for variant in self.variants}) > 1:
            agreement = self.agreement()
            title = "Models' agreement"
            if agreement.alpha is not None:
                title += f": Krippendorff's alpha {agreement.alpha:.2f}"
            tables.append(Table(title, ("pair", "agree", "kappa", "answers"), agreement.rows()))
        return tables


_COLUMNS = tuple(SweepCell.__dataclass_fields__)


def _cell(variant: Variant, answers: Sequence[SweepAnswer | None]) -> SweepCell:
    given = [found for found in answers if found is not None]
    good = [found for found in given if found.error is None]
    results = [found.result for found in given if found.result is not None]
    scores = [found.score for found in good if found.score is not None]
    costs = [result.cost_usd for result in results if result.cost_usd is not None]
    usage = Usage.total(result.usage for result in results)
    several = len(scores) > 1
    return SweepCell(
        *variant,
        ok=len(good),
        failed=len(answers) - len(good),
        score=fmean(scores) if scores else None,
        score_error=stdev(scores) / math.sqrt(len(scores)) if several else None,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cost_usd=math.fsum(costs) if costs else None,
        latency_s=median(result.latency_s for result in results) if results else None,
    )
