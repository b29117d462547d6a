"""The LangGraph example runs as its docstring says, on the embedded model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(240)
def test_a_map_as_a_node(tmp_path: Path) -> None:
    from scaleinfer.backends._local_files import install_model

    install_model(progress=print)
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "langgraph_node.py", "--limit", "4"],
        cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "ask: 4 of 4, 0 failed" in done.stdout
    # The schema leaves the model no other words, so every molecule has an answer.
    assert re.search(r"[0-4] of 4 right, 0 failed, in 1 rounds", done.stdout)
