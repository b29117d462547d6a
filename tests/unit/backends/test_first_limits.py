"""The limits that a client of FIRST keeps by itself; the clock is a number."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import signal
import stat
import subprocess
import sys
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.backends._first_limits import (
    FirstLimits,
    InFlight,
    RequestShare,
    TokenTurns,
    Turns,
)
from scaleinfer.backends._shared_limit import (
    RequestWindow,
    SharedNumbers,
    TokenPace,
    runtime_directory,
    shared_numbers,
)
from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.anyio

HOLDER = """
import fcntl, os, sys, time
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def held(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Have another process hold the lock of a file."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            yield holder
        finally:
            holder.kill()


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def late(times: list[float], most: int, seconds: float = 1.0) -> int:
    """Return how many of these a server refuses that takes `most` in any `seconds`."""
    recent, refused = deque[float](), 0
    for at in times:
        while recent and at - recent[0] >= seconds:
            recent.popleft()
        if len(recent) >= most:
            refused += 1
        else:
            recent.append(at)
    return refused


@given(
    st.sampled_from([1.0, 2.5, 10.0, 40.0]),
    st.lists(st.floats(0, 0.5), max_size=200),
    st.lists(st.floats(0, 0.017), min_size=200, max_size=200),
)
def test_a_server_that_counts_seconds_refuses_nothing(
    rate: float, gaps: list[float], delays: list[float]
) -> None:
    window = RequestWindow(rate)
    unit = window.most / rate
    sent, now, arrived = list[float](), 0.0, list[float]()
    for gap, delay in zip(gaps, delays, strict=False):
        now += gap
        while True:
            sent, wait = window.take(sent, now)
            if wait <= 0:
                break
            now += wait + 1e-9
        arrived.append(now + delay * unit)
    assert late(sorted(arrived), window.most, unit) == 0


def test_a_steady_run_has_nearly_all_of_the_limit() -> None:
    window, sent, now = RequestWindow(10.0), list[float](), 0.0
    for _ in range(2000):
        sent, wait = window.take(sent, now)
        if wait > 0:
            now += wait + 1e-9
            sent, wait = window.take(sent, now)
        assert wait <= 0
    assert 2000 / now > 0.97 * 10


def test_times_of_another_start_of_the_host_are_forgotten() -> None:
    assert RequestWindow(1.0).take([1e9], 5.0) == ([5.0], 0.0)


def test_a_refusal_widens_the_window_for_a_while() -> None:
    window = RequestWindow(10.0)
    assert window.refused([99.5], 100.0) == [99.5]
    wide = window.seconds
    assert wide > RequestWindow(10.0).seconds
    window.refused([99.5], 100.2)
    assert window.seconds == wide, "one burst of refusals is one refusal"
    for second in range(1000):
        window.take([], 200.0 + second)
    assert window.seconds == pytest.approx(RequestWindow(10.0).seconds)


def test_several_refusals_at_once_hold_everybody_for_a_second() -> None:
    window, sent = RequestWindow(10.0), list[float]()
    for i in range(3):
        sent = window.refused(sent, 100.0 + 0.01 * i)
    assert window.take(sent, 100.5)[1] > 0.5
    assert window.take(sent, 101.5)[1] == 0.0


@given(st.lists(st.tuples(st.floats(1, 3000), st.floats(0.5, 1.5)), min_size=1, max_size=200))
def test_tokens_started_in_any_minute_stay_within_the_limit(
    calls: list[tuple[float, float]],
) -> None:
    pace, now, due = TokenPace(60_000, 60.0), 0.0, 0.0
    started = list[tuple[float, float]]()
    for cost, error in calls:
        now = max(now, pace.ready_at(due, now))
        due = pace.pay(due, cost * error, now)
        due = pace.correct(due, cost * error, cost)
        started.append((now, cost))
    largest = max(cost for cost, _ in calls)
    for begin, _ in started:
        used = sum(cost for at, cost in started if begin <= at < begin + 60)
        # A call pays after it has started, and an estimate may be wrong once.
        assert used <= 60_000 + 1.5 * largest


def test_a_steady_pace_uses_nearly_all_tokens() -> None:
    pace, now, due, used = TokenPace(60_000, 60.0), 0.0, 0.0, 0.0
    while now < 600:
        due = pace.pay(due, 300, now)
        used += 300
        now = max(now, pace.ready_at(due, now))
    assert used / now * 60 > 0.98 * 60_000


def test_a_debt_of_another_start_of_the_host_is_forgotten() -> None:
    assert TokenPace(60_000, 60.0).ready_at(1e9, 5.0) == 5.0


def test_numbers_are_seen_by_whoever_opens_the_file() -> None:
    one, _ = shared_numbers("a b/c")
    two, why = shared_numbers("a b/c")
    assert why == ""
    one.update(lambda before: ((*before, 1.5), None))
    two.update(lambda before: ((*before, 2.5), None))
    assert one.update(lambda before: (before, before)) == (1.5, 2.5)
    assert one.path is not None
    assert stat.S_IMODE(one.path.stat().st_mode) == 0o600


def test_a_damaged_file_is_read_as_far_as_it_goes(runtime: Path) -> None:
    numbers, _ = shared_numbers("x")
    assert numbers.path is not None
    numbers.path.write_bytes(b"\x00\x00\x00\x00\x00\x00\xf0\x3f" + b"\xff" * 8 + b"rest")
    assert numbers.update(lambda before: (before, before)) == (1.0,)


def test_a_lock_ends_with_the_process_that_holds_it(runtime: Path) -> None:
    numbers, _ = shared_numbers("x")
    assert numbers.path is not None
    with held(numbers.path) as holder:
        with pytest.raises(BlockingIOError):
            numbers.update(lambda before: (before, None))
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        numbers.update(lambda before: ((1.0,), None))


def test_a_folder_that_is_not_ours_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scaleinfer").write_text("a file")
    directory, why = runtime_directory()
    assert directory is None
    assert "is not this user's folder" in why
    assert shared_numbers("x")[0].path is None
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    (tmp_path / "scaleinfer").unlink()
    assert runtime_directory()[0] is None


def test_without_a_runtime_folder_it_is_the_temporary_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    directory, _ = runtime_directory()
    assert directory is not None
    assert directory.name == f"scaleinfer-{os.getuid()}"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


async def test_without_a_file_the_limit_is_this_processs_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "scaleinfer").write_text("a file")
    turns = Turns("http://gateway", 1000)
    assert "kept for this process alone" in caplog.text
    await turns.take()


