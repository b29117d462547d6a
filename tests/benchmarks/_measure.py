"""What the benchmarks share: processes of their own, medians, Markdown tables."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaleinfer.testing import SimulatedServer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from scaleinfer.testing import ServerProcess

ROOT = Path(__file__).resolve().parents[2]


def arguments(description: str | None, *, rounds: int = 3) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a fraction of the work, one round")
    parser.add_argument("--rounds", type=int, default=rounds, help="medians of so many")
    return parser


def served(**settings: Any) -> ServerProcess:
    """Return a simulated server for a process of its own that keeps no single requests."""
    return SimulatedServer(**({"ledger": "counts"} | settings)).in_process()


def alone(module: str, *, python: str = sys.executable, **options: Any) -> dict[str, Any]:
    """Run a module of this folder in a process of its own; return what it prints as JSON."""
    return finished(started(module, python=python, **options))


def started(
    module: str, *, python: str = sys.executable, **options: Any
) -> subprocess.Popen[bytes]:
    """Start a module of this folder in a process of its own."""
    named = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    return subprocess.Popen(
        [python, "-m", f"tests.benchmarks.{module}", *named],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finished(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Wait for a process; return the last line it printed, or what went wrong as `failed`."""
    output, errors = process.communicate()
    if process.returncode == 0:
        return dict(json.loads(output.splitlines()[-1]))
    lines = errors.decode(errors="replace").strip().splitlines()
    return {"failed": lines[-1] if lines else f"status {process.returncode}"}


def raise_file_limit() -> None:
    """Let this process have as many open connections as the system allows it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def cpu_seconds() -> float:
    """Return the CPU time of this process, its threads included."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def rss_mb() -> float:
    """Return the memory that this process holds now, in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 1e6


def median(values: Iterable[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def say(text: str) -> None:
    """Tell on standard error what goes on; standard output is for the tables."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def heading(title: str) -> None:
    """Print what was measured, where and when."""
    print(f"\n## {title}\n")
    print(
        f"{time.strftime('%Y-%m-%d %H:%M')}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f} at the start.\n",
        flush=True,
    )


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table."""
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")
    print(flush=True)


def verdict(measured: float, *, least: float | None = None, most: float | None = None) -> str:
    """Return `yes` if a measured number is within its target, else `**no**`."""
    within = (least is None or measured >= least) and (most is None or measured <= most)
    return "yes" if within else "**no**"
