"""The examples with a fleet run as they say."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.services.slurm import SlurmCluster

EXAMPLES = Path(__file__).parents[3] / "examples"
pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a copy of the examples in it."""
    shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("*.db*"))
    return tmp_path


def run(folder: Path, name: str, *arguments: str) -> str:
    """Run an example and return what it printed."""
    done = subprocess.run(
        [sys.executable, f"examples/{name}", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_a_killed_worker_loses_nothing(folder: Path) -> None:
    printed = run(folder, "fleet_local.py", "--limit", "120")
    assert "killed fleet-" in printed
    assert "1 worker lost" in printed
    assert "answers: 120 of 120" in printed


def test_under_a_manager_of_ones_own(folder: Path) -> None:
    printed = run(folder, "fleet_manager.py", "--limit", "20")
    assert "own map: 20 of 20 answered" in printed
    assert "the agent's map: 20 of 20 answered" in printed
    assert "workers: 2" in printed
    assert re.search(r"screening: 2 workers on 1 node.*\n.*\n +40 answered", printed)


def test_on_slurm_with_a_server_on_each_node(folder: Path, slurm: SlurmCluster) -> None:
    serve = f"{sys.executable} -m scaleinfer.testing --port {{port}}"
    size = ("--nodes", "2", "--per-node", "2", "--limit", "30", "--walltime", "00:05:00")
    printed = run(
        folder, "fleet_slurm.py", *size, "--address", slurm.address, "--server", serve
    )  # fmt: skip
    slurm.wait_idle()
    assert "answers: 30 of 30" in printed
    assert len((folder / "fleet_slurm.jsonl").read_text().splitlines()) == 30
    assert not slurm.jobs()
    assert not slurm.processes()