async def test_a_holder_that_stands_still_is_not_waited_for(
    runtime: Path, caplog: pytest.LogCaptureFixture
) -> None:
    turns = Turns("http://gateway", 1000)
    (path,) = (runtime / "scaleinfer").iterdir()
    with held(path):
        await asyncio.wait_for(turns.take(), 20)
    assert "has kept the lock" in caplog.text


async def test_two_loops_or_processes_share_a_limit() -> None:
    turns = [Turns("http://gateway", 20), Turns("http://gateway", 20)]
    times = list[float]()

    async def ask(which: Turns) -> None:
        for _ in range(15):
            await which.take()
            times.append(asyncio.get_running_loop().time())

    await asyncio.gather(*map(ask, turns))
    # The times are taken a moment later, so a little less than a second is looked at.
    assert late(sorted(times), 20, 0.98) == 0


class Holder:
    """Somebody who has a share."""


def test_without_a_holder_there_is_no_share_to_keep_to() -> None:
    share = RequestShare(10.0)
    for _ in range(100):
        assert share.wait(1.0) == 0
        share.sent(1.0)


@given(
    per_second=st.sampled_from([0.5, 1.0, 2.5, 10.0]),
    most=st.integers(1, 10),
    gaps=st.lists(st.floats(0, 0.3), min_size=20, max_size=60),
)
def test_no_more_than_the_share_goes_in_any_window(
    per_second: float, most: int, gaps: list[float]
) -> None:
    limit = max(1, math.floor(per_second))
    share, holder, window = RequestShare(per_second), Holder(), limit / per_second
    most = min(most, limit)
    share.hold(holder, most, math.inf)
    now, went = 0.0, list[float]()
    for gap in gaps:
        now += gap
        if share.wait(now) == 0:
            share.sent(now)
            went.append(now)
        assert len([at for at in went if now - at < window]) <= most
    assert went


