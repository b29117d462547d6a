"""Reports: from a map's results and from its journal alone."""

from __future__ import annotations

import os
import pickle
import re
from typing import TYPE_CHECKING

import pytest

from scaleinfer import ConfigError, MapResult, Retry, parallel_map
from scaleinfer.cli import main
from scaleinfer.journal import list_runs, verify
from scaleinfer.testing import Fault, SimulatedServer

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

ITEMS = [f"item {number} <b>&</b>" for number in range(120)]


def refused() -> Fault:
    return Fault.status(400, match="item 77 ")


async def mapped(journal: Path | None = None) -> MapResult:
    async with (
        SimulatedServer(
            faults=[Fault.status(503, first=1, rate=0.2), refused()], latency=(0.01, 0.01)
        ) as one,
        SimulatedServer(faults=[refused()], latency=(0.01, 0.01)) as other,
    ):
        return await parallel_map(
            ITEMS,
            "Is {} soluble?",
            backend=[one.base_url, other.base_url],
            retry=Retry(initial=0.01, maximum=0.02),
            concurrency=4,
            journal=journal,
            progress=False,
            name="<molecules>",
        )


def tiles(text: str) -> dict[str, str]:
    found = re.findall(r'<div class="tile[^"]*"><b>([^<]*)</b><span>([^<]*)</span>', text)
    return {name: number for number, name in found}


async def test_a_report_of_results_says_what_happened(tmp_path: Path) -> None:
    results = await mapped()
    results.report(tmp_path / "run.html")
    text = (tmp_path / "run.html").read_text("utf-8")
    assert tiles(text)["items"] == "120"
    assert tiles(text)["failed"] == "1"
    assert "&lt;molecules&gt;" in text
    assert "item 77 &lt;b&gt;" in text
    assert "<b>&</b>" not in text
    assert "Permanent 400" in text
    assert "bounded by concurrency" in text or "fixed" in text
    assert "Is {} soluble?" in text
    assert text.count("<svg") >= 8
    for use in results.stats.endpoints:
        assert use.endpoint in text
    with pytest.raises(ConfigError, match="cannot be written"):
        results.report(tmp_path)


async def test_results_can_be_sent_elsewhere_and_still_be_reported(tmp_path: Path) -> None:
    results = pickle.loads(pickle.dumps(await mapped()))
    results.report(tmp_path / "run.html")
    text = (tmp_path / "run.html").read_text("utf-8")
    assert tiles(text)["ok, 99%"] == "119"
    assert "<svg" not in text


async def test_a_journal_gives_the_same_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = tmp_path / "run.db"
    results = await mapped(journal)
    assert os.listdir(tmp_path) == ["run.db"]
    assert verify(journal).ok
    assert set(list_runs(journal)[0].limits["limits"]) == {
        use.endpoint for use in results.stats.endpoints
    }
    results.report(tmp_path / "here.html")
    main(["runs", "report", str(journal), "-o", str(tmp_path / "there.html")])
    assert f"120 items, {results.stats.calls} calls" in capsys.readouterr().out
    here = (tmp_path / "here.html").read_text("utf-8")
    there = (tmp_path / "there.html").read_text("utf-8")
    for name in ("items", "failed", "prompt tokens", "completion tokens"):
        assert tiles(here)[name] == tiles(there)[name]
    assert there.count("<svg") == here.count("<svg")
    assert "the limiter&#x27;s decisions" in there
    assert "echo: Is item 5 &lt;b&gt;&amp;&lt;/b&gt; soluble?" in there


async def test_which_run_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = tmp_path / "run.db"
    await mapped(journal)
    await mapped(journal)
    out = str(tmp_path / "run.html")
    main(["runs", "report", str(journal), "-o", out])
    text = (tmp_path / "run.html").read_text("utf-8")
    assert tiles(text)["from the journal"] == "119"
    main(["runs", "report", str(journal), "-o", out, "--run", "1"])
    with pytest.raises(SystemExit) as ended:
        main(["runs", "report", str(journal), "-o", out, "--run", "7"])
    assert ended.value.code == 2
    assert "it has 1, 2" in capsys.readouterr().err
