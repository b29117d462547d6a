"""Every example runs, on the embedded model where it asks one, and the data are as described."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
DEMO = ROOT / "src" / "scaleinfer" / "_demo.jsonl"
ROOM_C = 25.0
# The model shares the machine with whatever else runs.
pytestmark = pytest.mark.timeout(240)
EXECUTE = """
import json, nbclient, nbformat
notebook = nbformat.read("quickstart.ipynb", as_version=4)
nbformat.validate(notebook)
nbclient.NotebookClient(notebook, timeout=200).execute()
json.dump(notebook, open("executed.json", "w"))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a copy of the examples in it."""
    ignored = shutil.ignore_patterns("*.db*", "__pycache__", ".ipynb_checkpoints")
    shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=ignored)
    return tmp_path


@pytest.fixture(scope="session")
def embedded_model() -> None:
    """Install the embedded model, unless it is there."""
    from scaleinfer.backends._local_files import install_model

    install_model(progress=print)


@pytest.fixture(autouse=True)
def few_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the notebook's maps small."""
    monkeypatch.setenv("QUICKSTART_LIMIT", "4")


def run(folder: Path, name: str, *arguments: str) -> str:
    """Run an example as the documentation says and return what it printed."""
    done = subprocess.run(
        [sys.executable, f"examples/{name}", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def imported(name: str) -> Any:
    """Return an example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic looks there for what annotations name
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("embedded_model")
def test_molecules(folder: Path) -> None:
    printed = run(folder, "molecules.py", "--limit", "6")

    # The schema leaves the model no other words, so every molecule has an answer.
    rows = [line.split("|") for line in printed.splitlines() if "|" in line][1:]
    assert [row[0].strip() for row in rows] == ["gas", "liquid", "solid"]
    assert [sum(map(int, row[1].split())) for row in rows] == [2, 2, 2]
    assert re.search(r"\d+% of 6 right \(standard error \d+%\)", printed)
    compared = re.findall(r"^ +(\w+) +[\d.]+ +[\d.]+ +\d+%", printed, re.MULTILINE)
    assert compared == [
        "molecular_weight", "carbon_atoms", "rings", "hydrogen_bond_donors",
        "hydrogen_bond_acceptors",
    ]  # fmt: skip


def test_molecules_are_those_that_rdkit_knows() -> None:
    example = imported("molecules")
    pytest.importorskip("rdkit")
    rows = example.molecules(300)
    assert len({row["cas"] for row in rows}) == 300
    for row in rows:
        carbon = re.search(r"C(\d*)(?![a-z])", row["formula"])
        assert carbon is not None
        assert example.computed(row)["carbon_atoms"] == int(carbon[1] or 1)


@pytest.mark.usefixtures("embedded_model")
def test_literature_and_its_journal(folder: Path) -> None:
    first = run(folder, "literature.py", "--limit", "2")
    second = run(folder, "literature.py", "--limit", "2")

    assert "2 papers answered, 0 failed" in first
    assert re.search(r"year: \d of 2 as in the record", first)
    assert re.search(r"subject: \d of 2 as in the record", first)
    assert "0 papers came from literature.db" in first
    assert "2 papers came from literature.db" in second
    paper = records(EXAMPLES / "data" / "papers.jsonl")[0]
    example = imported("literature")
    rows = records(folder / "literature.jsonl")
    assert [row["ok"] for row in rows] == [True, True]
    for row in rows:
        answers = row["value"]
        schemas = {name: prompt.schema for name, prompt in example.questions(paper).items()}
        assert set(answers) == set(schemas) == {"reference", "keywords", "subject", "method", "use"}
        for name, schema in schemas.items():
            schema.model_validate(answers[name])


@pytest.mark.usefixtures("embedded_model")
def test_hypotheses_and_their_journal(folder: Path) -> None:
    few = ("--limit", "2", "--rounds", "1")
    first = run(folder, "hypotheses.py", *few)
    second = run(folder, "hypotheses.py", *few)

    scores = [float(score) for score in re.findall(r"^\d\. score ([\d.]+), ", first, re.MULTILINE)]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)
    assert all(1 <= score <= 10 for score in scores)
    for judge in ("testable", "new", "clear"):
        assert re.search(rf"{judge} +2 ", first)
    assert "0 papers came from hypotheses.db" in first
    assert "2 papers came from hypotheses.db" in second


def test_resume_loses_nothing(folder: Path) -> None:
    printed = run(folder, "resume.py", "--limit", "80")

    asked, resumed, twice = (
        int(re.search(pattern, printed)[1])  # type: ignore[index]  # a miss fails the test
        for pattern in (r"asked about (\d+) of 80", r"found (\d+) answers", r"twice: (\d+)")
    )
    assert "answers: 80 of 80, lost: 0" in printed
    assert 40 <= asked < 80
    assert 0 < resumed <= asked
    # Whatever the journal had is not asked again.
    assert twice == asked - resumed


@pytest.mark.usefixtures("embedded_model")
def test_quickstart_runs(folder: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", EXECUTE], cwd=folder / "examples", timeout=220, check=True
    )
    executed = json.loads((folder / "examples" / "executed.json").read_text(encoding="utf-8"))
    outputs = {cell["id"]: cell.get("outputs", []) for cell in executed["cells"]}

    shown = [set(o["data"]) for o in outputs["first"] if o["output_type"] == "execute_result"]
    assert shown == [{"text/plain", "text/html"}]
    assert re.search(r"Reference\(author='.*', year=\d+\)", text_of(outputs["typed"]))
    assert "of 4 years as in the record" in text_of(outputs["judged"])
    assert "4 from the journal, 2 asked now" in text_of(outputs["resume"])


def text_of(outputs: list[dict[str, Any]]) -> str:
    """Return the plain text of a cell's outputs."""
    return "".join(o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs)


def test_quickstart_is_what_its_script_writes() -> None:
    module = imported("make_quickstart")
    assert (EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8") == module.notebook()


@pytest.mark.parametrize(("name", "rows"), [("molecules.csv", 300), ("papers.jsonl", 200)])
def test_data_are_those_the_readme_describes(name: str, rows: int) -> None:
    data = (EXAMPLES / "data" / name).read_bytes()
    readme = (EXAMPLES / "data" / "README.md").read_text(encoding="utf-8")
    assert f"| `{name}` | {rows} | `{hashlib.sha256(data).hexdigest()}` |" in readme


def test_molecules_have_the_state_their_temperatures_give() -> None:
    with (EXAMPLES / "data" / "molecules.csv").open(encoding="utf-8", newline="") as file:
        molecules = list(csv.DictReader(file))
    assert len({molecule["cas"] for molecule in molecules}) == len(molecules)
    for molecule in molecules:
        solid = float(molecule["melting_point_c"]) > ROOM_C
        gas = not solid and float(molecule["boiling_point_c"]) < ROOM_C
        assert molecule["state_25c"] == ("solid" if solid else "gas" if gas else "liquid")


def test_papers_agree_with_their_citations() -> None:
    papers = records(EXAMPLES / "data" / "papers.jsonl")
    assert len({paper["id"] for paper in papers}) == len(papers)
    for paper in papers:
        assert str(paper["year"]) in paper["citation"]
        assert all(paper[name] for name in ("authors", "title", "journal", "context", "cited_by"))


def test_demo_items_state_what_is_asked() -> None:
    items = records(DEMO)
    assert len(items) == 60
    for item in items:
        assert item["author"] in item["citation"]
        assert str(item["year"]) in item["citation"]
