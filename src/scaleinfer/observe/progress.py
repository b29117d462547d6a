"""`open_progress`: the display that fits where a run is watched."""

from __future__ import annotations

import logging
import os
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from scaleinfer.errors import ConfigError
from scaleinfer.observe._base import Progress
from scaleinfer.observe._log import LogProgress
from scaleinfer.observe._notebook import NotebookProgress, in_notebook
from scaleinfer.observe._stream import Stderr

if TYPE_CHECKING:
    from scaleinfer.observe._snapshot import Snapshot

__all__ = ["fitting_mode", "open_progress"]

_MODES = ("auto", "bar", "notebook", "log", "none")


class _NoProgress(Progress):
    """Shows nothing; notes go to the `scaleinfer` logger, at level INFO."""

    def _show(self, before: Snapshot, now: Snapshot) -> None:
        pass

    def _say(self, line: str) -> None:
        logging.getLogger("scaleinfer").info("%s: %s", self._title(), line)

    def _end(self, summary: str, repeated: str) -> None:
        pass


def open_progress(mode: str | bool = "auto", name: str = "") -> Progress:
    """Open the display of a run; all of it goes to standard error or to the notebook.

    Args:
        mode: `bar` (a terminal), `notebook` (HTML below the cell), `log` (a line now and
            then), `none` or False; `auto` or True takes the notebook in a Jupyter kernel, the
            bar if standard error is a terminal that has no bar yet, otherwise log lines.
        name: The run's name.

    Raises:
        ConfigError: There is no such mode, or `notebook` without IPython.
    """
    if isinstance(mode, bool):
        mode = "auto" if mode else "none"
    if mode not in _MODES:
        raise ConfigError(
            f"There is no progress mode {mode!r}.", hint=f"Known: {', '.join(_MODES)}."
        )
    if mode == "auto":
        mode = fitting_mode()
    if mode == "none":
        return _NoProgress(name)
    if mode == "notebook":
        if find_spec("IPython") is None:
            raise ConfigError(
                "progress='notebook' needs IPython.", hint="Run: pip install 'scaleinfer[notebook]'"
            )
        return NotebookProgress(name)
    if mode == "bar":
        from scaleinfer.observe._bar import BarProgress

        return LogProgress(name) if BarProgress.busy() else BarProgress(name)
    return LogProgress(name)


def fitting_mode() -> str:
    """Return what fits where a run is watched: `notebook`, `bar` or `log`."""
    if in_notebook():
        return "notebook"
    dumb = os.environ.get("TERM", "").lower() in {"dumb", "unknown"}
    # Somebody's own rich display has taken the terminal: lines go above it, a bar would fight.
    taken = type(sys.stderr).__module__.startswith("rich.")
    return "bar" if Stderr().isatty() and not dumb and not taken else "log"
