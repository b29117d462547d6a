from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scaleinfer.engine import Window


class Stream(RuleBasedStateMachine):
    """A window against the plainest model of it: three lists."""

    @initialize(size=st.integers(1, 6), ordered=st.booleans())
    def make(self, size: int, ordered: bool) -> None:
        self.size, self.ordered = size, ordered
        self.window: Window[str] = Window(size, ordered=ordered)
        self.reserved = 0
        self.working: list[int] = []
        self.finished: list[int] = []
        self.taken: list[int] = []

    @precondition(lambda self: self.window.has_room)
    @rule()
    def reserve(self) -> None:
        self.window.reserve()
        self.reserved += 1

    @precondition(lambda self: self.reserved)
    @rule()
    def nothing_more_to_take(self) -> None:
        self.window.unreserve()
        self.reserved -= 1

    @precondition(lambda self: self.reserved)
    @rule()
    def begin(self) -> None:
        self.working.append(len(self.working) + len(self.finished) + len(self.taken))
        self.reserved -= 1

    @rule(size=st.integers(1, 8))
    def resize(self, size: int) -> None:
        self.size = self.window.size = size

    @precondition(lambda self: self.working)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from(self.working))
        self.working.remove(index)
        self.finished.append(index)
        self.window.finish(index, f"result {index}")

    @precondition(lambda self: self.window.ready)
    @rule()
    def take(self) -> None:
        result = self.window.take()
        index = self.finished[0]
        if self.ordered:
            index = len(self.taken)
        assert result == f"result {index}"
        self.finished.remove(index)
        self.taken.append(index)

    @invariant()
    def bounded_and_complete(self) -> None:
        ahead = self.reserved + len(self.working) + len(self.finished)
        assert self.window.has_room == (ahead < self.size)
        if self.ordered:
            assert self.window.ready == (len(self.taken) in self.finished)
        else:
            assert self.window.ready == bool(self.finished)

    def teardown(self) -> None:
        if not hasattr(self, "window"):
            return
        rest = self.window.drain()
        expected = sorted(self.finished) if self.ordered else self.finished
        assert rest == [f"result {index}" for index in expected]
        assert not self.window.ready
        assert self.window.drain() == []


TestStream = Stream.TestCase


def test_nothing_to_take() -> None:
    with pytest.raises(IndexError):
        Window[int](3, ordered=True).take()
