"""JSON schemas: following references, joining schemas, and checking values. The part of the standard that models use.

Known are type, enum, const, $ref, anyOf, oneOf, allOf, not; properties, required, additionalProperties,
minProperties, maxProperties; items, prefixItems, minItems, maxItems, uniqueItems; minLength, maxLength, pattern,
format; minimum, maximum, the exclusive ones, multipleOf. Other words are ignored, as llama.cpp ignores them.
Source: JSON Schema, draft 2020-12, https://json-schema.org/draft/2020-12.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

TYPES: Final = ("object", "array", "string", "integer", "number", "boolean", "null")

_TELLS: Final = (  # a schema without a type that has one of these words can only be meant for that type
    ("object", {"properties", "required", "additionalProperties", "minProperties"}),
    ("array", {"items", "prefixItems", "minItems", "maxItems"}),
    ("string", {"minLength", "maxLength", "pattern", "format"}),
    ("number", {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}),
)
_LOWER: Final = {"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"}
_UPPER: Final = {"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"}
_DEEPEST: Final = 64  # levels of a value, and references that only lead to references


class UnsatisfiableError(ValueError):
    """No value was found that has the schema; the message says what excludes them all."""


class InvalidSchemaError(UnsatisfiableError):
    """It is no schema, wherever in it the mistake is."""


def resolve(schema: Any, root: Any) -> dict[str, Any]:
    """Follow `$ref` and join `allOf`, so that what is left says itself what it wants.

    Raises:
        InvalidSchemaError: the reference leads nowhere or in a circle, or this is no schema.
        UnsatisfiableError: the parts exclude one another.

    """
    for _ in range(_DEEPEST):
        if schema is True:
            return {}
        if not isinstance(schema, Mapping):
            if schema is False:
                raise UnsatisfiableError("a schema that allows nothing")
            raise InvalidSchemaError(f"not a schema: {schema!r}")
        if "$ref" in schema:
            rest = {word: value for word, value in schema.items() if word != "$ref"}
            schema = join(_target(schema["$ref"], root), rest) if rest else _target(schema["$ref"], root)
        elif "allOf" in schema:
            parts = schema["allOf"]
            schema = {word: value for word, value in schema.items() if word != "allOf"}
            for part in parts:
                schema = join(schema, resolve(part, root))
        else:
            return dict(schema)
    raise InvalidSchemaError("a reference that leads only to itself")


def _target(reference: Any, root: Any) -> Any:
    found: Any = root
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise InvalidSchemaError(f"the reference {reference!r}, which leads out of the schema")
    for step in reference[1:].split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        try:
            found = found[int(key)] if isinstance(found, list) else found[key]
        except (KeyError, IndexError, ValueError, TypeError):
            raise InvalidSchemaError(f"the reference {reference!r}, which leads nowhere") from None
    return found


def join(one: Any, other: Any) -> dict[str, Any]:
    """Return a schema for the values that both schemas allow, as far as words can say it."""
    one, other = ({} if schema is True else schema for schema in (one, other))
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        raise UnsatisfiableError("a schema that allows nothing")
    both = dict(one)
    for word, value in other.items():
        if word not in both or both[word] == value:
            both[word] = value
        elif word == "properties":
            both[word] = {**both[word], **{k: _both(both[word].get(k, True), v) for k, v in value.items()}}
        elif word == "required":
            both[word] = [*both[word], *(name for name in value if name not in both[word])]
        elif word in ("enum", "type"):
            both[word] = _common(word, both[word], value)
        elif word in _LOWER:
            both[word] = max(both[word], value)
        elif word in _UPPER:
            both[word] = min(both[word], value)
        elif word in ("anyOf", "oneOf"):
            both[word] = [_both(a, b) for a in both[word] for b in value]
        elif word in ("items", "additionalProperties"):
            both[word] = _both(both[word], value)
        elif word == "const":
            raise UnsatisfiableError("a schema whose parts share no value")
        else:
            both[word] = value
    return both


def _both(one: Any, other: Any) -> Any:
    if one is False or other is False:
        return False
    return {"allOf": [one, other]}


def _common(word: str, one: Any, other: Any) -> list[Any]:
    first = one if isinstance(one, list) else [one]
    second = other if isinstance(other, list) else [other]
    if word == "type" and "number" in second:
        second = [*second, "integer"]
    if word == "type" and "number" in first:
        first = [*first, "integer"]
    found = [value for value in first if any(_same(value, candidate) for candidate in second)]
    if not found:
        raise UnsatisfiableError(f"a schema whose parts share no {word}")
    return found


def types(schema: Mapping[str, Any]) -> list[str]:
    """Return the types that the schema names or is meant for; none where it says nothing about them.

    Raises:
        InvalidSchemaError: it names a type that does not exist.

    """
    named = schema.get("type")
    found = list(named) if isinstance(named, list) else [named] if named is not None else []
    for name in found:
        if name not in TYPES:
            raise InvalidSchemaError(f"unrecognized type {name}")
    return found or [kind for kind, words in _TELLS if words & set(schema)][:1]


def fits(value: Any, schema: Any, root: Any, depth: int = 0) -> bool:
    """Say whether the value has the schema."""
    if depth > _DEEPEST:
        return False
    if schema is False:
        return False
    schema = resolve(schema, root)
    if "type" in schema and not any(_is(value, kind) for kind in types(schema)):
        return False
    if "enum" in schema and not any(_same(value, allowed) for allowed in schema["enum"]):
        return False
    if "const" in schema and not _same(value, schema["const"]):
        return False

    def also(part: Any) -> bool:
        return fits(value, part, root, depth + 1)

    if "anyOf" in schema and not any(map(also, schema["anyOf"])):
        return False
    if "oneOf" in schema and sum(map(also, schema["oneOf"])) != 1:
        return False
    if "not" in schema and also(schema["not"]):
        return False
    if isinstance(value, str):
        return _string_fits(value, schema)
    if isinstance(value, list):
        return _array_fits(value, schema, root, depth)
    if isinstance(value, Mapping):
        return _object_fits(value, schema, root, depth)
    return isinstance(value, bool) or value is None or _number_fits(value, schema)


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if isinstance(value, float) and kind == "integer":
        return value.is_integer()
    python: dict[str, Any] = {"object": Mapping, "array": list, "string": str, "integer": int, "null": type(None)}
    return isinstance(value, (int, float)) if kind == "number" else isinstance(value, python.get(kind, ()))


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _number_fits(value: float, schema: Mapping[str, Any]) -> bool:
    step = schema.get("multipleOf")
    return (
        ("minimum" not in schema or value >= schema["minimum"])
        and ("maximum" not in schema or value <= schema["maximum"])
        and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
        and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
        and (not step or abs(value / step - round(value / step)) <= 1e-9 * max(1, abs(value / step)))
    )


def _string_fits(value: str, schema: Mapping[str, Any]) -> bool:
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        return False
    if "pattern" in schema:
        try:
            if not re.search(schema["pattern"], value):
                return False
        except re.error as error:
            raise InvalidSchemaError(f"the pattern {schema['pattern']!r}: {error}") from error
    return has_format(value, schema.get("format"))


def _array_fits(value: Sequence[Any], schema: Mapping[str, Any], root: Any, depth: int) -> bool:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        return False
    if schema.get("uniqueItems") and any(_same(a, b) for i, a in enumerate(value) for b in value[:i]):
        return False
    first = schema.get("prefixItems", [])
    wanted = [*first, *([schema.get("items", True)] * max(0, len(value) - len(first)))]
    return all(fits(item, part, root, depth + 1) for item, part in zip(value, wanted, strict=False))


def _object_fits(value: Mapping[str, Any], schema: Mapping[str, Any], root: Any, depth: int) -> bool:
    properties = schema.get("properties", {})
    if not schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", len(value)):
        return False
    return all(name in value for name in schema.get("required", ())) and all(
        fits(part, properties.get(name, schema.get("additionalProperties", True)), root, depth + 1)
        for name, part in value.items()
    )


def _of(pattern: str) -> Callable[[str], object]:
    return re.compile(pattern).fullmatch


_FORMATS: Final[Mapping[str, Callable[[str], object]]] = {
    "date": lambda text: len(text) == 10 and datetime.date.fromisoformat(text),
    "date-time": lambda text: "T" in text and datetime.datetime.fromisoformat(text),
    "time": datetime.time.fromisoformat,
    "duration": _of(r"P(?=.)(\d+Y)?(\d+M)?(\d+W)?(\d+D)?(T(?=.)(\d+H)?(\d+M)?(\d+(\.\d+)?S)?)?"),
    "email": _of(r"[^@\s]+@[^@\s]+\.[^@\s]+"),
    "uri": _of(r"[A-Za-z][A-Za-z0-9+.-]*://\S+"),
    "uuid": uuid.UUID,
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "hostname": _of(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?"),
}


def has_format(text: str, name: Any) -> bool:
    """Say whether the text is a date, an e-mail address, ...; every text has a format that is not known."""
    check = _FORMATS.get(name)
    try:
        return check is None or bool(check(text)) or name == "time"
    except ValueError:
        return False
