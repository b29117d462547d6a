"""`semantic_entropy`: how uncertain a model is about the meaning of its answers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from scaleinfer.errors import ConfigError, PromptError, ScaleInferError
from scaleinfer.mapping import parallel_map
from scaleinfer.patterns._asking import called, gathered, prompt_maker, together
from scaleinfer.patterns._ensemble import probability
from scaleinfer.patterns._meaning import Clusters, entropy_of, near
from scaleinfer.patterns._members import (
    Member,
    ask,
    check_chance,
    for_map,
    members_of,
    varied,
)
from scaleinfer.patterns._result import Outcome, PatternResult
from scaleinfer.patterns._tables import Table
from scaleinfer.patterns._voting import normalised
from scaleinfer.prompts import Prompt
from scaleinfer.requests import Sampling

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from typing import Unpack

    from pydantic import BaseModel

    from scaleinfer.mapping import MapOptions
    from scaleinfer.program import LLM
    from scaleinfer.results import Result

__all__ = ["EntropyOutcome", "EntropyResult", "semantic_entropy"]

_LEAST = 2
_SHOWN_CLUSTERS = 3


@dataclass(frozen=True, slots=True)
class EntropyOutcome(Outcome):
    """How sure a model is about one item.

    Attributes:
        value: The first answer of the largest cluster.
        entropy: Semantic entropy in nats: 0 if all answers mean the same.
        relative: The entropy as a share of the most that so many answers can have, 0 to 1.
        clusters: Answers that mean the same, as places in `texts`, the largest first.
        texts: The answers.
    """

    entropy: float = 0.0
    relative: float = 0.0
    clusters: tuple[tuple[int, ...], ...] = ()
    texts: tuple[str, ...] = ()

    columns = ("entropy", "relative", "clusters", "texts")

    def shown(self) -> Any:
        """Return the entropy with the largest clusters."""
        from scaleinfer.observe import one_line

        kinds = ", ".join(
            f"{len(cluster)} x {one_line(self.texts[cluster[0]], 30)}"
            for cluster in self.clusters[:_SHOWN_CLUSTERS]
        )
        return f"{self.entropy:.2f} nats: {kinds}"


class EntropyResult(PatternResult[EntropyOutcome]):
    """Outcomes of `semantic_entropy` in input order."""

    def ranked(self) -> list[EntropyOutcome]:
        """Return the outcomes, the most uncertain first, equal ones in order."""
        return sorted(self.ok, key=lambda outcome: -outcome.entropy)

    def tables(self) -> list[Table]:
        """Return how uncertain the model is over all items."""
        if not self.ok:
            return []
        row = (
            len(self.ok),
            fmean(outcome.entropy for outcome in self.ok),
            sum(len(outcome.clusters) == 1 for outcome in self.ok),
            fmean(len(outcome.clusters) for outcome in self.ok),
        )
        names = ("items", "mean entropy (nats)", "of one meaning", "mean meanings")
        return [Table("Semantic entropy", names, [row])]


async def semantic_entropy(
    items: Any,
    prompt_fn: str | Callable[[Any], Any],
    *,
    n: int = 10,
    by: Literal["entailment", "embedding"] = "entailment",
    by_model: Any = None,
    threshold: float = 0.9,
    weigh: Literal["count", "probability"] = "count",
    answer: Callable[[Result], str] | None = None,
    question: str | Callable[[Any], Any] | None = None,
    seed: int | None = 0,
    **options: Unpack[MapOptions],
) -> EntropyResult:
    """Ask each item's question several times and say how far the answers differ in meaning.

    Answers that mean the same form a cluster; the entropy of the clusters is low where the
    model knows and high where it makes something up (S. Farquhar et al., Detecting
    hallucinations in large language models using semantic entropy, Nature 630, 625-630, 2024).
    It says nothing of mistakes that a model makes every time.

    Args:
        items: As for `parallel_map`.
        prompt_fn: A template or a function of the item, plain or async, that gives one prompt.
        n: Answers to each item, asked with seeds of their own as by `ensemble`; at least 2.
        by: `"entailment"`: two answers mean the same if a model says that each follows from the
            other, in the context of the question. `"embedding"`: if their embeddings' cosine
            reaches `threshold`. Answers of the same words are never compared.
        by_model: Who says so or embeds: a model, address, backend or `Member`; default the
            map's own.
        threshold: Cosine from which on two answers mean the same. It depends on the embedding
            model: look at pairs of your own before you trust it.
        weigh: `"count"`: each answer counts 1. `"probability"`: each counts its probability (the
            geometric mean of its tokens'), for which log probabilities are asked.
        answer: What of a result is compared; default its text.
        question: What the answers answer, for the entailment prompt; default the prompt, if
            that is a text.
        seed: The first sample's seed, where the sampling names none; `None` to send no seeds.
        options: As for `parallel_map`.

    Returns:
        An outcome per item. An item with fewer than two answers, or whose answers could not be
        compared, is a failed one.

    Raises:
        ConfigError: An argument is wrong; nothing was sent.
    """
    _check(n, by, threshold, weigh, Sampling.of(options.get("sampling")))
    [member] = members_of(None)
    checkers = members_of(None if by_model is None else [by_model], what="by_model")
    options, [member] = for_map(options, (member,), "semantic entropy")
    study = _Study(
        prompt_maker(prompt_fn), member, checkers[0], n=n, by=by, threshold=threshold,
        weigh=weigh, answer=answer, seed=seed,
        question=None if question is None else prompt_maker(question, what="question"),
    )  # fmt: skip
    results = await parallel_map(items, study.run, **options)
    outcomes = [
        replace(result.value, result=result) if result.ok else EntropyOutcome(result)
        for result in results
    ]
    return EntropyResult(outcomes, results.stats)


def _check(n: Any, by: Any, threshold: Any, weigh: Any, sampling: Sampling) -> None:
    if not isinstance(n, int) or isinstance(n, bool) or n < _LEAST:
        raise ConfigError(f"n is a number of answers, at least {_LEAST}, not {n!r}.")
    if by not in {"entailment", "embedding"}:
        raise ConfigError(f"by={by!r} is unknown.", hint="Known: 'entailment', 'embedding'.")
    if weigh not in {"count", "probability"}:
        raise ConfigError(f"weigh={weigh!r} is unknown.", hint="Known: 'count', 'probability'.")
    if not isinstance(threshold, int | float) or not -1 <= threshold <= 1:
        raise ConfigError(f"threshold is a cosine, -1 to 1, not {threshold!r}.")
    check_chance(sampling, n)


class _Study:
    """Asks and compares the answers to one item after the other; keeps nothing between them."""

    def __init__(
        self,
        prompt: Callable[[Any], Awaitable[Any]],
        member: Member,
        checker: Member,
        *,
        n: int,
        by: str,
        threshold: float,
        weigh: str,
        answer: Callable[[Result], str] | None,
        seed: int | None,
        question: Callable[[Any], Awaitable[Any]] | None,
    ) -> None:
        self._prompt = prompt
        self._member = member
        self._checker = checker
        self._n = n
        self._by = by
        self._threshold = threshold
        self._by_probability = weigh == "probability"
        self._answer = answer
        self._seed = seed
        self._question = question

    async def run(self, item: Any, llm: LLM) -> EntropyOutcome:
        """Return what comes of one item."""
        prompt = await self._prompt(item)
        results = await self._sampled(llm, prompt)
        texts = [self._text(result) for result in results]
        if self._by == "embedding":
            clusters = await self._embedded(llm, texts)
        else:
            clusters = await self._entailed(llm, await self._asked(item, prompt), texts)
        weights = [probability(r) if self._by_probability else 1.0 for r in results]
        entropy = entropy_of(clusters, weights)
        return EntropyOutcome(
            result=_NOT_YET,
            value=texts[clusters[0][0]],
            entropy=entropy,
            relative=entropy / math.log(len(texts)),
            clusters=clusters,
            texts=tuple(texts),
        )

    async def _sampled(self, llm: LLM, prompt: Any) -> list[Result]:
        changes: dict[str, Any] = {"logprobs": True} if self._by_probability else {}
        outcomes = await gathered(
            ask(
                llm,
                prompt,
                self._member,
                **varied(llm, prompt, self._member, number, self._seed),
                **changes,
            )
            for number in range(self._n)
        )
        results = [one for one in outcomes if not isinstance(one, ScaleInferError)]
        if len(results) < _LEAST:
            raise next(one for one in outcomes if isinstance(one, ScaleInferError))
        return results

    def _text(self, result: Result) -> str:
        if self._answer is None:
            return result.text or ""
        try:
            return str(self._answer(result))
        except Exception as error:
            raise called("answer", error) from error

    async def _asked(self, item: Any, prompt: Any) -> str:
        """Return the question in whose context answers are compared."""
        if self._question is not None:
            prompt = await self._question(item)
        if isinstance(prompt, Prompt):
            prompt = prompt.content
        if isinstance(prompt, str):
            return prompt
        users = [m.get("content") for m in prompt if m.get("role") == "user"]
        if users and isinstance(users[-1], str):
            return users[-1]
        raise PromptError("the prompt has no text to compare answers by.", hint="Pass question=.")

    async def _embedded(self, llm: LLM, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        # An empty text has no embedding.
        asked = [text if text.strip() else "(no answer)" for text in texts]
        vectors = await llm.embed(asked, model=self._checker.model, backend=self._checker.backend)
        return near(vectors, self._threshold).sorted()

    async def _entailed(
        self, llm: LLM, question: str, texts: Sequence[str]
    ) -> tuple[tuple[int, ...], ...]:
        clusters = Clusters()
        first: dict[str, int] = {}
        for number, text in enumerate(texts):
            other = first.setdefault(normalised(text), number)
            if other != number:
                clusters.join(number, other)
                continue
            pairs = [(text, texts[known]) for known in clusters.representatives]
            forward = await self._follow(llm, question, pairs)
            # The way back is asked only where the way there was found.
            back = [(b, a) for (a, b), follows in zip(pairs, forward, strict=True) if follows]
            backward = iter(await self._follow(llm, question, back))
            clusters.place(number, [follows and next(backward) for follows in forward])
        return clusters.sorted()

    async def _follow(
        self, llm: LLM, question: str, pairs: Sequence[tuple[str, str]]
    ) -> list[bool]:
        """Return for each pair whether the second text follows from the first."""
        schema = _relation()
        async with together() as group:
            tasks = [
                group.create_task(
                    ask(
                        llm,
                        Prompt(
                            _ENTAILMENT.format(question=question, first=first, second=second),
                            system=_SYSTEM,
                            schema=schema,
                            sampling=Sampling(temperature=0, max_tokens=30),
                        ),
                        self._checker,
                    )
                )
                for first, second in pairs
            ]
        return [bool(task.result().value.relation == "entailment") for task in tasks]


_NOT_YET: Any = None
"""In place of the item's result, which there is when its program has ended."""

_SYSTEM = "You compare what answers to a question mean."
_ENTAILMENT = (
    "Two answers were given to a question.\n\nQuestion: {question}\n\nFirst answer: {first}\n\n"
    "Second answer: {second}\n\nDoes the second answer follow from the first? Say entailment if "
    "it does, contradiction if both cannot be true, and neutral otherwise."
)


@cache
def _relation() -> type[BaseModel]:
    from pydantic import BaseModel

    class Relation(BaseModel):
        relation: Literal["entailment", "neutral", "contradiction"]

    return Relation
