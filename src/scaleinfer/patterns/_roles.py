"""Who is asked what: roles, and prompt functions of several arguments."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scaleinfer.errors import ConfigError, ScaleInferError
from scaleinfer.patterns._asking import called, together
from scaleinfer.prompts import Prompt, Template

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from pydantic import BaseModel

    from scaleinfer.program import LLM
    from scaleinfer.requests import Sampling
    from scaleinfer.results import Result

__all__ = ["PromptOf", "Role", "Scope", "all_of", "function_of", "prompt_function", "words_of"]

PromptOf = Any
"""A template, or a function, plain or async, that returns a prompt."""
_SYSTEM = frozenset({"system", "developer"})


@dataclass(frozen=True, slots=True)
class Role:
    """Who answers: how it is instructed, and where it is asked.

    Attributes:
        name: Its name in transcripts.
        system: System message; `None` for the pattern's own.
        model: Model to ask; `None` for the map's.
        backend: Where to ask, as for `parallel_map`; `None` for where the map asks.
        sampling: Sampling parameters; `None` for the map's.
    """

    name: str = ""
    system: str | None = None
    model: str | None = None
    backend: Any = None
    sampling: Sampling | Mapping[str, Any] | None = None

    async def ask(self, llm: LLM, prompt: Any, *, schema: type[BaseModel] | None = None) -> Result:
        """Ask in this role; what a `Prompt` says itself goes before what the role says.

        Raises:
            ScaleInferError: There is no usable answer.
        """
        own = prompt if isinstance(prompt, Prompt) else None
        return await llm(
            prompt,
            system=self.system if own is None or own.system is None else None,
            schema=schema if own is None or own.schema is None else None,
            sampling=self.sampling if own is None or own.sampling is None else None,
            model=self.model if own is None or own.model is None else None,
            backend=self.backend,
        )


class Scope(Mapping[str, Any]):
    """An item's fields and some names beside them, for templates.

    Args:
        item: The item; `{item}` stands for it.
        names: What else may be named; goes before the item's fields.
    """

    def __init__(self, item: Any, names: Mapping[str, Any]) -> None:
        self._item = item
        self._names = names

    def __getitem__(self, name: str) -> Any:
        if name in self._names:
            return self._names[name]
        item = self._item
        if isinstance(item, Mapping) and name in item:
            return item[name]
        if name in {"item", "0"} or (name == "text" and isinstance(item, str)):
            return item
        if not isinstance(item, Mapping | str) and hasattr(item, name):
            return getattr(item, name)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        fields = list(self._item) if isinstance(self._item, Mapping) else ["item"]
        return iter(dict.fromkeys([*self._names, *fields]))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return repr(self._item)


def prompt_function(
    given: PromptOf, names: Sequence[str] = (), *, what: str
) -> Callable[..., Awaitable[Any]]:
    """Return a coroutine function of the item and of what `names` lists.

    Args:
        given: A template that names the item's fields and `names`; or a function of the item and
            as many of the others as it has parameters.
        names: What there is beside the item.
        what: How errors call it.

    Raises:
        ConfigError: It is neither.
    """
    if not isinstance(given, str):
        return function_of(given, 1 + len(names), what=what)
    template = Template(given)

    async def filled(item: Any, *others: Any) -> Any:
        return template(Scope(item, dict(zip(names, others, strict=True))))

    return filled


def function_of(function: Any, most: int, *, what: str) -> Callable[..., Awaitable[Any]]:
    """Return a coroutine function that calls `function`, plain or async.

    Args:
        function: Gets as many of the arguments as it has parameters.
        most: How many arguments there are.
        what: How errors call it. What it raises becomes a `PromptError`.

    Raises:
        ConfigError: It is no function.
    """
    if not callable(function):
        raise ConfigError(
            f"{what} must be a function or a template string, not {type(function).__name__}."
        )
    count = min(most, _positional(function))

    async def call(*arguments: Any) -> Any:
        try:
            value = function(*arguments[:count])
            return await value if inspect.isawaitable(value) else value
        except ScaleInferError:
            raise
        except Exception as error:
            raise called(what, error) from error

    return call


def _positional(function: Callable[..., Any]) -> int:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 1  # some builtins do not tell
    if any(one.kind is one.VAR_POSITIONAL for one in parameters):
        return len(parameters) + 9
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.kind in places for one in parameters)


async def all_of(questions: Sequence[Awaitable[Any]]) -> list[Any]:
    """Await all at once, and return what they come to in order; the first failure ends all.

    Raises:
        Exception: What the first that failed raised.
    """

    async def one(question: Awaitable[Any]) -> Any:
        return await question

    async with together() as group:
        tasks = [group.create_task(one(question)) for question in questions]
    return [task.result() for task in tasks]


def words_of(prompt: Any, *, everything: bool = False) -> str:
    """Return what a prompt says.

    Args:
        prompt: A string, chat messages, or a `Prompt`.
        everything: True for system messages too, which another prompt that quotes it leaves out.
    """
    content, said = prompt, []
    if isinstance(prompt, Prompt):
        content = prompt.content
        if everything and prompt.system:
            said.append(prompt.system)
    if isinstance(content, str):
        said.append(content)
    elif isinstance(content, list | tuple):
        for message in content:
            if isinstance(message, dict) and (everything or message.get("role") not in _SYSTEM):
                said += _parts(message.get("content"))
    return "\n\n".join(said)


def _parts(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        return []
    return [part["text"] for part in content if isinstance(part, dict) and "text" in part]
