"""The loop that keeps endpoints busy: limiter, retry authority, router. Knows no items."""

from __future__ import annotations

from scaleinfer.engine._bill import Bill, Cost
from scaleinfer.engine._breaker import Breaker
from scaleinfer.engine._budget import Budget, Ledger, Spend
from scaleinfer.engine._dispatch import Dispatch
from scaleinfer.engine._endpoint import Endpoint, EndpointStatistics
from scaleinfer.engine._engine import Engine
from scaleinfer.engine._gate import Gate
from scaleinfer.engine._limiter import (
    Concurrency,
    FixedLimiter,
    Limiter,
    LimiterStatistics,
    Outcome,
)
from scaleinfer.engine._orderer import Orderer, ordering_gain
from scaleinfer.engine._pool import Pool, endpoint_of, pool_of
from scaleinfer.engine._purse import ITEM_CAP, Purse, item_purse, purse_of
from scaleinfer.engine._rate_limit import RateLimit
from scaleinfer.engine._retry import (
    COME_BACK_LATER,
    GiveUp,
    Retry,
    RetryAuthority,
    RetryStatistics,
    WaitFor,
)
from scaleinfer.engine._router import Router
from scaleinfer.engine._spender import Spender, Ticket
from scaleinfer.engine._statistics import EngineStatistics
from scaleinfer.engine._token_bounds import TokenBounds
from scaleinfer.engine._window import Window

__all__ = [
    "COME_BACK_LATER",
    "ITEM_CAP",
    "Bill",
    "Breaker",
    "Budget",
    "Concurrency",
    "Cost",
    "Dispatch",
    "Endpoint",
    "EndpointStatistics",
    "Engine",
    "EngineStatistics",
    "FixedLimiter",
    "Gate",
    "GiveUp",
    "Ledger",
    "Limiter",
    "LimiterStatistics",
    "Orderer",
    "Outcome",
    "Pool",
    "Purse",
    "RateLimit",
    "Retry",
    "RetryAuthority",
    "RetryStatistics",
    "Router",
    "Spend",
    "Spender",
    "Ticket",
    "TokenBounds",
    "WaitFor",
    "Window",
    "endpoint_of",
    "item_purse",
    "ordering_gain",
    "pool_of",
    "purse_of",
]
