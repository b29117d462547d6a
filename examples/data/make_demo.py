"""Make src/scaleinfer/_demo.jsonl: the 60 items of `scaleinfer demo`, from papers.jsonl.

Run as `python examples/data/make_demo.py`. Takes the shortest citations of each subject that
name both facts the demo asks for, so that the prompts are short and every answer can be judged.
"""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OUT = HERE.parents[1] / "src" / "scaleinfer" / "_demo.jsonl"
ROWS = 60
MARKUP = re.compile(r":\w+:`([^`]*)`|[`*]")


def cleaned(paper: dict[str, Any]) -> str:
    """Return the citation without the markup of docstrings."""
    return " ".join(MARKUP.sub(r"\1", paper["citation"]).split())


def surname(paper: dict[str, Any]) -> str:
    """Return the first author's surname, as the authors' field spells it."""
    wanted = re.sub(r"\d+[a-z]?$", "", paper["id"])
    for word in re.findall(r"[^\W\d_][\w'-]*", paper["authors"]):
        plain = unicodedata.normalize("NFKD", word).encode("ascii", "ignore").decode()
        if re.sub(r"\W", "", plain.lower()) == wanted:
            return str(word)
    return ""


def main() -> None:
    """Choose and write."""
    lines = (HERE / "papers.jsonl").read_text(encoding="utf-8").splitlines()
    papers = [json.loads(line) for line in lines]
    by_subject: dict[str, list[dict[str, Any]]] = {}
    for paper in sorted(papers, key=lambda p: len(cleaned(p))):
        if surname(paper) and str(paper["year"]) in cleaned(paper):
            by_subject.setdefault(paper["subject"], []).append(paper)
    chosen: list[dict[str, Any]] = []
    while len(chosen) < ROWS:
        chosen += [group.pop(0) for group in by_subject.values() if group]
    rows = [
        {"id": p["id"], "citation": cleaned(p), "author": surname(p), "year": p["year"]}
        for p in sorted(chosen[:ROWS], key=lambda p: str(p["id"]))
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    OUT.write_text(text, encoding="utf-8")
    print(f"{len(rows)} written to {OUT}")


if __name__ == "__main__":
    main()
