"""Pipelines: each item goes through several stages, none waits for the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, Unpack

from scaleinfer.errors import ConfigError, ScaleInferError
from scaleinfer.mapping import MapOptions, parallel_map
from scaleinfer.patterns._result import Outcome, PatternResult
from scaleinfer.patterns._roles import Role, function_of, prompt_function
from scaleinfer.results import Usage

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import BaseModel

    from scaleinfer.patterns._roles import PromptOf
    from scaleinfer.patterns._tables import Table
    from scaleinfer.program import LLM
    from scaleinfer.requests import Sampling
    from scaleinfer.results import Result

__all__ = ["PipelineOutcome", "PipelineResult", "Stage", "StageStats", "pipeline"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a pipeline. As it is, it asks a model; see `call` and `keep` for the others.

    Attributes:
        function: A template, or a function of the item and of what the stages before have
            brought (a dict of stage name to value), that returns a prompt. A template names the
            item's fields, and earlier stages by their names.
        name: Its name; default the function's own, or `stage N`.
        schema: Pydantic model of the answer; `None` for the map's.
        system: System message; `None` for the map's.
        sampling: Sampling parameters; `None` for the map's.
        model: Model to ask; `None` for the map's.
        backend: Where to ask, as for `parallel_map`; `None` for where the map asks.
        kind: What is done with the function: `ask`, `call` or `keep`.
    """

    function: PromptOf
    name: str = ""
    schema: type[BaseModel] | None = None
    system: str | None = None
    sampling: Sampling | Mapping[str, Any] | None = None
    model: str | None = None
    backend: Any = None
    kind: Literal["ask", "call", "keep"] = "ask"

    @classmethod
    def call(cls, function: Callable[..., Any], name: str = "") -> Self:
        """Return a stage that calls a function, plain or async, of item and earlier values.

        It runs on the event loop: one that computes for long belongs into
        `asyncio.to_thread`.
        """
        return cls(function, name, kind="call")

    @classmethod
    def keep(cls, predicate: Callable[..., Any], name: str = "") -> Self:
        """Return a stage that lets an item pass if a function of it returns something true.

        The others are dropped, which is no failure.
        """
        return cls(predicate, name, kind="keep")


@dataclass(slots=True)
class StageStats:
    """What a stage came to.

    Attributes:
        name: The stage's name.
        entered: Items that reached it.
        passed: Items that went on.
        dropped: Items that it dropped.
        failed: Items that failed in it.
        resumed: Items whose answer came from the journal.
        calls: Calls made for it, repairs and retries included.
        usage: Tokens used.
        cost_usd: Price of that; `None` if no price is known.
        seconds: Seconds that items spent in it, summed.
    """

    name: str
    entered: int = 0
    passed: int = 0
    dropped: int = 0
    failed: int = 0
    resumed: int = 0
    calls: int = 0
    usage: Usage = field(default_factory=Usage)
    cost_usd: float | None = None
    seconds: float = 0.0

    def take(self, answer: Result) -> None:
        """Take note of what a call brought."""
        self.resumed += answer.resumed
        self.calls += answer.attempts
        self.usage = self.usage.plus(answer.usage)
        if answer.cost_usd is not None:
            self.cost_usd = (self.cost_usd or 0.0) + answer.cost_usd


