"""Every error scaleinfer raises or returns, in one tree.

```text
ScaleInferError
├── ConfigError            a setting, an argument or the environment is wrong
├── BudgetExceeded         a hard cap would have been passed
├── JournalError           the journal cannot be opened, read or written
├── EndpointError          an endpoint did not give a usable answer
│   ├── RateLimited        it asked us to come back later (429)
│   ├── Overloaded         it has no room right now (503, 529)
│   ├── Starting           it is loading its model
│   ├── Transient          it may work when tried again (5xx, broken connection, timeout)
│   ├── Permanent          it will not work however often it is tried (400, 404, 422)
│   └── AuthError          it refused the credentials (401, 403)
├── PromptError            prompt_fn or the template failed for an item
├── SchemaError            the answer did not satisfy the schema, repairs included
├── RunStopped             the run was stopped before this item had an answer
└── WorkerLost             a fleet worker went away with the item
```

Errors carry typed fields, pickle with them, and turn into plain JSON and back (`to_dict`,
`error_from_dict`), because they travel between processes and into journals.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from scaleinfer.results import Attempt, RateState, Usage

__all__ = [
    "AuthError",
    "BudgetExceeded",
    "ConfigError",
    "EndpointError",
    "JournalError",
    "Overloaded",
    "Permanent",
    "PromptError",
    "RateLimited",
    "RunStopped",
    "ScaleInferError",
    "SchemaError",
    "Starting",
    "Transient",
    "WorkerLost",
    "error_from_dict",
]


class ScaleInferError(Exception):
    """Base of every scaleinfer error.

    Attributes:
        message: What happened.
        hint: What to do next; empty if there is nothing to advise.
        index: Position of the item in the input, if the error belongs to one.
        key: Key of the item, if the error belongs to one.
    """

    _fields: ClassVar[tuple[str, ...]] = ("message", "hint", "index", "key")

    def __init__(
        self, message: str, *, hint: str = "", index: int | None = None, key: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.index = index
        self.key = key

    def __str__(self) -> str:
        where = "" if self.index is None else f"item {self.index}: "
        return f"{where}{self.message}" + (f" {self.hint}" if self.hint else "")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__.copy())

    def to_dict(self) -> dict[str, Any]:
        """Return the error as plain JSON data, with the class name under `type`."""
        fields = {name: getattr(self, name) for name in self._fields}
        known = {name: value for name, value in fields.items() if value not in (None, "")}
        return {"type": type(self).__name__} | known


class ConfigError(ScaleInferError):
    """A setting, an argument or the environment is wrong; nothing was sent."""


class BudgetExceeded(ScaleInferError):
    """A hard cap would have been passed.

    Attributes:
        cap: Which: the name of a field of `Budget`.
        limit: The cap, in that field's unit.
        spent: What was used of it.
    """

    _fields = (*ScaleInferError._fields, "cap", "limit", "spent")

    def __init__(
        self,
        message: str,
        *,
        cap: str = "",
        limit: float = 0.0,
        spent: float = 0.0,
        hint: str = "",
        index: int | None = None,
        key: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint, index=index, key=key)
        self.cap = cap
        self.limit = limit
        self.spent = spent


class JournalError(ScaleInferError):
    """The journal cannot be opened, read or written.

    Attributes:
        path: The journal's file.
        reason: A short code: `locked`, `foreign`, `damaged`, `newer`, `older`, `full`,
            `readonly` or `io`.
    """

    _fields = (*ScaleInferError._fields, "path", "reason")

    def __init__(
        self,
        message: str,
        *,
        path: str = "",
        reason: str = "io",
        hint: str = "",
        index: int | None = None,
        key: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint, index=index, key=key)
        self.path = path
        self.reason = reason


class EndpointError(ScaleInferError):
    """An endpoint did not give a usable answer.

    The backend that knows the endpoint's dialect chooses the subclass; the engine only acts
    on the class and these fields.

    Attributes:
        endpoint: The endpoint's name, usually its URL without credentials.
        status: HTTP status, if there was one.
        retry_after: Seconds the endpoint asked us to wait.
        body: The start of the endpoint's answer, at most 500 characters.
        fatal: True if no other item of the run can do better (wrong key, unknown model).
        reached: False if the endpoint was never reached (no connection, no TLS).
        rate: Where we stand with the endpoint's rate limits, if its answer said so; not part
            of `to_dict`.
        timed_out: True if no answer came in time; not part of `to_dict` either.
        attempts: The calls that a fleet's worker made; not part of `to_dict` either.
        usage: Tokens that the call used although it failed, if the endpoint said so; not part
            of `to_dict` either.
    """

    _fields = (
        *ScaleInferError._fields, "endpoint", "status", "retry_after", "body", "fatal", "reached",
    )  # fmt: skip

    def __init__(
        self,
        message: str,
        *,
        endpoint: str = "",
        status: int | None = None,
        retry_after: float | None = None,
        body: str = "",
        fatal: bool = False,
        reached: bool = True,
        hint: str = "",
        index: int | None = None,
        key: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint, index=index, key=key)
        self.endpoint = endpoint
        self.status = status
        self.retry_after = retry_after
        self.body = body[:500]
        self.fatal = fatal
        self.reached = reached
        self.rate: RateState | None = None
        self.timed_out = False
        self.attempts: tuple[Attempt, ...] = ()
        self.usage: Usage | None = None


class RateLimited(EndpointError):
    """The endpoint asked us to come back later (429)."""


class Overloaded(EndpointError):
    """The endpoint has no room right now (503, 529)."""


class Starting(EndpointError):
    """The endpoint is loading its model and will answer later."""


class Transient(EndpointError):
    """The call may work when tried again: a 5xx, a broken connection, a timeout."""


class Permanent(EndpointError):
    """The call will not work however often it is tried: 400, 404, 422, a context too long."""


class AuthError(EndpointError):
    """The endpoint refused the credentials (401, 403)."""


class PromptError(ScaleInferError):
    """`prompt_fn` raised, returned something that is no prompt, or a template lacks a field."""


class SchemaError(ScaleInferError):
    """The answer did not satisfy the schema, the allowed repairs included.

    Attributes:
        text: The last answer.
    """

    _fields = (*ScaleInferError._fields, "text")

    def __init__(
        self,
        message: str,
        *,
        text: str = "",
        hint: str = "",
        index: int | None = None,
        key: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint, index=index, key=key)
        self.text = text


class RunStopped(ScaleInferError):
    """The run was stopped before this item had an answer; calling again asks it."""


class WorkerLost(ScaleInferError):
    """A fleet worker went away with the item."""


def _rebuild(
    cls: type[ScaleInferError], args: tuple[Any, ...], state: dict[str, Any]
) -> ScaleInferError:
    error = cls.__new__(cls, *args)
    Exception.__init__(error, *args)
    error.__dict__.update(state)
    return error


def _tree(cls: type[ScaleInferError]) -> dict[str, type[ScaleInferError]]:
    found = {cls.__name__: cls}
    for sub in cls.__subclasses__():
        found |= _tree(sub)
    return found


def error_from_dict(data: dict[str, Any]) -> ScaleInferError:
    """Rebuild an error from `ScaleInferError.to_dict`.

    An unknown type (written by a newer version) becomes a plain `ScaleInferError`.
    """
    cls = _tree(ScaleInferError).get(data.get("type", ""), ScaleInferError)
    known = {k: v for k, v in data.items() if k in cls._fields}
    return cls(known.pop("message", ""), **known)
