from __future__ import annotations

import argparse

import pytest

from scaleinfer.testing import Batching, Change, Fault
from scaleinfer.testing.__main__ import (
    main,
    options_of,
    parse_change,
    parse_fault,
    parse_latency,
    parser,
)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("drop", Fault.drop()),
        ("status:503,rate=0.2", Fault.status(503, rate=0.2)),
        (
            "status:429,retry_after=0.5,retry_after_form=ms,first=2",
            Fault.status(429, retry_after=0.5, retry_after_form="ms", first=2),
        ),
        ("delay:2,match=slow", Fault.delay(2, match="slow")),
        ("keepalive_close,on=response", Fault.keepalive_close(on="response")),
        ("stall,everywhere=true,after=1,until=2", Fault.stall(everywhere=True, after=1, until=2)),
    ],
)
def test_faults_by_text(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    "text", ["unknown", "drop,rate", "drop,rate=2", "drop,no=1", "drop:1", "early"]
)
def test_faults_that_do_not_exist(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_fault(text)


def test_latency_by_text() -> None:
    assert parse_latency("0.5") == 0.5
    assert parse_latency("0.5,0.1") == (0.5, 0.1)


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("at=30,slots=400", Change(at=30, slots=400)),
        ("at=60,until=90,slowdown=3.5", Change(at=60, until=90, slowdown=3.5)),
        ("at=1,down=true", Change(at=1, down=True)),
        ("at=1,down=503", Change(at=1, down="503")),
        ("down=hang", Change(down="hang")),
    ],
)
def test_changes_by_text(text: str, change: Change) -> None:
    assert parse_change(text) == change


@pytest.mark.parametrize("text", ["slots", "slots=0", "unknown=1", "at=2,until=1", "slots=x"])
def test_changes_that_do_not_exist(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_change(text)


def test_options_of_the_batch_make_a_batch() -> None:
    made = options_of(["--slots", "9", "--step", "0.5", "--kv-tokens", "7"])
    assert made["batching"] == Batching(slots=9, step_s=0.5, kv_tokens=7)
    assert "slots" not in made
    plain = options_of(["--slots", "9", "--retry-after", "none"])
    assert (plain["slots"], plain["retry_after"], "batching" in plain) == (9, None, False)


def test_arguments_end_up_where_they_belong() -> None:
    options = parser().parse_args(["--fault", "drop", "--fault", "reset", "--model", "m"])
    assert [fault.kind for fault in options.faults] == ["drop", "reset"]
    assert options.models == ["m"]


def test_impossible_settings_are_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--slots", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
