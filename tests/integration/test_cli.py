"""The command line: inputs, outputs, exit codes, and what it says when something is wrong."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from scaleinfer import __version__
from scaleinfer.cli import main
from scaleinfer.testing import Fault, SimulatedServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pa: Any = pytest.importorskip("pyarrow")
pq: Any = pytest.importorskip("pyarrow.parquet")

ROWS = [{"id": f"m{number}", "title": f"Molecule {number}"} for number in range(5)]
SCHEMA = """
from pydantic import BaseModel
class Soluble(BaseModel):
    soluble: bool
class Plain:
    pass
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    faults = [Fault.status(400, match="FAIL")]
    with SimulatedServer(models=["sim-model"], faults=faults).in_thread() as server:
        yield server.base_url


@pytest.fixture
def run(
    capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Return what runs the command in this process: exit code, output, complaints."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())

    def command(*arguments: str) -> tuple[int, str, str]:
        capfdbinary.readouterr()
        code: Any = 0
        try:
            main(list(arguments))
        except SystemExit as end:
            code = end.code or 0
        out, err = capfdbinary.readouterr()
        return int(code), out.decode(), err.decode()

    yield command
    signal.signal(signal.SIGTERM, before)


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_input(folder: Path, name: str) -> Path:
    path = folder / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(jsonl(ROWS).encode()))
    elif name.endswith(".jsonl"):
        path.write_text(jsonl(ROWS))
    elif name.endswith(".txt"):
        path.write_text("".join(f"Molecule {number}\n" for number in range(5)))
    else:
        separator = "\t" if name.endswith(".tsv") else ","
        lines = ["id,title", *(f"{row['id']},{row['title']}" for row in ROWS)]
        path.write_text("\n".join(lines).replace(",", separator) + "\n")
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.tsv", "a.parquet", "a.txt"])
def test_every_input(name: str, run: Any, url: str, tmp_path: Path) -> None:
    path = write_input(tmp_path, name)
    template = "About {text}" if name == "a.txt" else "About {title}"
    code, out, err = run("map", str(path), "--prompt", template, "--base-url", url)
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["text"] for row in rows] == [f"echo: About Molecule {n}" for n in range(5)]
    assert [row["index"] for row in rows] == list(range(5))
    assert [row["id"] for row in rows] == [
        None if name == "a.txt" else f"m{number}" for number in range(5)
    ]
    assert {"ok", "value", "error", "usage", "attempts", "resumed"} <= set(rows[0])


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
def test_every_output(name: str, run: Any, url: str, tmp_path: Path) -> None:
    path = write_input(tmp_path, "a.jsonl")
    code, out, err = run("map", str(path), "--prompt", "{title}", "--base-url", url, "--out", name)
    assert (code, out) == (0, "")
    assert f"5 rows in {name}" in err
    written = tmp_path / name
    if name.endswith(".jsonl"):
        rows = [json.loads(line) for line in written.read_text().splitlines()]
    elif name.endswith(".csv"):
        rows = list(csv.DictReader(io.StringIO(written.read_text())))
    else:
        rows = pq.read_table(written).to_pylist()
    assert [row["text"] for row in rows] == [f"echo: Molecule {n}" for n in range(5)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", name]


def test_options_reach_the_server(run: Any, tmp_path: Path) -> None:
    with SimulatedServer(keep_bodies=True).in_thread() as server:
        (tmp_path / "prompt.txt").write_text("About {title}")
        write_input(tmp_path, "a.jsonl")
        options = "--system S --max-tokens 9 --temperature 0 --top-p 0.5 --seed 3 --limit 2"
        code, _, err = run(
            *f"map a.jsonl --prompt-file prompt.txt --base-url {server.base_url}".split(),
            *f"{options} --concurrency 1 --attempts 2 --timeout 5 --name n".split(),
        )
        assert code == 0, err
        bodies = [json.loads(record.body or b"") for record in server.ledger.requests]
    assert len(bodies) == 2
    assert bodies[0] == {
        "model": "sim-model",
        "messages": [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "About Molecule 0"},
        ],
        "max_tokens": 9,
        "temperature": 0.0,
        "top_p": 0.5,
        "seed": 3,
    }


