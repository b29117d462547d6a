"""Results as displays and reports may show them: what a policy restricts is without its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, overload

from scaleinfer.policy import withheld

if TYPE_CHECKING:
    from scaleinfer.results import Result

__all__ = ["shown", "shown_result"]


def shown(results: Sequence[Result]) -> Sequence[Result]:
    """Return results for a display; the same object if nothing among them is restricted."""
    if any(result.restricted for result in results):
        return _Shown(results)
    return results


def shown_result(result: Result) -> Result:
    """Return one result for a display."""
    if not result.restricted:
        return result
    text = f"(restricted: {result.label})" if result.label else "(restricted)"
    return replace(
        result,
        item=text,
        text=text if result.ok else None,
        value=text if result.ok else None,
        error=None if result.error is None else withheld(result.error),
        choices=None,
        tool_calls=None,
        logprobs=None,
    )


class _Shown(Sequence["Result"]):
    """Results, each made presentable as it is looked at."""

    def __init__(self, results: Sequence[Result]) -> None:
        self._results = results

    @overload
    def __getitem__(self, index: int) -> Result: ...
    @overload
    def __getitem__(self, index: slice) -> list[Result]: ...
    def __getitem__(self, index: int | slice) -> Result | list[Result]:
        if isinstance(index, slice):
            return [shown_result(result) for result in self._results[index]]
        return shown_result(self._results[index])

    def __len__(self) -> int:
        return len(self._results)
