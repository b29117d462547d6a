"""How many connections this process can hold."""

from __future__ import annotations

import os

__all__ = ["max_connections"]

_WANTED = (1 << 16, 10_240)
"""Files to ask for; macOS refuses more than 10,240 (OPEN_MAX) whatever its hard limit says."""
_SPARE = 64
"""Files left for the journal, the event loop and what else a process opens."""


def max_connections() -> int:
    """Return how many connections this process can still open, raising its limit if it may.

    The usual soft limit of 1,024 open files is raised up to the hard limit, at most to 65,536.
    Files that are open already, and some to spare, are taken off. At least 1.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return _WANTED[0]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    endless = resource.RLIM_INFINITY
    for most in _WANTED:
        wanted = most if hard == endless else min(most, hard)
        if soft == endless or soft >= wanted:
            break
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (ValueError, OSError):
            continue
    files = _WANTED[0] if soft == endless else min(soft, _WANTED[0])
    return max(1, files - _open_files() - _SPARE)


def _open_files() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(folder))
        except OSError:
            continue
    return 0
