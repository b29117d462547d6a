"""Let several annotators label papers, see how far they agree, and choose the prompt by a sweep.

Run from the repository root, on the embedded model unless SCALEINFER_BACKEND names another:

    python examples/annotation.py --limit 14
    python examples/annotation.py --models MODEL_A MODEL_B MODEL_C    # of one server

The annotators are the models named, or the one model at three temperatures. The embedded model
has 135 million parameters: expect it to be wrong about half of the time, with examples, and nearly
always without.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import BaseModel

from scaleinfer.patterns import Member, ensemble, group_by, sweep

if TYPE_CHECKING:
    from scaleinfer import Result

DATA = Path(__file__).parent / "data" / "papers.jsonl"
Subject = Literal[
    "geometry", "image processing", "linear algebra", "numerical analysis", "optimization",
    "signal processing", "statistics",
]  # fmt: skip
SUBJECTS = get_args(Subject)


class Label(BaseModel):
    """What a paper is about."""

    subject: Subject


EXAMPLES: tuple[tuple[str, Subject], ...] = (
    ("A median filter for noisy pictures", "image processing"),
    ("Testing the equality of two variances", "statistics"),
    ("Eigenvalues of a symmetric matrix", "linear algebra"),
    ("Design of a digital low-pass filter", "signal processing"),
    ("The convex hull of points in the plane", "geometry"),
    ("Quasi-Newton methods for minimization", "optimization"),
    ("Adaptive quadrature of an integral", "numerical analysis"),
)


def question(paper: dict[str, Any]) -> str:
    """Return the question alone."""
    return f'Which of these subjects is the paper "{paper["title"]}" about? {", ".join(SUBJECTS)}.'


def examples(paper: dict[str, Any]) -> list[dict[str, str]]:
    """Return a conversation in which an example of each subject comes first."""
    messages = []
    for title, subject in EXAMPLES:
        messages += [
            {"role": "user", "content": f'Subject of "{title}"?'},
            {"role": "assistant", "content": Label(subject=subject).model_dump_json()},
        ]
    return [*messages, {"role": "user", "content": f'Subject of "{paper["title"]}"?'}]


PROMPTS = {"question": question, "examples": examples}


def papers(limit: int) -> list[dict[str, Any]]:
    """Return papers of all subjects in turn."""
    rows = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    turns = zip_longest(*group_by(rows, lambda row: row["subject"]).values())
    return [row for row in chain.from_iterable(turns) if row is not None][:limit]


def as_in_the_record(paper: dict[str, Any], result: Result) -> bool:
    return bool(result.value.subject == paper["subject"])


async def main() -> None:
    parser = argparse.ArgumentParser(description="Labels by several annotators.")
    parser.add_argument("--limit", type=int, default=14, help="how many papers (default 14)")
    parser.add_argument(
        "--models", nargs="*", default=[], help="annotators, as the server names them"
    )
    parser.add_argument("--journal", help="where the run is kept")
    options = parser.parse_args()

    annotators: list[Any] = options.models or [
        Member(name=f"temperature {warmth}", sampling={"temperature": warmth, "max_tokens": 20})
        for warmth in (0.3, 0.7, 1.1)
    ]
    items = papers(options.limit)

    compared = await sweep(
        items,
        PROMPTS,
        models=annotators,
        score=as_in_the_record,
        schema=Label,
        journal=options.journal,
        key=lambda paper: paper["id"],
    )
    for table in compared.tables():
        print(f"\n{table.text()}")
    best = compared.best()
    print(f"\nBest: prompt {best.prompt!r} with {best.model!r}, {best.score or 0:.0%} right.")

    labels = await ensemble(
        items,
        PROMPTS[best.prompt],
        n=5,
        models=annotators,
        answer=lambda result: result.value.subject,
        schema=Label,
        journal=options.journal,
        key=lambda paper: paper["id"],
        name="labels",
    )
    right = sum(label.value == label.item["subject"] for label in labels.ok)
    print(
        f"\n{right} of {len(labels.ok)} majorities as in the record; {len(labels.failed)} failed."
    )
    print(f"{labels.saved:.0%} of the answers were not needed; {len(labels.tied)} ties.")
    print("\nLook at these yourself, the annotators agree least on them:")
    for label in sorted(labels.ok, key=lambda label: label.agreement)[:3]:
        votes = ", ".join(f"{name} {count:g}" for name, count in label.votes.items())
        print(f"  {label.item['title'][:60]}: {votes} (record: {label.item['subject']})")


if __name__ == "__main__":
    asyncio.run(main())
