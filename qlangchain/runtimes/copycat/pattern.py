"""Strings that match a regular expression."""

from __future__ import annotations

import importlib
import re
import string
from collections.abc import Callable
from typing import Any, Final

from qlangchain.runtimes.copycat.schema import InvalidSchemaError, UnsatisfiableError

# Python's own parser has no public name, but has kept its form since Python 2; what comes of it is checked.
_parser: Final = importlib.import_module("re._parser")

_READABLE: Final = string.ascii_lowercase + string.digits + string.ascii_uppercase + string.punctuation + " "
_TRIES: Final = 24

Choose = Callable[[str, int], int]  # (what for, n) -> one of 0 ... n - 1


def matching(pattern: str, least: int, most: int, choose: Choose) -> str:
    """Return a string with `least` to `most` characters that the pattern matches.

    Raises:
        UnsatisfiableError: none was found; lookarounds are beyond this search.

    """
    try:
        parsed = _parser.parse(pattern)
        for attempt in range(_TRIES):
            # Repetitions are short at first; each try may repeat more often, to reach a minimal length.
            found = _Writer(choose, attempt).sequence(parsed)
            if least <= len(found) <= most and re.search(pattern, found):
                return found
    except re.error as error:
        raise InvalidSchemaError(f"the pattern {pattern!r}: {error}") from error
    raise UnsatisfiableError(f"the pattern {pattern!r}, for which no string was found")


class _Writer:
    """Writes one string along a parsed expression."""

    def __init__(self, choose: Choose, attempt: int) -> None:
        self._choose = choose
        self._attempt = attempt
        self._choices = 0
        self._groups: dict[int | None, str] = {}

    def sequence(self, nodes: Any) -> str:
        return "".join(self._one(str(operation), argument) for operation, argument in nodes)

    def _one(self, operation: str, argument: Any) -> str:
        match operation:
            case "LITERAL":
                return chr(argument)
            case "NOT_LITERAL":
                return self._of([character for character in _READABLE if ord(character) != argument])
            case "ANY":
                return self._of(list(_READABLE[:36]))
            case "IN":
                return self._of(_members(argument))
            case "BRANCH":
                return self.sequence(argument[1][self._next(len(argument[1]))])
            case "SUBPATTERN":
                self._groups[argument[0]] = self.sequence(argument[3])
                return self._groups[argument[0]]
            case "ATOMIC_GROUP":
                return self.sequence(argument)
            case "GROUPREF":
                return self._groups.get(argument, "")
            case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
                least, most, part = argument
                spread = min(int(most) - int(least), self._attempt + 3)
                count = int(least) + max(self._next(spread + 1), min(spread, self._attempt))
                return "".join(self.sequence(part) for _ in range(count))
            case "AT":
                return ""
        raise UnsatisfiableError(f"a pattern with {operation.lower().replace('_', ' ')}")

    def _of(self, characters: list[str]) -> str:
        if not characters:
            raise UnsatisfiableError("a pattern with a set of characters that is empty")
        return characters[self._next(len(characters))]

    def _next(self, n: int) -> int:
        self._choices += 1
        return self._choose(f"{self._attempt}.{self._choices}", n)


def _members(items: Any) -> list[str]:
    """Return characters of a set such as [a-z_]: those that are easy to read, or else the ends of its ranges."""
    negated = bool(items) and str(items[0][0]) == "NEGATE"

    def has(character: str) -> bool:
        return any(_within(str(kind), argument, character) for kind, argument in items)

    readable = [character for character in _READABLE if has(character) != negated]
    ends = [chr(a if str(kind) == "LITERAL" else a[0]) for kind, a in items if str(kind) in ("LITERAL", "RANGE")]
    return readable or ([] if negated else ends)


def _within(kind: str, argument: Any, character: str) -> bool:
    if kind == "LITERAL":
        return bool(ord(character) == argument)
    if kind == "RANGE":
        return bool(argument[0] <= ord(character) <= argument[1])
    if kind == "CATEGORY":
        name = str(argument)
        found = {
            "DIGIT": character.isdigit(),
            "SPACE": character.isspace(),
            "WORD": character.isalnum() or character == "_",
        }[name.rsplit("_", 1)[-1]]
        return bool(found != ("NOT" in name))
    return False
