"""Ask five questions about every paper; every answer is typed by a pydantic model.

Run from the repository root, on the embedded model unless SCALEINFER_BACKEND names another:

    python examples/literature.py --limit 12

The journal makes it safe to stop: the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from scaleinfer import MapResult, Prompt, parallel_map

DATA = Path(__file__).parent / "data" / "papers.jsonl"


class Reference(BaseModel):
    """Who wrote it, and when."""

    author: str = Field(max_length=40)
    year: int = Field(ge=1900, le=2030)


class Keywords(BaseModel):
    """What to find it by."""

    keywords: list[Annotated[str, Field(max_length=20)]] = Field(min_length=1, max_length=3)


class Subject(BaseModel):
    """Where it belongs."""

    subject: Literal[
        "geometry", "image processing", "linear algebra", "numerical analysis", "optimization",
        "signal processing", "statistics",
    ]  # fmt: skip


class Method(BaseModel):
    """Whether it presents a new method."""

    new_method: Literal["yes", "no"]


class Use(BaseModel):
    """What the function that cites it is for."""

    purpose: str = Field(max_length=80)


def questions(paper: dict[str, Any]) -> dict[str, Prompt]:
    """Return five prompts about one paper, by name."""
    title = f'"{paper["title"]}"'
    return {
        "reference": Prompt(
            f"Extract the first author and the year.\n\n{paper['citation']}", schema=Reference
        ),
        "keywords": Prompt(f"Give keywords for the paper {title}.", schema=Keywords),
        "subject": Prompt(f"Which subject is the paper {title} about?", schema=Subject),
        "method": Prompt(f"Does the paper {title} present a new method?", schema=Method),
        "use": Prompt(f"{paper['context']}\n\nWhat is this function for?", schema=Use),
    }


def compare(results: MapResult) -> None:
    """Print how many of the answers that can be checked are as in the record."""
    for name, recorded in (("reference", "year"), ("subject", "subject")):
        right = sum(getattr(r.value[name], recorded) == r.item[recorded] for r in results.ok)
        print(f"{recorded:>8}: {right} of {len(results)} as in the record")


async def main() -> None:
    parser = argparse.ArgumentParser(description="Five questions about every paper.")
    parser.add_argument("--limit", type=int, default=12, help="how many papers (default 12)")
    parser.add_argument("--journal", default="literature.db", help="where the run is kept")
    parser.add_argument("--out", default="literature.jsonl", help="where the answers go")
    options = parser.parse_args()

    lines = DATA.read_text(encoding="utf-8").splitlines()
    papers = [json.loads(line) for line in lines[: options.limit]]
    results = await parallel_map(
        papers,
        questions,
        sampling={"max_tokens": 80, "temperature": 0},
        journal=options.journal,
        key=lambda paper: paper["id"],
        name="literature",
    )

    for result in results.ok[:3]:
        print(f"\n{result.item['title']}")
        for name, answer in result.value.items():
            print(f"  {name:>9}: {answer}")
    print()
    compare(results)
    results.to_jsonl(options.out)
    print(f"{len(results.ok)} papers answered, {len(results.failed)} failed")
    print(f"{results.stats.resumed} papers came from {options.journal}; answers: {options.out}")


if __name__ == "__main__":
    asyncio.run(main())
