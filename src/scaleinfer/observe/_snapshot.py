"""`Snapshot`: a run at one moment, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Snapshot"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run at one moment.

    Attributes:
        done: Items with a result, good or bad, resumed ones included.
        ok: Items with a usable answer, resumed ones included.
        failed: Items without one.
        resumed: Items whose answer came from the journal.
        in_flight: Calls being made.
        waiting: Items that wait to be tried again.
        total: Items there are; `None` if that is not known.
        prompt_tokens: Tokens of the prompts of this run's calls.
        completion_tokens: Tokens of their answers.
        elapsed_s: Seconds since the run began. The displays have no other clock.
        phase: What is going on: `running`, `starting the model`, `stopping`, `writing`, ...
        last_error: The latest failure, in one line.
        name: The run's name; empty if it has none.
        limit: Calls that may be in flight; `None` if that is not known.
        cost_usd: What the calls cost so far; `None` if no price is known.
    """

    done: int = 0
    ok: int = 0
    failed: int = 0
    resumed: int = 0
    in_flight: int = 0
    waiting: int = 0
    total: int | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    elapsed_s: float = 0.0
    phase: str = "running"
    last_error: str | None = None
    name: str = ""
    limit: int | None = None
    cost_usd: float | None = None
