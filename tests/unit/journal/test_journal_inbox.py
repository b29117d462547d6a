"""What two threads share, and what is out: nothing is lost, nothing comes twice."""

from __future__ import annotations

import threading
import time

from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.journal import Claim
from scaleinfer.journal._inbox import Close, Inbox
from scaleinfer.journal._outstanding import Outstanding


def _claim(number: int) -> Claim:
    return Claim(number.to_bytes(16, "big"), 0, "k", "", number, None)


def test_everything_that_is_handed_over_arrives_once_and_in_order() -> None:
    inbox, many = Inbox(), 20_000
    arrived: list[int] = []
    held: set[bytes] = set()

    def serve() -> None:
        while True:
            inbox.wait(None)
            turn = inbox.take()
            held.update(turn.holds)
            for claim, *_ in turn.records:
                # Whatever came before the record is in the same turn or was in an earlier one.
                assert claim.identity in held
                arrived.append(claim.index)
            if turn.close is not None:
                return

    thread = threading.Thread(target=serve)
    thread.start()
    for number in range(many):
        claim = _claim(number)
        inbox.holds.append(claim.identity)
        inbox.records.append((claim, b"{}", True, lambda _: None, 0.0))
        inbox.ring()
    inbox.closes.append(Close("complete", {}))
    inbox.ring()
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert arrived == list(range(many))


def test_what_came_before_the_thread_sleeps_is_not_slept_over() -> None:
    inbox = Inbox()
    inbox.flushes.append(None)  # type: ignore[arg-type]  # any object will do
    inbox.ring()  # nobody sleeps yet: rings for nobody
    began = time.monotonic()
    inbox.wait(60.0)
    assert time.monotonic() - began < 30
    assert len(inbox.take().flushes) == 1
    assert len(inbox) == 0


def test_what_nobody_waits_for_does_not_wake_the_thread() -> None:
    inbox = Inbox()
    inbox.holds.append(b"i" * 16)
    inbox.attempts.append((_claim(1), None))  # type: ignore[arg-type]  # any object will do
    inbox.wait(0.0)
    assert len(inbox) == 1
    turn = inbox.take()
    assert (turn.holds, len(turn.attempts), turn.close) == ([b"i" * 16], 1, None)
    assert inbox.take().attempts == []


IDENTITIES = st.sampled_from([bytes([n]) * 16 for n in range(3)])


@given(
    st.lists(st.tuples(st.sampled_from(["add", "remove", "first", "all"]), IDENTITIES,
                       st.integers(0, 3)))
)  # fmt: skip
def test_what_is_out_is_a_set(steps: list[tuple[str, bytes, int]]) -> None:
    out, model = Outstanding(), set[tuple[bytes, int]]()
    for step, identity, occurrence in steps:
        match step:
            case "add":
                out.add(identity, occurrence)
                model.add((identity, occurrence))
            case "remove":
                assert out.remove(identity, occurrence) is ((identity, occurrence) in model)
                model.discard((identity, occurrence))
            case "first":
                out.add_first([identity])
                model.add((identity, 0))
            case _:
                out.remove_first([identity])
                model.discard((identity, 0))
        assert len(out) == len(model)
        for other in range(3):
            asked = bytes([other]) * 16
            assert out.has(asked) is any(one == asked for one, _ in model)
            assert all(((asked, n) in out) is ((asked, n) in model) for n in range(4))
