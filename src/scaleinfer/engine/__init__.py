"""The loop that keeps endpoints busy: limiter, retry authority, window. Knows no items."""

from __future__ import annotations

from scaleinfer.engine._engine import Engine, EngineStatistics
from scaleinfer.engine._gate import Gate
from scaleinfer.engine._limiter import Limiter, LimiterStatistics
from scaleinfer.engine._retry import (
    COME_BACK_LATER,
    GiveUp,
    Retry,
    RetryAuthority,
    RetryStatistics,
    WaitFor,
)
from scaleinfer.engine._window import Window

__all__ = [
    "COME_BACK_LATER",
    "Engine",
    "EngineStatistics",
    "Gate",
    "GiveUp",
    "Limiter",
    "LimiterStatistics",
    "Retry",
    "RetryAuthority",
    "RetryStatistics",
    "WaitFor",
    "Window",
]
