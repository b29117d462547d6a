"""The annotation example runs on the embedded model, with real papers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(240)
def test_annotation(tmp_path: Path) -> None:
    from scaleinfer.backends._local_files import install_model

    install_model(progress=print)
    command = [sys.executable, str(ROOT / "examples" / "annotation.py"), "--limit", "2"]
    journal = ["--journal", str(tmp_path / "annotation.db")]
    done = subprocess.run(
        command + journal, capture_output=True, text=True, timeout=220, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    # Two prompts, three annotators; the schema leaves no words but the subjects.
    rows = re.findall(r"^  (question|examples) +temperature [\d.]+ +2 +0 ", done.stdout, re.M)
    assert rows == ["question"] * 3 + ["examples"] * 3
    assert re.search(r"temperature 0.3 / temperature 0.7 +[\d.]+ +\S+ +4\n", done.stdout)
    assert re.search(r"\d of 2 majorities as in the record; 0 failed", done.stdout)
