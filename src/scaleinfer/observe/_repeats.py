"""`Repeats`: which of a storm of messages to show."""

from __future__ import annotations

import re

__all__ = ["Repeats"]

_KINDS = 50
_QUIET_S = 10.0
_NUMBERS = re.compile(r"\d+")
_REST = "other"


class Repeats:
    """Shows the first message of each kind, and then its number at 10, 100, 1,000, ...

    A state machine, the clock is passed in. After 50 kinds all further ones count as one, so
    that messages which differ every time are no storm either.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._due: dict[str, int] = {}
        self._shown: dict[str, float] = {}

    def count(self, text: str, kind: str | None, now: float) -> int:
        """Count a message; return the number so far if it is to be shown, otherwise 0.

        Args:
            text: The message.
            kind: What it is counted under; by default its text, whatever numbers are in it.
            now: The clock, in seconds.
        """
        kind = kind or _NUMBERS.sub("#", text)
        if kind not in self._counts and len(self._counts) >= _KINDS:
            kind = _REST
        number = self._counts[kind] = self._counts.get(kind, 0) + 1
        if number == 1:
            self._due[kind] = 10
        elif number < self._due[kind] or now - self._shown[kind] < _QUIET_S:
            return 0
        while self._due[kind] <= number:
            self._due[kind] *= 10
        self._shown[kind] = now
        return number

    def repeated(self) -> list[tuple[str, int]]:
        """Return kind and number of all that came more than once, the most frequent first."""
        often = [(kind, number) for kind, number in self._counts.items() if number > 1]
        return sorted(often, key=lambda pair: -pair[1])
