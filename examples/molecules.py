# /// script
# requires-python = ">=3.11"
# dependencies = ["scaleinfer[local]", "rdkit>=2024.9.1"]
# ///
"""Ask for properties of molecules; compare with what RDKit computes and what was measured.

Run from the repository root, on the embedded model unless SCALEINFER_BACKEND names another:

    python examples/molecules.py --limit 200

Without RDKit (`pip install rdkit`) only the measured state is compared. The embedded model has
135 million parameters. It shows the machinery and knows little chemistry: expect it close to
guessing.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal

from pydantic import BaseModel, Field

from scaleinfer.patterns import PipelineResult, Stage, pipeline

DATA = Path(__file__).parent / "data" / "molecules.csv"
STATES = ("gas", "liquid", "solid")
COMPUTED = {
    "molecular_weight": "g/mol",
    "carbon_atoms": "",
    "rings": "",
    "hydrogen_bond_donors": "",
    "hydrogen_bond_acceptors": "",
}


class Properties(BaseModel):
    """What is asked about a molecule."""

    state: Literal["gas", "liquid", "solid"] = Field(description="at 25 °C")
    molecular_weight: int = Field(ge=1, le=999, description="g/mol")
    carbon_atoms: int = Field(ge=0, le=99)
    rings: int = Field(ge=0, le=9)
    hydrogen_bond_donors: int = Field(ge=0, le=9)
    hydrogen_bond_acceptors: int = Field(ge=0, le=9)


def molecules(limit: int) -> list[dict[str, str]]:
    """Return molecules of all three states in turn, as long as there are some of each."""
    with DATA.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    groups = [[row for row in rows if row["state_25c"] == state] for state in STATES]
    first = list(chain.from_iterable(zip(*groups, strict=False)))
    return (first + [row for row in rows if row not in first])[:limit]


def computed(molecule: dict[str, str]) -> dict[str, float]:
    """Return what RDKit computes from the structure."""
    from rdkit import Chem
    from rdkit.Chem import Descriptors, rdMolDescriptors

    structure = Chem.MolFromSmiles(molecule["smiles"])
    return {
        # RDKit defines it at run time.
        "molecular_weight": Descriptors.MolWt(structure),  # type: ignore[attr-defined,unused-ignore]
        "carbon_atoms": sum(atom.GetSymbol() == "C" for atom in structure.GetAtoms()),
        "rings": rdMolDescriptors.CalcNumRings(structure),
        "hydrogen_bond_donors": rdMolDescriptors.CalcNumHBD(structure),
        "hydrogen_bond_acceptors": rdMolDescriptors.CalcNumHBA(structure),
    }


def compare_states(results: PipelineResult) -> None:
    """Print how many states are those that were measured."""
    answered = [(one.item["state_25c"], one.values["answer"].state) for one in results.kept]
    print(f"\n{'measured':>10} | " + " ".join(f"{state:>7}" for state in STATES) + "   (answered)")
    for measured in STATES:
        counts = " ".join(f"{answered.count((measured, state)):7d}" for state in STATES)
        print(f"{measured:>10} | {counts}")
    right = sum(measured == state for measured, state in answered) / max(1, len(answered))
    error = (right * (1 - right) / max(1, len(answered))) ** 0.5
    print(f"{right:.0%} of {len(answered)} right (standard error {error:.0%}).")


def compare_numbers(results: PipelineResult) -> None:
    """Print how far the numbers are from those computed, and what a constant guess would do."""
    print(f"\n{'mean error of':>24}   answer   median of all   exact")
    for name, unit in COMPUTED.items():
        pairs = [
            (getattr(one.values["answer"], name), one.values["computed"][name])
            for one in results.kept
        ]
        if not pairs:
            continue
        middle = median(true for _, true in pairs)
        off = mean(abs(answer - true) for answer, true in pairs)
        guess = mean(abs(middle - true) for _, true in pairs)
        exact = mean(abs(answer - true) <= 0.5 for answer, true in pairs)
        print(f"{name:>24} {off:8.1f} {guess:15.1f} {exact:7.0%}  {unit}".rstrip())


async def main() -> None:
    parser = argparse.ArgumentParser(description="Properties of molecules, asked and computed.")
    parser.add_argument("--limit", type=int, default=200, help="how many molecules (at most 300)")
    parser.add_argument("--journal", help="where the run is kept, to go on after a stop")
    options = parser.parse_args()

    ask = "State the properties of {name}, SMILES {smiles}."
    stages: list[Any] = [Stage(ask, "answer", schema=Properties)]
    with_rdkit = find_spec("rdkit") is not None
    if with_rdkit:
        stages.append(Stage.call(computed))
    results = await pipeline(
        molecules(options.limit),
        stages,
        sampling={"max_tokens": 100, "temperature": 0},
        journal=options.journal,
        key=lambda molecule: molecule["cas"],
        name="molecules",
    )

    compare_states(results)
    if with_rdkit:
        compare_numbers(results)
    else:
        print("\nRDKit is not installed, so only the states are compared: pip install rdkit")
    for failed in results.failed[:3]:
        print(f"{failed.item['name']}: {failed.error}")


if __name__ == "__main__":
    asyncio.run(main())
