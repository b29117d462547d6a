"""Calls that wait until a budget has room for them: the asyncio side of the ledger."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from scaleinfer.engine._budget import Ledger, Spend, cap_of, is_capped
from scaleinfer.errors import BudgetExceeded, ConfigError
from scaleinfer.prices import PICO

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaleinfer.engine._budget import Budget

__all__ = ["ITEM_CAP", "Most", "Purse", "item_purse", "purse_of"]

ITEM_CAP = "per_item_usd"
"""What `BudgetExceeded.cap` says where an item alone is given up."""


class Most(NamedTuple):
    """What a call may use."""

    most: Spend
    """At the most."""
    likely: Spend
    """As calls like it have come out, with a margin: for the last calls, one at a time."""
    least: Spend | None = None
    """What it needs at the least, where nothing is known of how long its answer will be."""


class _Waiter:
    __slots__ = ("future", "measure")

    def __init__(self, measure: Callable[[], Most]) -> None:
        self.measure = measure
        self.future: asyncio.Future[Spend] = asyncio.get_running_loop().create_future()


class Purse:
    """Lets calls go while a ledger has room, in the order they come.

    A call that does not fit waits for others to be settled. One that would not fit even if all
    in flight came to nothing steps aside. Once nothing is in flight, and no call fits at the most
    it may use, the smallest goes that fits by what is likely; if there is none, the budget is
    reached, and everyone who waits learns so.

    Args:
        ledger: Keeps the sums.
        cap: Name of the cap, for messages: `per_item_usd`, say; default the one that binds.
    """

    def __init__(self, ledger: Ledger, cap: str = "") -> None:
        self.ledger = ledger
        self.runs = 0
        self.loop: asyncio.AbstractEventLoop | None = None
        self.journals: dict[str, Spend] = {}
        self._cap = cap
        self._line: deque[_Waiter] = deque()
        self._aside: list[_Waiter] = []

    def reserve_nowait(self, most: Spend) -> bool:
        """Reserve for a call if nobody waits and it fits."""
        return not self._line and self.ledger.reserve(most)

    async def reserve(
        self, measure: Callable[[], Most], waits: set[asyncio.Future[Spend]] | None = None
    ) -> Spend:
        """Wait until a call fits, reserve for it, and return what was reserved.

        Args:
            measure: Says what it may use; asked again, because answers make that less.
            waits: The wait is in this set while it lasts; an exception ends it.

        Raises:
            BudgetExceeded: It never will.
        """
        waiter = _Waiter(measure)
        future = waiter.future
        waits = set() if waits is None else waits
        waits.add(future)
        self._line.append(waiter)
        # By now everything may have been settled.
        self._wake()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.settle(future.result(), Spend())
            raise
        finally:
            waits.discard(future)
            self._wake()

    def settle(self, reserved: Spend, used: Spend) -> None:
        """A call has ended; others may go now."""
        self.ledger.settle(reserved, used)
        if self._line or self._aside:
            self._wake()

    def _wake(self) -> None:
        self._admit()
        if self.ledger.in_flight or not (self._line or self._aside):
            return
        # Those that stepped aside may need less than they thought.
        self._line.extendleft(reversed(self._aside))
        self._aside.clear()
        self._admit()
        if not self.ledger.in_flight:
            self._last_call()

    def _admit(self) -> None:
        line, ledger = self._line, self.ledger
        while line:
            waiter = line[0]
            if waiter.future.done():
                line.popleft()
                continue
            needs = waiter.measure()
            if ledger.reserve(needs.most):
                line.popleft()
                waiter.future.set_result(needs.most)
            elif not ledger.may_fit(needs.most):
                self._aside.append(line.popleft())
            else:
                return

    def _last_call(self) -> None:
        waiting = [one for one in (*self._aside, *self._line) if not one.future.done()]
        self._aside.clear()
        self._line.clear()
        if not waiting:
            return
        needs = [(one.measure(), one) for one in waiting]
        chosen = self._smallest(needs)
        if chosen is None:
            least = min((need.least or need.likely for need, _ in needs), key=_size)
            for waiter in waiting:
                waiter.future.set_exception(self.reached(least))
            return
        amount, first = chosen
        self.ledger.reserve(amount)
        first.future.set_result(amount)
        self._line.extend(one for one in waiting if one is not first)

    def _smallest(self, needs: list[tuple[Most, _Waiter]]) -> tuple[Spend, _Waiter] | None:
        left = self.ledger.left
        fitting = [(need.likely, one) for need, one in needs if need.likely.within(left)]
        if fitting:
            return min(fitting, key=lambda pair: _size(pair[0]))
        unknown = [
            (need.likely, one)
            for need, one in needs
            if need.least is not None and need.least.within(left)
        ]
        if not unknown:
            return None
        # Its answer shows how long answers are; it gets all there is.
        amount, one = min(unknown, key=lambda pair: _size(pair[0]))
        return Spend(*map(min, amount, left)), one

    def reached(self, least: Spend | None = None) -> BudgetExceeded:
        """Return the error of a call that does not fit any more."""
        name, spent, cap, need = self._binding(least)
        said = f"the budget of {_shown(name, cap)} is reached: {_shown(name, spent)} are used"
        if need and spent < cap:
            said += f", and the next call may use {_shown(name, need)}"
        item = name == ITEM_CAP
        hint = "Only this item is given up." if item else "Call again with a larger budget."
        return BudgetExceeded(
            f"{said}.", hint=hint, cap=name, limit=_plain(name, cap), spent=_plain(name, spent)
        )

    def _binding(self, least: Spend | None) -> tuple[str, int, int, int]:
        """Return the cap that stands in the way: its name, what is used, the cap, the need."""
        ledger = self.ledger
        names = ("tokens", "requests", self._cap or "usd")
        need = least or Spend()
        parts = list(zip(names, ledger.spent, ledger.cap, need, strict=True))
        capped = [part for part in parts if is_capped(part[2])]
        blocked = [part for part in capped if part[1] + part[3] > part[2]]
        return max(blocked or capped or parts, key=lambda part: (part[1] + part[3]) / part[2])


_PURSES: WeakKeyDictionary[Budget, Purse] = WeakKeyDictionary()
_LOCK = threading.Lock()


def purse_of(budget: Budget) -> Purse:
    """Return the purse of a budget for a map that begins; the same object, the same purse.

    To be given back with `leave`.

    Raises:
        ConfigError: A map on another event loop uses it.
    """
    loop = asyncio.get_running_loop()
    with _LOCK:
        purse = _PURSES.get(budget)
        if purse is None:
            purse = _PURSES[budget] = Purse(Ledger.of(budget))
        if purse.runs and purse.loop is not loop:
            raise ConfigError(
                "this Budget is in use by a map on another event loop.",
                hint="Give each thread a Budget of its own.",
            )
        purse.loop = loop
        purse.runs += 1
    return purse


def item_purse(usd: float) -> Purse:
    """Return the purse of one item."""
    return Purse(Ledger(cap_of(usd)), ITEM_CAP)


def _size(amount: Spend) -> tuple[int, int]:
    return amount.pico, amount.tokens


def _plain(name: str, amount: int) -> float:
    return amount / PICO if name.endswith("usd") else amount


def _shown(name: str, amount: int) -> str:
    if name.endswith("usd"):
        dollars = amount / PICO
        return f"${dollars:,.2f}" if dollars >= 1 else f"${dollars:.3g}"
    return f"{amount:,} {name}"
