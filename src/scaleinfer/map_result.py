"""What a map returns: its results in input order, and what it came to."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, overload

import orjson

from scaleinfer._shown import shown
from scaleinfer.errors import ConfigError
from scaleinfer.results import Result, Usage, total_cost

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    import numpy as np
    import pandas as pd
    import pyarrow as pa

    from scaleinfer._watching import ReportFacts
    from scaleinfer.engine import Cost
    from scaleinfer.observe import ResultSummary, Table

__all__ = ["EndpointUse", "MapResult", "RunStats", "TimeShares"]


@dataclass(frozen=True, slots=True)
class TimeShares:
    """Where a run's time went.

    The first four are shares of the time its calls took, waits for a retry included, and add up
    to 1; the others stand for themselves.

    Attributes:
        endpoint: From sending until the answer was there.
        connection: Waiting for a connection.
        record: Waiting for the journal.
        retry: Waiting to be tried again.
        queue: Share of a call's whole time that it waited for a place at the endpoint.
        input: Share of the run during which the input's iterator held the event loop.
        client: Share of the run during which the event loop's thread was computing.
        loop_lag_s: Seconds that the loop was late, on average.
        worst_loop_lag_s: The most it was late.
        held_back_by: What kept the run from being faster; empty after a very short run.
    """

    endpoint: float = 0.0
    connection: float = 0.0
    record: float = 0.0
    retry: float = 0.0
    queue: float = 0.0
    input: float = 0.0
    client: float = 0.0
    loop_lag_s: float = 0.0
    worst_loop_lag_s: float = 0.0
    held_back_by: str = ""

    @property
    def ours(self) -> bool:
        """True if something on our own side held the run back, not the endpoint."""
        return self.held_back_by not in {"", "the endpoint"}

    def with_verdict(self, held_back_by: str) -> TimeShares:
        """Return the same with a verdict."""
        return replace(self, held_back_by=held_back_by)


@dataclass(frozen=True, slots=True)
class EndpointUse:
    """What a run saw of one endpoint.

    Attributes:
        endpoint: Its name.
        limit: Calls that may be in flight there, at the end of the run.
        reason: Why the limit is what it is.
        peak_in_flight: The most calls that were in flight there, those of other maps on the
            same backend object included.
        calls: Calls that were sent there meanwhile, likewise.
        goodput: Completion tokens a second it gave meanwhile, likewise.
        state: `closed` while it takes calls, else `open` or `half-open`; `left` once it was
            taken out of its set.
    """

    endpoint: str
    limit: int
    reason: str
    peak_in_flight: int
    calls: int
    goodput: float
    state: str


@dataclass(frozen=True, slots=True)
class RunStats:
    """What a run came to.

    Attributes:
        name: The run's name.
        items: Items that were asked or resumed.
        ok: Those with a usable answer.
        failed: Those without one.
        not_asked: Items that a stopped run left; they have results that say so.
        resumed: Items answered from the journal.
        cut: Answers that ended at `max_tokens` (`finish_reason == "length"`).
        calls: Calls made; repairs, retries and second copies included.
        hedged: Second copies of calls that straggled.
        shared: Requests answered by an identical one that was in flight.
        retries: Failed calls that were tried again.
        batches: Batches submitted, with `mode="batch"`.
        elapsed_s: Seconds from start to end.
        usage: Tokens this run used; resumed items not counted.
        cost_usd: What all calls cost, failed and hedged ones included as far as endpoints say
            what these used; `None` if no price is known.
        endpoint: Where it was asked; of several, the first and how many more.
        model: Model asked.
        journal: The journal's path, if there is one.
        journal_head: Digest of the journal's last commit: with it `verify` finds out later whether
            somebody has written the journal anew.
        stopped: Why the run was stopped early; empty if it was not.
        peak_in_flight: The most calls that were in flight at once.
        time: Where the time went, and what held the run back.
        endpoints: What the run saw of each endpoint.
        costs: Calls, tokens and dollars of each model at each endpoint.
        node_hours: Wall time of the nodes on which a fleet's workers were; `None` without one.
        allocation_units: What these cost, by `Prices.units_per_node_hour`.
        price_table: Version and date of the public list, if a price came from it.
    """

    name: str | None
    items: int
    ok: int
    failed: int
    not_asked: int
    resumed: int
    cut: int
    calls: int
    hedged: int
    shared: int
    retries: int
    elapsed_s: float
    usage: Usage
    cost_usd: float | None
    endpoint: str
    model: str | None
    journal: str | None
    stopped: str
    peak_in_flight: int
    time: TimeShares = TimeShares()
    endpoints: tuple[EndpointUse, ...] = ()
    batches: int = 0
    costs: tuple[Cost, ...] = ()
    node_hours: float | None = None
    allocation_units: float | None = None
    price_table: str | None = None
    journal_head: str | None = None

    @property
    def unsure_usd(self) -> float:
        """What calls that were cut off may have cost besides, at the most."""
        return sum(line.unsure_usd or 0.0 for line in self.costs)

    @property
    def items_per_s(self) -> float:
        """Items asked (not resumed) a second."""
        return (self.items - self.resumed) / self.elapsed_s if self.elapsed_s else 0.0


_MOST_ENDPOINTS = 200
"""Endpoints and models that a report lists."""


class MapResult(Sequence[Result]):
    """A map's results in input order.

    Args:
        results: One per item, in input order.
        stats: What the run came to.
        facts: What a report says beyond that.
    """

    def __init__(
        self, results: list[Result], stats: RunStats, facts: ReportFacts | None = None
    ) -> None:
        self._results = results
        self.stats = stats
        self._facts = facts

    def __getstate__(self) -> dict[str, Any]:
        # What a report says of the program is known to its own process only.
        return {**vars(self), "_facts": None}

    @overload
    def __getitem__(self, index: int) -> Result: ...
    @overload
    def __getitem__(self, index: slice) -> list[Result]: ...
    def __getitem__(self, index: int | slice) -> Result | list[Result]:
        return self._results[index]

    def __len__(self) -> int:
        return len(self._results)

    def __iter__(self) -> Iterator[Result]:
        return iter(self._results)

    @property
    def texts(self) -> list[str | None]:
        """Each item's text; `None` where there is no answer."""
        return [result.text if result.ok else None for result in self._results]

    @property
    def values(self) -> list[Any]:
        """Each item's value; `None` where there is no answer."""
        return [result.value if result.ok else None for result in self._results]

    @property
    def vectors(self) -> list[array[float] | None]:
        """Each item's embedding, an `array` of float32; `None` where there is none."""
        return [value if isinstance(value, array) else None for value in self.values]

    def to_numpy(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the embeddings as a matrix of float32 with a row per item.

        Rows of items without an embedding are NaN.

        Raises:
            ConfigError: numpy is not installed, or the vectors differ in length.
        """
        try:
            import numpy as np
        except ImportError as error:
            raise _missing("numpy") from error
        vectors = self.vectors
        lengths = {len(vector) for vector in vectors if vector is not None}
        if len(lengths) > 1:
            raise ConfigError(f"the vectors differ in length: {sorted(lengths)}.")
        matrix = np.full((len(vectors), max(lengths, default=0)), np.nan, np.float32)
        for row, vector in zip(matrix, vectors, strict=True):
            if vector is not None:
                row[:] = vector
        return matrix

    @property
    def ok(self) -> list[Result]:
        """The results with a usable answer."""
        return [result for result in self._results if result.ok]

    @property
    def failed(self) -> list[Result]:
        """The results without a usable answer."""
        return [result for result in self._results if not result.ok]

    @property
    def stopped(self) -> str:
        """Why the run was stopped early; empty if it was not."""
        return self.stats.stopped

    @property
    def usage(self) -> Usage:
        """Tokens of all results, resumed ones included."""
        return Usage.total(result.usage for result in self._results)

    @property
    def cost_usd(self) -> float | None:
        """Price of `usage`, resumed results included; `None` if no price is known."""
        return total_cost(result.cost_usd for result in self._results)

    @property
    def digest(self) -> str:
        """32 hexadecimal digits over all that endpoints said and all that was counted.

        `scaleinfer.audit.replay` of the run's journal has the same.
        """
        from scaleinfer._digest import results_digest

        return results_digest(self._results)

    def rows(self, *, id_field: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield each result as plain JSON data; see `scaleinfer.data.result_row`."""
        from scaleinfer.data import result_row

        for result in self._results:
            yield result_row(result, id_field=id_field)

    def to_pandas(self) -> pd.DataFrame:
        """Return a frame with a row per item.

        Its columns are those of `rows`, with `error` and `usage` spread over columns of their
        own; the fields of structured values follow as `value.NAME`.

        Raises:
            ConfigError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise _missing("pandas") from error
        return pd.DataFrame.from_records([_flat(row) for row in self.rows()])

    def to_arrow(self) -> pa.Table:
        """Return an Arrow table with the columns of `to_pandas`; `value` itself as JSON text.

        Raises:
            ConfigError: pyarrow is not installed.
        """
        try:
            import pyarrow as pa
        except ImportError as error:
            raise _missing("pyarrow") from error
        flat = [_flat(row) for row in self.rows()]
        columns = dict.fromkeys(name for row in flat for name in row)
        return pa.table({name: _column(pa, [row.get(name) for row in flat]) for name in columns})

    def to_jsonl(self, path: str | os.PathLike[str]) -> None:
        """Write a line of JSON per item.

        Raises:
            ConfigError: The file cannot be written.
        """
        from scaleinfer.data import open_writer

        with open_writer(path, format="jsonl") as writer:
            for row in self.rows():
                writer.write(row)

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write an HTML page that shows what happened, and needs nothing beside it.

        It has charts of answers, calls in flight, tokens, errors and cost over time, what failed
        and why, the slowest items, and what is known of the program. Of many items it shows some.

        Raises:
            ConfigError: The file cannot be written.
        """
        from scaleinfer.observe import write_report

        stats, facts = self.stats, self._facts
        write_report(
            path,
            self.summary(),
            shown(self._results),
            record=None if facts is None else facts.record,
            manifest=None if facts is None else facts.manifest(),
            where=" at ".join(filter(None, (stats.model, stats.endpoint))),
            peak=stats.peak_in_flight,
            tables=report_tables(stats),
        )

    def summary(self) -> ResultSummary:
        """Return what the map came to, for displays."""
        from scaleinfer.observe import ResultSummary

        stats = self.stats
        return ResultSummary(
            total=len(self._results),
            ok=stats.ok,
            failed=stats.failed + stats.not_asked,
            resumed=stats.resumed,
            elapsed_s=stats.elapsed_s,
            usage=self.usage,
            cost_usd=self.cost_usd,
            stopped=stats.stopped or None,
            name=stats.name or "",
            held_back_by=stats.time.held_back_by if stats.time.ours else "",
            journal=stats.journal,
        )

    def __repr__(self) -> str:
        from scaleinfer.observe import result_text

        return result_text(self.summary(), shown(self._results))

    def _repr_html_(self) -> str:
        from scaleinfer.observe import result_html

        return result_html(self.summary(), shown(self._results))


def report_tables(stats: RunStats) -> list[Table]:
    """Return what a report lists of a run's statistics."""
    from scaleinfer.observe import Table, money

    uses = [
        (
            use.endpoint,
            f"{use.calls:,}",
            f"{use.peak_in_flight:,}",
            f"{use.limit:,}",
            use.reason,
            f"{use.goodput:,.1f}",
            use.state,
        )
        for use in stats.endpoints[:_MOST_ENDPOINTS]
    ]
    columns = ("endpoint", "#calls", "#in flight at most", "#limit", "why", "#tokens/s", "state")
    more = len(stats.endpoints) - len(uses)
    costs = [
        (
            cost.endpoint,
            cost.model or "",
            f"{cost.calls:,}",
            f"{cost.failed:,}",
            f"{cost.usage.prompt_tokens:,}",
            f"{cost.usage.cached_tokens:,}",
            f"{cost.usage.completion_tokens:,}",
            "no price" if cost.cost_usd is None else money(cost.cost_usd),
            money(cost.unsure_usd) if cost.unsure_usd else "",
        )
        for cost in stats.costs[:_MOST_ENDPOINTS]
    ]
    bill = ("endpoint", "model", "#calls", "#failed", "#prompt tokens", "#of these cached",
            "#completion tokens", "#cost", "#unsure")  # fmt: skip
    shares = [
        (name, f"{share:.0%}")
        for name, share in (
            ("the endpoint", stats.time.endpoint),
            ("a connection", stats.time.connection),
            ("the journal", stats.time.record),
            ("the next try", stats.time.retry),
        )
    ]
    table = f"Prices: {stats.price_table}." if stats.price_table else ""
    return [
        Table("Endpoints", columns, uses, f"and {more:,} more" if more > 0 else ""),
        Table("Cost", bill, costs, table),
        Table("What calls waited for", ("", "#share of their time"), shares),
    ]


def _missing(package: str) -> ConfigError:
    return ConfigError(f"{package} is not installed.", hint="Run: pip install 'scaleinfer[data]'")


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    error, usage, value = row.pop("error"), row.pop("usage"), row["value"]
    row["error_type"] = error and error["type"]
    row["error"] = error and error["message"]
    row |= usage
    if isinstance(value, dict):
        row |= {f"value.{name}": part for name, part in value.items()}
    return row


def _column(pa: Any, values: list[Any]) -> Any:
    """Return an Arrow array; values that have no common type become JSON text."""
    try:
        if not any(isinstance(value, dict | list) for value in values):
            return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        pass
    texts = [None if value is None else orjson.dumps(value).decode() for value in values]
    return pa.array(texts, pa.string())
