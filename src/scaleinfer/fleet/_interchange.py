"""Run Parsl's interchange so that it ends with the client that started it.

By itself the interchange outlives a killed client, and so do the batch jobs whose workers it
keeps alive. Once it is gone, the workers notice within their heartbeat threshold, end, and the
scheduler takes the nodes back.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

__all__ = ["interchange_command"]

_LOOK_SECONDS = 1.0


def interchange_command() -> list[str]:
    """Return the command with which this process starts it, whatever PATH is."""
    return [sys.executable, "-m", __name__, str(os.getpid())]


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    # Ctrl-C reaches the whole process group; the client decides what ends, and when.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(int(sys.argv[1]),), daemon=True).start()
    runpy.run_module("parsl.executors.high_throughput.interchange", run_name="__main__")
