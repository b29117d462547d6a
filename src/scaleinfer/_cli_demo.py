"""`scaleinfer demo`: 60 real citations, who wrote them and when, on the embedded model."""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Any

import click
from pydantic import BaseModel, Field

from scaleinfer._cli_map import write_results
from scaleinfer._loop import run
from scaleinfer.data import read_items

if TYPE_CHECKING:
    from scaleinfer.results import Result

__all__ = ["Reference", "run_demo"]

_ROWS = 15
_PROMPT = "Extract the first author and the year.\n\n{citation}"


class Reference(BaseModel):
    """What the demo asks of each citation."""

    author: str = Field(max_length=40)
    year: int


def run_demo(*, limit: int | None, out: str, **options: Any) -> int:
    """Map the demo's items, show the answers, and return the exit code."""
    results: list[Result] = []
    with as_file(files("scaleinfer") / "_demo.jsonl") as path:
        code = run(
            write_results(
                read_items(path),
                _PROMPT,
                out=out,
                id_field=None,
                limit=limit,
                keep=results.append,
                schema=Reference,
                sampling={"temperature": 0, "max_tokens": 48},
                name="demo",
                **options,
            )
        )
    _show(results, out)
    return code


def _show(results: list[Result], out: str) -> None:
    from rich.console import Console
    from rich.table import Table

    answered = [result for result in results if result.ok]
    right = [result for result in answered if _right(result)]
    title = f"{_ROWS} of {len(results)} answers" if len(results) > _ROWS else None
    table = Table(title=title, expand=True)
    table.add_column("citation", overflow="ellipsis", no_wrap=True, ratio=1)
    for column, width in (("author", 20), ("year", 4), ("right", 5)):
        table.add_column(column, overflow="ellipsis", no_wrap=True, width=width)
    for result in results[:_ROWS]:
        value, error = result.value, result.error
        cells = ("-", str(error)) if value is None else (value.author, str(value.year))
        table.add_row(
            result.item["citation"],
            *cells,
            "" if not result.ok else "yes" if _right(result) else "no",
        )
    Console().print(table)
    click.echo(f"{len(right)} of {len(results)} have the author and the year of the record.")
    click.echo("A model of 135M parameters shows the machinery; it is no scientist.")
    click.echo(f"All answers: {out}")


def _right(result: Result) -> bool:
    item, value = result.item, result.value
    return item["author"].casefold() in value.author.casefold() and value.year == item["year"]
