"""What every pattern returns: an outcome per item, and what the whole came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, overload

from scaleinfer.results import Usage, total_cost

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    import pandas as pd

    from scaleinfer.errors import ScaleInferError
    from scaleinfer.map_result import RunStats
    from scaleinfer.observe import ResultSummary
    from scaleinfer.patterns._tables import Table
    from scaleinfer.results import Result

__all__ = ["Outcome", "OutcomeT", "PatternResult"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pattern made of one item.

    Attributes:
        result: The item's result in the map: what it cost, and why it failed if it did.
        value: The pattern's answer; `None` if the item failed.
    """

    result: Result
    value: Any = None

    columns: ClassVar[tuple[str, ...]] = ()
    """Fields of the subclass that `row` shows as they are, after `value`."""

    @property
    def index(self) -> int:
        """Position in the input, from 0."""
        return self.result.index

    @property
    def key(self) -> str:
        """The item's identity."""
        return self.result.key

    @property
    def item(self) -> Any:
        """The item itself."""
        return self.result.item

    @property
    def ok(self) -> bool:
        """True if there is an answer."""
        return self.result.ok

    @property
    def error(self) -> ScaleInferError | None:
        """Why there is no answer; `None` if `ok`."""
        return self.result.error

    @property
    def usage(self) -> Usage:
        """Tokens of all calls made for the item."""
        return self.result.usage

    @property
    def cost_usd(self) -> float | None:
        """Price of `usage`; `None` if no price is known."""
        return self.result.cost_usd

    @property
    def attempts(self) -> int:
        """Calls made for the item, repairs and retries included."""
        return self.result.attempts

    @property
    def resumed(self) -> bool:
        """True if everything came from the journal."""
        return self.result.resumed

    def shown(self) -> Any:
        """Return what displays show as the item's answer."""
        return self.value

    def row(self) -> dict[str, Any]:
        """Return the outcome as one row of plain data."""
        from scaleinfer.data import result_row

        row: dict[str, Any] = result_row(replace(self.result, value=self.value, text=None))
        usage: dict[str, Any] = row.pop("usage")
        error = row.pop("error")
        first = {name: row[name] for name in ("id", "index", "key", "ok", "value")}
        own = {name: getattr(self, name) for name in self.columns}
        spent = {name: row[name] for name in ("cost_usd", "attempts", "latency_s", "resumed")}
        return first | own | {"error": error and error["message"]} | usage | spent


OutcomeT = TypeVar("OutcomeT", bound=Outcome)


class PatternResult(Sequence[OutcomeT], Generic[OutcomeT]):
    """A pattern's outcomes in input order.

    Args:
        outcomes: One per item, in input order.
        stats: What the run (the last one, if there were several) came to.
    """

    def __init__(self, outcomes: list[OutcomeT], stats: RunStats) -> None:
        self._outcomes = outcomes
        self.stats = stats

    @overload
    def __getitem__(self, index: int) -> OutcomeT: ...
    @overload
    def __getitem__(self, index: slice) -> list[OutcomeT]: ...
    def __getitem__(self, index: int | slice) -> OutcomeT | list[OutcomeT]:
        return self._outcomes[index]

    def __len__(self) -> int:
        return len(self._outcomes)

    def __iter__(self) -> Iterator[OutcomeT]:
        return iter(self._outcomes)

    @property
    def values(self) -> list[Any]:
        """Each item's value; `None` where there is none."""
        return [outcome.value if outcome.ok else None for outcome in self._outcomes]

    @property
    def ok(self) -> list[OutcomeT]:
        """The outcomes with an answer."""
        return [outcome for outcome in self._outcomes if outcome.ok]

    @property
    def failed(self) -> list[OutcomeT]:
        """The outcomes without one."""
        return [outcome for outcome in self._outcomes if not outcome.ok]

    @property
    def stopped(self) -> str:
        """Why the run was stopped early; empty if it was not."""
        return self.stats.stopped

    @property
    def usage(self) -> Usage:
        """Tokens of all outcomes, resumed ones included."""
        return Usage.total(outcome.usage for outcome in self._outcomes)

    @property
    def cost_usd(self) -> float | None:
        """Price of `usage`; `None` if no price is known."""
        return total_cost(outcome.cost_usd for outcome in self._outcomes)

    def tables(self) -> list[Table]:
        """Return what the pattern has to show beside its items; shown above them."""
        return []

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield each outcome as a row of plain data."""
        for outcome in self._outcomes:
            yield outcome.row()

    def to_pandas(self) -> pd.DataFrame:
        """Return a frame with a row per item.

        Raises:
            ConfigError: pandas is not installed.
        """
        from scaleinfer.patterns._tables import frame

        return frame(self.rows())

    def summary(self) -> ResultSummary:
        """Return what the pattern came to, for displays."""
        from scaleinfer.observe import ResultSummary

        stats = self.stats
        good = len(self.ok)
        return ResultSummary(
            total=len(self),
            ok=good,
            failed=len(self) - good,
            resumed=sum(outcome.resumed for outcome in self._outcomes),
            elapsed_s=stats.elapsed_s,
            usage=self.usage,
            cost_usd=self.cost_usd,
            stopped=stats.stopped or None,
            name=stats.name or type(self).__name__.removesuffix("Result").lower(),
            journal=stats.journal,
        )

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write an HTML page that shows what happened.

        Raises:
            ConfigError: The file cannot be written.
        """
        from scaleinfer.patterns._tables import write_page

        write_page(path, self.summary(), self.tables(), self._shown())

    def _shown(self) -> list[Result]:
        return [replace(outcome.result, value=outcome.shown()) for outcome in self._outcomes]

    def __repr__(self) -> str:
        from scaleinfer.observe import result_text

        parts = [table.text() for table in self.tables()]
        return "\n\n".join([*parts, result_text(self.summary(), self._shown())])

    def _repr_html_(self) -> str:
        from scaleinfer.observe import result_html

        parts = [table.html() for table in self.tables()]
        return "".join([*parts, result_html(self.summary(), self._shown())])
