"""Do two models give the same answers? Exact equality, and how far the texts go together before they part."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from qlangchain.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Agreement:
    """Answers beside the reference's.

    `same` is the share of equal answers, `prefix` the mean share of the text, in characters, up to the first
    difference. `right` is the share that equals the wanted answers, None where none are known. `failed` counts the
    prompts that were not answered, which agree with nothing.
    """

    prompts: int
    same: float | None
    prefix: float | None
    right: float | None = None
    failed: int = 0


def agree(
    answers: Sequence[str | None],
    reference: Sequence[str | None] | None = None,
    wanted: Sequence[str | None] | None = None,
) -> Agreement:
    """Compare answers in order; None stands for a prompt that failed, or that has no wanted answer.

    White space at both ends and the form of Unicode make no difference. A prompt that the reference failed on is
    left out of `same` and `prefix`.
    """
    for others in (reference, wanted):
        if others is not None and len(others) != len(answers):
            raise InvalidInputError(
                f"There are {len(answers)} answers and {len(others)} to compare them with.", hint="Pass one for each."
            )
    pairs = [(a, b) for a, b in zip(answers, reference or (), strict=False) if b is not None]
    known = [(a, b) for a, b in zip(answers, wanted or (), strict=False) if b is not None]
    return Agreement(
        prompts=len(answers),
        same=_mean([a is not None and plain(a) == plain(b) for a, b in pairs]),
        prefix=_mean([0.0 if a is None else common_prefix(plain(a), plain(b)) for a, b in pairs]),
        right=_mean([a is not None and plain(a) == plain(b) for a, b in known]),
        failed=sum(answer is None for answer in answers),
    )


def common_prefix(first: str, second: str) -> float:
    """The share of the longer text that both begin with; 1 where they are equal, empty ones as well."""
    longest = max(len(first), len(second))
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
    return same / longest if longest else 1.0


def plain(text: str) -> str:
    """A text as it is compared."""
    return unicodedata.normalize("NFC", text).strip()


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
