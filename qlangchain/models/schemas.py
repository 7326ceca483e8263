"""JSON schemas: refused when they are none, bounded so that what they allow comes to an end, joined, checked."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import jsonschema
from jsonschema.exceptions import SchemaError, best_match

from qlangchain.errors import InvalidInputError

Schema = dict[str, Any]

# A grammar without limits lets a weak model write until the context ends, and then the JSON is never closed.
# So the tokens that an answer may take are shared out over the schema. A character takes at most about a token.
LONGEST_STRING: Final = 4096  # characters
MOST_ITEMS: Final = 128
LARGEST_NUMBER: Final = 10**15
SMALLEST_STEP: Final = 1e-6
SHORTEST_STRING: Final = 12  # below it nothing useful can be said; such an answer may be cut, which is an error
_ITEM_TOKENS: Final = 24  # what an item of an array is given at least
LONGEST_KEY: Final = 24  # characters, in an object whose keys are free
_ENTRY_TOKENS: Final = 48  # what an entry of such an object is given at least
_PLAIN_VALUE: Final[Schema] = {"anyOf": [{"type": kind} for kind in ("string", "number", "boolean", "null")]}
# Formats that a grammar knows; a string of any other one, such as pydantic's "binary" for bytes, can be of any length.
_FORMATS: Final = frozenset(
    ("date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
)
_COMBINING: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_SHAPING: Final = ("type", "enum", "const", "$ref", "properties", "items", *_COMBINING)


def check(schema: Any, what: str) -> None:
    """Refuse what is no JSON schema, and references that lead nowhere or out of the schema.

    Raises InvalidInputError, which names `what` and the place of the fault.
    """
    if not isinstance(schema, Mapping):
        raise InvalidInputError(f"{what} is {type(schema).__name__}.", hint="Pass a JSON schema as a dict.")
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        where = "/".join(str(part) for part in error.absolute_path) or "its root"
        raise InvalidInputError(f"{what} is no valid JSON schema: at {where}, {error.message}.") from None
    for reference in _references(schema):
        if _resolve(schema, reference) is None:
            raise InvalidInputError(
                f"{what} refers to {reference!r}, which is not in it.", hint="Put every definition under $defs."
            )


def is_recursive(schema: Schema) -> bool:
    """Whether a definition leads back to itself, so that values of it can be nested without end."""
    groups = {
        f"#/{group}/{name}": part for group in ("$defs", "definitions") for name, part in schema.get(group, {}).items()
    }
    ways = {name: set(_references(part)) for name, part in groups.items()}

    def reached(name: str) -> set[str]:
        found: set[str] = set()
        ahead = list(ways.get(name, ()))
        while ahead:
            step = ahead.pop()
            if step not in found:
                found.add(step)
                ahead += ways.get(step, ())
        return found

    return any(name in reached(name) for name in ways)


def bounded(schema: Schema, tokens: int) -> Schema:
    """Return the schema with limits where it has none, so that a value of it fits into about `tokens` tokens.

    Strings get a length, arrays a number of items, objects no properties beside those that are named, and a
    required string has at least one character. Everything that the result allows, the schema allows too.
    """
    limited: Schema = _bound(copy.deepcopy(schema), tokens, required=False)
    return limited


def either(schemas: Sequence[Schema]) -> Schema:
    """Return the schema of a value that fits any of `schemas`, whose definitions are kept apart."""
    definitions: Schema = {}
    choices = []
    for number, schema in enumerate(schemas):
        choice = copy.deepcopy(schema)
        prefix = f"s{number}_"
        for group in ("$defs", "definitions"):
            for name, definition in choice.pop(group, {}).items():
                definitions[prefix + name] = definition
                _rename(definition, prefix)
        _rename(choice, prefix)
        choices.append(choice)
    joined = choices[0] if len(choices) == 1 else {"anyOf": choices}
    return {**joined, "$defs": definitions} if definitions else joined


def fault(value: Any, schema: Schema) -> str | None:
    """Say in which way the value does not fit the schema, or None where it fits."""
    error = best_match(jsonschema.Draft202012Validator(schema).iter_errors(value))
    if error is None:
        return None
    where = "/".join(str(part) for part in error.absolute_path)
    return f"{where}: {error.message}" if where else error.message


def _bound(schema: Any, tokens: int, *, required: bool) -> Any:
    if not isinstance(schema, dict):
        return schema
    if not any(key in schema for key in _SHAPING):
        schema.update(copy.deepcopy(_PLAIN_VALUE))
    kinds = schema.get("type")
    kinds = [kinds] if isinstance(kinds, str) else kinds or []
    shaped = any(key in schema for key in ("enum", "const", "pattern")) or schema.get("format") in _FORMATS
    if "string" in kinds and not shaped:
        length = min(LONGEST_STRING, max(SHORTEST_STRING, tokens - 4))
        schema.setdefault("maxLength", max(length, schema.get("minLength", 0)))
        if required:
            schema.setdefault("minLength", 1)
    if {"integer", "number"} & set(kinds) and "enum" not in schema and "const" not in schema:
        _bound_number(schema)
    if "array" in kinds:
        if "items" not in schema and "prefixItems" not in schema:
            schema["items"] = copy.deepcopy(_PLAIN_VALUE)
        items = min(MOST_ITEMS, max(1, tokens // _ITEM_TOKENS))
        schema.setdefault("maxItems", max(items, schema.get("minItems", 0)))
        schema["items"] = _bound(schema.get("items"), tokens // max(1, schema["maxItems"]), required=False)
        if schema["items"] is None:
            del schema["items"]
    if "properties" in schema:
        schema["additionalProperties"] = False  # where others are allowed, there need be none
        _bound_properties(schema, tokens)
    elif "object" in kinds and "patternProperties" not in schema and schema.get("additionalProperties") is not False:
        _bound_entries(schema, tokens)
    for key in _COMBINING:
        # Parts of allOf describe one object together, so none of them may forbid the others' properties.
        if key in schema and key != "allOf":
            schema[key] = [_bound(part, tokens, required=required) for part in schema[key]]
    for group in ("$defs", "definitions"):
        for name, part in schema.get(group, {}).items():
            schema[group][name] = _bound(part, tokens // 4, required=False)
    return schema


def _bound_number(schema: Schema) -> None:
    """Limit the digits before and behind the point: a grammar allows any number of them."""
    if not {"minimum", "exclusiveMinimum"} & set(schema):
        schema["minimum"] = min(-LARGEST_NUMBER, schema.get("maximum", 0), schema.get("exclusiveMaximum", 0))
    if not {"maximum", "exclusiveMaximum"} & set(schema):
        schema["maximum"] = max(LARGEST_NUMBER, schema.get("minimum", 0), schema.get("exclusiveMinimum", 0))
    if schema.get("type") != "integer":
        schema.setdefault("multipleOf", SMALLEST_STEP)


def _bound_entries(schema: Schema, tokens: int) -> None:
    """Limit the entries of an object whose keys are free, and the length of the keys; values of any kind end here."""
    entries = max(1, min(MOST_ITEMS, tokens // _ENTRY_TOKENS), schema.get("minProperties", 0))
    entries = schema.setdefault("maxProperties", entries)
    schema.setdefault("propertyNames", {"maxLength": max(1, min(LONGEST_KEY, tokens // max(1, entries) // 4))})
    share = max(SHORTEST_STRING, tokens // max(1, entries) * 3 // 4 - 6)
    value = schema.get("additionalProperties")
    if not isinstance(value, dict):
        value = {"anyOf": [*_PLAIN_VALUE["anyOf"], {"type": "array"}]} if share > 2 * _ITEM_TOKENS else {}
    schema["additionalProperties"] = _bound(copy.deepcopy(value), share, required=False)


def _bound_properties(schema: Schema, tokens: int) -> None:
    """Share the tokens out over an object's properties: those of a fixed size need few, the others the rest."""
    properties = schema["properties"]
    open_ended = [name for name, part in properties.items() if _is_open(part)]
    spent = sum(len(name) // 2 + 6 for name in properties) + 8 * (len(properties) - len(open_ended))
    share = max(SHORTEST_STRING, (tokens - spent) // max(1, len(open_ended)))
    for name, part in properties.items():
        properties[name] = _bound(part, share, required=name in schema.get("required", []))


def _is_open(part: Any) -> bool:
    """Whether a value of this schema can be of any length."""
    if not isinstance(part, Mapping) or "enum" in part or "const" in part:
        return False
    kinds = part.get("type")
    return not kinds or bool({"string", "array", "object"} & set([kinds] if isinstance(kinds, str) else kinds))


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, Mapping):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        for value in schema.values():
            yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def _resolve(schema: Any, reference: str) -> Any:
    if reference == "#":
        return schema
    if not reference.startswith("#/"):
        return None
    found = schema
    for part in reference[2:].split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, Mapping) or name not in found:
            return None
        found = found[name]
    return found


def _rename(schema: Any, prefix: str) -> None:
    """Point references to definitions at their new names, in place."""
    if isinstance(schema, dict):
        reference = schema.get("$ref")
        if isinstance(reference, str):
            for group in ("#/$defs/", "#/definitions/"):
                if reference.startswith(group):
                    schema["$ref"] = "#/$defs/" + prefix + reference.removeprefix(group)
        for value in schema.values():
            _rename(value, prefix)
    elif isinstance(schema, list):
        for value in schema:
            _rename(value, prefix)
