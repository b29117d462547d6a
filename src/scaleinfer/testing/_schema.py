"""Random but valid JSON for a JSON schema, of the kind pydantic writes."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

__all__ = ["UnsupportedSchemaError", "generate"]

_DEEP = 5
"""Nesting at which recursive schemas are brought to an end."""
_TOO_DEEP = 40
_SPAN = 100
"""Numbers without bounds are drawn from -100 to 100."""
_WORDS = (
    "amber",
    "basalt",
    "cobalt",
    "delta",
    "ether",
    "helium",
    "kelvin",
    "lumen",
    "neon",
    "quartz",
)
_TELLING = {
    "properties": "object",
    "additionalProperties": "object",
    "items": "array",
    "prefixItems": "array",
    "minimum": "number",
    "maximum": "number",
}
"""Words that tell the type of a schema that does not name it."""
_DECIMAL = [{"type": "number"}, {"type": "string"}]
"""How pydantic writes a Decimal: not any string would do."""


class UnsupportedSchemaError(ValueError):
    """The schema asks for something this generator does not know."""


def generate(schema: dict[str, Any], random: Random) -> Any:
    """Return a random value that satisfies `schema`.

    Knows objects (optional properties come and go, `additionalProperties` as a schema),
    arrays (`items`, `prefixItems`, lengths, `uniqueItems`), strings (lengths, formats of
    dates, times, UUIDs, mail and web addresses), numbers (bounds, `multipleOf`), `enum`,
    `const`, `anyOf`, `oneOf`, `allOf`, lists of types, and `$ref` within the document.

    Args:
        schema: The schema, `$defs` included.
        random: Where the chance comes from; the same state gives the same value.

    Raises:
        UnsupportedSchemaError: `pattern`, `not`, a reference out of the document, or bounds
            that no value meets.
    """
    return _Generator(schema, random).value(schema, 0)


class _Generator:
    def __init__(self, root: dict[str, Any], random: Random) -> None:
        self._root = root
        self._random = random

    def value(self, schema: Any, depth: int) -> Any:
        if depth > _TOO_DEEP:
            raise UnsupportedSchemaError("The schema nests without end.")
        if not isinstance(schema, dict):
            schema = {}  # `true` allows anything, as an empty schema does
        if "not" in schema:
            raise UnsupportedSchemaError("not is not supported.")
        if "$ref" in schema:
            return self.value(
                {**self._resolve(schema["$ref"]), **_without(schema, "$ref")}, depth + 1
            )
        if "const" in schema or "enum" in schema:
            return self._random.choice(schema.get("enum", [schema.get("const")]))
        for word in ("anyOf", "oneOf"):
            if word in schema:
                return self._any_of(schema[word], _without(schema, word), depth)
        if "allOf" in schema:
            return self.value(self._merge(schema), depth + 1)
        return self._typed(schema, depth)

    def _resolve(self, reference: str) -> dict[str, Any]:
        if not reference.startswith("#"):
            raise UnsupportedSchemaError(f"$ref {reference!r} points out of the schema.")
        found: Any = self._root
        for part in reference.removeprefix("#").split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or name not in found:
                raise UnsupportedSchemaError(f"$ref {reference!r} points nowhere.")
            found = found[name]
        return found if isinstance(found, dict) else {}

    def _any_of(self, options: list[Any], rest: dict[str, Any], depth: int) -> Any:
        if options == _DECIMAL:
            options = options[:1]
        order = self._random.sample(options, len(options))
        if depth >= _DEEP:
            order.sort(key=_breadth)
        for option in order[:-1]:
            try:
                return self.value({**rest, **option}, depth + 1)
            except UnsupportedSchemaError:
                continue  # another branch may be within reach
        return self.value({**rest, **order[-1]}, depth + 1)

    def _merge(self, schema: dict[str, Any]) -> dict[str, Any]:
        merged = _without(schema, "allOf")
        for part in schema["allOf"]:
            resolved = self._resolve(part["$ref"]) if "$ref" in part else part
            for word, value in resolved.items():
                if word == "properties":
                    merged[word] = {**merged.get(word, {}), **value}
                elif word == "required":
                    merged[word] = [*merged.get(word, []), *value]
                else:
                    merged[word] = value
        return merged

    def _typed(self, schema: dict[str, Any], depth: int) -> Any:
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = "null" if depth >= _DEEP and "null" in kind else self._random.choice(kind)
        if kind is None:
            kind = next((k for word, k in _TELLING.items() if word in schema), "string")
        make: dict[str, Callable[[], Any]] = {
            "object": lambda: self._object(schema, depth),
            "array": lambda: self._array(schema, depth),
            "string": lambda: self._string(schema),
            "integer": lambda: self._integer(schema),
            "number": lambda: self._number(schema),
            "boolean": self._coin,
            "null": lambda: None,
        }
        if kind not in make:
            raise UnsupportedSchemaError(f"type {kind!r} is not supported.")
        return make[kind]()

    def _coin(self) -> bool:
        return bool(self._random.getrandbits(1))

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        required = schema.get("required", ())
        made = {
            name: self.value(part, depth + 1)
            for name, part in schema.get("properties", {}).items()
            if name in required or (depth < _DEEP and self._coin())
        }
        more = schema.get("additionalProperties")
        fewest = max(schema.get("minProperties", 0) - len(made), 0)
        if isinstance(more, dict) and (more or fewest):
            most = max(schema.get("maxProperties", len(made) + fewest + 2) - len(made), fewest)
            for i in range(self._count(fewest, most, depth)):
                made[f"{self._random.choice(_WORDS)}_{i}"] = self.value(more, depth + 1)
        return made

    def _array(self, schema: dict[str, Any], depth: int) -> list[Any]:
        made = [self.value(part, depth + 1) for part in schema.get("prefixItems", ())]
        items = schema.get("items", len(made) == 0)
        if items is False:
            return made
        fewest = max(schema.get("minItems", 0) - len(made), 0)
        most = max(schema.get("maxItems", len(made) + fewest + 3) - len(made), fewest)
        wanted = len(made) + self._count(fewest, most, depth)
        unique = schema.get("uniqueItems", False)
        for _ in range(20 * wanted):
            if len(made) >= wanted:
                break
            value = self.value(items, depth + 1)
            if not unique or value not in made:
                made.append(value)
        if len(made) < schema.get("minItems", 0):
            raise UnsupportedSchemaError("uniqueItems asks for more values than there are.")
        return made

    def _count(self, fewest: int, most: int, depth: int) -> int:
        return fewest if depth >= _DEEP else self._random.randint(fewest, most)

    def _string(self, schema: dict[str, Any]) -> str:
        if "pattern" in schema:
            raise UnsupportedSchemaError("pattern is not supported.")
        made = _FORMATS.get(schema.get("format", ""), _words)(self._random)
        fewest = schema.get("minLength", 0)
        while len(made) < fewest:
            made += self._random.choice(_WORDS)
        return made[: schema.get("maxLength")]

    def _bounds(self, schema: dict[str, Any]) -> tuple[float, float, bool, bool]:
        low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
        open_low = schema.get("exclusiveMinimum", -math.inf)
        open_high = schema.get("exclusiveMaximum", math.inf)
        return max(low, open_low), min(high, open_high), open_low >= low, open_high <= high

    def _integer(self, schema: dict[str, Any]) -> int:
        low, high, open_low, open_high = self._bounds(schema)
        step = int(schema.get("multipleOf", 1))
        least = None if low == -math.inf else math.floor(low) + 1 if open_low else math.ceil(low)
        most = None if high == math.inf else math.ceil(high) - 1 if open_high else math.floor(high)
        if least is None:
            least = -_SPAN if most is None else most - _SPAN * step
        if most is None:
            most = max(_SPAN, least + _SPAN * step)
        first, last = -(-least // step), most // step
        if first > last:
            raise UnsupportedSchemaError(f"No integer meets {schema}.")
        return self._random.randint(first, last) * step

    def _number(self, schema: dict[str, Any]) -> float:
        if "multipleOf" in schema:
            step = schema["multipleOf"]
            low, high, open_low, open_high = self._bounds(schema)
            scaled: dict[str, Any] = {}
            if low > -math.inf:
                scaled["exclusiveMinimum" if open_low else "minimum"] = low / step
            if high < math.inf:
                scaled["exclusiveMaximum" if open_high else "maximum"] = high / step
            return float(self._integer(scaled) * step)
        low, high, open_low, open_high = self._bounds(schema)
        if low == -math.inf:
            low = -_SPAN if high == math.inf else high - _SPAN
        if high == math.inf:
            high = max(float(_SPAN), low + _SPAN)
        made = self._random.uniform(low, high)
        if (open_low and made <= low) or (open_high and made >= high):
            made = low + (high - low) / 2
        if not low <= made <= high:
            raise UnsupportedSchemaError(f"No number meets {schema}.")
        return made


def _without(schema: dict[str, Any], word: str) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key not in (word, "discriminator")}


def _breadth(option: Any) -> int:
    """Return how far a branch may still grow: values, then lists, then objects."""
    if not isinstance(option, dict) or "$ref" in option:
        return 2
    return 1 if option.get("type") in ("array", "object") else 0


def _words(random: Random) -> str:
    return " ".join(random.choices(_WORDS, k=random.randint(1, 3)))


def _moment(random: Random) -> datetime:
    start = datetime(2000, 1, 1, tzinfo=UTC)
    return start + timedelta(seconds=random.randrange(26 * 365 * 86_400))


_FORMATS: dict[str, Callable[[Random], str]] = {
    "date": lambda random: _moment(random).date().isoformat(),
    "date-time": lambda random: _moment(random).isoformat().replace("+00:00", "Z"),
    "time": lambda random: _moment(random).time().isoformat() + "Z",
    "duration": lambda random: f"PT{random.randrange(1, 86_400)}S",
    "uuid": lambda random: str(UUID(int=random.getrandbits(128), version=4)),
    "email": lambda random: f"{random.choice(_WORDS)}@example.org",
    "uri": lambda random: f"https://example.org/{random.choice(_WORDS)}",
    "ipv4": lambda random: f"192.0.2.{random.randrange(256)}",
    "ipv6": lambda random: f"2001:db8::{random.randrange(1, 65_536):x}",
    "hostname": lambda random: f"{random.choice(_WORDS)}.example.org",
    "json-string": lambda random: f'"{random.choice(_WORDS)}"',
}
