"""`scaleinfer map`."""

from __future__ import annotations

import importlib
import runpy
import sys
from contextlib import aclosing
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import orjson

from scaleinfer._cli_exit import FAILED, STOPPED
from scaleinfer._loop import run
from scaleinfer.backends.openai import OpenAIBackend
from scaleinfer.data import END, open_writer, read_items, result_row, source
from scaleinfer.engine import Budget, Concurrency, RateLimit, Retry
from scaleinfer.errors import ConfigError, ScaleInferError
from scaleinfer.mapping import stream_map
from scaleinfer.prices import Price

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from pydantic import BaseModel

    from scaleinfer.backends import Backend
    from scaleinfer.data import Source
    from scaleinfer.results import Result

__all__ = ["load_schema", "run_map", "write_results"]


def run_map(
    *,
    input_: str,
    prompt: str | None,
    prompt_file: str | None,
    out: str | None,
    schema: str | None,
    id_field: str | None,
    format_: str | None,
    limit: int | None,
    attempts: int | None,
    timeout: float | None,
    deadline: float | None,
    within: float | None,
    concurrency: int | None,
    max_concurrency: int | None,
    requests_per_minute: float | None,
    tokens_per_minute: float | None,
    base_url: tuple[str, ...],
    budget: tuple[str, ...] = (),
    price: tuple[float, float] | None = None,
    dry_run: bool = False,
    sample: int = 20,
    **options: Any,
) -> int:
    """Map a file, or estimate that, and return the exit code."""
    if (prompt is None) == (prompt_file is None):
        raise click.UsageError("Give the prompt by --prompt or by --prompt-file.")
    template = prompt if prompt is not None else Path(str(prompt_file)).read_text("utf-8")
    sampling = {
        name: value
        for name in ("max_tokens", "temperature", "top_p", "seed")
        if (value := options.pop(name)) is not None
    }
    retry = Retry()
    if attempts is not None:
        retry = replace(retry, attempts=attempts)
    if timeout is not None:
        retry = replace(retry, timeout=timeout)
    if deadline is not None:
        retry = replace(retry, deadline=deadline)
    if concurrency is not None and max_concurrency is not None:
        raise click.UsageError("Give --concurrency or --max-concurrency, not both.")
    rate_limit = None
    if requests_per_minute is not None or tokens_per_minute is not None:
        rate_limit = RateLimit(requests_per_minute, tokens_per_minute)
    if len(base_url) > 1:
        options["backend"] = _several(options["backend"], base_url, options.pop("model"))
    elif base_url:
        options["base_url"] = base_url[0]
    if budget:
        options["budget"] = _budget(budget)
    if price is not None:
        options["prices"] = {"*": Price(*price)}
    options |= {
        "schema": None if schema is None else load_schema(schema),
        "sampling": sampling,
        "retry": retry,
        "concurrency": _concurrency(concurrency, max_concurrency),
        "rate_limit": rate_limit,
        "deadline": within,
    }
    items = read_items(input_, format=format_)
    if dry_run:
        return run(_show_estimate(items, template, limit=limit, sample=sample, **options))
    return run(write_results(items, template, out=out, id_field=id_field, limit=limit, **options))


async def _show_estimate(
    items: Source, template: str, *, limit: int | None, sample: int, **options: Any
) -> int:
    from scaleinfer.estimation import estimate

    items = items if limit is None else _first(items, limit)
    click.echo(str(await estimate(items, template, sample=sample, **options)))
    return 0


def _budget(caps: tuple[str, ...]) -> Budget:
    known = {f.name for f in fields(Budget)}
    given: dict[str, float] = {}
    for cap in caps:
        name, found, amount = cap.partition("=")
        try:
            value = float(amount)
        except ValueError:
            found = ""
        if not found or name not in known:
            raise click.UsageError(
                f"--budget {cap!r} is no CAP=AMOUNT. Caps: {', '.join(sorted(known))}."
            )
        given[name] = int(value) if name in {"tokens", "requests"} else value
    return Budget(**given)  # type: ignore[arg-type] # whole numbers where they belong


def _concurrency(fixed: int | None, most: int | None) -> int | Concurrency | Literal["auto"]:
    if most is not None:
        return Concurrency(max=most)
    return "auto" if fixed is None else fixed


def _several(backend: str | None, urls: tuple[str, ...], model: str | None) -> list[Backend]:
    if backend not in {None, "openai"}:
        raise click.UsageError("Several --base-url need servers that speak OpenAI's protocol.")
    return [OpenAIBackend(url, model=model) for url in urls]


async def write_results(
    items: Source,
    template: str,
    *,
    out: str | None,
    id_field: str | None,
    limit: int | None,
    keep: Callable[[Result], None] = lambda result: None,
    **options: Any,
) -> int:
    """Map items, write a row per result in input order, and return the exit code.

    Args:
        items: The input.
        template: The prompt.
        out: Where the rows go; None for JSONL on standard output.
        id_field: Field that names an item.
        limit: Only the first so many items.
        keep: Told of every result.
        **options: As for `stream_map`.
    """
    items = items if limit is None else _first(items, limit)
    writer = _StandardOutput() if out is None else open_writer(out)
    failed = rows = 0
    stopped: str | None = None
    try:
        async with aclosing(stream_map(items, template, ordered=True, **options)) as results:
            async for result in results:
                writer.write(result_row(result, id_field=id_field))
                keep(result)
                rows += 1
                failed += not result.ok
    except KeyboardInterrupt:
        stopped = "interrupted"
    except ScaleInferError as error:
        stopped = str(error)
        if not rows:
            writer.close(commit=False)
            raise
    except BaseException:
        writer.close(commit=False)
        raise
    writer.close()
    if out is not None:
        click.echo(f"{rows:,} rows in {out}", err=True)
    if stopped is not None:
        again = "the same command goes on" if options.get("journal") else "use --journal to go on"
        click.echo(f"Stopped: {stopped}; {again}.", err=True)
        return STOPPED
    return FAILED if failed else 0


def load_schema(spec: str) -> type[BaseModel]:
    """Return the class that `module:Class` or `file.py:Class` names.

    Raises:
        ConfigError: There is no such class.
    """
    place, _, name = spec.rpartition(":")
    if not place:
        raise ConfigError(f"--schema {spec!r} is not of the form module:Class.")
    try:
        if place.endswith(".py"):
            found = runpy.run_path(place).get(name)
        else:
            sys.path.insert(0, str(Path.cwd()))
            found = getattr(importlib.import_module(place), name, None)
    except Exception as error:  # whatever the user's module raises
        raise ConfigError(
            f"--schema {spec!r} cannot be loaded: {type(error).__name__}: {error}."
        ) from error
    if not isinstance(found, type):
        raise ConfigError(f"--schema {spec!r}: there is no class {name} in {place}.")
    return found


class _StandardOutput:
    """Rows as JSONL on standard output, each as soon as it is there."""

    def write(self, row: dict[str, Any]) -> None:
        sys.stdout.buffer.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        sys.stdout.buffer.flush()

    def close(self, *, commit: bool = True) -> None:
        pass


def _first(items: Source, limit: int) -> Source:
    async def pull() -> AsyncIterator[Any]:
        for _ in range(limit):
            item = await items.next()
            if item is END:
                return
            yield item

    first = source(pull())
    first.total = limit if items.total is None else min(limit, items.total)
    return first
