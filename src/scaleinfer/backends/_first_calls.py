"""One model on one cluster of FIRST: how calls to it are sent, and what each of them tells."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

import orjson

from scaleinfer.backends._first_dialect import Condition, condition_of, unwrapped
from scaleinfer.backends._first_limits import InFlight, TokenTurns
from scaleinfer.backends._first_listing import ModelLimits
from scaleinfer.backends._first_state import FirstState
from scaleinfer.backends._first_statuses import STARTABLE
from scaleinfer.backends._first_watch import Watcher
from scaleinfer.errors import Permanent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scaleinfer.backends._first_gateway import Gateway
    from scaleinfer.backends._wire import Wire, WireResponse

__all__ = ["ModelCalls"]

_OK = 200
_AHEAD = 8
_MIB = 2**20
_MINUTES = 120.0
_WARM_UP_TIMEOUT = 330.0


class ModelCalls:
    """What all calls to a model on a cluster share, whatever event loop they are made on.

    Args:
        gateway: The gateway.
        cluster: The cluster.
        framework: Its framework.
        endpoint: Its name, for errors and for the shared limit.
        poll_s: Seconds between two looks at the model's state.
        deadline_s: Seconds that it may be away.
        most: Most calls in flight.
        told: Given each token that is sent.

    Attributes:
        state: Whether the model runs.
        served: The model's name on this cluster; empty before it is known.
    """

    def __init__(
        self,
        gateway: Gateway,
        cluster: str,
        framework: str,
        *,
        endpoint: str,
        poll_s: float,
        deadline_s: float,
        most: int,
        told: Callable[[str], None],
    ) -> None:
        self.state = FirstState(
            cluster, "", startable=framework == STARTABLE, deadline_s=deadline_s
        )
        self._gateway = gateway
        self._cluster = cluster
        self._framework = framework
        self._endpoint = endpoint
        self._poll_s = poll_s
        self._told = told
        self._in_flight = InFlight(most)
        self._on_wire = 0
        self._token_limit = gateway.limits.tokens_per_minute
        self._token_turns: dict[asyncio.AbstractEventLoop, TokenTurns] = {}
        self._watchers: dict[asyncio.AbstractEventLoop, Watcher] = {}

    @property
    def served(self) -> str:
        """The model's name on this cluster; empty before it is known."""
        return self.state.model

    @property
    def watched(self) -> bool:
        """True while somebody looks at the model's state."""
        return bool(self._watchers)

    def places(self) -> int:
        """Return how many calls may be in flight."""
        if not self._watchers:
            return self._in_flight.limit
        places = self.state.places
        if places is None:
            # Some ahead of their turn, so that none is missed.
            return min(self._in_flight.limit, self._on_wire + _AHEAD)
        # With the deadline over, a call is let through, to be told so.
        return max(places, int(self.state.overdue(time.monotonic())))

    def overdue(self, now: float) -> Permanent:
        """Return what is wrong if the model has been away for longer than it may."""
        away = self.state.away_s(now)
        long = f"{away:.0f} s" if away < _MINUTES else f"{away / 60:.0f} min"
        return Permanent(
            f"{self.served} on {self._cluster} has not run for {long} ({self.state.phase}).",
            hint="Wait longer with deadline_s=, or use other clusters too (backend='first:').",
            endpoint=self._endpoint,
            fatal=True,
        )

    # Watching.

    def watch(self, wire: Wire, url: str, headers: Mapping[str, str]) -> None:
        """Keep the model's state up to date on this event loop.

        Args:
            wire: Connections to the gateway.
            url: Where a request for a chat completion goes.
            headers: Its headers.
        """
        loop = asyncio.get_running_loop()
        if loop in self._watchers:
            return

        async def warm_up() -> bool:
            return await self._warm_up(wire, url, headers)

        self._watchers[loop] = Watcher(
            self._gateway,
            self.state,
            cluster=self._cluster,
            framework=self._framework,
            poll_s=self._poll_s,
            learn_limits=self._learn_limits,
            warm_up=warm_up,
        )
        self._watchers[loop].start()

    async def unwatch(self) -> None:
        """End what `watch` began."""
        loop = asyncio.get_running_loop()
        self._token_turns.pop(loop, None)
        watcher = self._watchers.pop(loop, None)
        if watcher is not None:
            await watcher.aclose()

    async def _learn_limits(self) -> None:
        if self._token_limit is not None:
            return
        try:
            limits = await self._gateway.model_limits(self._cluster, self._framework)
        except Exception as error:
            _log(f"{self._cluster} does not tell its limits: {error!r}")
            return
        self._token_limit = limits.get(self.served, ModelLimits()).least

    async def _warm_up(self, wire: Wire, url: str, headers: Mapping[str, str]) -> bool:
        """Send a small request that starts the model; return whether its server answered."""
        hello = {"role": "user", "content": "Hello"}
        body = orjson.dumps({"model": self.served, "messages": [hello], "max_tokens": 1})

        async def post(headers: Mapping[str, str]) -> WireResponse:
            return await wire.post(url, body, headers, _WARM_UP_TIMEOUT)

        response = await self._gateway.send(headers, post, self._told)
        return response.status == _OK or unwrapped(response) is not response

    # Sending.

    async def post(
        self,
        wire: Wire,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        timeout: float | None,
    ) -> WireResponse:
        """Send a call in its turn; return what the model's server said, or the gateway.

        Raises:
            EndpointError: It cannot be sent.
            WireError: There was no response.
        """
        self._check_size(body)
        turns = self._turns_of_tokens()
        paid, cost, sent = 0.0, 0.0, 0.0
        if turns is not None:
            paid = turns.expected(len(body))
            await turns.take(paid)

        async def post(headers: Mapping[str, str]) -> WireResponse:
            nonlocal sent
            sent = time.monotonic()
            self._on_wire += 1
            try:
                return await wire.post(url, body, headers, timeout)
            finally:
                self._on_wire -= 1

        try:
            response = await self._gateway.send(headers, post, self._told)
            cost = self._note(response, len(body), sent)
        finally:
            if turns is not None and paid != cost:
                turns.settle(paid, cost)
        if turns is not None and _out_of_tokens(response):
            turns.hold(self._gateway.limits.window_s)
        return unwrapped(response)

    def _check_size(self, body: bytes) -> None:
        most = self._gateway.limits.body_bytes
        if len(body) > most:
            raise Permanent(
                f"the request has {len(body) / _MIB:.1f} MiB, and FIRST takes at most "
                f"{most / _MIB:.1f} MiB.",
                hint="Shorten the prompt, or make its images smaller.",
                endpoint=self._endpoint,
            )

    def _note(self, response: WireResponse, size: int, sent: float) -> float:
        """Learn from a response; return the tokens it cost."""
        now, was_hot = time.monotonic(), self.state.hot
        if response.status != _OK:
            self._note_refusal(response, now)
            self._tell(was_hot)
            return 0.0
        self.state.answered(now)
        self._tell(was_hot)
        self._in_flight.answered(now - sent, now)
        prompt, completion = _tokens_in(response.body)
        turns = self._turns_of_tokens()
        if turns is not None:
            turns.learn(size, prompt, completion)
        return float(prompt + completion)

    def _note_refusal(self, response: WireResponse, now: float) -> None:
        if unwrapped(response) is not response:
            self.state.answered(now)  # the model's own server said it
            return
        condition = condition_of(response)
        self.state.refused(condition, now)
        if condition in (Condition.TIMED_OUT, Condition.UPSTREAM_TIMED_OUT):
            self._in_flight.late(now)

    def _tell(self, was_hot: bool) -> None:
        if self.state.hot == was_hot:
            return
        if was_hot:
            _log(f"{self.state.phase}; its calls wait, or go to other endpoints.")
        for watcher in list(self._watchers.values()):
            watcher.changed()

    def _turns_of_tokens(self) -> TokenTurns | None:
        if self._token_limit is None:
            return None
        loop = asyncio.get_running_loop()
        turns = self._token_turns.get(loop)
        if turns is None:
            name, window_s = f"{self._endpoint} {self.served}", self._gateway.limits.window_s
            turns = self._token_turns[loop] = TokenTurns(name, self._token_limit, window_s)
        return turns


def _out_of_tokens(response: WireResponse) -> bool:
    return response.status != _OK and condition_of(response) is Condition.TOO_MANY_TOKENS


def _tokens_in(body: bytes) -> tuple[int, int]:
    """Return the prompt and completion tokens that an answer states; zeros if it states none."""
    try:
        usage = orjson.loads(body)["usage"]
        return int(usage["prompt_tokens"] or 0), int(usage.get("completion_tokens") or 0)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
        return 0, 0


def _log(line: str) -> None:
    logging.getLogger("scaleinfer").info(line)
