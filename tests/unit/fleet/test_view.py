"""What a fleet's status looks like: lines, HTML, and the views that show it while it changes."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from scaleinfer import ConfigError
from scaleinfer.fleet import FleetStatus, WorkerFacts, WorkerStatus, show_statuses, watch
from scaleinfer.fleet._live import _Lines, _Notebook, _Terminal
from scaleinfer.fleet._view import Speeds, status_html, status_line, status_lines, status_text

VOID = {"br"}
WORDS = st.text(max_size=60)
COUNTS = st.integers(0, 10**9)


def worker(name: str = "w-1", **given: Any) -> WorkerStatus:
    facts = WorkerFacts(node=given.pop("node", "n1"), log=given.pop("log", ""))
    facts = replace(facts, until=given.pop("until", 0.0))
    plain: dict[str, Any] = {
        "state": "working", "in_flight": 4, "limit": 8, "held": 9, "answered": 100, "failed": 1,
        "tokens": 1000, "items_per_s": 2.0, "seen_s": 0.5, "problem": "",
    }  # fmt: skip
    return WorkerStatus(name=name, facts=facts, **plain | given)


def status(*workers: WorkerStatus, **given: Any) -> FleetStatus:
    plain: dict[str, Any] = {
        "name": "screen", "queued": 6, "leased": 4, "answered": 1000, "failed": 0, "tokens": 9000,
        "elapsed_s": 60.0, "requeued": 0, "doubled": 0, "copies": 0, "lost_workers": 0,
    }  # fmt: skip
    return FleetStatus(workers=workers, **plain | given)


@st.composite
def statuses(draw: st.DrawFn) -> FleetStatus:
    workers = draw(
        st.lists(
            st.builds(
                worker,
                WORDS,
                node=WORDS,
                log=WORDS,
                until=st.sampled_from([0.0, 5000.0]),
                state=st.sampled_from(["working", "broken", "leaving"]),
                in_flight=COUNTS,
                limit=COUNTS,
                answered=COUNTS,
                tokens=COUNTS,
                items_per_s=st.floats(0, 1e9),
                problem=WORDS,
            ),
            max_size=30,
        )
    )
    return status(*workers, name=draw(WORDS), queued=draw(COUNTS), lost_workers=draw(COUNTS))


class WellFormed(HTMLParser):
    """Fails on a tag that is not closed where it should be, and on what could run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in {"div", "b", "br", "table", "thead", "tbody", "tr", "th", "td"}
        assert {name for name, _ in attrs} <= {"style", "colspan"}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(html: str) -> str:
    parser = WellFormed()
    parser.feed(html)
    parser.close()
    assert not parser.open
    return parser.text


def names(text: str) -> list[str]:
    return re.findall(r"^(w-\d+)", text, re.MULTILINE)


@given(statuses(), st.integers(1, 200), st.integers(0, 25))
def test_lines_keep_their_width_whatever_workers_say(
    now: FleetStatus, width: int, rows: int
) -> None:
    for line in status_text(now, width=width, rows=rows).split("\n"):
        assert len(line) <= max(width, 40)
        assert line.isprintable()


@given(statuses())
def test_html_is_whole_and_runs_nothing(now: FleetStatus) -> None:
    text = read(status_html(now, now=0.0))
    assert f"{len(now.workers):,} worker" in text


@given(statuses())
def test_one_line_is_one_line(now: FleetStatus) -> None:
    assert "\n" not in status_line(now)


def test_it_says_what_there_is_to_say() -> None:
    now = status(worker(), worker("w-2", node="n2"), failed=12, lost_workers=1, requeued=33)
    assert str(now).splitlines()[:4] == [
        "screen: 2 workers on 2 nodes, after 1:00",
        "  6 queued, 4 leased, 8 in flight of 16 possible; work at hand for 2.5 s",
        "  1,000 answered, 12 of them failed, 4/s, 40 tokens/s",
        "  1 worker lost, 33 leases requeued",
    ]
    assert "1 worker lost" in read(now._repr_html_())
    assert names(str(now)) == ["w-1", "w-2"]


def test_nothing_is_made_up_where_nothing_is_known() -> None:
    assert str(status(answered=0, elapsed_s=2.0)).splitlines() == [
        "screen: 0 workers on 0 nodes, after 2.0 s",
        "  6 queued, 4 leased, 0 in flight",
        "  0 answered",
    ]


def test_speeds_are_those_given() -> None:
    shown = status_lines(status(worker()), speeds=Speeds(5.0, None))
    assert shown[1].text.endswith("work at hand for 2.0 s")
    assert shown[2].text == "  1,000 answered, 5/s"


def test_the_first_job_that_ends_is_told() -> None:
    now = status(worker(until=4000.0), worker("w-2", until=1600.0), worker("w-3"))
    assert any(line.text == "  first job ends in 10:00" for line in status_lines(now, now=1000.0))
    assert "first job ends in 10:00" in status_html(now, now=1000.0)


