"""Tree reductions: summaries of summaries, each within what a model can read at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Unpack

from scaleinfer.errors import ConfigError, PromptError, RunStopped, ScaleInferError
from scaleinfer.mapping import MapOptions, parallel_map
from scaleinfer.patterns._result import Outcome, PatternResult
from scaleinfer.patterns._tree_run import Reduction, Room
from scaleinfer.requests import Sampling
from scaleinfer.results import Result

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaleinfer.map_result import MapResult
    from scaleinfer.patterns._roles import PromptOf
    from scaleinfer.patterns._tables import Table

__all__ = ["TreeOutcome", "TreeResult", "tree_reduce"]

_FAN_IN = 8
_LEAST_FAN_IN = 2
_ANSWER_SHARE = 4


@dataclass(frozen=True, slots=True)
class TreeOutcome(Outcome):
    """What became of one group of texts; `value` is its summary.

    Its `item` says where it stands in the tree: `level` (1 for leaves), `number`, how many
    `texts` it is made of, and the `first` and `last` leaf under it.
    """

    columns: ClassVar[tuple[str, ...]] = ("level",)

    @property
    def level(self) -> int:
        """1 for a group of leaves, above that of summaries."""
        return int(self.item.level)


class TreeResult(PatternResult[TreeOutcome]):
    """What everything was reduced to; as a sequence, the groups in the order they were asked.

    Attributes:
        text: The result; `None` if there is none.
        value: With a schema the validated object, else the text.
        error: Why there is no result; `None` if there is one.
        leaves: How many items there were.
        missing: Leaves that are not in the result, by index, and why.
        depth: Levels above the leaves.
    """

    def __init__(self, results: MapResult, reduction: Reduction, *, strict: bool) -> None:
        super().__init__([TreeOutcome(one, one.value) for one in results], results.stats)
        root = reduction.root
        self.leaves = reduction.leaves
        self.missing = dict(sorted(reduction.missing.items()))
        self.depth = reduction.depth
        self.error: ScaleInferError | None = None
        if root is None or (strict and self.missing):
            self.error = _why(results, self.missing)
        usable = None if self.error is not None else root
        self.text = None if usable is None else usable.text
        self.value = None if usable is None else usable.value

    def tables(self) -> list[Table]:
        """Return a row for each level."""
        from scaleinfer.patterns._tables import Table

        rows = []
        for level in range(1, max((one.level for one in self), default=0) + 1):
            own = [one for one in self if one.level == level]
            failed = sum(not one.ok for one in own)
            tokens = sum(one.usage.total_tokens for one in own)
            texts = sum(one.item.texts for one in own)
            rows.append((level, texts, len(own), failed, tokens))
        title = f"{self.leaves} leaves, {len(self.missing)} of them missing: {self._outcome()}"
        return [Table(title, ("level", "texts", "groups", "failed", "tokens"), rows)]

    def _outcome(self) -> str:
        if self.error is not None:
            return f"{type(self.error).__name__}: {self.error}"
        return f"one text of {len(self.text or ''):,} characters"


def _why(results: MapResult, missing: dict[int, ScaleInferError]) -> ScaleInferError:
    if results.stopped:
        return RunStopped(f"not reduced: {results.stopped}", hint="Call again to go on.")
    for error in missing.values():
        return error
    return PromptError("there were no items: nothing was reduced.")


async def tree_reduce(
    items: Any,
    prompt_fn: PromptOf,
    *,
    fan_in: int | None = None,
    context_tokens: int | None = None,
    text: PromptOf | None = None,
    count_tokens: Callable[[str], int] | None = None,
    on_missing: Literal["leave_out", "fail"] = "leave_out",
    **options: Unpack[MapOptions],
) -> TreeResult:
    """Reduce any number of texts to one: summaries of summaries.

    Neighbours are reduced together, their summaries likewise, until one is left. A group is asked
    as soon as its members are there, whatever the rest of its level does; leaves are pulled as
    needed. What the endpoint refuses (a prompt that turns out too long) is asked again in halves.

    Args:
        items: The leaves: any iterable or async iterable.
        prompt_fn: Asks for the reduction of some texts: a function of a list of strings (which
            has a `level` too: 1 for leaves), or a template that names `{text}`, all of them with
            an empty line between two.
        fan_in: Texts to a prompt at most. Default 8, or with `context_tokens` what fits.
        context_tokens: Tokens that a prompt and its answer may have together. Texts are packed
            up to that; a leaf too long for it is split. The answer's part is the `max_tokens`
            of `sampling`; without one a quarter of the context, which is then asked for.
        text: What a leaf says: a template or a function of the item. Default: the item, which
            must be a string or a `Result`.
        count_tokens: Counts the tokens of a text. Default: an estimate from its length, which
            the first answer corrects: the first group is asked alone.
        on_missing: `"leave_out"` reduces what there is and reports the rest; `"fail"` gives up
            as soon as one leaf cannot be reduced.
        **options: As for `parallel_map`; `key` names the leaves.

    Returns:
        A `TreeResult`: the text, the leaves that are not in it, and every group.

    Raises:
        ConfigError: An argument is wrong, or the context has no room for two summaries.
        JournalError: As for `parallel_map`.
    """
    if fan_in is not None and fan_in < _LEAST_FAN_IN:
        raise ConfigError(f"fan_in must be at least {_LEAST_FAN_IN}, not {fan_in}.")
    if on_missing not in {"leave_out", "fail"}:
        raise ConfigError(f"on_missing must be 'leave_out' or 'fail', not {on_missing!r}.")
    if context_tokens is None:
        room = Room(fan_in or _FAN_IN)
    else:
        sampling = Sampling.of(options.get("sampling"))
        answer = sampling.max_tokens or max(1, context_tokens // _ANSWER_SHARE)
        options["sampling"] = replace(sampling, max_tokens=answer)
        system = options.get("system") or ""
        room = Room(fan_in, context_tokens, answer, system, count_tokens)
    strict = on_missing == "fail"
    reduction = Reduction(
        items, prompt_fn, text_of=text or _own_text, key=options.get("key"), room=room,
        strict=strict,
    )  # fmt: skip
    options["key"] = reduction.key_of
    results = await parallel_map(reduction.parts(), reduction.run, **options)
    return TreeResult(results, reduction, strict=strict)


def _own_text(item: Any) -> Any:
    if isinstance(item, Result):
        if item.error is not None:
            raise PromptError(f"it is a failed result: {item.error.message}")
        return item.text
    if not isinstance(item, str):
        raise PromptError(
            f"a {type(item).__name__} is no text.",
            hint='Say what it says, e.g. text="{title}: {abstract}".',
        )
    return item
