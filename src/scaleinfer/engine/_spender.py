"""One run's side of a budget: what its calls may use, and when it may send no more."""

from __future__ import annotations

import asyncio
import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaleinfer.engine._budget import NOTHING, Account, Spend, is_capped
from scaleinfer.engine._purse import Most, Purse
from scaleinfer.engine._token_bounds import TokenBounds
from scaleinfer.errors import BudgetExceeded
from scaleinfer.prices import LONG_PROMPT
from scaleinfer.results import Usage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from scaleinfer.backends._base import Backend
    from scaleinfer.engine._bill import Bill
    from scaleinfer.engine._budget import Budget
    from scaleinfer.engine._token_bounds import Bound
    from scaleinfer.prices import Rates
    from scaleinfer.requests import Request
    from scaleinfer.results import Completion

__all__ = ["Spender", "Ticket"]

_SLICES = 50
"""Parts of a cap for which the journal vouches ahead."""
_HOUR_S = 3600.0
_CALL = Spend(0, 1, 0)


@dataclass(slots=True, eq=False)
class Ticket:
    """What is reserved for a call.

    Attributes:
        bound: Tokens it may use.
        reserved: What is reserved of the budget.
        asked: The model that is asked for.
        account: The item's own purse.
        of_item: What is reserved of that.
    """

    bound: Bound
    reserved: Spend
    asked: str | None
    account: Purse | None = None
    of_item: Spend = NOTHING


