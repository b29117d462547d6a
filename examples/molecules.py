"""Ask for the state of molecules at room temperature and compare with the measured one.

Run from the repository root, on the embedded model unless SCALEINFER_BACKEND names another:

    python examples/molecules.py --limit 60

The embedded model has 135 million parameters. It shows the machinery and knows little chemistry:
expect it close to guessing.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from scaleinfer import map_sync

DATA = Path(__file__).parent / "data" / "molecules.csv"
STATES = ("gas", "liquid", "solid")


class Matter(BaseModel):
    """What a molecule is at 25 °C."""

    state: Literal["gas", "liquid", "solid"]


def molecules(limit: int) -> list[dict[str, str]]:
    """Return as many gases as liquids and solids (the file has 29 gases)."""
    with DATA.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    groups = [[row for row in rows if row["state_25c"] == state] for state in STATES]
    return list(chain.from_iterable(zip(*groups, strict=False)))[:limit]


def main() -> None:
    parser = argparse.ArgumentParser(description="Gas, liquid or solid at room temperature?")
    parser.add_argument("--limit", type=int, default=60, help="how many molecules (default 60)")
    limit = parser.parse_args().limit

    results = map_sync(
        molecules(limit),
        "Is {name} a gas, a liquid or a solid at room temperature?",
        schema=Matter,
        sampling={"max_tokens": 20, "temperature": 0},
        name="molecules",
    )

    pairs = Counter((r.item["state_25c"], r.value.state) for r in results.ok)
    print(f"\n{'measured':>10} | " + " ".join(f"{state:>7}" for state in STATES) + "   (answered)")
    for measured in STATES:
        counts = " ".join(f"{pairs[measured, answered]:7d}" for answered in STATES)
        print(f"{measured:>10} | {counts}")

    right = sum(pairs[state, state] for state in STATES) / max(1, len(results.ok))
    error = (right * (1 - right) / max(1, len(results.ok))) ** 0.5
    print(f"\n{right:.0%} of {len(results.ok)} right (standard error {error:.0%}); guessing: 33%.")
    for failed in results.failed[:3]:
        print(f"{failed.item['name']}: {failed.error}")


if __name__ == "__main__":
    main()
