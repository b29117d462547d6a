"""What simulated servers answer, and how fast: functions that their processes import by name."""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    from scaleinfer.testing import RequestView

__all__ = ["MEAN_TOKENS", "heavy_tailed", "varied"]

MEAN_TOKENS = 50
_SPREAD = 20
_TYPICAL = 0.1
_SLOW_SHARE = 0.015
_SLOW = 20


def varied(view: RequestView) -> str:
    """An answer of 30 to 70 tokens: answers of one length would come and go in waves."""
    tokens = MEAN_TOKENS - _SPREAD + crc32(view.text.encode()) % (2 * _SPREAD + 1)
    return "word" * tokens


def heavy_tailed(view: RequestView) -> float:
    """0.08 to 0.12 s, and 20 times as long for 1.5 % of the calls, drawn anew for each attempt."""
    luck = crc32(f"{view.attempt} {view.prompt}".encode()) / 2**32
    usual = _TYPICAL * (0.8 + 0.4 * (luck * 1000 % 1))
    return usual * _SLOW if luck < _SLOW_SHARE else usual
