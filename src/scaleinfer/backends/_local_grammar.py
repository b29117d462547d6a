"""JSON schema to a grammar that the embedded engine can enforce.

The grammar is EBNF as xgrammar reads it. A schema is turned into one here, within a stated
subset, because a schema that xgrammar cannot compile breaks the whole pipeline, not one call.
EBNF and not one regular expression, because compiling costs time for every character that a
string's bound counts (28 ms of CPU for each, measured at 200), and named rules are compiled
once for all fields. As a regular expression, five strings of up to 200 characters, escapes
included, took 233 s on a busy machine; five strings bounded by words, as here, 1.3 s of CPU.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from scaleinfer.backends._local_numbers import integer_range, number_range

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["MAX_ITEMS", "MAX_WORDS", "UnsupportedSchemaError", "schema_to_grammar"]

MAX_WORDS = 24
"""Words of a string that has no `maxLength`."""
MAX_ITEMS = 16
"""Items of an array, or entries of a dictionary, that has no `maxItems`."""
_LONGEST_WORD = 40
_LONGEST_COUNTED = 256
_LONGEST_STRING = 4000
_LONGEST_ARRAY = 64
_LARGEST_GRAMMAR = 60_000
_CHARACTER = '[^"\\\\\\x00-\\x1f\\x7f]'
_WORD_CHARACTER = '[^"\\\\\\x00-\\x20\\x7f]'

_ANNOTATIONS = frozenset(
    {
        "$comment", "$defs", "$id", "$schema", "contentMediaType", "default", "definitions",
        "deprecated", "description", "discriminator", "example", "examples", "readOnly", "strict",
        "title", "writeOnly",
    }
)  # fmt: skip
_ALLOWED = {
    "string": {"minLength", "maxLength", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "format"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "format"},
    "boolean": set(),
    "null": set(),
    "array": {"items", "prefixItems", "minItems", "maxItems", "uniqueItems"},
    "object": {"properties", "required", "additionalProperties", "propertyNames"},
}
_TIME = '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9]'
_DATE = (
    '[12] [0-9]{3} "-" (("01" | "03" | "05" | "07" | "08" | "10" | "12") "-" '
    '("0" [1-9] | [12] [0-9] | "3" [01]) | ("04" | "06" | "09" | "11") "-" '
    '("0" [1-9] | [12] [0-9] | "30") | "02-" ("0" [1-9] | "1" [0-9] | "2" [0-8]))'
)
_HEX = "[0-9a-f]"
_FORMATS = {
    "date": _DATE,
    "time": f'{_TIME} "Z"',
    "date-time": f'{_DATE} "T" {_TIME} "Z"',
    "uuid": f'{_HEX}{{8}} "-" {_HEX}{{4}} "-4" {_HEX}{{3}} "-" [89ab] {_HEX}{{3}} "-" {_HEX}{{12}}',
}


class UnsupportedSchemaError(ValueError):
    """The schema holds something the embedded engine cannot enforce; the message names it."""


def schema_to_grammar(schema: dict[str, Any]) -> str:
    """Return an EBNF grammar whose every sentence is JSON that satisfies `schema`.

    The grammar is narrower than the schema: one spacing, properties in their order and all
    of them present, no escapes in strings, no exponents in numbers; unless the schema says
    otherwise, strings of at most `MAX_WORDS` words and arrays of at most `MAX_ITEMS` items.
    `uniqueItems` is not enforced. Of `anyOf`, the alternatives that can be expressed are
    offered.

    Raises:
        UnsupportedSchemaError: The schema is malformed, or needs a keyword, a format or a
            recursion that is outside the subset.
    """
    try:
        return _Grammar(schema).text()
    except (TypeError, AttributeError, KeyError, RecursionError) as error:
        raise UnsupportedSchemaError(f"the schema is malformed ({error})") from None


class _Grammar:
    def __init__(self, schema: dict[str, Any]) -> None:
        self._schema = schema
        self._rules: dict[str, str] = {}
        self._refs: dict[str, str] = {}
        self._following: list[str] = []

    def text(self) -> str:
        self._rules["root"] = self._node(self._schema, "#")
        text = "".join(f"{name} ::= {body}\n" for name, body in self._rules.items())
        if len(text) > _LARGEST_GRAMMAR:
            raise UnsupportedSchemaError("the schema is too large")
        return text

    def _node(self, schema: Any, at: str) -> str:
        """Return the expression of a schema; parenthesised where it has alternatives."""
        if not isinstance(schema, dict):
            raise UnsupportedSchemaError(f"{at} allows anything; give it a type")
        if "$ref" in schema:
            return self._reference(schema, at)
        for keyword in ("const", "enum"):
            if keyword in schema:
                return _choice(schema, keyword, at)
        for keyword in ("anyOf", "oneOf", "allOf"):
            if keyword in schema:
                return self._alternatives(schema, keyword, at)
        kind = schema.get("type", "object" if "properties" in schema else None)
        if isinstance(kind, list):
            parts = [self._node(_narrowed(schema, one), at) for one in kind]
            return _either(parts)
        if kind not in _ALLOWED:
            raise UnsupportedSchemaError(f"{at} has no type the embedded model supports")
        _refuse_others(schema, _ALLOWED[kind] | {"type"}, at)
        build: dict[str, Callable[[dict[str, Any], str], str]] = {
            "string": self._string,
            "integer": lambda s, a: _bounded(integer_range, s, a),
            "number": lambda s, a: _bounded(number_range, s, a),
            "boolean": lambda _s, _a: '("true" | "false")',
            "null": lambda _s, _a: '"null"',
            "array": self._array,
            "object": self._object,
        }
        return build[kind](schema, at)

    def _reference(self, schema: dict[str, Any], at: str) -> str:
        ref = schema["$ref"]
        _refuse_others(schema, {"$ref"}, at)
        if ref in self._following:
            raise UnsupportedSchemaError(f"{at} is recursive ({ref})")
        if ref not in self._refs:
            self._following.append(ref)
            body = self._node(self._target(ref, at), ref)
            self._following.pop()
            name = f"ref{len(self._refs)}"
            self._refs[ref] = name
            self._rules[name] = body
        return self._refs[ref]

    def _target(self, ref: Any, at: str) -> Any:
        target: Any = self._schema
        if not isinstance(ref, str) or not ref.startswith("#/"):
            raise UnsupportedSchemaError(f"{at} refers to {ref}, outside the schema")
        for part in ref[2:].split("/"):
            name = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, dict) or name not in target:
                raise UnsupportedSchemaError(f"{at} refers to {ref}, which is not there")
            target = target[name]
        return target

    def _alternatives(self, schema: dict[str, Any], keyword: str, at: str) -> str:
        _refuse_others(schema, {keyword, "type"}, at)
        options = schema[keyword]
        if keyword == "allOf":
            if len(options) != 1:
                raise UnsupportedSchemaError(f"{at} uses allOf with {len(options)} schemas")
            return self._node(options[0], at)
        parts, refused = [], []
        for number, option in enumerate(options):
            following = len(self._following)
            try:
                parts.append(self._node(option, f"{at}/{keyword}/{number}"))
            except UnsupportedSchemaError as error:
                del self._following[following:]
                refused.append(error)
        if not parts:
            raise refused[0] if refused else UnsupportedSchemaError(f"{at} has an empty {keyword}")
        return _either(parts)

    def _string(self, schema: dict[str, Any], at: str) -> str:
        form = schema.get("format")
        if form is not None:
            if form not in _FORMATS:
                raise UnsupportedSchemaError(f"{at} uses the string format {form!r}")
            if "minLength" in schema or "maxLength" in schema:
                raise UnsupportedSchemaError(f"{at} bounds the length of a {form}")
            name = "format_" + re.sub(r"\W", "_", form)
            self._rules[name] = f'"\\"" {_FORMATS[form]} "\\""'
            return name
        low = schema.get("minLength", 0)
        high = schema.get("maxLength")
        if high is None and low > 1:
            high = low + _LONGEST_COUNTED // 4
        if high is not None:
            _check_bounds(low, high, _LONGEST_STRING, f"{at} is a string whose length")
        if high is not None and high <= _LONGEST_COUNTED:
            return self._counted(low, high)
        if low > 1:
            raise UnsupportedSchemaError(f"{at} is a long string with the minimal length {low}")
        words = MAX_WORDS if high is None else min(MAX_WORDS, high // (_LONGEST_WORD + 1))
        return self._words(low, words)

    def _counted(self, low: int, high: int) -> str:
        """Return the rule of strings of so many characters."""
        name = f"text_{low}_{high}"
        inside = f" {_CHARACTER}{{{low},{high}}}" if high else ""
        self._rules[name] = f'"\\""{inside} "\\""'
        return name

    def _words(self, low: int, words: int) -> str:
        """Return the rule of strings of at most so many words.

        Two short counts bound the text with far fewer states than one long count.
        """
        name = f"words_{low}_{words}"
        self._rules["word"] = f"{_WORD_CHARACTER}{{1,{_LONGEST_WORD}}}"
        text = f'word (" " word){{0,{words - 1}}}'
        self._rules[name] = f'"\\"" {text} "\\""' if low else f'"\\"" ({text})? "\\""'
        return name

    def _array(self, schema: dict[str, Any], at: str) -> str:
        if "prefixItems" in schema:
            return self._tuple(schema, at)
        low = schema.get("minItems", 0)
        high = schema.get("maxItems", max(MAX_ITEMS, low))
        _check_bounds(low, high, _LONGEST_ARRAY, f"{at} is an array whose length")
        if high == 0:
            return '"[]"'
        item = self._node(schema.get("items"), f"{at}/items")
        return _repeated("[", item, "]", low, high)

    def _tuple(self, schema: dict[str, Any], at: str) -> str:
        items = schema["prefixItems"]
        for bound in ("minItems", "maxItems"):
            if schema.get(bound, len(items)) != len(items):
                raise UnsupportedSchemaError(f"{at} is a tuple of varying length")
        if schema.get("items", False) is not False and "maxItems" not in schema:
            raise UnsupportedSchemaError(f"{at} is a tuple of varying length")
        parts = [self._node(one, f"{at}/prefixItems/{i}") for i, one in enumerate(items)]
        return '"[" ' + ' ", " '.join(parts) + ' "]"' if parts else '"[]"'

    def _object(self, schema: dict[str, Any], at: str) -> str:
        properties = schema.get("properties", {})
        missing = [name for name in schema.get("required", []) if name not in properties]
        if missing:
            raise UnsupportedSchemaError(f"{at} requires {missing[0]!r} without describing it")
        if not properties:
            return self._dictionary(schema, at)
        if "propertyNames" in schema:
            raise UnsupportedSchemaError(f"{at} uses propertyNames")
        fields = [
            f"{_literal(json.dumps(name, ensure_ascii=False) + ': ')} "
            + self._node(value, f"{at}/properties/{name}")
            for name, value in properties.items()
        ]
        return '"{" ' + ' ", " '.join(fields) + ' "}"'

    def _dictionary(self, schema: dict[str, Any], at: str) -> str:
        values = schema.get("additionalProperties", True)
        if values is False:
            return '"{}"'
        names = schema.get("propertyNames", {"type": "string", "minLength": 1, "maxLength": 32})
        name = self._node({"type": "string"} | names, f"{at}/propertyNames")
        value = self._node(values, f"{at}/additionalProperties")
        return _repeated("{", f'{name} ": " {value}', "}", 0, MAX_ITEMS)


def _repeated(opening: str, item: str, closing: str, low: int, high: int) -> str:
    more = f' (", " {item}){{{max(low - 1, 0)},{high - 1}}}' if high > 1 else ""
    some = f"{item}{more}"
    return f'"{opening}" {some} "{closing}"' if low else f'"{opening}" ({some})? "{closing}"'


def _narrowed(schema: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return the schema for one of its types, with the keywords that concern it."""
    others = set().union(*_ALLOWED.values()) - _ALLOWED.get(kind, set())
    return {k: v for k, v in schema.items() if k not in others} | {"type": kind}


