"""Item + prompt_fn -> requests. Knows nothing of where they will run."""

from __future__ import annotations

import inspect
import string
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from scaleinfer.errors import ConfigError, PromptError
from scaleinfer.requests import Message, Request, Sampling
from scaleinfer.structured import AnswerSchema

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from pydantic import BaseModel

__all__ = ["Prompt", "Question", "Renderer"]

_MOST_FIELDS = 12
_SHOWN = 60


class Prompt:
    """One prompt with its own settings, for a `prompt_fn` that needs more than a string.

    Args:
        content: The user's text, or a list of chat messages.
        system: System message, in place of the map's.
        schema: Pydantic model of the answer, in place of the map's.
        sampling: Sampling parameters, in place of the map's.
        model: Model to ask, in place of the map's.
        completion: True to continue `content` as plain text (`/v1/completions`) instead of
            asking it in a chat.

    Raises:
        ConfigError: A completion was given messages, a system message or a schema.
    """

    __slots__ = ("completion", "content", "model", "sampling", "schema", "system")

    def __init__(
        self,
        content: str | Sequence[Message],
        *,
        system: str | None = None,
        schema: type[BaseModel] | None = None,
        sampling: Sampling | Mapping[str, Any] | None = None,
        model: str | None = None,
        completion: bool = False,
    ) -> None:
        if completion and not isinstance(content, str):
            raise ConfigError("A completion continues a string; messages belong to a chat.")
        if completion and (system is not None or schema is not None):
            raise ConfigError("A plain completion has neither a system message nor a schema.")
        self.content = content
        self.system = system
        self.schema = schema
        self.sampling = sampling
        self.model = model
        self.completion = completion


@dataclass(slots=True)
class Question:
    """A request and the shape of its answer.

    Attributes:
        request: What to ask.
        schema: What the answer must satisfy, if anything.
    """

    request: Request
    schema: AnswerSchema | None = None


