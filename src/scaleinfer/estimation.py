"""`estimate`: what a map would cost and how long it would take, from a sample really asked.

```python
from scaleinfer.estimation import estimate

found = await estimate(items, "Summarise: {text}", sample=20, journal="run.db")
print(found)
```
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

from scaleinfer._sampling_theory import Range, spread, total_of
from scaleinfer.backends import resolve_backends
from scaleinfer.data import END, source
from scaleinfer.engine import TokenBounds
from scaleinfer.errors import ConfigError, PromptError
from scaleinfer.mapping import parallel_map
from scaleinfer.prices import Pricer, Prices, price_table
from scaleinfer.program import is_program
from scaleinfer.prompts import Renderer
from scaleinfer.requests import Sampling
from scaleinfer.results import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scaleinfer.map_result import MapResult
    from scaleinfer.mapping import MapOptions
    from scaleinfer.results import Result

__all__ = ["Estimate", "Range", "estimate"]

_CONFIDENCE = 0.95
_BYTES_PER_TOKEN = (2.5, 4.0, 5.0)
"""Of a prompt: few (code, figures, other scripts), as in plain English, and many."""
_ANSWER = 256
"""Tokens taken for an answer of which nothing is known."""
_PICO = 10**12


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a map would use.

    Attributes:
        items: Items there are.
        sampled: Items among them that were asked and answered; 0 for an estimate from the
            lengths of the prompts alone.
        failed: Items of the sample without an answer; they are not part of the estimate.
        prompt_tokens: Tokens of all prompts.
        completion_tokens: Tokens of all answers.
        cost_usd: Dollars; `None` if no price is known.
        seconds: Time, at `concurrency` calls in flight. The estimate and the lower end take the
            endpoint to be as fast then as for the sample; at the upper end it answers no more
            calls a second than it did for the sample. `None` without a sample.
        concurrency: Calls in flight for which that holds.
        spent_usd: What the sample itself cost.
        confidence: Share of such intervals that hold the truth, for tokens and dollars from a
            sample; `None` without one, where the ends are bounds.
        price_table: Version and date of the public list, if a price came from it.
    """

    items: int
    sampled: int
    failed: int
    prompt_tokens: Range
    completion_tokens: Range
    cost_usd: Range | None
    seconds: Range | None
    concurrency: int | None
    spent_usd: float | None
    confidence: float | None
    price_table: str | None

    @property
    def tokens(self) -> Range:
        """Prompt and completion tokens together."""
        return self.prompt_tokens.plus(self.completion_tokens)

    def __str__(self) -> str:
        how = (
            f"{self.sampled} of them asked, {self.confidence:.0%} interval"
            if self.confidence is not None
            else "from the lengths of the prompts alone"
        )
        lines = [f"{self.items:,} items ({how})"]
        if self.failed:
            lines[0] += f"; {self.failed} of the sample failed"
        for name, found, form in (
            ("prompt tokens", self.prompt_tokens, _count),
            ("completion tokens", self.completion_tokens, _count),
            ("cost", self.cost_usd, _dollars),
            ("time", self.seconds, _duration),
        ):
            if found is not None:
                ends = f"{form(found.low)} to {form(found.high)}"
                lines.append(f"  {name:18} {form(found.value):>12}   ({ends})")
        if self.cost_usd is None:
            lines.append("  cost                    unknown   (no price is known; give prices=)")
        if self.concurrency is not None:
            lines[-1] += f", {self.concurrency} calls in flight"
        if self.price_table is not None:
            lines.append(f"  prices by {self.price_table}")
        return "\n".join(lines)


async def estimate(
    items: Any,
    prompt_fn: Any,
    *,
    sample: int = 20,
    **options: Unpack[MapOptions],
) -> Estimate:
    """Return what `parallel_map` with the same arguments would use.

    Asks some items for real, spread over short and long prompts, and extends what they used to
    all, by the length of their prompts. With a journal the answers are kept there, and the map
    takes them from it. The same items give the same sample.

    Args:
        items: As for `parallel_map`, but of an end; an iterator is used up.
        prompt_fn: As for `parallel_map`. It is called for every item, unless it is async or a
            program, where the items' own lengths stand in for those of the prompts.
        sample: Items to ask; 0 sends nothing and goes by lengths alone, which bounds the
            answers by `max_tokens` only.
        **options: As for `parallel_map`; with `journal=` the sample's answers are kept there.

    Returns:
        Tokens, dollars and time, each with an interval.

    Raises:
        ConfigError: An argument or the environment is wrong.
        ScaleInferError: No item of the sample was answered; its first failure.
    """
    if not isinstance(sample, int) or isinstance(sample, bool) or sample < 0:
        raise ConfigError(f"sample is a number of items, not {sample!r}.")
    every = await _all(items)
    sizes = _sizes(every, prompt_fn, options)
    if not sample or not every:
        return _by_length(sizes, options)
    chosen = spread([size for size, _ in sizes], sample)
    options["on_error"] = "return"
    options["ordered"] = True
    results = await parallel_map([every[index] for index in chosen], prompt_fn, **options)
    return _extended(results, chosen, [size for size, _ in sizes])


async def _all(items: Any) -> list[Any]:
    given = source(items)
    found: list[Any] = []
    try:
        while (item := await given.next()) is not END:
            found.append(item)
    finally:
        await given.aclose()
    return found