def test_states_tell_what_a_worker_waits_for() -> None:
    now = status(
        worker("w-1", limit=0, in_flight=0, held=0),
        worker("w-2", in_flight=0, held=0),
        worker("w-3"),
    )
    lines = str(now).splitlines()
    assert "1 starting" in lines[0]
    assert [line.split()[2] for line in lines[-3:]] == ["starting", "idle", "working"]


def test_few_workers_are_in_the_order_of_their_names() -> None:
    workers = [worker(f"w-{number}", items_per_s=number % 3) for number in (10, 9, 2, 1)]
    assert names(str(status(*workers))) == ["w-1", "w-2", "w-9", "w-10"]


def test_of_many_workers_the_twenty_that_matter_are_shown() -> None:
    workers = [worker(f"w-{number}", items_per_s=number) for number in range(2000)]
    workers[1500] = replace(workers[1500], state="leaving")
    workers[1700] = replace(workers[1700], state="broken", problem="It is gone.")
    shown = str(status(*workers))
    assert names(shown)[:4] == ["w-1700", "w-1500", "w-0", "w-1"]
    assert len(names(shown)) == 20
    assert shown.endswith("and 1,980 more working")
    assert "and 1,980 more working" in read(status_html(status(*workers)))


def test_the_rest_is_counted_by_what_it_does() -> None:
    workers = [worker(f"w-{number}", state="broken") for number in range(25)]
    workers += [worker("w-99")]
    assert str(status(*workers)).endswith("and 5 more broken, 1 more working")


def test_a_problem_is_told_once_and_every_log() -> None:
    broken = {"state": "broken", "problem": "Transient: no route to host."}
    shown = str(status(worker("w-1", log="/a", **broken), worker("w-2", log="/b", **broken)))
    assert shown.count("no route") == 1
    assert "    log on n1: /a" in shown.splitlines()
    assert "    log on n1: /b" in shown.splitlines()


def test_a_narrow_terminal_does_without_some_columns() -> None:
    now = status(worker("w-1", problem=""))
    wide = status_text(now, width=120).splitlines()
    narrow = status_text(now, width=40).splitlines()
    assert " ".join(wide[3].split()) == (
        "worker node state in flight leased answered failed items/s tokens heard"
    )
    assert narrow[3].split()[0] == "worker"
    assert "heard" not in narrow[3]


def test_lines_come_at_once_and_then_more_and_more_seldom() -> None:
    out = io.StringIO()
    with _Lines(out) as view:
        for second in range(200):
            view.show(status(worker(), elapsed_s=60.0 + second), now=1000.0 + second)
    after = re.findall(r"after ([\d:.]+)", out.getvalue())
    assert after == ["1:00", "1:10", "1:30", "2:30", "3:30"]


def test_speed_is_that_of_late_and_begins_anew_with_a_new_coordinator() -> None:
    out = io.StringIO()
    view = _Lines(out)
    view.show(status(answered=5000, elapsed_s=100.0), now=0.0)
    view.show(status(answered=5100, elapsed_s=110.0), now=10.0)
    view.show(status(answered=0, elapsed_s=1.0), now=30.0)
    first, second, third = out.getvalue().splitlines()
    assert second.endswith("5,100 answered, 10/s")
    assert first.endswith("5,000 answered")
    assert third.endswith("0 answered")


def test_a_terminal_gets_no_more_lines_than_it_has() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, height=12, highlight=False)
    workers = [worker(f"w-{number}") for number in range(50)]
    workers[3] = replace(workers[3], state="broken", problem="It is gone.")
    with _Terminal(out, console) as view:
        view.show(status(*workers), now=0.0)
    last = out.getvalue().split("\x1b[2K")[-1]
    drawn = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", last).splitlines()
    assert 8 < len(drawn) <= 12
    assert drawn[0].startswith("screen: 50 workers")
    assert any("w-3" in line and "broken" in line for line in drawn)
    assert "more working" in drawn[-1]
    assert "\x1b[31m" in out.getvalue()


def test_a_notebook_gets_html_that_is_replaced() -> None:
    shown: list[str] = []

    class Handle:
        update = staticmethod(shown.append)

    with _Notebook(display=lambda _content, **_options: Handle(), html=str) as view:
        view.show(status(worker()), now=0.0)
        view.show(status(worker(), answered=7), now=1.0)
    assert "1,000 answered" in read(shown[0])
    assert "7 answered" in read(shown[1])


@pytest.mark.anyio
async def test_watch_ends_with_the_fleet(capsys: pytest.CaptureFixture[str]) -> None:
    seen = iter([status(worker()), status(worker())])

    def look() -> FleetStatus:
        try:
            return next(seen)
        except StopIteration:
            raise ConfigError("the fleet is not open.") from None

    await watch(look, every=0.0)
    assert capsys.readouterr().err.startswith("screen: 1 worker on 1 node")


@pytest.mark.anyio
async def test_statuses_go_to_a_stream() -> None:
    async def some() -> Any:
        yield status(worker())

    out = io.StringIO()
    await show_statuses(some(), stream=out)
    assert out.getvalue().count("\n") == 1
