"""What programs of patterns have in common: prompts from items, and calls made together."""

from __future__ import annotations

import asyncio
import inspect
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from scaleinfer.errors import ConfigError, EndpointError, PromptError, SchemaError
from scaleinfer.program import is_program
from scaleinfer.prompts import Prompt, Template

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable

    from scaleinfer.errors import ScaleInferError
    from scaleinfer.results import Result

__all__ = ["GIVEN_UP", "called", "gathered", "prompt_maker", "together"]

GIVEN_UP = (EndpointError, SchemaError, PromptError)
"""What one call may fail with while the item's other calls go on."""


def prompt_maker(prompt_fn: Any, *, what: str = "prompt_fn") -> Callable[[Any], Awaitable[Any]]:
    """Return a coroutine function that gives an item's prompt: a string, messages or a `Prompt`.

    Args:
        prompt_fn: A template or a function of the item, plain or async.
        what: What the argument is called in messages.

    Raises:
        ConfigError: It is neither.
    """
    if is_program(prompt_fn):
        raise ConfigError(
            f"{what} is a program; a pattern asks prompts.",
            hint="Pass a template or a function of the item.",
        )
    if isinstance(prompt_fn, str):
        prompt_fn = Template(prompt_fn)
    elif not callable(prompt_fn):
        raise ConfigError(
            f"{what} must be a function of the item or a template string, "
            f"not {type(prompt_fn).__name__}."
        )

    async def make(item: Any) -> Any:
        try:
            prompt = prompt_fn(item)
            if inspect.isawaitable(prompt):
                prompt = await prompt
        except PromptError:
            raise
        except Exception as error:
            raise called(what, error) from error
        if isinstance(prompt, str | list | tuple | Prompt):
            return prompt
        raise PromptError(
            f"{what} returned {type(prompt).__name__}, which is no single prompt.",
            hint="Return a string, a list of messages, or a Prompt.",
        )

    return make


def called(what: str, error: Exception) -> PromptError:
    """Return the error of a function of the user's that raised."""
    return PromptError(
        f"{what} raised {type(error).__name__}: {error}",
        hint=f"The other items go on; mend {what} and call again.",
    )


@asynccontextmanager
async def together() -> AsyncGenerator[asyncio.TaskGroup]:
    """Give a task group whose first error is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as errors:
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        # Not `from None`: a cause that the error has is what the reader wants to see.
        raise first from first.__cause__


async def gathered(asked: Iterable[Awaitable[Result]]) -> list[Result | ScaleInferError]:
    """Await calls at the same time; one that was given up is its error."""

    async def outcome(one: Awaitable[Result]) -> Result | ScaleInferError:
        try:
            return await one
        except GIVEN_UP as error:
            return error

    async with together() as group:
        tasks = [group.create_task(outcome(one)) for one in asked]
    return [task.result() for task in tasks]
