"""The formats that a comparison can ask for, in one spelling: "fp16", "gptq-4", "awq-4", "Q4_K_M"."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from qlangchain.errors import InvalidInputError
from qlangchain.selection.formats import canonical
from qlangchain.types import Method

DEFAULT: Final = ("fp16", "gptq-4", "gptq-8", "awq-4", "Q8_0", "Q5_1", "Q4_K_M", "Q4_0")
UNQUANTIZED: Final = ("F32", "F16", "BF16")
# INT8 in the words of tables is GPTQ with 8 bits for a GPU; on a CPU it is Q8_0.
_MADE: Final = re.compile(r"(GPTQ|AWQ)-INT(\d)")
_GGUF: Final = re.compile(r"I?Q\d_[A-Z0-9_]+|TQ\d_\d|MXFP4")
_BITS: Final = {Method.GPTQ: (4, 8), Method.AWQ: (4,)}


@dataclass(frozen=True, slots=True)
class Wanted:
    """One format: `name` as the data files spell it, and how it is come by. `bits` is 0 where the name says it."""

    name: str
    method: Method
    bits: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether nothing is quantized."""
        return self.name in UNQUANTIZED


def parse(word: str) -> Wanted:
    """Read a format in any usual spelling. Raises InvalidInputError for one that is not known."""
    name = canonical(str(word).strip().replace(" ", "-"))
    if name == "INT8":
        name = "GPTQ-INT8"
    if made := _MADE.fullmatch(name):
        method, bits = Method(made[1]), int(made[2])
        if bits in _BITS[method]:
            return Wanted(name, method, bits)
        known = " and ".join(map(str, _BITS[method]))
        raise InvalidInputError(f"{method} is not made in {bits} bits.", hint=f"Known: {known}.")
    if name in UNQUANTIZED or _GGUF.fullmatch(name):
        return Wanted(name, Method.GGUF)
    raise InvalidInputError(
        f"The format {word!r} is not known.",
        hint=f"For example: {', '.join(DEFAULT)}, bf16, Q6_K, Q5_K_M, Q3_K_M, IQ4_XS.",
    )


def parse_all(words: str | Iterable[str]) -> tuple[Wanted, ...]:
    """Read several formats, or one text with commas, each kept once. Raises InvalidInputError where there is none."""
    parts = words.split(",") if isinstance(words, str) else list(words)
    found = tuple(dict.fromkeys(parse(part) for part in parts if str(part).strip()))
    if not found:
        raise InvalidInputError("No format was given.", hint=f"For example: {','.join(DEFAULT)}.")
    return found


def group_size(columns: Iterable[int]) -> int:
    """The group size for layers of these inputs: 128, which is usual, or the next smaller one that divides them."""
    sizes = list(columns)
    return next((size for size in (128, 64, 32, 16) if all(column % size == 0 for column in sizes)), 128)
