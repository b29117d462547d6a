"""A digest of what a map came to, the same for the run and for its replay."""

from __future__ import annotations

import hashlib
from array import array
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scaleinfer.results import Result

__all__ = ["results_digest"]

_OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS


def results_digest(results: Iterable[Result]) -> str:
    """Return 32 hexadecimal digits over the results, in their order.

    Everything an endpoint said is in it, and everything that was counted: keys, answers, errors,
    tokens, calls, seconds, endpoints. The items are not, nor prices (which may change) nor whether
    an answer came from the journal.
    """
    hasher = hashlib.blake2b(digest_size=16)
    for result in results:
        line = orjson.dumps(_row(result), default=_plain, option=_OPTIONS)
        hasher.update(len(line).to_bytes(8, "little"))
        hasher.update(line)
    return hasher.hexdigest()


def _row(result: Result) -> list[Any]:
    error = result.error
    return [
        result.key, result.index, result.ok, result.text, result.value,
        None if error is None else error.to_dict(), list(result.usage), result.attempts,
        round(result.latency_s, 6), result.endpoint, result.worker, result.model,
        result.finish_reason, result.choices, result.tool_calls, result.logprobs, result.batch,
    ]  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, array):
        return value.tobytes().hex()
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="json")
    raise TypeError(f"{type(value).__name__} is not JSON data")
