"""Numbers within bounds as EBNF expressions over their decimal digits.

No two alternatives of an expression begin with the same character: xgrammar merges
alternatives that do, and then lets some repetitions run without end.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["integer_range", "number_range"]

_MOST = 10**15 - 1  # beyond it a JSON number loses digits in many readers

Bound = int | float | None


class _Tail(NamedTuple):
    """What follows the digits before the point."""

    text: str
    optional: bool

    def __str__(self) -> str:
        return f"({self.text})?" if self.optional and self.text else self.text


_NOTHING = _Tail("", optional=True)
_FRACTION = _Tail('"." [0-9]{1,6}', optional=True)
_NONZERO_FRACTION = _Tail(
    '"." ([1-9] [0-9]{0,5} | "0" ([1-9] [0-9]{0,4} | "0" [1-9] [0-9]{0,3}))', optional=False
)
_ZERO_FRACTION = _Tail('".0"', optional=True)


class _Digits(NamedTuple):
    """The digit strings of one length whose values lie from `low` to `high`."""

    length: int
    low: int
    high: int
    tail: _Tail


def integer_range(low: Bound, high: Bound, above: Bound, below: Bound) -> str:
    """Return an expression of the integers with `low <= i <= high` and `above < i < below`.

    Raises:
        ValueError: There is no such integer, or a bound is no integer.
        TypeError: A bound is no number.
    """
    lows = [-_MOST, *([_whole(low)] if low is not None else [])]
    lows += [_whole(above) + 1] if above is not None else []
    highs = [_MOST, *([_whole(high)] if high is not None else [])]
    highs += [_whole(below) - 1] if below is not None else []
    bottom, top = max(lows), min(highs)
    negative = _lengths(max(1, -top), -bottom, _NOTHING)
    return _signed(negative, _lengths(max(bottom, 0), top, _NOTHING))


def number_range(low: Bound, high: Bound, above: Bound, below: Bound) -> str:
    """Return an expression of the decimal numbers within the bounds, to six places.

    Raises:
        ValueError: There is no such number, or a bound is no integer.
        TypeError: A bound is no number.
    """
    lows = [(-_MOST - 1, True), *([(_whole(low), False)] if low is not None else [])]
    lows += [(_whole(above), True)] if above is not None else []
    highs = [(_MOST + 1, False), *([(_whole(high), True)] if high is not None else [])]
    highs += [(_whole(below), False)] if below is not None else []
    (bottom, bottom_open), (top, top_closed) = max(lows), min(highs)
    negative: list[_Digits] = []
    positive: list[_Digits] = []
    if bottom < 0:
        inner, inner_open = (-top, not top_closed) if top < 0 else (0, True)
        negative = _decimals(inner, -bottom, inner_open, bottom_open)
    if top >= 0:
        start, start_open = (bottom, bottom_open) if bottom >= 0 else (0, False)
        positive = _decimals(start, top, start_open, not top_closed)
    return _signed(negative, positive)


def _whole(bound: int | float) -> int:
    if not isinstance(bound, (int, float)):
        raise TypeError(f"the bound {bound!r} is no number")
    if isinstance(bound, bool) or abs(bound) > _MOST or bound != int(bound):
        raise ValueError(f"has the bound {bound}; only whole numbers below 10^15 can be enforced")
    return int(bound)


def _signed(negative: list[_Digits], positive: list[_Digits]) -> str:
    parts = [f'"-" {_expression(negative)}'] if negative else []
    parts += [_expression(positive)] if positive else []
    if not parts:
        raise ValueError("has bounds that no number satisfies")
    return "(" + " | ".join(parts) + ")"


def _decimals(low: int, high: int, low_open: bool, high_open: bool) -> list[_Digits]:
    """Return the numbers from `low` to `high`, both not negative."""
    parts: list[_Digits] = []
    if low < high:
        if low_open:
            parts += _lengths(low, low, _NONZERO_FRACTION)
        parts += _lengths(low + 1 if low_open else low, high - 1, _FRACTION)
    if not high_open and (low < high or (low == high and not low_open)):
        parts += _lengths(high, high, _ZERO_FRACTION)
    return parts


def _lengths(low: int, high: int, tail: _Tail) -> list[_Digits]:
    """Return the integers from `low` to `high`, both not negative, by number of digits."""
    parts = []
    for length in range(len(str(low)), len(str(max(high, 0))) + 1):
        start = max(low, 10 ** (length - 1) if length > 1 else 0)
        end = min(high, 10**length - 1)
        if start <= end:
            parts.append(_Digits(length, start, end, tail))
    return parts


def _expression(parts: list[_Digits]) -> str:
    """Return an expression that decides by one digit after the other."""
    simple = _any_digits(parts)
    if simple is not None:
        return simple
    ends = [part.tail for part in parts if part.length == 0]
    alternatives: list[str] = []
    digit = 0
    while digit <= 9:  # noqa: PLR2004 - the last digit
        rest, last = _after(parts, digit), digit
        while last < 9 and _after(parts, last + 1) == rest:  # noqa: PLR2004 - the last digit
            last += 1
        if rest:
            first = f"[{digit}-{last}]" if last > digit else f'"{digit}"'
            alternatives.append(f"{first} {_expression(rest)}".rstrip())
        digit = last + 1
    alternatives += [end.text for end in ends if end.text]
    optional = "?" if any(end.optional for end in ends) else ""
    return "(" + " | ".join(alternatives) + ")" + optional


def _any_digits(parts: list[_Digits]) -> str | None:
    """Return the expression if any digits will do, in some consecutive lengths."""
    lengths = sorted(part.length for part in parts)
    whole = all((part.low, part.high) == (0, 10**part.length - 1) for part in parts)
    tails = {part.tail for part in parts}
    if not whole or len(tails) > 1 or lengths != list(range(lengths[0], lengths[-1] + 1)):
        return None
    digits = f"[0-9]{{{lengths[0]},{lengths[-1]}}}" if lengths[-1] else ""
    return f"{digits} {tails.pop()}".strip()


def _after(parts: list[_Digits], digit: int) -> list[_Digits]:
    """Return what may follow a first digit."""
    rest = []
    for part in parts:
        if part.length == 0:
            continue
        place = 10 ** (part.length - 1)
        start, end = max(part.low, digit * place), min(part.high, (digit + 1) * place - 1)
        if start <= end:
            base = digit * place
            rest.append(_Digits(part.length - 1, start - base, end - base, part.tail))
    return rest
