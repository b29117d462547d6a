"""A node's view of the graph's state: a `TypedDict`, a dataclass, a pydantic model, a payload."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sized
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["check_keys", "items_of", "read_list", "size_of"]

_MOST = 20


def items_of(state: Any, items: str | Callable[[Any], Any], node: str) -> Any:
    """Return the items that a node is to map.

    Args:
        state: The node's input: the state, or the payload of a `Send`.
        items: A key of it, or a function of it.
        node: Name of the node, for errors.

    Raises:
        ConfigError: There is no such key, it is no list, or the function raised.
    """
    if isinstance(items, str):
        return read_list(state, items, node)
    try:
        found = items(state)
    except Exception as error:
        raise ConfigError(
            f"Node {node!r}: items= raised {type(error).__name__}: {error}.",
            hint=f"The state has: {_shown(_keys(state))}.",
        ) from error
    if isinstance(found, str | bytes | Mapping) or not hasattr(type(found), "__aiter__"):
        _check_list(found, "what items= returned", node)
    return found


def read_list(state: Any, key: str, node: str) -> Any:
    """Return the list that a state has under `key`.

    Raises:
        ConfigError: It has none.
    """
    keys = _keys(state)
    if isinstance(state, Mapping):
        there, value = key in state, state.get(key)
    else:
        there = hasattr(state, key)
        value = getattr(state, key, None)
    if not there:
        raise ConfigError(
            f"Node {node!r}: the state has no {key!r}.",
            hint=f"It has: {_shown(keys)}. A key that nothing has been written to is not there.",
        )
    _check_list(value, f"the state's {key!r}", node)
    return value


def _check_list(value: Any, what: str, node: str) -> None:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise ConfigError(
            f"Node {node!r}: {what} is no list but {type(value).__name__}.",
            hint="For one item write a list of one: items=lambda state: [state['question']]",
        )


def size_of(items: Any) -> int | None:
    """Return how many items there are; `None` if that is not known."""
    return len(items) if isinstance(items, Sized) else None


def check_keys(schema: type, keys: Mapping[str, str | None], node: str) -> None:
    """Check that a state's schema has what a node reads and writes.

    LangGraph drops what a node writes to a key that the state does not have, in silence.

    Args:
        schema: The state's class.
        keys: Name of the node's argument -> the key it names, if it names one.
        node: Name of the node, for errors.

    Raises:
        ConfigError: One of them is not there.
    """
    known = _declared(schema)
    for argument, key in keys.items():
        if key is not None and key not in known:
            raise ConfigError(
                f"Node {node!r}: {argument}={key!r} is no key of {schema.__name__}.",
                hint=f"It has: {_shown(known)}.",
            )


def _declared(schema: type) -> list[str]:
    names: dict[str, None] = {}
    for base in reversed(schema.__mro__):
        # Not the evaluated hints: a type that cannot be imported here does not matter.
        names |= dict.fromkeys(inspect.get_annotations(base))
    # A TypedDict's own bases are gone, but its annotations hold theirs.
    return [*names, *(key for key in getattr(schema, "model_fields", ()) if key not in names)]


def _keys(state: Any) -> list[str]:
    if isinstance(state, Mapping):
        return [str(key) for key in state]
    if is_dataclass(state):
        return [field.name for field in fields(state)]
    return list(getattr(type(state), "model_fields", ())) or list(vars(state))


def _shown(keys: list[str]) -> str:
    more = len(keys) - _MOST
    return (", ".join(keys[:_MOST]) or "nothing") + (f" and {more} more" if more > 0 else "")
