from __future__ import annotations

import json
import logging
import sys
from typing import TYPE_CHECKING, Any

import pytest

from scaleinfer.errors import ConfigError
from scaleinfer.observe import (
    JsonFormatter,
    Place,
    RunFacts,
    RunObserver,
    Snapshot,
    Telemetry,
    configure,
    read_status,
    remove_status,
    write_status,
)
from scaleinfer.observe._records import Records
from scaleinfer.observe._sinks import operation, server
from scaleinfer.requests import Request
from scaleinfer.results import Attempt

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

REQUEST = Request(messages=[{"role": "user", "content": "a secret"}], model="m")
CALL = Attempt(1, "http://host:8000/v1", 1_700_000_000.0, 0.5, "ok", None, 10, 4, model="m-1")
BAD = Attempt(2, "http://host:8000/v1", 1_700_000_000.0, 0.1, "RateLimited", 429, error="a secret")


def test_settings_are_checked() -> None:
    for wrong in ({"spans": 1.5}, {"spans": -1}, {"prometheus": 70000}, {"prometheus": True}):
        with pytest.raises(ConfigError, match="Telemetry"):
            Telemetry(**wrong)


def test_the_variable_says_the_same() -> None:
    assert Telemetry.parse("spans=0.01, metrics,prometheus=9464,logs=true") == Telemetry(
        spans=0.01, metrics=True, prometheus=9464, logs=True
    )
    assert Telemetry.parse("logs=0") == Telemetry()
    for wrong in ("span=1", "spans=x", "logs=maybe", "prometheus="):
        with pytest.raises(ConfigError, match="SCALEINFER_TELEMETRY"):
            Telemetry.parse(wrong)


def test_without_the_package_it_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaleinfer.observe._otel.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"scaleinfer\[otel\]"):
        configure(Telemetry(metrics=True))
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigError, match=r"scaleinfer\[otel\]"):
        configure(Telemetry(prometheus=0))


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (REQUEST, "chat"),
        (Request(prompt="x"), "text_completion"),
        (Request(input="x"), "embeddings"),
    ],
)
def test_operations_have_the_conventions_names(request_: Request, kind: str) -> None:
    assert operation(request_) == kind


def test_endpoints_have_hosts_and_ports() -> None:
    assert server("http://host:8000/v1") == ("host", 8000)
    assert server("https://api.openai.com/v1") == ("api.openai.com", None)
    assert server("fleet polaris") == ("fleet polaris", None)
    assert server("local") == ("local", None)
    assert server("http://[::1") == ("http://[::1", None)


class Sink:
    def __init__(self, broken: bool) -> None:
        self.broken = broken
        self.told: list[Any] = []

    def _told(self, what: Any) -> None:
        self.told.append(what)
        if self.broken:
            raise RuntimeError("the collector is down")

    def attempted(self, index: int, key: str, request: Request, attempt: Attempt) -> None:
        self._told((index, attempt.number))

    def tick(self, snapshot: Snapshot, places: Sequence[Place]) -> None:
        self._told("tick")

    def close(self, snapshot: Snapshot, stopped: str) -> None:
        self._told("close")


def test_a_broken_sink_is_left_out_and_the_run_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    good, bad = Sink(broken=False), Sink(broken=True)
    observer = RunObserver([bad, good])
    watch = observer.watch(7, "k", REQUEST)
    watch(CALL)
    watch(BAD)
    observer.tick(Snapshot(), lambda: [Place("a", 4, "fixed")])
    observer.close(Snapshot())
    observer.close(Snapshot())
    assert good.told == [(7, 1), (7, 2), "tick", "close"]
    assert bad.told == [(7, 1)]
    assert "telemetry (Sink) failed and is off" in caplog.text
    assert observer.record.calls["http://host:8000/v1"].ok == 1
    assert observer.record.limits_of("a")[0][1] == 4


def test_records_say_run_item_and_attempt(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "scaleinfer")
    records = Records(RunFacts("abc", "molecules", model="m", journal_run=3, items=9))
    records.attempted(5, "k5", REQUEST, CALL)
    records.attempted(5, "k5", REQUEST, BAD)
    records.close(Snapshot(done=1, ok=1), "")
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    begins, good, bad, ended = lines
    assert begins["message"] == "run molecules begins"
    assert (good["level"], bad["level"]) == ("DEBUG", "WARNING")
    assert {k: bad[k] for k in ("run", "journal_run", "item", "key", "attempt", "http_status")} == {
        "run": "abc", "journal_run": 3, "item": 5, "key": "k5", "attempt": 2, "http_status": 429,
    }  # fmt: skip
    assert (good["model"], good["prompt_tokens"]) == ("m-1", 10)
    assert ended["ok"] == 1
    assert "a secret" not in json.dumps(lines)


def test_error_texts_are_told_only_if_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "scaleinfer")
    Records(RunFacts("abc"), error_texts=True).attempted(0, "k", REQUEST, BAD)
    assert json.loads(JsonFormatter().format(caplog.records[-1]))["error"] == "a secret"


def test_a_storm_is_cut_and_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "scaleinfer")
    now = 1000.0
    monkeypatch.setattr("scaleinfer.observe._records.time.monotonic", lambda: now)
    records = Records(RunFacts("abc"))
    for number in range(5000):
        records.attempted(number, "k", REQUEST, BAD)
    now += 1.0
    records.attempted(5000, "k", REQUEST, BAD)
    calls = [record for record in caplog.records if record.name == "scaleinfer.calls"]
    assert len(calls) == 101
    assert vars(calls[-1])["left_out"] == 4900


def test_any_record_becomes_one_line_of_json() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        info = sys.exc_info()
    record = logging.LogRecord("a", logging.INFO, "f", 1, "%s and %s", ("x\n", "\ud800"), info)
    record.huge = 10**100
    record.thing = object()
    line = JsonFormatter().format(record)
    assert "\n" not in line
    data = json.loads(line)
    assert {"message", "huge", "thing", "exception"} <= set(data)


def test_the_status_file_is_whole_or_absent(tmp_path: Path) -> None:
    journal = str(tmp_path / "run.db")
    assert read_status(journal) is None
    write_status(journal, Snapshot(done=4, total=9, phase="running", cost_usd=0.5), 2)
    status = read_status(journal)
    assert status is not None
    assert (status.snapshot.done, status.snapshot.cost_usd, status.journal_run) == (4, 0.5, 2)
    (tmp_path / "run.db-status").write_text("{half")
    assert read_status(journal) is None
    remove_status(journal)
    remove_status(journal)
    assert list(tmp_path.iterdir()) == []
    write_status(str(tmp_path / "no" / "run.db"), Snapshot(), 1)
