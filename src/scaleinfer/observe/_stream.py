"""`Stderr`: standard error that never fails."""

from __future__ import annotations

import io
import sys
from typing import TextIO

__all__ = ["Stderr"]


class Stderr(io.TextIOBase):
    """A text stream to standard error; once that is broken or closed, a stream to nowhere.

    Only the write itself is guarded, so an error in what is written still shows.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._broken = False

    @property
    def _target(self) -> TextIO | None:
        # Looked up each time: others (a notebook, a test, another bar) put theirs in its place.
        return None if self._broken else self._stream or sys.stderr

    @property
    def encoding(self) -> str:  # type: ignore[override]  # TextIOBase has a plain attribute
        """The encoding of the stream beneath."""
        return getattr(self._target, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write, with `?` for what the encoding lacks."""
        target = self._target
        if target is not None:
            try:
                safe = text.encode(self.encoding, "replace").decode(self.encoding)
                target.write(safe)
            except (OSError, ValueError):  # ValueError: it is closed
                self._broken = True
        return len(text)

    def flush(self) -> None:
        """Flush the stream beneath."""
        target = self._target
        if target is not None:
            try:
                target.flush()
            except (OSError, ValueError):  # ValueError: it is closed
                self._broken = True

    def isatty(self) -> bool:
        """Return whether the stream beneath is a terminal."""
        target = self._target
        try:
            return target is not None and target.isatty()
        except (OSError, ValueError):  # ValueError: it is closed
            return False

    def fileno(self) -> int:
        """Return the file descriptor beneath.

        Raises:
            OSError: There is none.
        """
        target = self._target
        if target is None:
            raise io.UnsupportedOperation("there is no standard error")
        return target.fileno()
