"""`Progress`: what every display of a run does, whatever it writes to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Self

from scaleinfer.observe._format import amount, duration, money, one_line, percent, rate
from scaleinfer.observe._rate import Rate
from scaleinfer.observe._repeats import Repeats
from scaleinfer.observe._snapshot import Snapshot

__all__ = ["Progress", "snapshot_line", "summary_line"]

_LINE = 300


class Progress(ABC):
    """A display of one run.

    `update` is cheap and may be called several times a second; `note` may be called for every
    failure. Nothing here raises because a terminal went away. As a context manager it puts the
    terminal back in order even if `close` was never reached.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self._last = Snapshot(name=name)
        self._items = Rate()
        self._tokens = Rate()
        self._repeats = Repeats()
        self._closed = False

    def update(self, snapshot: Snapshot) -> None:
        """Show where the run stands."""
        if self._closed:
            return
        before, self._last = self._last, snapshot
        # Time that a model takes to load says nothing of how fast items will go.
        if not snapshot.phase.startswith(("starting", "waiting for")):
            self._items.update(snapshot.elapsed_s, snapshot.done - snapshot.resumed)
            self._tokens.update(snapshot.elapsed_s, snapshot.completion_tokens)
        self._show(before, snapshot)

    def note(self, text: str, *, kind: str | None = None) -> None:
        """Show a line of text, once.

        Repeats are counted instead, and their number is shown now and then.

        Args:
            text: What to say.
            kind: What it is a repeat of, for instance the error's class name; by default the
                same text, whatever numbers are in it.
        """
        number = self._repeats.count(text, kind, self._last.elapsed_s)
        if number:
            times = f" ({number:,} times so far)" if number > 1 else ""
            self._say(one_line(text, _LINE) + times)

    def close(self, snapshot: Snapshot | None = None, summary: str = "") -> None:
        """End the display and leave `summary`; closing twice is harmless."""
        if self._closed:
            return
        self._last = snapshot or self._last
        self._closed = True
        again = ", ".join(
            f"{number:,} x {one_line(kind, 60)}" for kind, number in self._repeats.repeated()
        )
        self._end(summary, f"Repeated: {again}" if again else "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @abstractmethod
    def _show(self, before: Snapshot, now: Snapshot) -> None:
        """Show `now`; `before` is what was given the last time."""

    @abstractmethod
    def _say(self, line: str) -> None:
        """Show one line that stays."""

    @abstractmethod
    def _end(self, summary: str, repeated: str) -> None:
        """Take the display away and leave both lines; either may be empty."""

    def _title(self) -> str:
        return self._last.name or self.name or "scaleinfer"

    def _speed(self) -> str:
        per_second = self._items.per_second(self._last.elapsed_s)
        return "" if per_second is None else rate(per_second)

    def _token_speed(self) -> str:
        per_second = self._tokens.per_second(self._last.elapsed_s)
        return "" if per_second is None else f"{amount(per_second)} tokens/s"

    def _left(self) -> str:
        now = self._last
        remaining = None if now.total is None else now.total - now.done
        eta = self._items.eta_s(now.elapsed_s, remaining)
        return "" if eta is None or not remaining else f"{duration(eta)} left"

    def _counts(self) -> list[str]:
        """Return what there is to say besides how many are done; nothing that is zero."""
        now = self._last
        of = "" if now.limit is None else f"of {now.limit:,} "
        return [
            f"{number:,} {words}"
            for number, words in (
                (now.failed, "failed"),
                (now.in_flight, f"{of}in flight"),
                (now.waiting, "waiting to retry"),
                (now.resumed, "resumed"),
            )
            if number
        ]

    def _spent(self) -> str:
        cost = self._last.cost_usd
        return "" if cost is None else f"{money(cost)} spent"

    def _words(self) -> str:
        """Return where the run stands, in a line."""
        now = self._last
        parts = [self._reached(), *self._counts(), self._speed(), self._token_speed()]
        parts += [self._spent(), self._left()]
        phase = "" if now.phase == "running" else f"{now.phase}, "
        return f"{phase}{', '.join(filter(None, parts))} after {duration(now.elapsed_s)}"

    def _reached(self) -> str:
        now = self._last
        if now.total is None:
            return f"{now.done:,} done"
        return f"{now.done:,}/{now.total:,} ({percent(now.done, now.total)})"


def snapshot_line(snapshot: Snapshot) -> str:
    """Return one line that says where a run stands."""
    line = _Line(snapshot.name)
    # Of one moment only the mean rate is known.
    line.update(replace(snapshot, elapsed_s=0.0, done=snapshot.resumed, completion_tokens=0))
    line.update(snapshot)
    return line.text


class _Line(Progress):
    text = ""

    def _show(self, before: Snapshot, now: Snapshot) -> None:
        self.text = f"{self._title()}: {self._words()}"

    def _say(self, line: str) -> None:
        pass

    def _end(self, summary: str, repeated: str) -> None:
        pass


def summary_line(snapshot: Snapshot, *, stopped: str | None = None) -> str:
    """Return one line that says how a run ended.

    Args:
        snapshot: The run at its end.
        stopped: Why it ended early, if it did.
    """
    s = snapshot
    fresh = s.done - s.resumed
    parts = [f"{s.ok:,} ok" + (f" ({s.resumed:,} resumed)" if s.resumed else "")]
    if s.failed:
        parts.append(f"{s.failed:,} failed")
    if s.total is not None and s.done < s.total:
        parts.append(f"{s.total - s.done:,} not asked")
    parts.append(f"in {duration(s.elapsed_s)}")
    if fresh and s.elapsed_s > 0:
        parts.append(rate(fresh / s.elapsed_s))
    if s.prompt_tokens or s.completion_tokens:
        parts.append(f"{amount(s.prompt_tokens)} + {amount(s.completion_tokens)} tokens")
    if s.cost_usd is not None:
        parts.append(money(s.cost_usd))
    end = f"; stopped: {stopped.rstrip('.')}" if stopped else ""
    return f"{s.name or 'scaleinfer'}: {', '.join(parts)}{end}"