@dataclass(frozen=True, slots=True)
class PipelineOutcome(Outcome):
    """How far an item came; `value` is what the last stage brought.

    Attributes:
        values: What each stage brought, by name; of a failed item, those before it failed.
        ended: The stage that dropped it or in which it failed; empty if it went through.
        dropped: True if a stage dropped it.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    ended: str = ""
    dropped: bool = False

    columns: ClassVar[tuple[str, ...]] = ("dropped", "ended")

    def shown(self) -> Any:
        """Return the value, or which stage dropped it."""
        return f"dropped by {self.ended}" if self.dropped else self.value


class PipelineResult(PatternResult[PipelineOutcome]):
    """A pipeline's outcomes in input order.

    Attributes:
        stages: What each stage came to, in order.
    """

    def __init__(
        self, outcomes: list[PipelineOutcome], stats: Any, stages: tuple[StageStats, ...]
    ) -> None:
        super().__init__(outcomes, stats)
        self.stages = stages

    @property
    def kept(self) -> list[PipelineOutcome]:
        """The outcomes that went through all stages."""
        return [outcome for outcome in self if outcome.ok and not outcome.dropped]

    @property
    def dropped(self) -> list[PipelineOutcome]:
        """The outcomes that a stage dropped."""
        return [outcome for outcome in self if outcome.dropped]

    def tables(self) -> list[Table]:
        """Return a row for each stage."""
        from scaleinfer.patterns._tables import Table

        names = ("stage", "entered", "passed", "dropped", "failed", "calls", "tokens", "s/item")
        rows = [
            (
                one.name, one.entered, one.passed, one.dropped, one.failed, one.calls,
                one.usage.total_tokens, one.seconds / one.entered if one.entered else None,
            )
            for one in self.stages
        ]  # fmt: skip
        return [Table(f"{len(self.kept)} of {len(self)} items went through", names, rows)]


async def pipeline(
    items: Any, stages: Sequence[Stage | PromptOf], **options: Unpack[MapOptions]
) -> PipelineResult:
    """Take each item through all stages, one after the other; items do not wait for each other.

    Args:
        items: As for `parallel_map`.
        stages: Each a `Stage`, or what a `Stage` asks: a template or a function that returns a
            prompt.
        **options: As for `parallel_map`.

    Returns:
        A `PipelineResult`: for each item what the last stage brought, and what each stage came
        to.

    Raises:
        ConfigError: An argument is wrong; nothing was sent.
        JournalError: As for `parallel_map`.
    """
    line = _Line(_named(stages))
    results = await parallel_map(items, line.run, **options)
    return PipelineResult(
        [line.outcome(result) for result in results], results.stats, tuple(line.stats)
    )


@dataclass(slots=True)
class _Passage:
    """One item on its way."""

    values: dict[str, Any] = field(default_factory=dict)
    ended: str = ""
    dropped: bool = False


class _Line:
    """The program of a pipeline, and its items' passages."""

    def __init__(self, stages: list[Stage]) -> None:
        self.stats = [StageStats(stage.name) for stage in stages]
        self._stages = stages
        self._steps = [_step(stage, stages[:number]) for number, stage in enumerate(stages)]
        self._passages: dict[int, _Passage] = {}

    async def run(self, item: Any, llm: LLM) -> Any:
        """Return what the last stage brought; `None` if a stage dropped the item."""
        passage = self._passages[llm.index] = _Passage()
        value: Any = None
        for stage, step, stats in zip(self._stages, self._steps, self.stats, strict=True):
            stats.entered += 1
            passage.ended = stage.name
            began, before = monotonic(), len(llm.calls)
            try:
                brought = await step(item, passage.values, llm)
            except Exception as error:
                stats.failed += 1
                _say_where(error, stage.name)
                raise
            finally:
                stats.seconds += monotonic() - began
                for answer in list(llm.calls)[before:]:
                    stats.take(answer)
            if stage.kind == "keep":
                if not brought:
                    stats.dropped += 1
                    passage.dropped = True
                    return None
            else:
                value = passage.values[stage.name] = brought
            stats.passed += 1
        passage.ended = ""
        return value

    def outcome(self, result: Result) -> PipelineOutcome:
        """Return what became of an item."""
        passage = self._passages.get(result.index) or _Passage()
        return PipelineOutcome(
            result, result.value, passage.values, passage.ended, passage.dropped and result.ok
        )


def _say_where(error: Exception, stage: str) -> None:
    if isinstance(error, ScaleInferError):
        error.message = f"stage {stage!r}: {error.message}"


def _step(stage: Stage, before: list[Stage]) -> Any:
    """Return a coroutine function of item, earlier values and `llm`."""
    what = f"stage {stage.name!r}"
    if stage.kind != "ask":
        function = function_of(stage.function, 2, what="the function")

        async def computed(item: Any, done: dict[str, Any], llm: LLM) -> Any:
            del llm
            return await function(item, dict(done))

        return computed

    template = isinstance(stage.function, str)
    names = [one.name for one in before if one.kind != "keep"] if template else ["done"]
    prompt_of = prompt_function(stage.function, names, what="prompt_fn" if template else what)
    role = Role(stage.name, stage.system, stage.model, stage.backend, stage.sampling)

    async def asked(item: Any, done: dict[str, Any], llm: LLM) -> Any:
        given = [done[name] for name in names] if template else [dict(done)]
        prompt = await prompt_of(item, *given)
        return (await role.ask(llm, prompt, schema=stage.schema)).value

    return asked


def _named(stages: Sequence[Stage | PromptOf]) -> list[Stage]:
    """Return the stages, each with a name of its own.

    Raises:
        ConfigError: There are none, or two have the same name.
    """
    if isinstance(stages, str | Stage) or not isinstance(stages, Sequence) or not stages:
        raise ConfigError("A pipeline needs a list of stages, at least one.")
    named: list[Stage] = []
    taken: set[str] = set()
    for number, given in enumerate(stages, 1):
        stage = given if isinstance(given, Stage) else Stage(given)
        name = stage.name
        if name in taken:
            raise ConfigError(f"two stages have the name {name!r}.")
        own = getattr(stage.function, "__name__", "")
        if not name:
            name = own if own.isidentifier() and own not in taken else f"stage {number}"
        taken.add(name)
        named.append(replace(stage, name=name))
    return named
