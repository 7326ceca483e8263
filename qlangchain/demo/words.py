"""The texts of `phrases.toml` and invented words, from which the exercises of the demo model are built.

Every list of words is cut in two: the model trains on the first four fifths, and the measurements use the last
fifth, so that a right answer there was copied and not remembered.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

Split = Literal["train", "test"]

PHRASES: dict[str, Any] = tomllib.loads((Path(__file__).parent / "phrases.toml").read_text(encoding="utf-8"))
WORDS: dict[str, list[str]] = PHRASES["words"]


def invented(rng: Random) -> str:
    """Return a word of random letters, mostly pronounceable, so that it can only be copied."""
    kind = rng.random()
    if kind < 0.7:
        word = "".join(rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(1, 3)))
        word += rng.choice(["", "", "n", "x", "rk", "lt", "s", "m", "th"])
    elif kind < 0.9:
        word = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 7)))
    else:
        letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(rng.randint(1, 3)))
        return f"{letters}{rng.choice(['-', '', '_'])}{rng.randint(1, 9999)}"
    return word.capitalize() if rng.random() < 0.5 else word


@dataclass(frozen=True)
class Bank:
    """A source of words: a seeded random generator and the part of the lists it may use."""

    rng: Random
    split: Split = "train"

    def list(self, kind: str) -> list[str]:
        """Return the words of a kind that belong to this split."""
        words, cut = WORDS[kind], len(WORDS[kind]) * 4 // 5
        return words[:cut] if self.split == "train" else words[cut:]

    def pick(self, kind: str) -> str:
        """Return one listed word of a kind."""
        return self.rng.choice(self.list(kind))

    def entity(self) -> str:
        """Return a person's name, a city or an invented word."""
        kind = self.rng.random()
        if kind < 0.5:
            return invented(self.rng)
        if kind < 0.75:
            return self.pick("name")
        return self.pick("city")

    def integer(self) -> int:
        """Return an integer of one to six digits, sometimes negative."""
        value = self.rng.randint(0, 10 ** self.rng.randint(1, 6))
        return -value if self.rng.random() < 0.06 else value

    def number(self) -> float:
        """Return a decimal number with one or two places that prints the way it is read."""
        return round(self.rng.uniform(0, 10 ** self.rng.randint(1, 3)), self.rng.randint(1, 2))