class Renderer:
    """Turns items into requests.

    Args:
        prompt_fn: A template string with the item's fields in braces, or a callable.
        system: System message of every prompt that brings none.
        schema: Pydantic model of the answer.
        sampling: Sampling parameters.

    Attributes:
        model: Model of every request whose prompt names none.
        is_async: True if `prompt_fn` is a coroutine function.

    Raises:
        ConfigError: `prompt_fn` is no callable and no usable template.
    """

    def __init__(
        self,
        prompt_fn: str | Callable[[Any], Any],
        *,
        system: str | None = None,
        schema: type[BaseModel] | None = None,
        sampling: Sampling | Mapping[str, Any] | None = None,
    ) -> None:
        if isinstance(prompt_fn, str):
            prompt_fn = Template(prompt_fn)
        elif not callable(prompt_fn):
            raise ConfigError(
                f"prompt_fn must be a function of the item or a template string, "
                f"not {type(prompt_fn).__name__}.",
                hint='For example: lambda item: f"Summarise: {item}"',
            )
        self._prompt_fn = prompt_fn
        self._system = system
        self._sampling = Sampling.of(sampling)
        self.model: str | None = None
        self._schemas: dict[type[BaseModel], AnswerSchema] = {}
        self._schema = None if schema is None else self._answer_schema(schema)
        self.is_async = inspect.iscoroutinefunction(prompt_fn) or inspect.iscoroutinefunction(
            getattr(prompt_fn, "__call__", None)  # noqa: B004 - async callable objects
        )

    def start(self, item: Any) -> dict[str, Question] | Awaitable[Any]:
        """Return the item's questions by name; a single unnamed one has the name "".

        What an async `prompt_fn` returns is to be given to `finish`.

        Raises:
            PromptError: `prompt_fn` raised, or returned something that is no prompt.
        """
        try:
            returned = self._prompt_fn(item)
            if type(returned) is not str and inspect.isawaitable(returned):
                return returned
            return self._questions(returned)
        except PromptError:
            raise
        except Exception as error:
            raise _prompt_error(error) from error

    async def finish(self, started: Awaitable[Any]) -> dict[str, Question]:
        """Return the questions of an async `prompt_fn`.

        Raises:
            PromptError: It raised, or returned something that is no prompt.
        """
        try:
            return self._questions(await started)
        except PromptError:
            raise
        except Exception as error:
            raise _prompt_error(error) from error

    async def render(self, item: Any) -> dict[str, Question]:
        """Return the item's questions, whether `prompt_fn` is async or not.

        Raises:
            PromptError: `prompt_fn` raised, or returned something that is no prompt.
        """
        started = self.start(item)
        return started if isinstance(started, dict) else await self.finish(started)

    def question(self, prompt: Prompt, *, model: str | None = None) -> Question:
        """Return the question of one prompt.

        Args:
            prompt: The prompt.
            model: Model to ask if the prompt names none; default the map's.

        Raises:
            PromptError: It is no prompt.
        """
        question = self._from_prompt(prompt)
        if model is not None and prompt.model is None:
            question.request.model = model
        return question

    def _questions(self, returned: Any) -> dict[str, Question]:
        if isinstance(returned, Mapping):
            return self._named(returned)
        return {"": self._question(returned)}

    def _named(self, prompts: Mapping[Any, Any]) -> dict[str, Question]:
        if "role" in prompts and "content" in prompts:
            raise PromptError(
                "prompt_fn returned one chat message.", hint="Return a list: [message]."
            )
        if not prompts:
            raise PromptError("prompt_fn returned an empty dict: there is nothing to ask.")
        questions = {}
        for name, prompt in prompts.items():
            if not isinstance(name, str) or not name:
                raise PromptError(f"prompt_fn returned a question named {name!r}, not a string.")
            questions[name] = self._question(prompt)
        return questions

    def _question(self, returned: Any) -> Question:
        if isinstance(returned, str | list | tuple):
            if self._schema is None:
                messages = self._messages(returned, self._system)
                return Question(Request(messages, sampling=self._sampling, model=self.model))
            returned = Prompt(returned)
        if not isinstance(returned, Prompt):
            raise PromptError(
                f"prompt_fn returned {_shown(returned)}, which is no prompt.",
                hint="Return a string, a list of messages, a Prompt, or a dict of name to those.",
            )
        return self._from_prompt(returned)

    def _from_prompt(self, prompt: Prompt) -> Question:
        sampling = self._sampling if prompt.sampling is None else Sampling.of(prompt.sampling)
        model = prompt.model or self.model
        if prompt.completion:
            if not prompt.content:
                raise PromptError("prompt_fn returned an empty completion prompt.")
            return Question(Request(prompt=str(prompt.content), sampling=sampling, model=model))
        system = self._system if prompt.system is None else prompt.system
        request = Request(self._messages(prompt.content, system), sampling=sampling, model=model)
        schema = self._schema if prompt.schema is None else self._answer_schema(prompt.schema)
        if schema is None:
            return Question(request)
        return Question(
            replace(request, schema=schema.json_schema, schema_name=schema.name), schema
        )

    def _answer_schema(self, model: type[BaseModel]) -> AnswerSchema:
        known = self._schemas.get(model)
        if known is None:
            known = self._schemas[model] = AnswerSchema(model)
        return known

    @staticmethod
    def _messages(content: str | Sequence[Message], system: str | None) -> list[Message]:
        if isinstance(content, str):
            if not content.strip():
                raise PromptError("prompt_fn returned an empty string: there is nothing to ask.")
            messages: list[Message] = [{"role": "user", "content": content}]
        elif not isinstance(content, list | tuple):
            raise PromptError(
                f"prompt_fn returned a Prompt of {_shown(content)}, which is no prompt."
            )
        else:
            messages = list(content)
            for message in messages:
                if not (isinstance(message, dict) and isinstance(message.get("role"), str)):
                    raise PromptError(
                        f"prompt_fn returned a list that holds {_shown(message)}, "
                        "which is no chat message.",
                        hint='A message is a dict: {"role": "user", "content": "..."}.',
                    )
            if not messages:
                raise PromptError("prompt_fn returned an empty list of messages.")
        if system is not None and messages[0]["role"] not in {"system", "developer"}:
            messages.insert(0, {"role": "system", "content": system})
        return messages


