"""What a call goes through for its price: reserved, booked, settled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaleinfer.engine._budget import NOTHING, Spend
from scaleinfer.engine._token_bounds import TokenBounds
from scaleinfer.results import Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaleinfer.backends._base import Backend
    from scaleinfer.engine._bill import Bill
    from scaleinfer.engine._call import Call
    from scaleinfer.engine._spender import Spender
    from scaleinfer.errors import ScaleInferError
    from scaleinfer.results import Completion

__all__ = ["Payment"]


class Payment:
    """Books an engine's calls, and has a budget allow them if there is one.

    Args:
        bill: Adds up what calls used.
        spender: Says whether a call may go; `None` without a budget.
        backends: Where calls may go; the list may grow.
        model: The model that is asked where a request names none.
    """

    def __init__(
        self, bill: Bill, spender: Spender | None, backends: Sequence[Backend], model: str | None
    ) -> None:
        self.spender = spender
        self._bill = bill
        self._backends = backends
        self._model = model
        self._bounds = TokenBounds()

    async def reserve(self, call: Call, *, requests: int = 1) -> None:
        """Wait until a call may go.

        Raises:
            BudgetExceeded: It may not.
        """
        if self.spender is not None:
            call.ticket = await self.spender.reserve(
                call.request, self._asked(call), self._backends, call.account, requests=requests
            )

    def reserve_nowait(self, call: Call) -> bool:
        """Reserve for a call if it may go at once; most may."""
        if self.spender is None or call.account is not None:
            return False
        return self.reserve_copy(call)

    def reserve_copy(self, call: Call) -> bool:
        """Reserve for a second copy; False if it cannot be paid for now."""
        if self.spender is None:
            return True
        call.ticket = self.spender.reserve_nowait(call.request, self._asked(call), self._backends)
        return call.ticket is not None

    def answered(
        self, call: Call, backend: Backend, completion: Completion, *, packed: bool = False
    ) -> None:
        """Book what an answered call used; `packed` if it was one of several in a call."""
        calls = completion.usage.requests if packed else 1
        used, call.cost_usd = self._bill.answered(
            backend, self._asked(call), completion, calls=calls
        )
        if self.spender is not None and call.ticket is not None:
            used = self.spender.observe(call.ticket, completion, used)
        call.used = used

    def failed(self, call: Call, backend: Backend, error: ScaleInferError) -> None:
        """Book what a call used that brought no answer."""
        call.used = self._bill.failed(backend, self._asked(call), error, self._most(call, backend))

    def ended(self, call: Call, backend: Backend) -> None:
        """A call that was sent has ended; if nobody said what it used, it was cut off."""
        if call.error is not None and call.used is None:
            self.failed(call, backend, call.error)
        if call.used is None:
            call.used = self._bill.cut_off(backend, self._asked(call), self._most(call, backend))

    def settle(self, call: Call) -> None:
        """Give back what a call did not use; one of which nothing was booked was never sent."""
        if self.spender is not None and call.ticket is not None:
            self.spender.settle(call.ticket, call.used or NOTHING)

    def _asked(self, call: Call) -> str | None:
        return call.request.model or self._model

    def _most(self, call: Call, backend: Backend) -> Spend:
        """Return what a call may have used at the most."""
        if call.ticket is not None:
            return call.ticket.reserved
        bound = self._bounds.of(call.request)
        # Of an answer of any length nothing can be said.
        answer = bound.answer if self._bounds.capped(call.request) else 0
        usage = Usage(bound.prompt, answer, 0, 1)
        cost = self._bill.pricer.cost(backend, self._asked(call), None, usage)
        return Spend(bound.prompt + answer, 1, cost or 0)