class Spender:
    """Reserves for one run's calls and settles them.

    Args:
        budget: The caps.
        purse: The budget's purse, which other runs may share.
        bill: Adds up what calls used, and knows prices.
        now: The monotonic clock as the run begins.
        node_seconds: What earlier runs of the same journal used of the nodes.

    Attributes:
        closed: Why no call is sent any more; `None` while they are.
        on_close: Called with that error.
        vouch: Brings to disk that so much may be used, before it is; `None` without a journal.
        node_seconds: Wall time of nodes so far, earlier runs' included.
    """

    def __init__(
        self,
        budget: Budget,
        purse: Purse,
        bill: Bill,
        *,
        now: float,
        node_seconds: float = 0.0,
    ) -> None:
        self.budget = budget
        self.closed: BudgetExceeded | None = None
        self.on_close: Callable[[BudgetExceeded], None] | None = None
        self.vouch: Callable[[Spend], Awaitable[None]] | None = None
        self.node_seconds = node_seconds
        self._purse = purse
        self._bill = bill
        self._began = self._looked = now
        self._bounds: dict[str | None, TokenBounds] = {}
        self._worst: dict[str | None, tuple[int, Rates | None]] = {}
        self._sleeping: set[asyncio.Future[None]] = set()
        self._waits: set[asyncio.Future[Spend]] = set()
        self._own = Account()
        self._vouched = NOTHING
        self._vouching: asyncio.Future[None] | None = None

    @property
    def spent(self) -> Spend:
        """What this run's ended calls have used; kept for a journal only."""
        return self._own.spent

    @property
    def committed(self) -> Spend:
        """The same, and what those in flight may use."""
        return self._own.committed

    # -- calls -----------------------------------------------------------------------------

    async def reserve(
        self,
        request: Request,
        asked: str | None,
        backends: Sequence[Backend],
        account: Purse | None = None,
        *,
        requests: int = 1,
        share: float = 1.0,
    ) -> Ticket:
        """Wait until a call may go.

        Args:
            request: What it asks.
            asked: The model it asks for.
            backends: Where it may go.
            account: Its item's own purse.
            requests: 0 for one of several requests in a call.
            share: Of the usual price that is asked: a batch's discount.

        Raises:
            BudgetExceeded: It may not.
        """
        self.check()

        def measure() -> Most:
            return self._measured(request, asked, backends, requests, share)

        ticket = Ticket(self._bounds_of(asked).of(request), NOTHING, asked, account)
        if account is not None:
            ticket.of_item = await account.reserve(measure)
        try:
            ticket.reserved = await self._run_purse(measure)
        except BaseException:
            if account is not None:
                account.settle(ticket.of_item, NOTHING)
            raise
        if self.vouch is not None:
            self._own.commit(ticket.reserved)
            if self._beyond():
                await self._covered(ticket)
        return ticket

    def reserve_call(self) -> None:
        """Reserve a call whose requests are reserved already, one by one; these cannot wait.

        Raises:
            BudgetExceeded: There is no room for it.
        """
        self.check()
        if not self._purse.ledger.reserve(_CALL):
            self.close(self._purse.reached(_CALL))
            self.check()
        self._own.commit(_CALL)

    def settle_call(self) -> None:
        """Such a call has ended."""
        self._own.settle(_CALL, _CALL)
        self._purse.settle(_CALL, _CALL)

    def reserve_nowait(
        self,
        request: Request,
        asked: str | None,
        backends: Sequence[Backend],
        *,
        requests: int = 1,
        share: float = 1.0,
    ) -> Ticket | None:
        """Reserve for a call if it fits now; `None` if one has to wait for that."""
        if self.closed is not None:
            return None
        bound = self._bounds_of(asked).of(request)
        most = self._most(bound, asked, backends, requests, share)
        if not self._purse.reserve_nowait(most):
            return None
        ticket = Ticket(bound, most, asked)
        if self.vouch is not None:
            self._own.commit(most)
            if self._beyond():
                self.settle(ticket, NOTHING)
                return None
        return ticket

    def settle(self, ticket: Ticket, used: Spend) -> None:
        """A call has ended and used so much."""
        if self.vouch is not None:
            self._own.settle(ticket.reserved, used)
        self._purse.settle(ticket.reserved, used)
        if ticket.account is not None:
            ticket.account.settle(ticket.of_item, used)

    def observe(self, ticket: Ticket, completion: Completion, used: Spend) -> Spend:
        """Learn from an answer; return what it used, of which it may say nothing itself."""
        usage = completion.usage
        if not usage.prompt_tokens and not usage.completion_tokens:
            # Nobody counts for us: what was reserved, which it cannot have passed.
            return ticket.reserved
        self._bounds_of(ticket.asked).observe(ticket.bound, usage)
        return used

    async def sleep(self, seconds: float) -> None:
        """Wait for the next try of a call.

        Raises:
            BudgetExceeded: There will be none.
        """
        if self.closed is not None:
            raise copy.copy(self.closed)
        loop = asyncio.get_running_loop()
        wait: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(seconds, _end, wait)
        self._sleeping.add(wait)
        try:
            await wait
        finally:
            timer.cancel()
            self._sleeping.discard(wait)
        self.check()

    def check(self) -> None:
        """Raise if no call is sent any more.

        Raises:
            BudgetExceeded: None is.
        """
        if self.closed is not None:
            raise copy.copy(self.closed)

    # -- the run ---------------------------------------------------------------------------

    def close(self, why: BudgetExceeded) -> None:
        """Send nothing more."""
        if self.closed is not None:
            return
        self.closed = why
        for sleeping in self._sleeping:
            _end(sleeping)
        for wait in self._waits:
            if not wait.done():
                wait.set_exception(copy.copy(why))
        if self.on_close is not None:
            self.on_close(why)

    def tick(self, now: float, *, nodes: int, landing_s: float) -> None:
        """Look at the clock.

        Args:
            now: The monotonic clock.
            nodes: Nodes that work for the run.
            landing_s: Seconds that a call takes, so that those in flight may land in time.
        """
        self.node_seconds += nodes * (now - self._looked)
        self._looked = now
        budget, elapsed = self.budget, now - self._began
        if budget.seconds is not None and elapsed + landing_s >= budget.seconds:
            self.close(
                BudgetExceeded(
                    f"the budget of {budget.seconds:g} seconds is reached: the run has taken "
                    f"{elapsed:.1f}, and a call takes {landing_s:.2g}.",
                    hint="Call again with a larger budget.",
                    cap="seconds",
                    limit=budget.seconds,
                    spent=elapsed,
                )
            )
        hours = self.node_seconds / _HOUR_S
        if (
            budget.node_hours is not None
            and hours + nodes * landing_s / _HOUR_S >= budget.node_hours
        ):
            self.close(
                BudgetExceeded(
                    f"the budget of {budget.node_hours:g} node-hours is reached: "
                    f"{hours:.3g} are used, and {nodes} nodes are at work.",
                    hint="Call again with a larger budget.",
                    cap="node_hours",
                    limit=budget.node_hours,
                    spent=hours,
                )
            )

    # -- the inside ------------------------------------------------------------------------

    async def _run_purse(self, measure: Callable[[], Most]) -> Spend:
        try:
            return await self._purse.reserve(measure, self._waits)
        except BudgetExceeded as error:
            self.close(error)
            raise

    def _bounds_of(self, asked: str | None) -> TokenBounds:
        bounds = self._bounds.get(asked)
        if bounds is None:
            bounds = self._bounds[asked] = TokenBounds()
        return bounds

    def _rates(self, asked: str | None, backends: Sequence[Backend]) -> Rates | None:
        """Return the highest rates of the endpoints that may answer."""
        known = self._worst.get(asked)
        if known is not None and known[0] == len(backends):
            return known[1]
        found = [self._bill.pricer.rates(one, asked or one.model, None) for one in backends]
        rates = [one for one in found if one is not None]
        worst = None
        if rates:
            worst = type(rates[0])(*(max(part) for part in zip(*rates, strict=True)))
        self._worst[asked] = len(backends), worst
        return worst

    def _beyond(self) -> bool:
        """True if the journal does not vouch for what this run has committed."""
        committed, vouched, cap = self._own.committed, self._vouched, self._purse.ledger.cap
        return (
            (committed.tokens > vouched.tokens and is_capped(cap.tokens))
            or (committed.requests > vouched.requests and is_capped(cap.requests))
            or (committed.pico > vouched.pico and is_capped(cap.pico))
        )

    async def _covered(self, ticket: Ticket) -> None:
        """Return once the journal vouches for what is committed."""
        assert self.vouch is not None
        try:
            while self._beyond():
                if self._vouching is None:
                    self._vouching = asyncio.ensure_future(self._vouch(self.vouch))
                await asyncio.shield(self._vouching)
        except BaseException:
            self.settle(ticket, NOTHING)
            raise

    async def _vouch(self, vouch: Callable[[Spend], Awaitable[None]]) -> None:
        ahead = [
            min(max(cap, amount), amount + cap // _SLICES) if is_capped(cap) else amount
            for amount, cap in zip(self._own.committed, self._purse.ledger.cap, strict=True)
        ]
        most = Spend(*ahead)
        try:
            await vouch(most)
            self._vouched = most
        finally:
            self._vouching = None

    def _measured(
        self,
        request: Request,
        asked: str | None,
        backends: Sequence[Backend],
        requests: int,
        share: float,
    ) -> Most:
        bounds = self._bounds_of(asked)
        bound = bounds.of(request)
        close = bound._replace(prompt=bound.tight_prompt, answer=bound.tight_answer)
        least = None
        if not (bounds.knows_answers or bounds.capped(request)):
            least = self._most(close._replace(answer=1), asked, backends, requests, share)
        return Most(
            self._most(bound, asked, backends, requests, share),
            self._most(close, asked, backends, requests, share),
            least,
        )

    def _most(
        self,
        bound: Bound,
        asked: str | None,
        backends: Sequence[Backend],
        requests: int,
        share: float,
    ) -> Spend:
        """Return what a call of so many tokens costs at the most."""
        rates = self._rates(asked, backends)
        pico = 0
        if rates is not None:
            prompt, _, completion, request = rates
            pico = bound.prompt * prompt + bound.answer * completion + requests * request
            if bound.prompt > LONG_PROMPT:
                usage = Usage(bound.prompt, bound.answer, 0, requests)
                price = self._bill.pricer.cost
                pico = max(price(one, asked or one.model, None, usage) or 0 for one in backends)
            if share != 1.0:
                pico = math.ceil(pico * share)
        return Spend(bound.prompt + bound.answer, requests, pico)


def _end(wait: asyncio.Future[None]) -> None:
    if not wait.done():
        wait.set_result(None)
