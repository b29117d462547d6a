"""Watching a run from another shell, while it goes on and after it has ended."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from scaleinfer import stream_map
from scaleinfer.cli import main
from scaleinfer.observe import read_status
from scaleinfer.testing import Fault, SimulatedServer

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

WATCH = [sys.executable, "-m", "scaleinfer.cli", "runs", "watch"]


async def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run,
        [*WATCH, *arguments],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )


async def said(journal: Path, done: int) -> None:
    """Return once the run's status file says that so many items are done."""

    def seen() -> bool:
        status = read_status(journal)
        return status is not None and status.snapshot.done >= done

    while not seen():  # noqa: ASYNC110 - it is a file
        await asyncio.sleep(0.05)


async def test_a_live_run_is_seen_from_another_shell(tmp_path: Path) -> None:
    journal = tmp_path / "run.db"
    fault = Fault.status(400, body='{"error":{"message":"no: sk-abcdefghijklmnop1234"}}',
                         match="item 1 ")  # fmt: skip
    async with SimulatedServer(faults=[fault]) as server:
        stream = stream_map(
            (f"item {number} " for number in range(400)), "{}", base_url=server.base_url,
            concurrency=2, journal=journal, progress=False, name="molecules", ordered=True,
        )  # fmt: skip
        async with aclosing(stream) as results:
            async for result in results:
                if result.index == 5:
                    break
            # Nobody takes results now, so the run stands still.
            await said(journal, 6)
            once = await command(str(journal), "--once")
            assert once.returncode == 0, once.stderr
            assert once.stdout.startswith("molecules: ")
            assert "1 failed" in once.stdout
            data = await command(str(journal), "--once", "--json")
            snapshot = json.loads(data.stdout)
            assert snapshot["failed"] == 1
            assert snapshot["limit"] == 2
            assert snapshot["journal_run"] == 1
            assert "[redacted]" in snapshot["last_error"]
            assert "sk-abc" not in (tmp_path / "run.db-status").read_text()
            watching = asyncio.create_task(command(str(journal), "--every", "0.1"))
            await asyncio.sleep(1.5)
            assert not watching.done()
            left = [result async for result in results]
            assert len(left) == 394
        ended = await watching
    assert ended.returncode == 0, ended.stderr
    assert "run 1 molecules: complete" in ended.stderr
    assert os.listdir(tmp_path) == ["run.db"]


async def test_what_is_over_is_said_to_be(
    tmp_path: Path, server: SimulatedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = tmp_path / "run.db"
    async with aclosing(
        stream_map(["a"], "{}", base_url=server.base_url, journal=journal, progress=False)
    ) as results:
        assert [result.ok async for result in results] == [True]
    for arguments, code in ((["--once"], 0), ([], 1)):
        with pytest.raises(SystemExit) as ended:
            main(["runs", "watch", str(journal), *arguments])
        assert ended.value.code == code
        assert "run 1: complete" in capsys.readouterr().out
    with pytest.raises(SystemExit) as missing:
        main(["runs", "watch", str(tmp_path / "none.db")])
    assert missing.value.code == 2
    assert "There is no journal" in capsys.readouterr().err