def test_a_share_ends() -> None:
    share, holder, other = RequestShare(10.0), Holder(), Holder()
    share.hold(holder, 0, math.inf)
    assert share.wait(1.0) > 0, "nothing is allowed yet"
    share.hold(holder, 3, 5.0)
    share.hold(other, 2, 9.0)
    assert (share.of(holder, 4.9), share.of(other, 4.9)) == (3, 2)
    for _ in range(5):
        assert share.wait(4.9) == 0
        share.sent(4.9)
    assert share.wait(4.9) > 0
    assert share.of(holder, 5.0) == 0
    for _ in range(2):
        assert share.wait(7.0) == 0
        share.sent(7.0)
    assert share.wait(7.0) > 0, "only the other's is left"
    assert share.wait(9.0) > 0, "none is left"


def test_a_share_ends_with_its_holder() -> None:
    share, holder = RequestShare(10.0), Holder()
    share.hold(holder, 0, math.inf)
    assert share.wait(0.0) > 0
    del holder
    gc.collect()
    assert share.wait(0.0) == 0


async def test_turns_keep_to_the_share() -> None:
    share, holder = RequestShare(10.0), Holder()
    turns = Turns("https://shared", 10.0, share)
    share.hold(holder, 2, math.inf)
    for _ in range(2):
        await turns.take()
    third = asyncio.create_task(turns.take())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not third.done()
    share.hold(holder, 3, math.inf)
    await asyncio.wait_for(third, 2.0)


async def test_answers_tell_what_the_next_ones_will_cost() -> None:
    turns = TokenTurns("gateway model", 60_000, 60.0)
    for _ in range(29):
        assert turns.expected(400) == 100, "a quarter of the window goes without a guess"
    assert turns.expected(400) > 500
    for _ in range(20):
        turns.learn(400, 80, 30)
    assert turns.expected(400) == pytest.approx(110)


async def test_a_turn_waits_until_what_came_before_is_paid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns, slept = TokenTurns("gateway model", 60_000, 60.0), list[float]()
    now = [1000.0]

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr("scaleinfer.backends._first_limits.time.monotonic", lambda: now[0])
    monkeypatch.setattr("scaleinfer.backends._first_limits.asyncio.sleep", sleep)
    await turns.take(2000)
    await turns.take(2000)
    assert sum(slept) == pytest.approx(2 / 0.985)
    turns.settle(2000, 0)
    turns.settle(2000, 0)
    slept.clear()
    await turns.take(100)
    assert not slept, "what was refused is given back"
    turns.hold(60.0)
    await turns.take(100)
    assert sum(slept) == pytest.approx(60.0)


@given(st.lists(st.tuples(st.floats(0.1, 400), st.booleans()), max_size=300), st.integers(1, 300))
def test_calls_in_flight_stay_within_bounds(events: list[tuple[float, bool]], most: int) -> None:
    flight, now = InFlight(most), 0.0
    for seconds, answered in events:
        now += seconds
        flight.answered(seconds, now) if answered else flight.late(now)
        assert 1 <= flight.limit <= most


def test_a_slow_model_gets_a_short_queue() -> None:
    flight, now = InFlight(256), 0.0
    for _ in range(300):
        now += 0.1
        flight.answered(2.0, now)
    assert flight.limit == 256
    # Half a request a second: 256 in flight would take eight minutes each.
    for _ in range(300):
        now += 2.0
        flight.answered(flight.limit / 0.5, now)
    assert flight.limit / 0.5 <= 90


@pytest.mark.parametrize("wrong", [0, -1, math.nan])
def test_limits_that_cannot_be(wrong: float) -> None:
    with pytest.raises(ConfigError):
        FirstLimits(requests_per_second=wrong)


def test_numbers_of_one_process() -> None:
    numbers = SharedNumbers(None)
    numbers.update(lambda before: ((*before, 1.0), None))
    assert numbers.own == (1.0,)
