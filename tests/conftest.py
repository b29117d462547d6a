"""Fixtures every test uses: asyncio for async tests, and a check that nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
import time
from asyncio import runners
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from scaleinfer._loop import new_event_loop
from scaleinfer.testing import SimulatedServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

_PATIENCE = 10.0
_OURS = ("SCALEINFER_BACKEND", "OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_MODEL")
_RUNNERS_OWN = ("_run_tests_and_fixtures", "shutdown_default_executor", "shutdown_asyncgens")


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio only: the wire client needs it."""
    return "asyncio"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the developer's own settings from every test."""
    for name in _OURS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def server() -> AsyncIterator[SimulatedServer]:
    """A simulated server in the test's own loop, with the bodies kept."""
    async with SimulatedServer(keep_bodies=True) as running:
        yield running


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Where a journal may be made."""
    return tmp_path / "run.db"


@pytest.fixture(scope="session")
def uvloops_own_pipe() -> None:
    """Have libuv make the pipe that it keeps for the life of the process."""
    new_event_loop().close()


@pytest.fixture(autouse=True)
def nothing_left(uvloops_own_pipe: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that leaves tasks, threads, child processes, descriptors or a signal handler."""
    left_tasks: list[str] = []
    cancel_all = runners._cancel_all_tasks  # type: ignore[attr-defined] # the only place to look

    def look_and_cancel(loop: asyncio.AbstractEventLoop) -> None:
        for task in asyncio.all_tasks(loop):
            what = repr(task.get_coro())
            # A cancelled task ends with the next turn of the loop.
            if not task.cancelling() and not any(name in what for name in _RUNNERS_OWN):
                left_tasks.append(what)
        cancel_all(loop)

    monkeypatch.setattr(runners, "_cancel_all_tasks", look_and_cancel)
    threads, children = set(threading.enumerate()), _children()
    open_files, handler = _descriptors(), signal.getsignal(signal.SIGINT)
    yield
    assert not left_tasks, f"tasks left running: {left_tasks}"
    assert signal.getsignal(signal.SIGINT) is handler, "the SIGINT handler was not put back"
    _gone(lambda: [t.name for t in threading.enumerate() if t not in threads], "threads")
    _gone(lambda: list(_children() - children), "child processes")
    _gone(lambda: list((_descriptors() - open_files).elements()), "descriptors")


def _gone(left: Callable[[], list[object]], what: str) -> None:
    """Wait a little: closing is allowed to take a turn."""
    deadline = time.monotonic() + _PATIENCE
    while found := left():
        gc.collect()
        if time.monotonic() > deadline:
            pytest.fail(f"{what} left open: {found}")
        time.sleep(0.01)


def _children() -> set[int]:
    """Ask the kernel, where it tells: psutil reads every process there is."""
    tasks = Path("/proc/self/task")
    if not (tasks / str(os.getpid()) / "children").exists():
        return {child.pid for child in psutil.Process().children()}
    found: set[int] = set()
    for task in tasks.iterdir():
        with contextlib.suppress(OSError):  # a thread may end meanwhile
            found.update(map(int, (task / "children").read_text().split()))
    return found


def _descriptors() -> Counter[str]:
    """Sockets, pipes and selectors by kind; libraries may keep files they have loaded."""
    kinds: Counter[str] = Counter()
    for number in os.listdir("/proc/self/fd") if Path("/proc/self/fd").exists() else ():
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if target.startswith(("socket:", "pipe:", "anon_inode:[eventpoll]")):
            kinds[target.partition(":[")[0]] += 1
    return kinds


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI everything a test needs is there, so a skipped test is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not os.environ.get("CI"):
        return
    if skipped := reporter.stats.get("skipped", []):
        reporter.write_line(
            f"{len(skipped)} tests were skipped, which CI does not accept", red=True
        )
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
