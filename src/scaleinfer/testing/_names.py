"""Values that come again and again, kept once."""

from __future__ import annotations

from typing import Any

__all__ = ["Names"]


class Names:
    """Numbers for values that repeat: each is kept once."""

    __slots__ = ("numbers", "values")

    def __init__(self, values: list[Any] | None = None) -> None:
        self.values: list[Any] = values if values is not None else []
        self.numbers: dict[Any, int] = {value: i for i, value in enumerate(self.values)}

    def number(self, value: Any) -> int:
        """Return the number of a value, a new one if it did not come before."""
        number = self.numbers.get(value)
        if number is None:
            number = len(self.values)
            self.values.append(value)
            self.numbers[value] = number
        return number
