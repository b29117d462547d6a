"""Have hypotheses drafted, judged, revised and ranked: a tribunal over real papers.

Run from the repository root, on the embedded model unless SCALEINFER_BACKEND names another:

    python examples/hypotheses.py --limit 8

The journal makes it safe to stop: the same command goes on where it was. The embedded model has
135 million parameters: it shows the machinery, and its judgement is worth little.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from scaleinfer.patterns import Role, tribunal

DATA = Path(__file__).parent / "data" / "papers.jsonl"


class Vote(BaseModel):
    """What a judge says of a hypothesis."""

    critique: str = Field(max_length=60, description="the main weakness, in a few words")
    score: int = Field(ge=1, le=10, description="1 is useless, 10 is excellent")
    accept: bool = Field(description="true if it may stand as it is")


def draft(paper: dict[str, Any]) -> str:
    """Return the task: a hypothesis that follows from a paper."""
    return (
        f'The paper "{paper["title"]}" ({paper["year"]}) is cited for this purpose: '
        f"{paper['context']}\n\nState one new hypothesis that an experiment could test, "
        "in one sentence."
    )


# Roles may be asked of other models: Role("novelty", model=..., backend=...).
JUDGES = [
    Role("testable", system="You judge whether a hypothesis can be tested by an experiment."),
    Role("new", system="You judge whether a hypothesis says something new."),
    Role("clear", system="You judge whether a hypothesis is clear and precise."),
]


async def main() -> None:
    parser = argparse.ArgumentParser(description="Hypotheses, drafted and ranked by a tribunal.")
    parser.add_argument("--limit", type=int, default=8, help="how many papers (at most 200)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of judging (default 2)")
    parser.add_argument("--journal", default="hypotheses.db", help="where the run is kept")
    options = parser.parse_args()

    lines = DATA.read_text(encoding="utf-8").splitlines()
    papers = [json.loads(line) for line in lines[: options.limit]]
    results = await tribunal(
        papers,
        draft,
        judges=JUDGES,
        rounds=options.rounds,
        verdict=Vote,
        sampling={"max_tokens": 60, "temperature": 0},
        journal=options.journal,
        key=lambda paper: paper["id"],
        name="hypotheses",
    )

    print()
    for place, outcome in enumerate(results.ranked(), 1):
        how = "accepted" if outcome.accepted else "not accepted"
        print(f"{place}. score {outcome.score:.1f}, {how} after {outcome.rounds} rounds")
        print(f"   {outcome.item['title']}")
        print(f"   {' '.join(outcome.value.split())}")
    print(f"\n{results.tables()[0].text()}")
    print(f"{results.stats.resumed} papers came from {options.journal}")


if __name__ == "__main__":
    asyncio.run(main())
