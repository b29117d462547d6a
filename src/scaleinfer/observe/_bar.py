"""Progress as a bar in a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, ClassVar, TextIO, cast

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from scaleinfer.observe._base import Progress
from scaleinfer.observe._format import amount, duration, one_line
from scaleinfer.observe._stream import Stderr

if TYPE_CHECKING:
    from rich.console import RenderableType

    from scaleinfer.observe._snapshot import Snapshot

__all__ = ["BarProgress"]

_REDRAW_S = 0.1
_NAME = 24
_NARROW = 72
_BAR = 40


class BarProgress(Progress):
    """A bar and a line of counts at the bottom of the terminal; notes scroll above it.

    It is drawn by `update` alone, no thread is at work. A terminal has room for one bar: while
    one is open, `busy` tells that others should write lines.
    """

    _open: ClassVar[int] = 0

    def __init__(
        self, name: str = "", stream: TextIO | None = None, *, console: Console | None = None
    ) -> None:
        super().__init__(name)
        # Bound now: once the bar is open, sys.stderr writes to it.
        self._console = console or Console(
            file=cast("TextIO", Stderr(stream or sys.stderr)), force_terminal=True, highlight=False
        )
        self._drawn_at = -1.0
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            # Prints of the user's own functions go above the bar, if they go to a terminal.
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
            redirect_stderr=stream is None and console is None and sys.stderr is not None,
        )
        self._live.start()
        BarProgress._open += 1

    @classmethod
    def busy(cls) -> bool:
        """Return whether a bar is open in this process."""
        return cls._open > 0

    def _show(self, before: Snapshot, now: Snapshot) -> None:
        if now.elapsed_s - self._drawn_at >= _REDRAW_S or now.phase != before.phase:
            self._drawn_at = now.elapsed_s
            self._live.update(self._drawing(now), refresh=True)

    def _say(self, line: str) -> None:
        self._console.print(Text(line, style="yellow"), soft_wrap=True)

    def _end(self, summary: str, repeated: str) -> None:
        BarProgress._open -= 1
        self._live.update("")
        self._live.stop()
        for line in (repeated, summary):
            if line:
                self._console.print(Text(line), soft_wrap=True)

    def _drawing(self, now: Snapshot) -> RenderableType:
        lines = [self._bar_line(now)]
        if now.done or now.in_flight or now.waiting:
            lines.append(self._count_line(now))
        if now.last_error:
            width = max(self._console.width - 1, 20)
            lines.append(Text(one_line(now.last_error, width), style="yellow", no_wrap=True))
        return Group(*lines)

    def _bar_line(self, now: Snapshot) -> RenderableType:
        narrow = self._console.width < _NARROW
        line = Table.grid(padding=(0, 1))
        cells: list[RenderableType] = [Text(one_line(self._title(), _NAME), style="bold")]
        working = now.phase == "running"
        if (working or now.done) and not (narrow and now.total is None):
            bar = ProgressBar(
                total=now.total or 1,
                completed=now.done,
                width=10 if narrow else min(_BAR, self._console.width - 60),
                pulse=now.total is None,
                animation_time=now.elapsed_s,
                complete_style="cyan",
                finished_style="green",
            )
            cells.append(bar)
        if working or now.done:
            cells.append(Text(self._reached()))
        if not working:
            cells.append(Text(f"{now.phase} ({duration(now.elapsed_s)})", style="cyan"))
        elif not narrow or now.total is None:
            cells += [Text(self._speed(), style="dim"), Text(self._left(), style="cyan")]
        for _ in cells:
            line.add_column(no_wrap=True)
        line.add_row(*cells)
        return line

    def _count_line(self, now: Snapshot) -> Text:
        line = Text("  ", no_wrap=True, overflow="ellipsis")
        line.append(f"{now.ok:,} ok", "green")
        for words in self._counts():
            line.append(", ")
            line.append(words, "red" if words.endswith("failed") else "")
        tokens = now.prompt_tokens + now.completion_tokens
        if tokens:
            speed = self._token_speed()
            line.append(f", {amount(tokens)} tokens" + (f" ({speed})" if speed else ""), "dim")
        spent = self._spent()
        if spent:
            line.append(f", {spent}", "dim")
        return line
