"""How many tokens a text has: counted if somebody can count, else estimated from its length."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TokenScale", "pieces"]

_CHARACTERS_PER_TOKEN = 3.0
"""To begin with: English has about four, other text and formulas fewer."""
_MARGIN = 1.1
_BREAKS = (re.compile(r"\n\s*\n"), re.compile(r"(?<=[.!?])\s"), re.compile(r"\s"))
"""Where a text is best cut: between paragraphs, sentences, words."""


class TokenScale:
    """Turns lengths into tokens.

    Args:
        count: Counts the tokens of a text; `None` to estimate them.

    Attributes:
        exact: True if tokens are counted.
    """

    def __init__(self, count: Callable[[str], int] | None = None) -> None:
        self.exact = count is not None
        self._count = count
        self._per_character = _MARGIN / _CHARACTERS_PER_TOKEN

    def tokens(self, text: str) -> int:
        """Return the tokens of a text, rather too many than too few; at least 1."""
        if self._count is not None:
            return max(1, self._count(text))
        return 1 + int(len(text) * self._per_character)

    def calibrate(self, characters: int, tokens: int) -> None:
        """Take over what an endpoint counted for a prompt of so many characters."""
        if characters > 0 and tokens > 0:
            self._per_character = _MARGIN * tokens / characters


def pieces(text: str, limit: int, scale: TokenScale) -> list[str]:
    """Return a text in pieces of at most `limit` tokens; joined, they are the text.

    It is cut between paragraphs if these are short enough, else between sentences, words, or
    anywhere.

    Raises:
        ConfigError: Not even one character is within the limit.
    """
    found = []
    while scale.tokens(text) > limit:
        cut = _cut(text, _reach(text, limit, scale))
        found.append(text[:cut])
        text = text[cut:]
    return [*found, text] if text else found


def _reach(text: str, limit: int, scale: TokenScale) -> int:
    """Return how many characters from the start are within the limit."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if scale.tokens(text[:middle]) <= limit else (low, middle - 1)
    if low == 0:
        raise ConfigError(
            f"no text is within {limit} tokens.", hint="Raise context_tokens or shorten prompt_fn."
        )
    return low


def _cut(text: str, reach: int) -> int:
    """Return where to cut: the last good place in the second half of what is in reach."""
    for pattern in _BREAKS:
        places = [found.end() for found in pattern.finditer(text, reach // 2, reach)]
        if places:
            return places[-1]
    return reach
