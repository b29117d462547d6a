"""Write quickstart.ipynb from the cells below; the notebook is never edited by hand.

Run as `python examples/make_quickstart.py`. Outputs are not stored: a test executes the notebook.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

OUT = Path(__file__).with_name("quickstart.ipynb")

CELLS = {
    "title": """
# Quickstart

`parallel_map` asks a language model about every item of a list, many at a time, and returns the
answers in order. This notebook runs on the embedded model, on the CPU, without a key. Install the
model once, in a terminal:

```sh
scaleinfer model install
```

It has 135 million parameters. It shows how things work and is no scientist.""",
    "items": """
import json
import os
from pathlib import Path

from scaleinfer import parallel_map

limit = int(os.environ.get("QUICKSTART_LIMIT", "24"))
lines = Path("data/papers.jsonl").read_text(encoding="utf-8").splitlines()
papers = [json.loads(line) for line in lines]
papers[0]""",
    "first-text": """
## A map

The items are papers that SciPy and scikit-image cite. The prompt is a template whose braces name
an item's fields, or any function of the item. A notebook runs an event loop already, so `await`
works in a cell; `map_sync` does the same without it.""",
    "first": """
results = await parallel_map(
    papers[:limit],
    "Name the topic of this paper in a few words: {title}",
    sampling={"max_tokens": 24, "temperature": 0},
    journal="quickstart.db",
    name="topics",
)
results""",
    "frame-text": """
The result is a sequence in the order of the input. A failed item is a result too, with `ok=False`
and an `error` that says why; it never stops the others.""",
    "frame": """
frame = results.to_pandas()
frame.insert(0, "title", [result.item["title"] for result in results])
frame[["title", "text", "ok", "attempts"]].head()""",
    "typed-text": """
## Typed answers

A pydantic model as `schema` makes every `value` an instance of it. The model may only answer what
fits, and an answer that does not validate is shown to it again.""",
    "typed": """
from pydantic import BaseModel, Field


class Reference(BaseModel):
    \"\"\"Who wrote it, and when.\"\"\"

    author: str = Field(max_length=40)
    year: int


references = await parallel_map(
    papers[:limit],
    "Extract the first author and the year.\\n\\n{citation}",
    schema=Reference,
    sampling={"max_tokens": 40, "temperature": 0},
    name="references",
)
references[0].value""",
    "judged": """
right = sum(result.value.year == result.item["year"] for result in references.ok)
print(f"{right} of {len(references)} years as in the record")""",
    "resume-text": """
## Stop and go on

The first map wrote its answers to `quickstart.db` as they came. The same call with more items
takes those from there and asks only about the new ones. So does a call after a crash, a Ctrl-C or
a restart of the kernel.""",
    "resume": """
more = await parallel_map(
    papers[: limit + limit // 2],
    "Name the topic of this paper in a few words: {title}",
    sampling={"max_tokens": 24, "temperature": 0},
    journal="quickstart.db",
    name="topics",
)
print(f"{more.stats.resumed} from the journal, {len(more) - more.stats.resumed} asked now")""",
    "end": """
## Elsewhere

The same calls run against any OpenAI-compatible server: pass `base_url="http://host:8000/v1"`, or
set `SCALEINFER_BACKEND` and leave the notebook as it is.""",
}


def cell(name: str, text: str) -> dict[str, Any]:
    """Return a cell; names that end in `text`, the title and the end are markdown."""
    made = {"id": name, "metadata": {}, "source": text.strip().splitlines(keepends=True)}
    if name in {"title", "end"} or name.endswith("-text"):
        return {"cell_type": "markdown", **made}
    return {"cell_type": "code", "execution_count": None, "outputs": [], **made}


def notebook() -> str:
    """Return the notebook's text."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made = {
        "cells": [cell(name, text) for name, text in CELLS.items()],
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    OUT.write_text(notebook(), encoding="utf-8")
