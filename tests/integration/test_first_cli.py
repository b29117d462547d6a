"""`scaleinfer login first` and `scaleinfer endpoints --backend first:`."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from scaleinfer.testing import FirstCluster, FirstModel, FirstToken, SimulatedFirst

if TYPE_CHECKING:
    from pathlib import Path


def run(tmp_path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    jobs = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "COBALT_JOBID", "JOB_ID")
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in jobs and not name.startswith(("FIRST_", "SCALEINFER_"))
    }
    environment |= {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)} | variables
    return subprocess.run(
        [sys.executable, "-m", "scaleinfer.cli", *arguments],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=environment,
        timeout=50,
    )


def test_nobody_logs_in_without_a_terminal(tmp_path: Path) -> None:
    done = run(tmp_path, "login", "first")
    assert done.returncode == 2
    assert "no terminal" in done.stderr
    assert "jobs find the login" in done.stderr


@pytest.mark.parametrize(("variable", "name"), [("SLURM_JOB_ID", "Slurm"), ("PBS_JOBID", "PBS")])
def test_nobody_logs_in_in_a_job(tmp_path: Path, variable: str, name: str) -> None:
    done = run(tmp_path, "login", "first", **{variable: "1"})
    assert done.returncode == 2
    assert f"This is a {name} job" in done.stderr


CLUSTERS = (
    FirstCluster(
        name="sophia",
        models=(
            FirstModel(name="openai/gpt-oss-120b"),
            FirstModel(name="google/gemma-4", state="cold", tokens_per_minute_per_user=5000),
        ),
    ),
    FirstCluster(
        name="metis", framework="api", direct=True, models=(FirstModel(name="gpt-oss-120b"),)
    ),
)


def test_the_table_of_all_models(tmp_path: Path) -> None:
    with SimulatedFirst(CLUSTERS).in_thread() as first:
        where = {"FIRST_BASE_URL": first.base_url, "FIRST_ACCESS_TOKEN": "any"}
        done = run(tmp_path, "endpoints", "--backend", "first:", **where)
        assert (done.returncode, done.stderr) == (0, "")
        rows = [line.split() for line in done.stdout.splitlines()]
        assert rows[0] == ["CLUSTER", "FRAMEWORK", "MODEL", "STATE", "TOKENS/MIN"]
        assert rows[1] == ["sophia", "vllm", "openai/gpt-oss-120b", "hot", "60,000"]
        assert rows[2] == ["sophia", "vllm", "google/gemma-4", "stopped", "5,000"]
        assert rows[3] == ["metis", "api", "gpt-oss-120b", "hot", "60,000"]
        one = run(tmp_path, "endpoints", "--backend", "first:", "--model", "gemma-4", **where)
        assert [line.split()[0] for line in one.stdout.splitlines()] == ["CLUSTER", "sophia", "10"]
        none = run(tmp_path, "endpoints", "--backend", "first:", "--model", "x", **where)
        assert (none.returncode, none.stderr) == (1, "No cluster offers x.\n")
        single = run(
            tmp_path, "endpoints", "--backend", "first:metis", "--model", "gpt-oss-120b", **where
        )
        assert "answers   yes: hot" in single.stdout


def test_without_a_login_it_says_what_to_run(tmp_path: Path) -> None:
    done = run(tmp_path, "endpoints", "--backend", "first:")
    assert done.returncode == 1
    assert "Run `scaleinfer login first`" in done.stderr


def test_a_login_that_has_lapsed_says_what_to_run(tmp_path: Path) -> None:
    tokens = {"any": FirstToken(state="lapsed")}
    with SimulatedFirst(CLUSTERS, tokens=tokens).in_thread() as first:
        where = {"FIRST_BASE_URL": first.base_url, "FIRST_ACCESS_TOKEN": "any"}
        done = run(tmp_path, "endpoints", "--backend", "first:", **where)
        assert done.returncode == 1
        assert "wants a human to log in every 30 days" in done.stderr


def test_a_map_from_the_command_line(tmp_path: Path) -> None:
    items = tmp_path / "items.txt"
    items.write_text("one\ntwo\nthree\n")
    with SimulatedFirst(CLUSTERS).in_thread() as first:
        done = run(
            tmp_path, "map", str(items), "--prompt", "Say {text}", "--backend", "first:",
            "--model", "gpt-oss-120b", "--progress", "none",
            FIRST_BASE_URL=first.base_url, FIRST_ACCESS_TOKEN="any",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.count('"text":"echo: Say') == 3
