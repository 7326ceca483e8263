"""Values that have a JSON schema: what a grammar guarantees without any intelligence, made with a good memory.

The sampler copies literals from a text where they fit, and otherwise decides by a hash of the seed and of the
value's place, so that equal requests get equal values and no value depends on its neighbours.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from qlangchain.runtimes.copycat import schema as schemas
from qlangchain.runtimes.copycat.literals import Literal, Literals
from qlangchain.runtimes.copycat.pattern import matching
from qlangchain.runtimes.copycat.schema import InvalidSchemaError, UnsatisfiableError, fits, resolve

_WORDS: Final = (
    "amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "harbor", "indigo", "juniper", "kelp", "lumen",
    "maple", "north", "ocean", "pebble", "quartz", "river", "sable", "tundra", "umber", "violet", "willow", "zephyr",
)  # fmt: skip
_FORMATS: Final[Mapping[str, str]] = {
    "date": "20{year:02}-{month:02}-{day:02}",
    "date-time": "20{year:02}-{month:02}-{day:02}T{hour:02}:{minute:02}:00Z",
    "time": "{hour:02}:{minute:02}:00Z",
    "duration": "PT{minute}M",
    "email": "{word}@example.org",
    "uri": "https://example.org/{word}",
    "uuid": "00000000-0000-4000-8000-{number:012}",
    "ipv4": "192.0.2.{month}",
    "ipv6": "2001:db8::{month}",
    "hostname": "{word}.example.org",
}
_SHALLOW: Final = 6  # levels after which optional parts are left out, so that recursive schemas come to an end
_DEEPEST: Final = 48
_MOST_VALUES: Final = 10_000
_MOST_ITEMS: Final = 8  # copied into one list
_LONGEST: Final = 100_000  # characters


class Sampler:
    """Makes one value for one schema."""

    def __init__(self, schema: Any, literals: Literals, seed: str) -> None:
        """`literals` are handed out as they are copied; `seed` decides what cannot be copied."""
        self._root = schema
        self._literals = literals
        self._seed = seed
        self._made = 0
        self._said: set[str] = set()

    def sample(self) -> Any:
        """Return a value that has the schema.

        Raises:
            UnsatisfiableError: none was found, or the schema is none.

        """
        value = self._value(self._root, "", "", 0)
        if not fits(value, self._root, self._root):
            raise UnsatisfiableError("a schema for which no value was found")
        return value

    def _choose(self, place: str, n: int) -> int:
        digest = hashlib.sha256(f"{self._seed}|{place}".encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") % n

    def _fits(self, value: Any, schema: Any) -> bool:
        return fits(value, schema, self._root)

    def _value(self, schema: Any, name: str, place: str, depth: int) -> Any:
        """`name` is the property that the value is for, `place` its path from the root."""
        self._made += 1
        if depth > _DEEPEST or self._made > _MOST_VALUES:
            raise UnsatisfiableError("a schema that never comes to an end")
        schema = resolve(schema, self._root)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._enum(schema, place)
        for word in ("anyOf", "oneOf"):
            if word in schema:
                return self._branch(schema, word, name, place, depth)
        kinds = schemas.types(schema)
        if len(kinds) > 1:
            branches = [{**schema, "type": kind} for kind in kinds]
            return self._branch({"anyOf": branches}, "anyOf", name, place, depth)
        match kinds[0] if kinds else "string":
            case "object":
                return self._object(schema, place, depth)
            case "array":
                return self._array(schema, name, place, depth)
            case "integer" | "number" as kind:
                return self._number(schema, kind == "integer", name, place)
            case "boolean":
                return self._boolean(place)
            case "null":
                return None
        return self._string(schema, name, place)

    def _branch(self, schema: dict[str, Any], word: str, name: str, place: str, depth: int) -> Any:
        rest = {key: value for key, value in schema.items() if key != word}
        branches = list(self._branches(rest, schema[word]))
        # What can be copied comes first and null last; deep down, what ends the recursion comes first.
        branches.sort(key=lambda branch: "$ref" in str(branch) if depth > _SHALLOW else False)
        branches.sort(key=lambda branch: branch.get("type") == "null" if depth <= _SHALLOW else False)
        branches.sort(key=lambda branch: self._copy(branch, name) is None)
        for index, branch in enumerate(branches):
            try:
                value = self._value(branch, name, f"{place}|{index}", depth + 1)
            except InvalidSchemaError:
                raise
            except UnsatisfiableError:
                continue
            if self._fits(value, schema):
                return value
        raise UnsatisfiableError(f"a schema whose {word} excludes everything")

    def _branches(self, rest: dict[str, Any], branches: list[Any]) -> Iterator[dict[str, Any]]:
        for branch in branches:
            try:
                yield schemas.join(rest, resolve(branch, self._root))
            except InvalidSchemaError:
                raise
            except UnsatisfiableError:
                continue

    def _enum(self, schema: dict[str, Any], place: str) -> Any:
        allowed = [value for value in schema["enum"] if self._fits(value, schema)]
        if not allowed:
            raise UnsatisfiableError("an enum that is empty")
        for value in allowed:
            if isinstance(value, str) and value not in self._said and self._literals.says(value):
                self._said.add(value)  # like a literal, it is copied once
                return value
        return allowed[self._choose(place, len(allowed))]

    def _copy(self, schema: dict[str, Any], name: str) -> Literal | None:
        """Return the literal to copy for a string or a number, or None where none fits."""
        kinds = schemas.types(schema)
        if "enum" in schema or "const" in schema or not kinds:
            return None
        for literal in self._literals.beside(name):
            value = literal.text if literal.number is None else literal.number
            wanted = {"string"} if literal.number is None else {"integer", "number"}
            if value != name and wanted & set(kinds) and self._fits(value, schema):
                return literal
        return None

    def _copied(self, schema: dict[str, Any], name: str) -> Literal | None:
        literal = self._copy(schema, name)
        if literal is not None:
            self._literals.take(literal)
        return literal

    def _boolean(self, place: str) -> bool:
        words = [word.lower() for word in self._literals.words]
        for said, value in (("true", True), ("false", False)):
            if said in words:
                return value
        return bool(self._choose(place, 2))

    def _number(self, schema: dict[str, Any], whole: bool, name: str, place: str) -> float:
        literal = self._copied({**schema, "type": "integer" if whole else "number"}, name)
        if literal is not None and literal.number is not None:
            return int(literal.number) if whole else literal.number
        low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))
        high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))
        low = min(max(low, 0), max(low, high - 100))  # as near to 0 as the bounds allow
        high = min(high, low + 100)
        for value in self._numbers(low, high, schema.get("multipleOf") or (1 if whole else None), place):
            exact = int(value) if whole else value
            if value == exact and self._fits(exact, schema):
                return exact
        raise UnsatisfiableError("bounds that no number keeps")

    def _numbers(self, low: float, high: float, step: float | None, place: str) -> Iterator[float]:
        if step:
            first, last = math.ceil(low / step), math.floor(high / step)
            count = max(1, last - first + 1)
            chosen = self._choose(place, count)
            # Bounds may be exclusive, and a step may only sometimes be whole: go on from the chosen one.
            for offset in range(min(count, 1000)):
                number = (first + (chosen + offset) % count) * step
                yield round(number, 10)
            return
        part = (self._choose(place, 999) + 1) / 1000
        yield round(low + (high - low) * part, 2)
        yield low + (high - low) * part
        yield low

    def _string(self, schema: dict[str, Any], name: str, place: str) -> str:
        schema = {**schema, "type": "string"}
        literal = self._copied(schema, name)
        if literal is not None:
            return literal.text
        least, most = schema.get("minLength", 0), schema.get("maxLength", _LONGEST)
        if least > min(most, _LONGEST):
            raise UnsatisfiableError("bounds that no text keeps")
        if "pattern" in schema or schema.get("format") in _FORMATS:
            for word in self._literals.words:
                if self._fits(word, schema):
                    return word
        if schema.get("format") in _FORMATS:
            text = self._formatted(schema["format"], place)
        elif "pattern" in schema:
            text = matching(schema["pattern"], least, most, lambda what, n: self._choose(f"{place}~{what}", n))
        else:
            text = self._text(least, most, place)
        if not self._fits(text, schema):
            raise UnsatisfiableError("a text for which none was found")
        return text

    def _formatted(self, name: str, place: str) -> str:
        return _FORMATS[name].format(
            year=20 + self._choose(place + "y", 20),
            month=1 + self._choose(place + "m", 12),
            day=1 + self._choose(place + "d", 28),
            hour=self._choose(place + "h", 24),
            minute=self._choose(place + "i", 60),
            word=_WORDS[self._choose(place + "w", len(_WORDS))],
            number=self._choose(place + "n", 10**12),
        )

    def _text(self, least: int, most: int, place: str) -> str:
        words: list[str] = []
        length = 0
        wanted = 1 + self._choose(place, 3)
        while len(words) < wanted or length < least:
            words.append(_WORDS[self._choose(f"{place}w{len(words)}", len(_WORDS))])
            length += len(words[-1]) + (len(words) > 1)
        return " ".join(words)[:most].rstrip().ljust(least, "s")

    def _array(self, schema: dict[str, Any], name: str, place: str, depth: int) -> list[Any]:
        first = list(schema.get("prefixItems", ()))
        least, most = schema.get("minItems", 0), schema.get("maxItems", _LONGEST)
        item = schema.get("items", not first)
        found = [self._value(part, name, f"{place}/{index}", depth + 1) for index, part in enumerate(first[:most])]
        wanted = min(most, max(least, 1 if not first and depth <= _SHALLOW else 0))
        tries = 0
        while item is not False and len(found) < most:
            copies = len(found) < _MOST_ITEMS and bool(schemas.types(resolve(item, self._root))) and item is not True
            if len(found) >= wanted and not (copies and self._copy(resolve(item, self._root), name)):
                break
            value = self._value(item, name, f"{place}/{len(found)}.{tries}", depth + 1)
            tries += 1
            if schema.get("uniqueItems") and value in found:
                if tries > 200:
                    raise UnsatisfiableError("a list of so many different items")
                continue
            found.append(value)
        return found

    def _object(self, schema: dict[str, Any], place: str, depth: int) -> dict[str, Any]:
        properties: Mapping[str, Any] = schema.get("properties", {})
        required = set(schema.get("required", ()))
        other = schema.get("additionalProperties", True)
        found: dict[str, Any] = {}
        for name in [*properties, *(name for name in schema.get("required", ()) if name not in properties)]:
            part = properties.get(name, other)
            if name in required:
                found[name] = self._value(part, name, f"{place}/{name}", depth + 1)
            elif depth < _SHALLOW and part is not False:
                found |= self._optional(part, name, f"{place}/{name}", depth + 1)
        # A mapping with free keys shows one of them, so that its values are seen as well.
        free = 1 if not properties and isinstance(other, Mapping) and depth < _SHALLOW else 0
        while other is not False and len(found) < max(schema.get("minProperties", 0), free):
            key = self._string({}, "", f"{place}?{len(found)}")
            while key in found:
                key += "_"
            found[key] = self._value(other, key, f"{place}/{key}", depth + 1)
        return found

    def _optional(self, schema: Any, name: str, place: str, depth: int) -> dict[str, Any]:
        plain = resolve(schema, self._root)
        branches = [plain, *self._branches({}, plain.get("anyOf", []))]
        if "default" in plain and not any(self._copy(branch, name) for branch in branches):
            return {name: plain["default"]}
        try:
            return {name: self._value(schema, name, place, depth)}
        except InvalidSchemaError:
            raise
        except UnsatisfiableError:
            return {}
