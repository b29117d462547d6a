"""`shown`: any text as HTML that shows what is in it and does nothing else."""

from __future__ import annotations

import re
from html import escape

__all__ = ["cut", "shown"]

# Control characters but tab and newline; marks that turn the direction of text around; halves of
# surrogate pairs and noncharacters, which UTF-8 or HTML does not have.
_ODD = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u115f\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ufeff\ufff0-\uffff\ud800-\udfff\U000e0000-\U000e007f]"
    "|[\ufdd0-\ufdef]"
)


def shown(text: str, *, plain: bool = False) -> str:
    """Return text escaped for HTML, between tags or within a quoted attribute.

    Characters that cannot be seen, or would turn the text around them, are written as their
    number: `⟨U+202E⟩`.

    Args:
        text: Anything.
        plain: True for text that must not hold quotes even escaped.
    """
    if not (text.isascii() and text.isprintable()):
        text = _ODD.sub(_named, text)
    return escape(text.replace('"', "'") if plain else text)


def cut(text: str, most: int) -> str:
    """Return at most so many characters, and a word on how many there are."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


def _named(match: re.Match[str]) -> str:
    return f"⟨U+{ord(match[0]):04X}⟩"
