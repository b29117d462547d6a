"""A fleet's status while it changes: in a terminal, below a notebook's cell, or as log lines."""

from __future__ import annotations

import asyncio
import sys
import time
from abc import ABC, abstractmethod
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self, TextIO, cast

from scaleinfer.errors import ConfigError
from scaleinfer.fleet._view import Line, Speeds, status_html, status_line, status_lines
from scaleinfer.observe import Rate, Stderr, fitting_mode

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable

    from rich.console import Console

    from scaleinfer.fleet._status import FleetStatus

__all__ = ["View", "open_view", "show_statuses", "watch"]

_FIRST_S = (0.0, 10.0, 30.0)
_EVERY_S = 60.0
_BEFORE_S = 10.0
_ROWS = 20
_STYLES = {"head": "bold", "bad": "red", "faded": "dim"}


class View(ABC):
    """Shows one status after the other; a context manager that puts the terminal back in order."""

    def __init__(self) -> None:
        self._items, self._tokens = Rate(), Rate()
        self._elapsed = 0.0

    def show(self, status: FleetStatus, now: float) -> None:
        """Show a status.

        Args:
            status: Where the fleet stands.
            now: The monotonic clock.
        """
        if status.elapsed_s < self._elapsed:
            # Another coordinator: it counts anew.
            self._items, self._tokens = Rate(), Rate()
        self._elapsed = status.elapsed_s
        self._items.update(now, status.answered)
        self._tokens.update(now, status.tokens)
        self._show(status, Speeds(self._items.per_second(now), self._tokens.per_second(now)), now)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """End the display; what it showed last stays."""

    @abstractmethod
    def _show(self, status: FleetStatus, speeds: Speeds, now: float) -> None: ...


class _Lines(View):
    """A line at once, after 10 s, after 30 s, then every minute."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._out = stream
        self._began: float | None = None
        self._due = 0.0

    def _show(self, status: FleetStatus, speeds: Speeds, now: float) -> None:
        self._began = now if self._began is None else self._began
        passed = now - self._began
        if passed < self._due:
            return
        later = [due for due in _FIRST_S if due > passed]
        self._due = later[0] if later else passed + _EVERY_S
        self._out.write(status_line(status, speeds=speeds) + "\n")
        self._out.flush()

    def close(self) -> None:
        """Nothing is held."""


class _Terminal(View):
    """Some lines and a table at the bottom of the terminal; prints go above them."""

    def __init__(self, stream: TextIO, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__()
        self._console = console or Console(file=stream, force_terminal=True, highlight=False)
        tty = sys.stdout is not None and sys.stdout.isatty()
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            redirect_stdout=tty and console is None,
            redirect_stderr=sys.stderr is not None and console is None,
        )
        self._live.start()

    def _show(self, status: FleetStatus, speeds: Speeds, now: float) -> None:
        from rich.text import Text

        drawing = Text(no_wrap=True, overflow="crop")
        for line in self._fitting(status, speeds):
            drawing.append(line.text + "\n", _STYLES.get(line.kind))
        drawing.rstrip()
        self._live.update(drawing, refresh=True)

    def _fitting(self, status: FleetStatus, speeds: Speeds) -> list[Line]:
        """Return the lines with as many workers as there is room for."""
        width, height = self._console.width - 1, self._console.height - 1
        rows = _ROWS
        while True:
            lines = status_lines(status, width=width, rows=rows, speeds=speeds)
            if len(lines) <= height or not rows:
                return lines[:height]
            rows -= 1

    def close(self) -> None:
        """Leave what was shown last."""
        self._live.stop()


class _Notebook(View):
    """A block of HTML that is replaced."""

    def __init__(
        self, display: Callable[..., Any] | None = None, html: Callable[[str], Any] | None = None
    ) -> None:
        super().__init__()
        if display is None or html is None:
            module: Any = import_module("IPython.display")  # imported late, and only in a kernel
            display, html = module.display, module.HTML
        self._html = html
        self._handle = display(html(""), display_id=True)

    def _show(self, status: FleetStatus, speeds: Speeds, now: float) -> None:
        if self._handle is not None:  # none outside a kernel
            self._handle.update(self._html(status_html(status, speeds=speeds)))

    def close(self) -> None:
        """Nothing is held."""


def open_view(stream: TextIO | None = None) -> View:
    """Open the view that fits: a notebook's, a terminal's, or lines now and then.

    Args:
        stream: Where it goes; default a notebook's cell, otherwise standard error.
    """
    if stream is not None:
        return _Terminal(stream) if stream.isatty() else _Lines(stream)
    mode = fitting_mode()
    if mode == "notebook":
        return _Notebook()
    guarded = cast("TextIO", Stderr(sys.stderr if mode == "bar" else None))
    return _Terminal(guarded) if mode == "bar" else _Lines(guarded)


async def show_statuses(
    statuses: AsyncIterable[FleetStatus], *, stream: TextIO | None = None
) -> None:
    """Show statuses as they come, until there are no more.

    Args:
        statuses: Where the fleet stands, again and again.
        stream: Where it goes; see `open_view`.
    """
    with open_view(stream) as view:
        async for status in statuses:
            view.show(status, time.monotonic())


async def watch(status: Callable[[], FleetStatus], *, every: float = 1.0) -> None:
    """Show where a fleet stands until it is closed, or this is cancelled.

    In a notebook below the cell, in a terminal at its bottom, elsewhere as a line now and then.

    Args:
        status: Returns where the fleet stands, such as `fleet.status`.
        every: Seconds between two looks.

    Raises:
        ConfigError: The fleet is not open, or nothing is heard of it.
    """
    await show_statuses(_looked_at(status, every))


async def _looked_at(status: Callable[[], FleetStatus], every: float) -> AsyncIterator[FleetStatus]:
    """Yield statuses until there is none any more, which means that the fleet was closed."""
    began, seen = time.monotonic(), False
    while True:
        try:
            now = status()
        except ConfigError:
            if seen:
                return
            # One that runs elsewhere has not said anything yet.
            if time.monotonic() - began > _BEFORE_S:
                raise
        else:
            seen = True
            yield now
        await asyncio.sleep(every)
