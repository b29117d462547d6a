"""When a batch job is given up on, asked for again, or given back.

Parsl asks for the next job as soon as one has failed, for ever. These rules ask again once, then
report what the scheduler said; while other jobs run, they only ask less often. Nor does Parsl spare
jobs that are still starting when it gives idle ones back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Block", "Submissions", "fatal", "idle_blocks", "scheduler_words"]

_FAILURES = 2
_WAITS = (0.0, 30.0, 60.0, 120.0, 300.0)
_WORDS = 600
# What sbatch and qsub put in front of every line.
_PREFIX = re.compile(r"^(sbatch|qsub|srun): (error: )?", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One batch job, as Parsl knows it.

    Attributes:
        number: Position in the order of submission.
        live: It waits or runs.
        failed: It was refused, or ended before a worker of it had registered.
        reason: What is known about why it failed.
    """

    number: int
    live: bool = False
    failed: bool = False
    reason: str = ""


def fatal(blocks: Sequence[Block]) -> Block | None:
    """Return the block to report if no further one can be expected to do better.

    That is so when nothing lives and the last two have failed.
    """
    if any(block.live for block in blocks):
        return None
    last = sorted(blocks, key=lambda block: block.number)[-_FAILURES:]
    if len(last) < _FAILURES or not all(block.failed for block in last):
        return None
    return last[-1]


def idle_blocks(managers: Iterable[Mapping[str, Any]], idle_seconds: float, most: int) -> list[str]:
    """Return the jobs to give back while others work, those idle longest first.

    Only jobs all of whose nodes have been idle for `idle_seconds` count. One that has not started
    yet keeps its place in the queue, as does one whose workers have not registered.

    Args:
        managers: What Parsl's interchange tells of every node: `block_id`, `tasks` (running),
            `idle_duration` (seconds).
        idle_seconds: How long is long enough.
        most: How many to return at most.
    """
    idle: dict[str, float] = {}
    for manager in managers:
        seconds = 0.0 if manager["tasks"] else float(manager["idle_duration"])
        block = str(manager["block_id"])
        idle[block] = min(idle.get(block, seconds), seconds)
    ready = sorted((-seconds, block) for block, seconds in idle.items() if seconds > idle_seconds)
    return [block for _, block in ready][: max(0, most)]


class Submissions:
    """How long to wait after refusals: not at all, then 30 s, and up to 5 minutes."""

    def __init__(self) -> None:
        self._refusals = 0
        self._next = 0.0

    def may_try(self, now: float) -> bool:
        """Say whether the scheduler may be asked at `now` (seconds, monotonic)."""
        return self._refusals == 0 or now >= self._next

    def accepted(self) -> None:
        """Note that the scheduler took a job."""
        self._refusals = 0

    def refused(self, now: float) -> None:
        """Note that it did not."""
        self._next = now + _WAITS[min(self._refusals, len(_WAITS) - 1)]
        self._refusals += 1


def scheduler_words(text: str | None) -> str:
    """Return what a scheduler printed as one line, without its own prefix, cut to size."""
    plain = _PREFIX.sub("", text or "")
    line = "; ".join(part.strip() for part in plain.splitlines() if part.strip())
    return line if len(line) <= _WORDS else f"... {line[-_WORDS:]}"
