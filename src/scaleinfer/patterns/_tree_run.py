"""A tree reduction while it runs: leaves in, groups out to the map, answers back in."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scaleinfer.data import END, source
from scaleinfer.errors import ConfigError, Permanent, PromptError, ScaleInferError
from scaleinfer.patterns._roles import all_of, function_of, prompt_function, words_of
from scaleinfer.patterns._tokens import TokenScale, pieces
from scaleinfer.patterns._tree_plan import Group, Node, TreePlan

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from scaleinfer.data import Source
    from scaleinfer.patterns._roles import PromptOf
    from scaleinfer.program import LLM
    from scaleinfer.results import Result

__all__ = ["Part", "Reduction", "Room", "Texts"]

_REFUSALS = frozenset({400, 413, 422})
"""What servers answer to a prompt that is too long, and to one that is wrong."""
_SAMPLE = 200
_TEMPLATE_TOKENS = 16
"""What a chat template puts around the messages."""


class Texts(list[str]):
    """The texts that one prompt is about.

    Attributes:
        level: 1 if they are leaves, above that summaries.
    """

    def __init__(self, texts: Sequence[str], level: int) -> None:
        super().__init__(texts)
        self.level = level

    @property
    def text(self) -> str:
        """All of them, with an empty line between two."""
        return "\n\n".join(self)


@dataclass(frozen=True, slots=True)
class Part:
    """The item of a call: which texts it reduces.

    Attributes:
        level: 1 for leaves, above that summaries.
        number: Its place on the level, from 0.
        texts: How many texts it reduces.
        first: The first leaf under it.
        last: The last leaf under it.
    """

    level: int
    number: int
    texts: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Room:
    """How much a prompt may hold.

    Attributes:
        fan_in: Texts at most; `None` for as many as there is room for.
        context: Tokens of a prompt and its answer together at most; `None` for no limit.
        answer: Tokens of an answer at most.
        system: The system message.
        count: Counts tokens; `None` to estimate them.
    """

    fan_in: int | None
    context: int | None = None
    answer: int = 0
    system: str = ""
    count: Callable[[str], int] | None = None


@dataclass(frozen=True, slots=True)
class _Text:
    """A leaf or a summary, and what identifies it."""

    text: str
    key: str
    value: Any = None


class Reduction:
    """The items and the program of the map that reduces a tree.

    Args:
        items: The leaves.
        prompt_fn: Asks for the reduction of several texts.
        text_of: Makes a text of an item.
        key: The user's key of an item.
        room: How much a prompt may hold.
        strict: True to give up as soon as a leaf is lost.

    Attributes:
        leaves: Leaves so far.
        missing: Leaves that are not in the result, and why.
    """

    def __init__(
        self,
        items: Any,
        prompt_fn: PromptOf,
        *,
        text_of: PromptOf,
        key: Callable[[Any], Any] | None,
        room: Room,
        strict: bool,
    ) -> None:
        self.leaves = 0
        self.missing: dict[int, ScaleInferError] = {}
        self._items = items
        self._prompt_of = prompt_function(prompt_fn, (), what="prompt_fn")
        self._text_of = prompt_function(text_of, (), what="text")
        self._key = None if key is None else function_of(key, 1, what="key")
        self._room = room
        self._strict = strict
        self._scale = TokenScale(room.count)
        self._plan: TreePlan[_Text] = TreePlan(fan_in=room.fan_in, limit=room.context)
        # With a context to fill, the first group is asked alone: it shows what a token is.
        self._uncalibrated = room.context is not None and not self._scale.exact
        self._limit: int | None = None
        self._each = 0
        self._groups: dict[Part, Group[_Text]] = {}
        self._wake = asyncio.Event()
        self._ended = self._given_up = self._calibrating = False

    @property
    def depth(self) -> int:
        """Levels of the tree."""
        return self._plan.depth

    @property
    def root(self) -> _Text | None:
        """What everything was reduced to; `None` if there is nothing."""
        return None if self._plan.root is None else self._plan.root.content

    async def parts(self) -> AsyncGenerator[Part, None]:
        """Yield what is to be reduced, as soon as it is known; leaves are pulled as needed.

        Raises:
            ConfigError: The context has no room for two summaries.
            Exception: Whatever the items' iterator raised.
        """
        leaves = _Leaves(source(self._items))
        try:
            while not (self._given_up or self._plan.finished):
                group = self._plan.take()
                if group is not None:
                    self._calibrating = self._uncalibrated
                    yield self._part(group)
                elif self._ended or self._calibrating:
                    await self._wake.wait()
                    self._wake.clear()
                elif (leaf := await leaves.next_or(self._wake)) is not None:
                    await self._add(leaf[0])
        finally:
            await leaves.aclose()

    def key_of(self, part: Part) -> str:
        """Return what identifies a part: the keys of the texts in it."""
        digest = hashlib.blake2b(b"%d" % part.level, digest_size=16)
        for node in self._groups[part].nodes:
            digest.update(b"\0" + node.content.key.encode())
        return digest.hexdigest()

    async def run(self, part: Part, llm: LLM) -> Any:
        """Reduce the texts of one part."""
        group = self._groups.pop(part)
        try:
            answer = await self._reduced(group.nodes, part.level, llm)
            text = answer.text or ""
            if not text.strip():
                raise PromptError("the answer is empty.", hint="Raise max_tokens.")
        except Exception as error:
            self._miss(group.nodes, error)
            self._plan.lost(group)
            raise
        else:
            size = min(self._scale.tokens(text), self._room.answer) + self._each
            self._plan.done(group, _Text(text, llm.key, answer.value), size)
        finally:
            self._calibrating = self._uncalibrated = False
            self._wake.set()
        return answer.value

    def _part(self, group: Group[_Text]) -> Part:
        nodes = group.nodes
        part = Part(group.level, group.number, len(nodes), nodes[0].first, nodes[-1].last)
        self._groups[part] = group
        return part

    async def _add(self, item: Any) -> None:
        if item is END:
            self._ended = True
            self._plan.close()
            return
        index, self.leaves = self.leaves, self.leaves + 1
        try:
            text = await self._text_of(item)
            if not isinstance(text, str) or not text.strip():
                raise PromptError(f"text returned {text!r:.60}, which is no text to reduce.")
            key = text if self._key is None else str(await self._key(item))
        except PromptError as error:
            error.index = index
            self.missing[index] = error
            self._given_up = self._strict
            self._plan.add(None)
            return
        key = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        if self._room.context is None:
            self._plan.add(Node(_Text(text, key), 1, index, index))
            return
        limit = self._limit or await self._measured(text)
        for number, piece in enumerate(pieces(text, limit - self._each, self._scale)):
            size = self._scale.tokens(piece) + self._each
            self._plan.add(Node(_Text(piece, f"{key}/{number}"), size, index, index))

    async def _measured(self, text: str) -> int:
        """Return how many tokens the texts of a prompt may have, from the prompt around one.

        Raises:
            ConfigError: Two summaries would not fit.
        """
        room, tokens = self._room, self._scale.tokens
        assert room.context is not None
        sample = text[:_SAMPLE]
        one, two = [
            tokens(words_of(await self._prompt_of(Texts([sample] * count, 1)), everything=True))
            for count in (1, 2)
        ]
        # Two estimates differ by one at most from what the text between them comes to.
        self._each = max(0, two - one - tokens(sample)) + 1
        around = max(0, one - tokens(sample)) + _TEMPLATE_TOKENS
        around += tokens(room.system) if room.system else 0
        self._limit = room.context - room.answer - around
        if 2 * (room.answer + self._each) > self._limit:
            raise ConfigError(
                f"context_tokens={room.context} has no room for two summaries of {room.answer} "
                f"tokens, an answer as long, and the prompt around them ({around} tokens).",
                hint="Lower sampling's max_tokens, shorten prompt_fn, or raise context_tokens.",
            )
        self._plan.limit = self._limit
        return self._limit

    async def _reduced(self, nodes: Sequence[Node[_Text]], level: int, llm: LLM) -> Result:
        """Return the reduction of some texts; what the server refuses is tried in halves."""
        try:
            return await self._asked([node.content.text for node in nodes], level, llm)
        except Permanent as error:
            if len(nodes) == 1 or error.fatal or error.status not in _REFUSALS:
                raise
        halves = nodes[: len(nodes) // 2], nodes[len(nodes) // 2 :]
        outcomes = await all_of([self._tried(half, level, llm) for half in halves])
        answers: list[Result] = [one for one in outcomes if not isinstance(one, ScaleInferError)]
        if not answers:
            raise outcomes[0]
        for half, outcome in zip(halves, outcomes, strict=True):
            if isinstance(outcome, ScaleInferError):
                self._miss(half, outcome)
                return answers[0]
        return await self._asked([answer.text or "" for answer in answers], level + 1, llm)

    async def _tried(
        self, nodes: Sequence[Node[_Text]], level: int, llm: LLM
    ) -> Result | ScaleInferError:
        try:
            return await self._reduced(nodes, level, llm)
        except ScaleInferError as error:
            return error

    async def _asked(self, texts: list[str], level: int, llm: LLM) -> Result:
        prompt = await self._prompt_of(Texts(texts, level))
        answer = await llm(prompt)
        usage = answer.usage
        if self._calibrating and usage.requests:
            characters = len(words_of(prompt, everything=True)) + len(self._room.system)
            self._scale.calibrate(characters, usage.prompt_tokens // usage.requests)
        return answer

    def _miss(self, nodes: Sequence[Node[_Text]], error: Exception) -> None:
        """Take note of the leaves under some nodes that will not be in the result."""
        why = error if isinstance(error, ScaleInferError) else PromptError(str(error))
        for index in range(nodes[0].first, nodes[-1].last + 1):
            self.missing.setdefault(index, why)
        self._given_up = self._given_up or self._strict


class _Leaves:
    """Pulls leaves, without holding up what else there is to do."""

    def __init__(self, leaves: Source) -> None:
        self._leaves = leaves
        self._pull: asyncio.Task[Any] | None = None

    async def next_or(self, wake: asyncio.Event) -> tuple[Any] | None:
        """Return the next leaf or `END`, in a tuple; `None` if `wake` was set before."""
        if self._leaves.nowait:
            return (self._leaves.next_nowait(),)
        if self._pull is None:
            self._pull = asyncio.create_task(self._leaves.next())
        woken = asyncio.create_task(wake.wait())
        try:
            await asyncio.wait({self._pull, woken}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()
        if not self._pull.done():
            wake.clear()
            return None
        pull, self._pull = self._pull, None
        return (pull.result(),)

    async def aclose(self) -> None:
        """End the pull and the input."""
        if self._pull is not None:
            self._pull.cancel()
            await asyncio.wait({self._pull})
        await self._leaves.aclose()
