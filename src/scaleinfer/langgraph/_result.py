"""`NodeResult`: a `Result` that LangGraph's checkpointers can write down and read again."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

from scaleinfer.errors import ScaleInferError, error_from_dict
from scaleinfer.results import Result, Usage

__all__ = ["NodeResult"]

_NO_USAGE = Usage()


@dataclass(slots=True)
class NodeResult(Result):
    """What became of one item of a node's map: a `Result` that checkpoints keep whole.

    LangGraph's serialiser writes a class by name and arguments, and an exception as its text.
    This one hands it plain data and takes the same back, so that its error is typed again when
    a checkpoint is read. Annotate the state's key as `list[NodeResult]`: then it is also read
    where LangGraph's `LANGGRAPH_STRICT_MSGPACK` is set.
    """

    def __post_init__(self) -> None:
        if isinstance(self.error, dict):
            self.error = error_from_dict(self.error)
        if not isinstance(self.usage, Usage):
            self.usage = Usage(*self.usage)

    @classmethod
    def of(cls, result: Result) -> Self:
        """Return a copy of a map's result."""
        return cls(**{name: getattr(result, name) for name in _NAMES})

    def _asdict(self) -> dict[str, Any]:
        # The name under which LangGraph's serialiser asks an object for its arguments.
        written: dict[str, Any] = {"key": self.key, "index": self.index}
        for name, default in _DEFAULTS:
            value = getattr(self, name)
            if value is not default and value != default:
                written[name] = value
        if isinstance(self.error, ScaleInferError):
            written["error"] = self.error.to_dict()
        if self.usage != _NO_USAGE:
            written["usage"] = list(self.usage)
        return written


# Checkpoints name it; they are read by later versions too.
NodeResult.__module__ = "scaleinfer.langgraph"

_NAMES = tuple(field.name for field in fields(Result))
_DEFAULTS = tuple(
    (field.name, field.default)
    for field in fields(Result)
    if field.name not in {"key", "index", "error", "usage"}
)
