"""Progress as HTML below a notebook's cell."""

from __future__ import annotations

import sys
from html import escape
from importlib import import_module
from typing import TYPE_CHECKING, Any

from scaleinfer.observe._base import Progress
from scaleinfer.observe._format import amount, duration, one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaleinfer.observe._snapshot import Snapshot

__all__ = ["NotebookProgress", "in_notebook"]

_REDRAW_S = 0.5
_NOTES = 5
_WIDTH = 160

# Text takes the theme's own colours; the greys are half transparent, so they show on light and
# on dark. JupyterLab's variables are used where they exist.
_BOX = "max-width:56em;font-size:90%;line-height:1.5;padding:2px 0"
_TRACK = (
    "height:8px;border-radius:4px;background:rgba(128,128,128,.28);overflow:hidden;margin:4px 0"
)
_FILL = "height:100%;border-radius:4px;background:var(--jp-brand-color1,#2f7ed8)"
_FADED = "opacity:.75"
_BAD = "color:var(--jp-error-color1,#d9534f)"


def in_notebook() -> bool:
    """Return whether this process is a Jupyter kernel; imports nothing."""
    ipython = sys.modules.get("IPython")
    shell = getattr(ipython, "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


class NotebookProgress(Progress):
    """A block of HTML that is replaced as the run goes on, and by the summary at the end.

    It needs IPython's display and nothing else: no widgets, no scripts, no changes to the
    event loop.

    Args:
        name: The run's name.
        display: `IPython.display.display`, or what stands in for it.
        html: `IPython.display.HTML`, or what stands in for it.
    """

    def __init__(
        self,
        name: str = "",
        *,
        display: Callable[..., Any] | None = None,
        html: Callable[[str], Any] | None = None,
    ) -> None:
        super().__init__(name)
        if display is None or html is None:
            module: Any = import_module("IPython.display")  # imported late, and only in a kernel
            display, html = module.display, module.HTML
        self._html = html
        self._notes: list[str] = []
        self._drawn_at = 0.0
        self._handle = display(html(self._drawing(self._last)), display_id=True)

    def _show(self, before: Snapshot, now: Snapshot) -> None:
        if now.elapsed_s - self._drawn_at >= _REDRAW_S or now.phase != before.phase:
            self._drawn_at = now.elapsed_s
            self._put(self._drawing(now))

    def _say(self, line: str) -> None:
        self._notes = [*self._notes, line][-_NOTES:]
        self._put(self._drawing(self._last))

    def _end(self, summary: str, repeated: str) -> None:
        lines = [*self._notes, repeated] if repeated else self._notes
        self._put(_block(f"<div>{escape(summary)}</div>", lines))

    def _put(self, content: str) -> None:
        if self._handle is not None:  # none outside a kernel
            self._handle.update(self._html(content))

    def _drawing(self, now: Snapshot) -> str:
        if now.phase == "running":
            tail = [self._speed(), self._left()]
        else:
            tail = [f"{now.phase} ({duration(now.elapsed_s)})"]
        head = " · ".join(part for part in (self._reached(), *tail) if part)
        parts = [
            f"<div><b>{escape(one_line(self._title(), 60))}</b> &nbsp;{escape(head)}</div>",
            _bar(now.done, now.total),
            f'<div style="{_FADED}">{escape(self._count_words(now))}</div>',
        ]
        if now.last_error:
            error = escape(one_line(now.last_error, _WIDTH))
            parts.append(f'<div style="{_BAD}">{error}</div>')
        return _block("".join(parts), self._notes)

    def _count_words(self, now: Snapshot) -> str:
        words = [f"{now.ok:,} ok", *self._counts()]
        tokens = now.prompt_tokens + now.completion_tokens
        if tokens:
            words += [f"{amount(tokens)} tokens", self._token_speed()]
        words.append(self._spent())
        return " · ".join(word for word in words if word)


def _block(content: str, notes: list[str]) -> str:
    said = "".join(
        f'<div style="{_FADED}">{escape(one_line(note, _WIDTH))}</div>' for note in notes
    )
    return f'<div style="{_BOX}">{content}{said}</div>'


def _bar(done: int, total: int | None) -> str:
    if total is None:
        return ""
    share = 100 * done / total if total else 100.0
    return (
        f'<div style="{_TRACK}" role="progressbar" aria-valuemin="0" aria-valuemax="{total}" '
        f'aria-valuenow="{done}"><div style="{_FILL};width:{share:.1f}%"></div></div>'
    )
