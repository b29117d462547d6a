"""`sweep`: the same items under every prompt, model and setting, side by side."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scaleinfer.errors import ConfigError, PromptError, ScaleInferError
from scaleinfer.mapping import parallel_map
from scaleinfer.patterns._asking import called, gathered, prompt_maker
from scaleinfer.patterns._members import Member, ask, for_map, members_of
from scaleinfer.patterns._sweep_result import (
    SweepAnswer,
    SweepCell,
    SweepOutcome,
    SweepResult,
    Variant,
)
from scaleinfer.requests import Sampling

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from typing import Unpack

    from scaleinfer.mapping import MapOptions
    from scaleinfer.program import LLM
    from scaleinfer.results import Result

__all__ = ["SweepAnswer", "SweepCell", "SweepOutcome", "SweepResult", "Variant", "sweep"]

_DEFAULT = "default"


async def sweep(
    items: Any,
    prompts: Mapping[str, str | Callable[[Any], Any]] | str | Callable[[Any], Any],
    *,
    models: Iterable[Any] | None = None,
    samplings: Mapping[str, Sampling | Mapping[str, Any]] | None = None,
    score: Callable[[Any, Result], Any] | None = None,
    **options: Unpack[MapOptions],
) -> SweepResult:
    """Ask about every item with every prompt, model and setting, and compare.

    Args:
        items: As for `parallel_map`.
        prompts: Name -> template or function of the item, plain or async, that gives one
            prompt; or a single one.
        models: Models, addresses, backends or `Member`s; default the map's own.
        samplings: Name -> sampling parameters; default the members', the prompts' or the map's.
        score: `score(item, result)` says how good an answer is, as a number (True counts 1);
            `None` leaves it out of the mean. Plain or async.
        options: As for `parallel_map`.

    Returns:
        A `SweepResult`: an outcome per item and a cell per variant. An answer that was given up,
        or whose score raised, has failed alone; an item without any answer is a failed one.

    Raises:
        ConfigError: An argument is wrong; nothing was sent.
    """
    makers = _makers(prompts)
    settings = _settings(samplings)
    options, members = for_map(options, members_of(models), "sweep")
    grid = _Grid(makers, members, settings, score)
    results = await parallel_map(items, grid.run, **options)
    outcomes = [
        SweepOutcome(result, {a.variant: a.value for a in result.value}, result.value)
        if result.ok
        else SweepOutcome(result)
        for result in results
    ]
    return SweepResult(outcomes, results.stats, grid.variants)


def _makers(prompts: Any) -> dict[str, Callable[[Any], Awaitable[Any]]]:
    if not isinstance(prompts, Mapping):
        prompts = {_DEFAULT: prompts}
    if not prompts:
        raise ConfigError("prompts is empty: there is nothing to ask.")
    return {
        str(name): prompt_maker(prompt_fn, what=f"prompt {name!r}")
        for name, prompt_fn in prompts.items()
    }


def _settings(samplings: Any) -> dict[str, Sampling | None]:
    if samplings is None:
        return {_DEFAULT: None}
    if not isinstance(samplings, Mapping) or isinstance(samplings, Sampling):
        raise ConfigError(
            f"samplings is a dict of name to sampling parameters, not {samplings!r}.",
            hint='For example: {"greedy": {"temperature": 0}, "warm": {"temperature": 1}}',
        )
    if not samplings:
        raise ConfigError("samplings is empty.", hint="Leave it out, or name one.")
    for name, given in samplings.items():
        if given is not None and not isinstance(given, Sampling | Mapping):
            raise ConfigError(
                f"samplings: {name!r} is {given!r}, not a dict of parameters.",
                hint='For example: {"greedy": {"temperature": 0}}',
            )
    return {str(name): Sampling.of(given) for name, given in samplings.items()}


class _Grid:
    """Asks all variants about one item after the other; keeps nothing between them."""

    def __init__(
        self,
        makers: Mapping[str, Callable[[Any], Awaitable[Any]]],
        members: tuple[Member, ...],
        settings: Mapping[str, Sampling | None],
        score: Callable[[Any, Result], Any] | None,
    ) -> None:
        self._makers = makers
        self._members = {member.name: member for member in members}
        self._settings = settings
        self._score = score
        self.variants = [
            Variant(prompt, member.name, setting)
            for prompt in makers
            for member in members
            for setting in settings
        ]

    async def run(self, item: Any, llm: LLM) -> tuple[SweepAnswer, ...]:
        """Return one item's answers."""
        prompts: dict[str, Any] = {}
        for name, make in self._makers.items():
            try:
                prompts[name] = await make(item)
            except PromptError as error:
                prompts[name] = error
        results = await gathered(self._ask(llm, prompts, variant) for variant in self.variants)
        answers = [
            await self._scored(item, variant, result)
            for variant, result in zip(self.variants, results, strict=True)
        ]
        errors = [found.error for found in answers]
        if errors[0] is not None and all(errors):
            raise errors[0]
        return tuple(answers)

    async def _ask(self, llm: LLM, prompts: Mapping[str, Any], variant: Variant) -> Result:
        prompt = prompts[variant.prompt]
        if isinstance(prompt, PromptError):
            raise prompt
        member = self._members[variant.model]
        setting = self._settings[variant.sampling]
        if setting is not None:
            member = replace(member, sampling=setting)
        return await ask(llm, prompt, member)

    async def _scored(
        self, item: Any, variant: Variant, result: Result | ScaleInferError
    ) -> SweepAnswer:
        if isinstance(result, ScaleInferError):
            return SweepAnswer(variant, error=result)
        if self._score is None:
            return SweepAnswer(variant, result)
        try:
            score = self._score(item, result)
            if inspect.isawaitable(score):
                score = await score
            return SweepAnswer(variant, result, None if score is None else float(score))
        except Exception as error:
            return SweepAnswer(variant, result, error=called("score", error))
