"""Progress as lines of plain text now and then, for log files and batch jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from scaleinfer.observe._base import Progress
from scaleinfer.observe._stream import Stderr

if TYPE_CHECKING:
    from scaleinfer.observe._snapshot import Snapshot

__all__ = ["LogProgress"]

_FIRST_S = (10.0, 30.0)
_EVERY_S = 60.0


class LogProgress(Progress):
    """A line after 10 s, after 30 s, then every 60 s, and one at the end.

    No control characters and no colours.
    """

    def __init__(self, name: str = "", stream: TextIO | None = None) -> None:
        super().__init__(name)
        self._out = Stderr(stream)
        self._due = _FIRST_S[0]

    def _show(self, before: Snapshot, now: Snapshot) -> None:
        if now.elapsed_s < self._due:
            return
        later = [due for due in _FIRST_S if due > now.elapsed_s]
        self._due = later[0] if later else now.elapsed_s + _EVERY_S
        self._say(self._words())

    def _say(self, line: str) -> None:
        self._write(f"{self._title()}: {line}")

    def _end(self, summary: str, repeated: str) -> None:
        if repeated:
            self._say(repeated)
        if summary:
            self._write(summary)

    def _write(self, line: str) -> None:
        self._out.write(line + "\n")
        self._out.flush()
