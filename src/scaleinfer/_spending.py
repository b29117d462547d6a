"""What a run uses and may use: its bill, its budget, and what its journal knows of both."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from scaleinfer.engine import Bill, Budget, Purse, Spend, Spender, purse_of
from scaleinfer.errors import ConfigError
from scaleinfer.prices import Pricer, Prices

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaleinfer.backends import Backend
    from scaleinfer.engine import Engine
    from scaleinfer.journal import Journal

__all__ = ["Spending"]

_HOUR_S = 3600.0
_MS = 1000.0


class Spending:
    """One run's bill and budget.

    Args:
        budget: The caps, if there are any.
        prices: Prices of the user's own.
        backends: The adapters, opened.
        model: The model that the run asks.
        journal: The run's journal, if it has one.

    Attributes:
        bill: Adds up what calls used.
        spender: Says whether calls may go; `None` without a budget.
        prices: The same.

    Raises:
        ConfigError: A cap is in dollars and no price is known, or in node-hours without a fleet.
    """

    def __init__(
        self,
        budget: Budget | None,
        prices: Prices,
        *,
        backends: Sequence[Backend],
        model: str | None,
        journal: Journal | None,
    ) -> None:
        self.bill = Bill(Pricer(prices))
        self.spender: Spender | None = None
        self.prices = prices
        self._backends = backends
        self._journal = journal
        self._purse: Purse | None = None
        self._node_s = 0.0
        self._looked = time.monotonic()
        earlier = {} if journal is None else dict(journal.spent_before)
        self._node_s_before = earlier.get("spent_node_ms", 0) / _MS
        self._budget = budget
        if budget is None:
            return
        self.check(backends, model)
        if budget.node_hours is not None and all(one.nodes is None for one in backends):
            raise ConfigError("Budget(node_hours=) is for maps over a fleet.", hint="Pass fleet=.")
        self._purse = purse_of(budget)
        self.spender = Spender(
            budget, self._purse, self.bill, now=self._looked, node_seconds=self._node_s_before
        )
        if journal is not None:
            self._join(self._purse, journal, earlier, model)
            self.spender.vouch = self._vouch

    def check(self, backends: Sequence[Backend], model: str | None) -> None:
        """Make sure that the price of calls to these is known, if the budget is in dollars.

        Raises:
            ConfigError: It is not.
        """
        if self._budget is not None and self._budget.needs_prices:
            _check_prices(self.bill.pricer, backends, model)

    def _join(
        self, purse: Purse, journal: Journal, earlier: dict[str, int], model: str | None
    ) -> None:
        """Count what earlier runs of the journal have used, once."""
        rates = self.bill.pricer.rates(self._backends[0], model, None)
        # Of which only the tokens are known, at the dearer rate.
        dear = 0 if rates is None else max(rates.prompt, rates.completion)
        spent = Spend(
            earlier.get("spent_tokens", 0),
            earlier.get("spent_requests", 0),
            earlier.get("spent_picousd", 0) + earlier.get("unpriced_tokens", 0) * dear,
        )
        known = purse.journals.get(journal.path, Spend())
        purse.ledger.charge(Spend(*(max(0, a - b) for a, b in zip(spent, known, strict=True))))
        purse.journals[journal.path] = spent

    async def _vouch(self, most: Spend) -> None:
        assert self._journal is not None
        self._journal.note_spent(self._counts(most))
        await self._journal.flush()

    def tick(self, engine: Engine) -> None:
        """Let time go by: nodes cost while they are there."""
        now = time.monotonic()
        nodes = sum(one.nodes or 0 for one in self._backends)
        self._node_s += nodes * (now - self._looked)
        self._looked = now
        if self.spender is not None:
            calls = engine.calls
            landing = engine.waits.endpoint / calls if calls else 0.0
            self.spender.tick(now, nodes=nodes, landing_s=landing)
        elif self._journal is not None:
            self._journal.note_spent(self._counts(self.bill.spent))

    @property
    def node_hours(self) -> float | None:
        """Wall time of a fleet's nodes; `None` without one."""
        if all(one.nodes is None for one in self._backends):
            return None
        return self._node_s / _HOUR_S

    @property
    def allocation_units(self) -> float | None:
        """What these cost in the allocation's units."""
        hours = self.node_hours
        return None if hours is None else hours * self.prices.units_per_node_hour

    def counts(self) -> dict[str, int]:
        """Return what the run has used, for the journal."""
        if self.spender is None:
            return self._counts(self.bill.spent)
        # What was in flight until the end is settled by now, at what it may have used.
        return self._counts(self.spender.committed)

    def close(self) -> None:
        """The run is over: others may use its budget."""
        purse, spender, journal = self._purse, self.spender, self._journal
        if purse is None or spender is None:
            return
        self._purse = None
        purse.runs -= 1
        if journal is not None:
            known = purse.journals.get(journal.path, Spend())
            purse.journals[journal.path] = known.plus(spender.committed)

    def _counts(self, spent: Spend) -> dict[str, int]:
        counts = {
            "spent_tokens": spent.tokens,
            "spent_requests": spent.requests,
            "spent_picousd": spent.pico,
        }
        if self._node_s:
            counts["spent_node_ms"] = round(self._node_s * _MS)
        return counts


def _check_prices(pricer: Pricer, backends: Sequence[Backend], model: str | None) -> None:
    """Make sure that a cap in dollars means something.

    Raises:
        ConfigError: A provider's price is not known, or nothing has a price.
    """
    unknown = [
        one for one in backends if pricer.rates(one, one.model or model, one.model or model) is None
    ]
    if len(unknown) == len(backends) or any(one.priced for one in unknown):
        first = next((one for one in unknown if one.priced), unknown[0])
        name = first.model or model or "the model"
        raise ConfigError(
            f"a budget in dollars needs a price, and none is known for {name} at {first.endpoint}.",
            hint=(
                f"prices={{{name!r}: Price(prompt=0.15, completion=0.60)}}, in dollars per million "
                "tokens (from scaleinfer.prices), or cap tokens instead."
            ),
        )
