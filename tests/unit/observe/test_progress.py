from __future__ import annotations

import io
import logging
import os
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console
from rich.live import Live

from scaleinfer.errors import ConfigError
from scaleinfer.observe import Snapshot, open_progress, snapshot_line, summary_line
from scaleinfer.observe._bar import BarProgress
from scaleinfer.observe._log import LogProgress
from scaleinfer.observe._notebook import NotebookProgress
from scaleinfer.observe._stream import Stderr

if TYPE_CHECKING:
    from scaleinfer.observe import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Kernel:
    """Stands for IPython's display functions in a kernel."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def display(self, content: str, *, display_id: bool) -> Kernel:
        assert display_id
        self.shown.append(content)
        return self

    def update(self, content: str) -> None:
        self.shown.append(content)


def running(elapsed_s: float, **changes: Any) -> Snapshot:
    done = int(elapsed_s * 10)
    values: dict[str, Any] = {
        "done": done + 200,
        "ok": done + 197,
        "failed": 3,
        "resumed": 200,
        "in_flight": 64,
        "total": 2000,
        "prompt_tokens": done * 100,
        "completion_tokens": done * 10,
        "elapsed_s": elapsed_s,
        "name": "molecules",
    }
    return Snapshot(**(values | changes))


def feed(progress: Progress, seconds: int, **changes: Any) -> None:
    for tick in range(seconds * 5):
        progress.update(running(tick / 5, **changes))


def test_log_lines_come_at_growing_intervals() -> None:
    out = io.StringIO()
    with LogProgress(stream=out) as progress:
        feed(progress, 260)
        progress.close(running(260), "the summary")
    lines = out.getvalue().splitlines()
    ends = [line.rpartition("after ")[2] for line in lines]
    assert ends == ["10 s", "30 s", "1:30", "2:30", "3:30", "the summary"]
    assert lines[0] == (
        "molecules: 300/2,000 (15%), 3 failed, 64 in flight, 200 resumed, "
        "10/s, 100 tokens/s, 2:50 left after 10 s"
    )
    assert out.getvalue().replace("\n", "").isprintable()


def test_every_display_shows_limit_and_spending() -> None:
    kernel, log, bar = Kernel(), io.StringIO(), Terminal()
    displays: list[Progress] = [
        NotebookProgress(display=kernel.display, html=lambda text: text),
        LogProgress(stream=log),
        BarProgress(console=Console(file=bar, force_terminal=True, width=120)),
    ]
    for display in displays:
        feed(display, 15, limit=96, cost_usd=1.5)
        display.close(running(15, cost_usd=1.5), summary_line(running(15, cost_usd=1.5)))
    for shown in (kernel.shown[-2], log.getvalue(), bar.getvalue()):
        assert "64 of 96 in flight" in shown
        assert "$1.50 spent" in shown
    assert "tokens, $1.50" in kernel.shown[-1]


def test_one_line_says_where_a_run_stands() -> None:
    line = snapshot_line(running(20, limit=96, cost_usd=0.25, phase="waiting for a: queued"))
    assert line == (
        "molecules: waiting for a: queued, 400/2,000 (20%), 3 failed, 64 of 96 in flight, "
        "200 resumed, $0.25 spent after 20 s"
    )
    assert "10/s, 100 tokens/s, $0.25 spent, 2:40 left" in snapshot_line(
        running(20, limit=96, cost_usd=0.25)
    )
    assert snapshot_line(Snapshot()) == "scaleinfer: 0 done after 0.0 s"


def test_log_says_the_phase_and_no_total_that_is_not_known() -> None:
    out = io.StringIO()
    progress = LogProgress(stream=out)
    progress.update(Snapshot(phase="starting the model", elapsed_s=11))
    progress.update(running(31, total=None))
    assert out.getvalue().splitlines()[0] == ("scaleinfer: starting the model, 0 done after 11 s")
    assert "510 done, 3 failed" in out.getvalue()
    assert "left" not in out.getvalue()


def test_resumed_items_and_the_models_start_do_not_count_into_the_rate() -> None:
    out = io.StringIO()
    progress = LogProgress(stream=out)
    progress.update(Snapshot(phase="starting the model", total=1000))
    for tick in range(10, 21):
        fresh = tick - 10
        progress.update(running(tick, done=fresh + 500, resumed=500, total=1000))
        progress.note(progress._speed() or "none", kind=f"at {tick}")
    assert "molecules: 1/s" in out.getvalue()
    assert progress._left() == "8:10 left"


def test_a_storm_of_notes_is_a_few_lines() -> None:
    out = io.StringIO()
    progress = LogProgress("m", stream=out)
    for number in range(10_000):
        progress.note(f"item {number}: slow\x1b[31m\ndown", kind="RateLimited")
    progress.close(summary="done")
    assert out.getvalue().splitlines() == [
        "m: item 0: slow[31m down",
        "m: Repeated: 10,000 x RateLimited",
        "done",
    ]


def test_close_is_final() -> None:
    out = io.StringIO()
    progress = LogProgress(stream=out)
    progress.close(summary="one")
    progress.close(summary="two")
    feed(progress, 100)
    assert out.getvalue() == "one\n"


def bar(width: int = 110) -> tuple[BarProgress, io.StringIO]:
    out = Terminal()
    console = Console(file=out, force_terminal=True, width=width, color_system=None)
    return BarProgress(console=console), out


def test_the_bar_shows_counts_rate_and_what_is_left() -> None:
    progress, out = bar()
    with progress:
        feed(progress, 20, last_error="item 17: [bold]slow[/bold]\n down", waiting=2)
        frame = out.getvalue().rpartition("molecules")[2]
        assert "398/2,000 (19%)" in out.getvalue()
        assert "10/s" in frame
        assert "2:41 left" in frame or "2:40 left" in frame
        assert "3 failed, 64 in flight, 2 waiting to retry, 200 resumed" in frame
        assert "item 17: [bold]slow[/bold] down" in frame
        progress.note("a [red]note")
        progress.close(running(21), "the summary")
    assert "a [red]note" in out.getvalue()
    assert out.getvalue().endswith("the summary\n")
    assert not BarProgress.busy()


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
@pytest.mark.parametrize("total", [None, 0, 2000])
def test_the_bar_fits_every_width(width: int, total: int | None) -> None:
    progress, out = bar(width)
    with progress:
        progress.update(Snapshot(phase="starting the model", total=total, name="n" * 100))
        feed(progress, 3, total=total, last_error="x" * 500)
        lines = out.getvalue().replace("\x1b[2K", "\n").splitlines()
        assert max(len(line) for line in lines) <= width + 20  # control codes
        assert "197 ok" in out.getvalue()


def test_the_bar_is_not_redrawn_for_every_update() -> None:
    progress, out = bar()
    with progress:
        for number in range(1000):
            progress.update(running(1 + number / 10_000))
        assert out.getvalue().count("molecules") == 1


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    out = Terminal()
    with BarProgress(stream=out) as progress:
        feed(progress, 2)
    assert "197 ok" in out.getvalue()
    assert "\x1b[3" not in out.getvalue()


def test_prints_go_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setenv("TERM", "xterm-256color")
    with open_progress("auto", "m") as progress:
        assert isinstance(progress, BarProgress)
        progress.update(running(1))
        print("from the user", file=sys.stderr)
        progress.update(running(2))
        with open_progress("auto", "second") as second:
            assert isinstance(second, LogProgress)
            second.note("a line of the second")
    assert sys.stderr is out
    assert "from the user\n" in out.getvalue()
    assert "second: a line of the second\n" in out.getvalue()


class Broken(Terminal):
    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("kind", ["broken", "closed", "missing"])
@pytest.mark.parametrize("mode", ["bar", "log"])
def test_a_broken_terminal_kills_nothing(
    kind: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = None if kind == "missing" else Broken() if kind == "broken" else Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    progress = open_progress(mode, "m")
    if kind == "closed" and stream is not None:
        stream.close()
    feed(progress, 12)
    progress.note("a note")
    progress.close(running(12), "the summary")


def test_what_the_encoding_lacks_becomes_a_question_mark() -> None:
    raw = io.BytesIO()
    out = Stderr(io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    out.write("10 µm \ud800 ok\n")
    out.flush()
    assert raw.getvalue() == b"10 ?m ? ok\n"


def test_the_notebooks_html_escapes_and_ends_with_the_summary() -> None:
    kernel = Kernel()
    progress = NotebookProgress("<b>", display=kernel.display, html=str)
    progress.note("a <script>note</script>")
    feed(progress, 20, last_error="item 17: <img src=x>", name="<i>m</i>")
    assert len(kernel.shown) <= 20 * 2 + 3
    content = kernel.shown[-1]
    for unsafe in ("<script>", "<img", "<i>", "<b><b>"):
        assert unsafe not in content
    assert "&lt;i&gt;m&lt;/i&gt;" in content
    assert "a &lt;script&gt;note" in content
    assert "width:19." in content
    assert "10/s" in content
    progress.close(running(21), "<the summary>")
    assert "&lt;the summary&gt;" in kernel.shown[-1]
    assert "progressbar" not in kernel.shown[-1]
    assert "a &lt;script&gt;note" in kernel.shown[-1]


def test_the_notebook_shows_no_share_of_an_unknown_total() -> None:
    kernel = Kernel()
    progress = NotebookProgress(display=kernel.display, html=str)
    feed(progress, 3, total=None)
    assert "progressbar" not in kernel.shown[-1]
    assert "done" in kernel.shown[-1]


def test_ipythons_display_is_what_the_notebook_uses() -> None:
    pytest.importorskip("IPython")
    progress = NotebookProgress("m")
    assert progress._html("<p>")._repr_html_() == "<p>"
    feed(progress, 2)
    progress.close(summary="done")


def test_auto_takes_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(open_progress(), LogProgress)
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(open_progress(True), LogProgress)
    monkeypatch.setenv("TERM", "xterm")
    with open_progress() as progress:
        assert isinstance(progress, BarProgress)
    kernel = Kernel()
    shell = SimpleNamespace(kernel=object())
    fake = SimpleNamespace(get_ipython=lambda: shell, __spec__=object())
    monkeypatch.setitem(sys.modules, "IPython", fake)
    display = SimpleNamespace(display=kernel.display, HTML=str)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    assert isinstance(open_progress(), NotebookProgress)
    shell.kernel = None
    with open_progress() as progress:
        assert isinstance(progress, BarProgress)


def test_none_shows_nothing_but_logs_notes(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "scaleinfer")
    progress = open_progress(False, "m")
    feed(progress, 100)
    progress.note("a note")
    progress.close(summary="done")
    assert capfd.readouterr() == ("", "")
    assert caplog.messages == ["molecules: a note"]


def test_a_mode_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="Known: auto, bar, notebook, log, none"):
        open_progress("fancy")
    monkeypatch.setattr("scaleinfer.observe.progress.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install"):
        open_progress("notebook")


def test_nothing_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    progress = open_progress("log", "m")
    feed(progress, 12)
    progress.close(running(12), summary_line(running(12)))
    out, err = capsys.readouterr()
    assert out == ""
    assert "10/s" in err


def test_the_summary_line() -> None:
    assert summary_line(running(80, done=1000, ok=997), stopped="Ctrl-C") == (
        "molecules: 997 ok (200 resumed), 3 failed, 1,000 not asked, in 1:20, 10/s, "
        "80k + 8k tokens; stopped: Ctrl-C"
    )
    assert summary_line(Snapshot()) == "scaleinfer: 0 ok, in 0.0 s"


def test_the_terminals_descriptor_is_passed_on() -> None:
    with open(os.devnull, "w") as opened:
        assert Stderr(opened).fileno() == opened.fileno()


def test_a_users_own_rich_display_keeps_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setenv("TERM", "xterm")
    console = Console(file=out, force_terminal=True, width=80)
    with Live(console=console, auto_refresh=False), open_progress("auto", "m") as progress:
        assert isinstance(progress, LogProgress)
        progress.note("above it")
    assert "m: above it\n" in out.getvalue()
