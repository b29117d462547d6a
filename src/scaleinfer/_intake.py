"""From the input to rendered items: pulled as needed, or some way ahead to order them."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any

from scaleinfer.data import END
from scaleinfer.engine import Orderer, ordering_gain
from scaleinfer.errors import PromptError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator, Mapping

    from scaleinfer.data import Source
    from scaleinfer.prompts import Question, Renderer

__all__ = ["Intake", "Work"]

_FIRST_S, _STEP_S = 0.25, 0.002
_STEP = 4
_SAMPLE = 1_000
_WORTH_IT = 128
"""Characters of shared prefix per item from which on ordering pays; see `ordering_gain`."""


class Work:
    """An item that was pulled.

    Attributes:
        index: Its position in the input.
        item: The item.
        questions: What to ask, by name; `None` if that could not be rendered.
        error: Why not.
        pending: What an async `prompt_fn` returned, to be awaited.
        affinity: Group of items that share a prompt prefix.
    """

    __slots__ = ("affinity", "error", "index", "item", "pending", "questions")

    def __init__(self, index: int, item: Any) -> None:
        self.index = index
        self.item = item
        self.questions: Mapping[str, Question] | None = None
        self.error: PromptError | None = None
        self.pending: Awaitable[Any] | None = None
        self.affinity: int | None = None


class Intake:
    """Takes items from a source and renders them; each is taken once.

    With a window, items are pulled that far ahead and handed out in an order that keeps shared
    prompt prefixes together. That needs an input that does not wait and a `prompt_fn` that is
    not async, and it is given up if the first items show that it would not pay.

    Args:
        source: The items.
        renderer: Items to questions.
        window: Items to pull ahead; 0 keeps the input's order.

    Attributes:
        pulled: Items pulled from the source.
        ended: True if there are no more items to take.
        raised: What the input raised.
        input_s: Seconds the input held the event loop; of one that is waited for (an async
            iterator, a pipe), seconds during which somebody waited.
        prompt_s: Seconds waited for an async `prompt_fn`, summed over items.
    """

    def __init__(self, source: Source, renderer: Renderer, *, window: int = 0) -> None:
        self.pulled = 0
        self.ended = False
        self.raised: Exception | None = None
        self.input_s = 0.0
        self.prompt_s = 0.0
        self._waiting = 0
        self._waiting_since = 0.0
        self._source = source
        self._renderer = renderer
        self._drained = False
        self._queue: deque[Work] = deque()
        self._window = 0
        self._orderer: Orderer[Work] | None = None
        self._sampled = True
        if source.nowait and source.total is not None and not renderer.is_async:
            window = min(window, source.total)
            if window > 1:
                self._window, self._orderer, self._sampled = window, Orderer(window), False

    @property
    def waits(self) -> bool:
        """True if questions are made by an async `prompt_fn`."""
        return self._renderer.is_async

    @property
    def ahead(self) -> int:
        """Items that may be pulled ahead of those that are worked on."""
        return 0 if self._orderer is None else self._window

    def take_nowait(self) -> Work | None:
        """Return the next item; `None` if there is none, or none without waiting."""
        if self._orderer is not None:
            self._fill()
        if self._queue:
            return self._queue.popleft()
        work: Work | None
        if self._orderer is not None:
            work = self._pop(self._orderer)
        elif self._source.nowait and not self._drained:
            work = self._pull_nowait()
        else:
            work = None
        if work is None and self._drained:
            self.ended = True
        return work

    async def take(self) -> Work | None:
        """Wait for the next item; `None` if there is none any more."""
        if self._source.nowait or self._drained:
            return self.take_nowait()
        if not self._waiting:
            self._waiting_since = time.monotonic()
        self._waiting += 1
        try:
            item = await self._source.next()
        except Exception as error:
            item = self._failed(error)
        finally:
            self._waiting -= 1
            if not self._waiting:
                self.input_s += time.monotonic() - self._waiting_since
        if item is END:
            self._drained = self.ended = True
            return None
        return self._rendered(item)

    async def finish(self, work: Work) -> Mapping[str, Question]:
        """Return the questions of an item whose `prompt_fn` is async.

        Raises:
            PromptError: It could not be rendered.
        """
        assert work.pending is not None
        began = time.monotonic()
        try:
            return await self._renderer.finish(work.pending)
        finally:
            self.prompt_s += time.monotonic() - began

    def left(self) -> Iterator[Work]:
        """Take everything that was pulled and not handed out."""
        while self._queue:
            yield self._queue.popleft()
        while self._orderer is not None and len(self._orderer):
            yield self._orderer.pop()[0]

    def _pull_nowait(self) -> Work | None:
        began = time.monotonic()
        try:
            item = self._source.next_nowait()
        except Exception as error:
            item = self._failed(error)
        self.input_s += time.monotonic() - began
        if item is END:
            self._drained = True
            return None
        return self._rendered(item)

    def _failed(self, error: Exception) -> Any:
        # What is in flight still lands; then the caller gets their own exception.
        error.add_note(f"raised by the input after {self.pulled} items")
        self.raised = self.raised or error
        return END

    def _rendered(self, item: Any) -> Work:
        work = Work(self.pulled, item)
        self.pulled += 1
        try:
            started = self._renderer.start(item)
        except PromptError as error:
            work.error = error
            return work
        if isinstance(started, dict):
            work.questions = started
        else:
            work.pending = started
        return work

    def _fill(self) -> None:
        """Pull ahead: much at first, then some for each item that is taken."""
        orderer = self._orderer
        assert orderer is not None
        if self._drained or orderer.full:
            return
        if self._sampled:
            self._pull_ahead(orderer, _STEP, _STEP_S)
            return
        self._sampled = True
        sample: list[tuple[str, Work]] = []
        until = time.monotonic() + _FIRST_S
        while len(sample) < min(_SAMPLE, self._window) and time.monotonic() < until:
            work = self._pull_nowait()
            if work is None:
                break
            sample.append((_text(work), work))
        # A prompt_fn that takes long would hold up the first calls, and every other thing.
        slow = not self._drained and len(sample) < _SAMPLE // 2 and time.monotonic() >= until
        if slow or ordering_gain([text for text, _ in sample]) < _WORTH_IT:
            self._orderer = None
            self._queue.extend(work for _, work in sample)
            return
        for text, work in sample:
            orderer.add(text, work)
        self._pull_ahead(orderer, self._window, _FIRST_S)

    def _pull_ahead(self, orderer: Orderer[Work], most: int, seconds: float) -> None:
        until = time.monotonic() + seconds
        while most > 0 and not orderer.full and time.monotonic() < until:
            work = self._pull_nowait()
            if work is None:
                return
            orderer.add(_text(work), work)
            most -= 1

    @staticmethod
    def _pop(orderer: Orderer[Work]) -> Work | None:
        if not len(orderer):
            return None
        work, affinity = orderer.pop()
        work.affinity = affinity
        return work


def _text(work: Work) -> str:
    """Return what an item sends, as far as prefixes go."""
    if not work.questions:
        return ""
    request = next(iter(work.questions.values())).request
    if request.messages is None:
        return request.prompt or ""
    if len(request.messages) == 1:
        content = request.messages[0].get("content")
        return content if isinstance(content, str) else str(content)
    return "\0".join(str(message.get("content")) for message in request.messages)