def _prompt_error(error: Exception) -> PromptError:
    if isinstance(error, ConfigError):
        # Prompt's own arguments: the other items may have better ones.
        return PromptError(error.message, hint=error.hint)
    return PromptError(
        f"prompt_fn raised {type(error).__name__}: {error}",
        hint="The other items go on; mend prompt_fn or the item and call again.",
    )


class Template:
    """A prompt with the item's fields in braces: `"Classify: {title} ({year})"`.

    Fields are a mapping's keys or an object's attributes; `{item}` is the item itself, and `{}`
    too unless it is a tuple or list, whose elements `{}` and `{0}` take. `{{` and `}}` are
    literal braces; format specs (`{x:.2f}`) work as in `str.format`.

    Args:
        text: The template.

    Raises:
        ConfigError: The braces do not match, or no field is named.
    """

    def __init__(self, text: str) -> None:
        try:
            names = [name for _, name, _, _ in _FORMATTER.parse(text) if name is not None]
        except ValueError as error:
            raise ConfigError(
                f"The prompt template cannot be read: {error}.",
                hint="Write literal braces twice: {{ and }}.",
            ) from None
        if not names:
            raise ConfigError(
                f"The prompt template {_shown(text)} names no field of the item.",
                hint='Put fields in braces, e.g. "Summarise: {text}", or pass a function.',
            )
        self.text = text

    def __call__(self, item: Any) -> str:
        """Return the prompt for one item.

        Raises:
            PromptError: The item lacks a field, or the field is None.
        """
        try:
            return _FORMATTER.vformat(self.text, (item,), {})
        except PromptError:
            raise
        except Exception as error:
            raise PromptError(
                f"the template {_shown(self.text)} does not fit {_shown(item)}: "
                f"{type(error).__name__}: {error}"
            ) from error


class _ItemFormatter(string.Formatter):
    """`str.format` whose one argument is the item."""

    def get_field(
        self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Any, Any]:
        value, used = super().get_field(field_name, args, kwargs)
        if value is None:
            raise PromptError(
                f"field {{{field_name}}} of the template is None in this item.",
                hint="Leave such items out, or pass a function that handles them.",
            )
        return value, used

    def get_value(self, key: int | str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return _field(args[0], str(key))


_FORMATTER = _ItemFormatter()


def _field(item: Any, name: str) -> Any:
    if isinstance(item, Mapping) and name in item:
        return item[name]
    if name == "item" or (name == "text" and isinstance(item, str)):
        return item
    if name.isdigit():
        if isinstance(item, list | tuple) and int(name) < len(item):
            return item[int(name)]
        if name == "0" and not isinstance(item, list | tuple):
            return item
    elif not isinstance(item, Mapping | str) and hasattr(item, name):
        return getattr(item, name)
    raise PromptError(
        f"the template names {{{name}}}, which this item does not have.",
        hint=f"It has: {_field_names(item)}.",
    )


def _field_names(item: Any) -> str:
    if isinstance(item, Mapping):
        names = [str(name) for name in item]
    elif hasattr(item, "__dataclass_fields__"):
        names = list(item.__dataclass_fields__)
    elif hasattr(item, "_fields"):
        names = list(item._fields)
    elif hasattr(item, "__dict__"):
        names = [name for name in vars(item) if not name.startswith("_")]
    else:
        names = []
    if not names:
        return f"{{item}} only (it is a {type(item).__name__})"
    more = len(names) - _MOST_FIELDS
    return ", ".join(names[:_MOST_FIELDS]) + (f" and {more} more" if more > 0 else "")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