def _sizes(
    items: Sequence[Any], prompt_fn: Any, options: MapOptions
) -> list[tuple[int, int | None]]:
    """Return each item's bytes of prompt and the most tokens of its answers, if bounded."""
    if is_program(prompt_fn) or inspect.iscoroutinefunction(prompt_fn):
        return [(len(str(item).encode("utf-8", "replace")), None) for item in items]
    renderer = Renderer(
        prompt_fn,
        system=options.get("system"),
        schema=options.get("schema"),
        sampling=Sampling.of(options.get("sampling")),
    )
    bounds = TokenBounds()
    return [_size(renderer, bounds, item) for item in items]


def _size(renderer: Renderer, bounds: TokenBounds, item: Any) -> tuple[int, int | None]:
    try:
        questions = renderer.start(item)
    except PromptError:
        return 0, 0  # it will fail, and costs nothing
    if not isinstance(questions, dict):
        if inspect.iscoroutine(questions):
            questions.close()
        return len(str(item).encode("utf-8", "replace")), None
    size, most = 0, 0
    capped = True
    for question in questions.values():
        bound = bounds.of(question.request)
        size += bound.bytes
        most += bound.answer
        capped = capped and bounds.capped(question.request)
    return size, most if capped else None


def _extended(results: MapResult, chosen: Sequence[int], sizes: Sequence[int]) -> Estimate:
    answered = [(one, sizes[index]) for one, index in zip(results, chosen, strict=True) if one.ok]
    if not answered:
        error = results[0].error
        assert error is not None
        raise error
    asked = set(chosen)
    rest = [float(size) for index, size in enumerate(sizes) if index not in asked]
    # What failed is likely to be asked again; it counts as one that was not.
    rest += [float(sizes[i]) for one, i in zip(results, chosen, strict=True) if not one.ok]
    lengths = [float(size) for _, size in answered]

    def whole(measure: Callable[[Result], float]) -> Range:
        values = [measure(one) for one, _ in answered]
        return total_of(values, lengths, rest, confidence=_CONFIDENCE)

    priced = all(one.cost_usd is not None for one, _ in answered)
    stats = results.stats
    limit = max(1, min(sum(use.limit for use in stats.endpoints), len(sizes)))
    return Estimate(
        items=len(sizes),
        sampled=len(answered),
        failed=len(chosen) - len(answered),
        prompt_tokens=whole(lambda one: one.usage.prompt_tokens),
        completion_tokens=whole(lambda one: one.usage.completion_tokens),
        cost_usd=whole(lambda one: one.cost_usd or 0.0) if priced else None,
        seconds=_seconds(results, whole(lambda one: one.latency_s), limit, len(sizes)),
        concurrency=limit,
        spent_usd=stats.cost_usd,
        confidence=_CONFIDENCE,
        price_table=stats.price_table,
    )


def _seconds(results: MapResult, calls: Range, limit: int, items: int) -> Range:
    """Return how long a map takes whose calls take so long together."""
    found = calls.times(1 / limit)
    fresh = results.stats.items - results.stats.resumed
    high = found.high
    if fresh:
        high = max(high, results.stats.elapsed_s * items / fresh)
    return Range(found.value, found.low, high)


def _by_length(sizes: Sequence[tuple[int, int | None]], options: MapOptions) -> Estimate:
    size = sum(size for size, _ in sizes)
    few, usual, many = _BYTES_PER_TOKEN
    prompt = Range(size / usual, size / many, size / few)
    most = [most for _, most in sizes]
    bounded = sum(one for one in most if one is not None)
    guessed = _ANSWER * most.count(None)
    high = float("inf") if guessed else float(bounded)
    answers = Range(float(bounded + guessed), 0.0, high)
    cost, table = _priced(prompt, answers, len(sizes), options)
    return Estimate(
        items=len(sizes),
        sampled=0,
        failed=0,
        prompt_tokens=prompt,
        completion_tokens=answers,
        cost_usd=cost,
        seconds=None,
        concurrency=None,
        spent_usd=None,
        confidence=None,
        price_table=table,
    )


def _priced(
    prompt: Range, answers: Range, calls: int, options: MapOptions
) -> tuple[Range | None, str | None]:
    if options.get("fleet") is not None:
        return None, None
    given = options.get("backend")
    first = given[0] if isinstance(given, list | tuple) and given else given
    where = {name: options.get(name) for name in ("base_url", "model", "api_key")}
    backend = resolve_backends(first, **where)[0].backend  # type: ignore[arg-type] # checked there
    pricer = Pricer(Prices.of(options.get("prices")))
    rates = pricer.rates(backend, options.get("model") or backend.model, None)
    if rates is None:
        return None, None

    def dollars(read: float, written: float) -> float:
        if written == float("inf"):
            return written if rates.completion else dollars(read, 0.0)
        return rates.cost(Usage(round(read), round(written), 0, calls)) / _PICO

    cost = Range(
        dollars(prompt.value, answers.value),
        dollars(prompt.low, answers.low),
        dollars(prompt.high, answers.high),
    )
    return cost, price_table() if pricer.uses_table else None


def _count(number: float) -> str:
    return "no bound" if number == float("inf") else f"{number:,.0f}"


def _dollars(number: float) -> str:
    if number == float("inf"):
        return "no bound"
    return f"${number:,.2f}" if number >= 1 else f"${number:.3g}"


def _duration(seconds: float) -> str:
    if seconds == float("inf"):
        return "no bound"
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{seconds:.1f} s"
