"""Token ids to text as they come: whole characters only, cut at stop strings."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TextStream", "cut_at_stop"]


def cut_at_stop(text: str, stop: tuple[str, ...]) -> str:
    """Return `text` up to the first of the stop strings in it."""
    places = [place for one in stop if (place := text.find(one)) >= 0]
    return text[: min(places)] if places else text


class TextStream:
    """Gives the text that new tokens add, never taking anything back.

    A token may end inside a character, and a stop string may come in pieces; what could
    still change is held back.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: tuple[str, ...] = ()) -> None:
        self._decode = decode
        self._stop = stop
        self._held = max((len(one) for one in stop), default=1) - 1
        self._token_ids: list[int] = []
        self._given = ""

    def feed(self, token_ids: list[int]) -> str:
        """Return the text that is certain after these further tokens."""
        self._token_ids += token_ids
        text = self._decode(self._token_ids)
        cut = cut_at_stop(text, self._stop)
        if cut == text:
            cut = text.rstrip("\ufffd")
            cut = cut[: len(cut) - self._held] if self._held else cut
        return self._give(cut)

    def finish(self) -> str:
        """Return what was held back; there are no more tokens."""
        return self._give(cut_at_stop(self._decode(self._token_ids), self._stop))

    def _give(self, text: str) -> str:
        new = text[len(self._given) :]
        self._given += new
        return new