def _choice(schema: dict[str, Any], keyword: str, at: str) -> str:
    _refuse_others(schema, {keyword, "type"}, at)
    values = schema[keyword] if keyword == "enum" else [schema[keyword]]
    if not values:
        raise UnsupportedSchemaError(f"{at} has an empty enum")
    return _either([_literal(json.dumps(value, ensure_ascii=False)) for value in values])


def _bounded(build: Callable[..., str], schema: dict[str, Any], at: str) -> str:
    try:
        return build(
            schema.get("minimum"), schema.get("maximum"),
            schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum"),
        )  # fmt: skip
    except ValueError as error:
        raise UnsupportedSchemaError(f"{at} {error}") from None


def _check_bounds(low: Any, high: Any, most: int, what: str) -> None:
    if not (isinstance(low, int) and isinstance(high, int) and 0 <= low <= high):
        raise UnsupportedSchemaError(f"{what} is bounded by {low} and {high}")
    if high > most:
        raise UnsupportedSchemaError(f"{what} may be {high}; at most {most} can be enforced")


def _refuse_others(schema: dict[str, Any], known: Iterable[str], at: str) -> None:
    for keyword in schema.keys() - _ANNOTATIONS - set(known):
        raise UnsupportedSchemaError(f"{at} uses {keyword}")


def _either(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else "(" + " | ".join(parts) + ")"


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