def test_several_servers_share_the_work(run: Any, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(jsonl([{"title": str(number)} for number in range(60)]))
    with (
        SimulatedServer(latency=0.02).in_thread() as one,
        SimulatedServer(latency=0.02).in_thread() as other,
    ):
        code, _, said = run(
            "map", "in.jsonl", "--prompt", "{title}", "--out", "out.jsonl", "--progress", "log",
            "--concurrency", "4", "--base-url", one.base_url, "--base-url", other.base_url,
        )  # fmt: skip
        assert code == 0, said
        assert len(one.ledger.requests) + len(other.ledger.requests) == 60
        assert min(len(one.ledger.requests), len(other.ledger.requests)) >= 15
        urls = {one.base_url, other.base_url}
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {row["endpoint"] for row in rows} == urls


def test_limits_are_kept(run: Any, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(jsonl([{"title": str(number)} for number in range(30)]))
    with SimulatedServer(latency=0.05).in_thread() as server:
        code, _, said = run(
            "map", "in.jsonl", "--prompt", "{title}", "--out", "out.jsonl", "--progress", "none",
            "--max-concurrency", "3", "--requests-per-minute", "1200", "--deadline", "30",
            "--base-url", server.base_url,
        )  # fmt: skip
        assert code == 0, said
        assert server.ledger.peak_in_flight <= 3
        arrived = [request.arrived for request in server.ledger.requests]
    # 1,200 a minute are 20 a second, of which a second's worth may come at once.
    assert max(arrived) - min(arrived) >= (30 - 20 - 1) / 20


def test_standard_input(url: str) -> None:
    command = [sys.executable, "-m", "scaleinfer.cli", "map", "-", "--prompt", "{title}"]
    done = subprocess.run(
        [*command, "--base-url", url, "--format", "jsonl", "--limit", "3"],
        input=jsonl(ROWS),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("spec", ["answers:Soluble", "answers.py:Soluble"])
def test_schema(spec: str, run: Any, url: str, tmp_path: Path) -> None:
    (tmp_path / "answers.py").write_text(SCHEMA)
    write_input(tmp_path, "a.jsonl")
    code, out, err = run(
        "map", "a.jsonl", "--prompt", "{title}", "--base-url", url, "--schema", spec
    )
    sys.modules.pop("answers", None)
    assert code == 0, err
    for line in out.splitlines():
        assert isinstance(json.loads(line)["value"]["soluble"], bool)


def test_some_items_fail(run: Any, url: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(jsonl([{"t": "good"}, {"t": "FAIL"}, {"u": "none"}]))
    code, out, _ = run("map", "a.jsonl", "--prompt", "{t}", "--base-url", url)
    assert code == 1
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["ok"] for row in rows] == [True, False, False]
    assert [row["error"] and row["error"]["type"] for row in rows] == [
        None,
        "Permanent",
        "PromptError",
    ]
    assert "names {t}, which this item does not have. It has: u." in rows[2]["error"]["message"]


WRONG = [
    ("map a.jsonl --base-url URL", "--prompt"),
    ("map a.jsonl --prompt {t} --prompt-file p.txt --base-url URL", "p.txt"),
    ("map a.jsonl --prompt {t --base-url URL", "template cannot be read"),
    ("map a.jsonl --prompt none --base-url URL", "names no field"),
    ("map missing.jsonl --prompt {t} --base-url URL", "missing.jsonl"),
    ("map bad.jsonl --prompt {title} --base-url URL", "line 1"),
    ("map a.jsonl --prompt {t} --base-url nowhere", "no http"),
    ("map a.jsonl --prompt {t} --base-url URL --model gpt-17 --limit 0 --tempo 1", "--tempo"),
    ("map a.jsonl --prompt {t} --base-url URL --schema Soluble", "module:Class"),
    ("map a.jsonl --prompt {t} --base-url URL --schema nowhere:Soluble", "cannot be loaded"),
    ("map a.jsonl --prompt {t} --base-url URL --schema answers:Missing", "no class Missing"),
    ("map a.jsonl --prompt {t} --base-url URL --schema answers:Plain", "pydantic model class"),
    ("map a.jsonl --prompt {t} --base-url URL --schema broken.py:A", "cannot be loaded"),
    ("map a.jsonl --prompt {t} --base-url URL --max-tokens 0", "--max-tokens"),
    ("map a.jsonl --prompt {t} --base-url URL --out a.docx", "a.docx"),
    ("map a.jsonl --prompt {title} --base-url URL --out no/such/dir.jsonl", "no/such"),
    ("map a.jsonl --prompt {title} --base-url URL --journal a.jsonl", "a.jsonl"),
    ("map a.jsonl --prompt {t} --backend opneai", "unknown"),
    ("map a.jsonl --prompt {t} --backend openai", "needs a key"),
    ("map", "INPUT"),
    ("mop", "mop"),
    ("runs show missing.db", "missing.db"),
    ("runs verify a.jsonl", "a.jsonl"),
    ("endpoints --backend opneai", "unknown"),
]


@pytest.mark.parametrize(("line", "said"), WRONG, ids=lambda part: str(part)[:60])
def test_wrong_usage_is_one_line_and_exit_code_2(
    line: str, said: str, run: Any, url: str, tmp_path: Path
) -> None:
    write_input(tmp_path, "a.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"title": \n{"title": "x"}\n')
    (tmp_path / "answers.py").write_text(SCHEMA)
    (tmp_path / "broken.py").write_text("this is no Python")
    before = sorted(path.name for path in tmp_path.iterdir())
    code, _, err = run(*line.replace("URL", url).split())
    sys.modules.pop("answers", None)
    assert code == 2, err
    assert said in err
    assert "Traceback" not in err
    left = {path.name for path in tmp_path.iterdir()} - set(before) - {"__pycache__"}
    assert not left


def test_an_input_that_breaks_off_keeps_what_landed(run: Any, url: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"title": "x"}\n{"title": \n')
    code, out, err = run("map", "a.jsonl", "--prompt", "{title}", "--base-url", url)
    assert code == 3
    assert json.loads(out)["text"] == "echo: x"
    assert "a.jsonl, line 2: not JSON" in err


def test_wrong_key_and_server_down(run: Any, tmp_path: Path) -> None:
    write_input(tmp_path, "a.jsonl")
    with SimulatedServer(api_key="right").in_thread() as server:
        gone = server.base_url
        code, _, err = run(
            *f"map a.jsonl --prompt {{title}} --base-url {gone} --model sim-model".split()
        )
        assert code in {2, 3}
        assert "OPENAI_API_KEY" in err
    code, out, err = run(*f"map a.jsonl --prompt {{title}} --base-url {gone}".split())
    assert code in {2, 3}
    assert f"cannot connect to {gone}" in err
    assert out == ""


def test_endpoints(run: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run("endpoints", "--base-url", url)
    assert code == 0
    assert url in out
    assert "sim-model" in out
    assert "base_url= argument" in out
    code, out, _ = run("endpoints", "--base-url", url, "--model", "other")
    assert code == 1
    assert "does not offer other" in out
    monkeypatch.setenv("SCALEINFER_BACKEND", "http://127.0.0.1:9/v1")
    code, out, _ = run("endpoints")
    assert code == 1
    assert "SCALEINFER_BACKEND" in out
    assert "cannot connect" in out


def test_resume_and_the_runs_commands(run: Any, url: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(jsonl([*ROWS, {"id": "x", "title": "FAIL"}]))
    command = f"map a.jsonl --prompt {{title}} --base-url {url} --journal run.db --name first"
    assert run(*command.split(), "--out", "one.jsonl")[0] == 1
    code, out, _ = run(*command.split())
    assert code == 1
    assert [json.loads(line)["resumed"] for line in out.splitlines()] == [True] * 5 + [False]
    code, out, _ = run("runs", "list", "run.db")
    assert code == 0
    assert "run 1 first: complete" in out
    assert "run 2" in out
    code, out, _ = run("runs", "show", "run.db")
    assert code == 0
    assert "1 failed" in out
    assert "Permanent" in out
    assert run("runs", "show", "run.db", "--run", "7")[0] == 2
    code, out, _ = run("runs", "export", "run.db", "--out", "all.csv")
    assert code == 0
    assert "6 rows in all.csv; 1 of them failed" in out
    rows = list(csv.DictReader(io.StringIO((tmp_path / "all.csv").read_text())))
    assert [row["text"] for row in rows if row["ok"] in {"True", "true"}] == [
        f"echo: Molecule {number}" for number in range(5)
    ]
    code, out, _ = run("runs", "verify", "run.db")
    assert code == 0
    assert "intact" in out
    code, out, _ = run("runs", "recover", "run.db", "--out", "new.db")
    assert code == 0
    assert "6 results" in out
    assert run("runs", "verify", "new.db")[0] == 0


def test_help_and_version(run: Any) -> None:
    code, out, _ = run("--version")
    assert code == 0
    assert __version__ in out
    for command in ([], ["map"], ["runs"], ["runs", "export"], ["endpoints"], ["model"]):
        code, out, _ = run(*command, "--help")
        assert code == 0
        assert "Usage: scaleinfer" in out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    items = tmp_path / "a.txt"
    items.write_text("".join(f"{line}\n" for line in range(200)))
    with SimulatedServer(
        latency=lambda view: 0.0 if int(view.prompt) < 20 else 60
    ).in_thread() as s:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "scaleinfer.cli", "map", str(items), "--prompt", "{text}"),
                *("--base-url", s.base_url, "--model", "sim-model", "--concurrency", "4"),
                *("--journal", str(tmp_path / "run.db"), "--out", str(tmp_path / "out.jsonl")),
            ],
            stderr=subprocess.PIPE,
        )
        try:
            deadline = time.monotonic() + 30
            while s.ledger.in_flight < 4 and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(0.3)
            os.kill(process.pid, number)
            began = time.monotonic()
            _, err = process.communicate(timeout=20)
            assert time.monotonic() - began < 2
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
    assert process.returncode == 3, err
    assert b"Stopped: " in err
    assert b"the same command goes on" in err
    assert b"Traceback" not in err
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows if row["ok"]] == list(range(20))


def test_a_reader_that_goes_away_is_no_traceback(url: str, tmp_path: Path) -> None:
    items = tmp_path / "a.txt"
    items.write_text("".join(f"{line}\n" for line in range(5000)))
    command = f"{sys.executable} -m scaleinfer.cli map {items} --prompt {{text}} --base-url {url}"
    done = subprocess.run(
        f"{command} | head -2", shell=True, capture_output=True, text=True, timeout=60, check=False
    )
    assert len(done.stdout.splitlines()) == 2
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
