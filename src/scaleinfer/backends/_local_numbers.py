"""Numbers within bounds as EBNF expressions over their decimal digits."""

from __future__ import annotations

__all__ = ["integer_range", "number_range"]

_MOST = 10**15 - 1  # beyond it a JSON number loses digits in many readers
_FRACTION = '("." [0-9]{1,6})?'
_NONZERO_FRACTION = '"." [0-9]{0,5} [1-9]'

Bound = int | float | None


def integer_range(low: Bound, high: Bound, above: Bound, below: Bound) -> str:
    """Return an expression of the integers with `low <= i <= high` and `above < i < below`.

    Raises:
        ValueError: There is no such integer, or a bound is no integer.
    """
    lows = [-_MOST, *([_whole(low)] if low is not None else [])]
    lows += [_whole(above) + 1] if above is not None else []
    highs = [_MOST, *([_whole(high)] if high is not None else [])]
    highs += [_whole(below) - 1] if below is not None else []
    parts = _integers(max(lows), min(highs))
    return _either(parts)


def number_range(low: Bound, high: Bound, above: Bound, below: Bound) -> str:
    """Return an expression of the decimal numbers within the bounds, to six places.

    Raises:
        ValueError: There is no such number, or a bound is no integer.
    """
    lows = [(-_MOST, False), *([(_whole(low), False)] if low is not None else [])]
    lows += [(_whole(above), True)] if above is not None else []
    highs = [(_MOST, False), *([(_whole(high), False)] if high is not None else [])]
    highs += [(_whole(below), True)] if below is not None else []
    bottom, bottom_open = max(lows)
    top, top_closed = min((value, not is_open) for value, is_open in highs)
    parts: list[str] = []
    if bottom < 0:
        inner, inner_open = (-top, not top_closed) if top < 0 else (0, True)
        parts += [f'"-" {p}' for p in _decimals(inner, -bottom, inner_open, bottom_open)]
    if top >= 0:
        start, start_open = (bottom, bottom_open) if bottom >= 0 else (0, False)
        parts += _decimals(start, top, start_open, not top_closed)
    return _either(parts)


def _whole(bound: int | float) -> int:
    if isinstance(bound, bool) or bound != int(bound) or abs(bound) > _MOST:
        raise ValueError(f"has the bound {bound}; only whole numbers below 10^15 can be enforced")
    return int(bound)


def _either(parts: list[str]) -> str:
    if not parts:
        raise ValueError("has bounds that no number satisfies")
    return "(" + " | ".join(parts) + ")"


def _decimals(low: int, high: int, low_open: bool, high_open: bool) -> list[str]:
    """Return the numbers from `low` to `high`, both not negative."""
    parts: list[str] = []
    if low < high:
        if low_open:
            parts.append(f'"{low}" {_NONZERO_FRACTION}')
        first = low + 1 if low_open else low
        parts += [f"{digits} {_FRACTION}" for digits in _naturals(first, high - 1)]
    if not high_open and (low < high or (low == high and not low_open)):
        parts.append(f'"{high}" (".0")?')
    return parts


def _integers(low: int, high: int) -> list[str]:
    negative = _naturals(max(1, -high), -low) if low < 0 else []
    return [f'"-" {digits}' for digits in negative] + _naturals(max(low, 0), high)


def _naturals(low: int, high: int) -> list[str]:
    """Return expressions of the integers from `low` to `high`, both not negative."""
    parts: list[str] = []
    for length in range(len(str(low)), len(str(max(high, 0))) + 1):
        start = max(low, 10 ** (length - 1) if length > 1 else 0)
        end = min(high, 10**length - 1)
        if start <= end:
            parts += _same_length(str(start), str(end))
    return parts


def _same_length(low: str, high: str) -> list[str]:
    """Return expressions of the digit strings between two of the same length."""
    if set(low) <= {"0"} and set(high) <= {"9"}:
        return [f"[0-9]{{{len(low)}}}"]
    if low == high:
        return [f'"{low}"']
    first, last, rest = int(low[0]), int(high[0]), len(low) - 1
    if first == last:
        return [f'"{first}" {tail}' for tail in _same_length(low[1:], high[1:])]
    parts: list[str] = []
    if low[1:] != "0" * rest:
        parts += [f'"{first}" {tail}' for tail in _same_length(low[1:], "9" * rest)]
        first += 1
    upper: list[str] = []
    if high[1:] != "9" * rest:
        upper = [f'"{last}" {tail}' for tail in _same_length("0" * rest, high[1:])]
        last -= 1
    if first <= last:
        parts.append(f"[{first}-{last}]" + (f" [0-9]{{{rest}}}" if rest else ""))
    return parts + upper
