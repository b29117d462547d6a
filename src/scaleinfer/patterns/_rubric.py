"""A rubric: criteria with their scales, and the schema and the words that ask for scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["Criterion", "Rubric"]

_MOST_STEPS = 101
_REASONS = "reasons"
_REASON_CHARACTERS = 600


@dataclass(frozen=True, slots=True)
class Criterion:
    """One thing to be scored.

    Attributes:
        name: What it is called, in the schema too.
        description: What to look at.
        low: The lowest score.
        high: The highest score, which is the best; both are given.
        levels: What single scores mean, as far as that is worth saying.
        weight: What it weighs in the total.

    Raises:
        ConfigError: The scale, a level or the weight cannot be.
    """

    name: str
    description: str = ""
    low: int = 1
    high: int = 5
    levels: Mapping[int, str] = field(default_factory=dict)
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.name or self.name == _REASONS:
            raise ConfigError(f"a criterion cannot be called {self.name!r}.")
        if not self.low < self.high or self.high - self.low >= _MOST_STEPS:
            raise ConfigError(
                f"{self.name}: a scale of {self.low} to {self.high} is none.",
                hint=f"Use at least two and at most {_MOST_STEPS} whole numbers.",
            )
        beyond = [level for level in self.levels if not self.low <= level <= self.high]
        if beyond:
            raise ConfigError(
                f"{self.name}: levels {beyond} are not on the scale {self.low} to {self.high}."
            )
        if not self.weight > 0:
            raise ConfigError(f"{self.name}: the weight must be greater than 0.")

    def share(self, score: float) -> float:
        """Return where a score lies on the scale, from 0 to 1."""
        return (score - self.low) / (self.high - self.low)

    def text(self) -> str:
        """Return the criterion in words."""
        words = f"- {self.name}, from {self.low} to {self.high}"
        if self.description:
            words += f": {self.description}"
        lines = [words, *(f"  {score}: {text}" for score, text in sorted(self.levels.items()))]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Rubric:
    """Criteria, and how to apply them.

    Attributes:
        criteria: What is scored.
        instructions: What a judge is told before; default one sentence.
        reasons: True to ask for reasons before the scores, which then rest on them; they cost
            tokens.

    Raises:
        ConfigError: There is no criterion, or two have one name.
    """

    criteria: Sequence[Criterion]
    instructions: str = "Score the following work by each criterion. Be strict and consistent."
    reasons: bool = True

    def __post_init__(self) -> None:
        names = [criterion.name for criterion in self.criteria]
        if not names:
            raise ConfigError("the rubric has no criterion.")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"the rubric names {', '.join(twice)} twice.")

    @classmethod
    def of(cls, value: Any) -> Rubric:
        """Return `value` as a rubric: a `Rubric`, criteria, or a dict of name to description.

        Raises:
            ConfigError: It is none of these.
        """
        if isinstance(value, Rubric):
            return value
        if isinstance(value, Criterion):
            return cls((value,))
        if isinstance(value, Mapping):
            return cls(tuple(Criterion(str(name), str(text)) for name, text in value.items()))
        if isinstance(value, Sequence) and not isinstance(value, str):
            return cls(tuple(one if isinstance(one, Criterion) else _by_name(one) for one in value))
        raise ConfigError(
            f"a rubric is a Rubric, a list of Criterion, or a dict of name to description, "
            f"not {type(value).__name__}."
        )

    def schema(self) -> type[BaseModel]:
        """Return the pydantic model of one judge's scores.

        Its fields are named by the criteria in JSON, and `c0`, `c1`, ... in Python.
        """
        from pydantic import Field, create_model

        fields: dict[str, Any] = {}
        if self.reasons:
            fields[_REASONS] = (str, Field(max_length=_REASON_CHARACTERS))
        for number, criterion in enumerate(self.criteria):
            # An enumeration, since constrained decoding knows those best.
            scale = Literal[tuple(range(criterion.low, criterion.high + 1))]  # type: ignore[valid-type]  # made at run time
            fields[f"c{number}"] = (
                scale,
                Field(alias=criterion.name, description=criterion.description or None),
            )
        return create_model("Scores", **fields)

    def read(self, scores: BaseModel) -> dict[str, int]:
        """Return the scores of an answer by criterion."""
        return {
            criterion.name: getattr(scores, f"c{number}")
            for number, criterion in enumerate(self.criteria)
        }

    def total(self, scores: Mapping[str, float]) -> float:
        """Return the weighted mean of scores, each as its place on its scale: 0 to 1."""
        weight = sum(criterion.weight for criterion in self.criteria)
        return sum(one.weight * one.share(scores[one.name]) for one in self.criteria) / weight

    def prompt(self, work: str, task: str | None) -> str:
        """Return what a judge is asked.

        Args:
            work: What is to be judged.
            task: What the work was to do; `None` if that is not known.
        """
        parts = [self.instructions, "Criteria:\n" + "\n".join(c.text() for c in self.criteria)]
        if task:
            parts.append(f"The task was:\n{task}")
        parts.append(f"The work:\n{work}")
        order = "First give your reasons in a few words, then" if self.reasons else "Give"
        parts.append(f"{order} a whole number for each criterion.")
        return "\n\n".join(parts)


def _by_name(one: Any) -> Criterion:
    if not isinstance(one, str):
        raise ConfigError(f"a rubric's criterion is a Criterion or a name, not {one!r}.")
    return Criterion(one)
