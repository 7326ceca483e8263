"""SentencePiece-like vocabularies (Llama 2, Mistral 7B v0.1, Gemma, Phi-3): scores for llama.cpp, proven equivalent.

These tokenizer.json files are BPE over whole texts with bytes as the last resort. llama.cpp instead joins the
neighbours whose union has the best score. The two agree when the merges are all the pairs that the vocabulary
allows, and are sorted by the token that they make; then that order gives the scores. Both conditions are
checked. What is left is the choice between two ways to the same token that overlap in the text, such as
a|aa|a, which llama.cpp decides from the left.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from qlangchain.errors import UnsupportedModelError

UNKNOWN, BYTE = 2, 6
_SPACE = "▁"
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_PREPEND = {"type": "Prepend", "prepend": _SPACE}
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_NO_GUESS = "qlangchain does not guess tokenizers: look for a ready-made GGUF of this model."


@dataclass(frozen=True, slots=True)
class SpmVocab:
    """Scores by token (higher joins first), the tokens that stand for bytes, and the blank before a text."""

    scores: Mapping[str, float]
    bytes: Set[str]
    space_prefix: bool


def read_spm(
    data: Mapping[str, Any], merges: list[tuple[str, str]], vocab: Set[str], added: Mapping[str, Mapping[str, Any]]
) -> SpmVocab:
    """Prove that llama.cpp's SPM tokenizer follows `data` (a tokenizer.json) and return its scores.

    `vocab` holds the tokens that are not in `added`. Raises `UnsupportedModelError` where the proof fails.
    """
    runs = {token for token, entry in added.items() if _SPACE in token and not entry.get("special")}
    if runs:
        _check_runs(runs, merges)
    found_bytes = {token for token in vocab if _BYTE.fullmatch(token)}
    if len(found_bytes) != 256:
        raise UnsupportedModelError(
            f"The tokenizer falls back to bytes and has {len(found_bytes)} of the 256.", hint=_NO_GUESS
        )
    if data["model"].get("ignore_merges"):
        raise UnsupportedModelError("The tokenizer falls back to bytes and ignores merges.", hint=_NO_GUESS)
    pieces = vocab - found_bytes
    rank: dict[str, int] = {}
    last = ""
    for left, right in merges:
        made = left + right
        if made in added:  # such a text is cut out before any merging
            continue
        if made != last:
            if made in rank or not {left, right, made} <= pieces:
                raise UnsupportedModelError(
                    f"The tokenizer's merges are not sorted by the token that they make ({made[:40]!r}).",
                    hint=_NO_GUESS,
                )
            rank[made] = len(rank)
            last = made
    listed = set(merges)
    for piece in pieces:
        for cut in range(1, len(piece)):
            pair = (piece[:cut], piece[cut:])
            if pair not in listed and pair[0] in pieces and pair[1] in pieces:
                raise UnsupportedModelError(
                    f"The tokenizer does not merge {pair[0][:40]!r} and {pair[1][:40]!r}, and llama.cpp would.",
                    hint=_NO_GUESS,
                )
    return SpmVocab({piece: -float(number) for piece, number in rank.items()}, found_bytes, _space_prefix(data))


def _check_runs(runs: Set[str], merges: list[tuple[str, str]]) -> None:
    """Prove that runs of blanks that are tokens of their own (Gemma) are cut as llama.cpp cuts them.

    llama.cpp cuts the longest known run out of a text, from the left, before it joins anything. The merges come to
    the same where they join blanks before all else, and a longer left part first.
    """
    longest = max(map(len, runs))
    ranks: dict[tuple[int, int], int] = {}
    for rank, (left, right) in enumerate(merges):
        if set(left + right) != {_SPACE}:
            break
        ranks[len(left), len(right)] = rank
    whole = runs == {_SPACE * length for length in range(2, longest + 1)}
    if not whole or any(_joined(length, ranks) != _cut(length, longest) for length in range(1, 2 * longest + 2)):
        raise UnsupportedModelError(
            f"The tokenizer has added tokens with a {_SPACE} that llama.cpp would cut out differently.", hint=_NO_GUESS
        )


def _cut(length: int, longest: int) -> list[int]:
    return [longest] * (length // longest) + ([length % longest] if length % longest else [])


def _joined(length: int, ranks: Mapping[tuple[int, int], int]) -> list[int]:
    """The lengths that merging makes of a run of blanks."""
    parts = [1] * length
    while True:
        pairs = [(ranks[pair], at) for at, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not pairs:
            return parts
        at = min(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def _space_prefix(data: Mapping[str, Any]) -> bool:
    """Whether every text gets a blank before it: the three forms that mean the same in llama.cpp."""
    normalizer, pre = data.get("normalizer"), data.get("pre_tokenizer")
    if pre is None:
        match normalizer:
            case {"type": "Sequence", "normalizers": list(steps)} if steps == [_PREPEND, _REPLACE]:
                return True
            case {"type": "Sequence", "normalizers": list(steps)} if steps == [_REPLACE]:
                return False
            case dict() if normalizer == _REPLACE:
                return False
    never = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "never", "split": False}
    if normalizer is None and pre == never:
        return False
    # Gemma's: it splits at blanks, of which its normalizer leaves none.
    idle = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    if normalizer == _REPLACE and pre == idle:
        return False
    raise UnsupportedModelError(
        f"llama.cpp has no blank rule like this tokenizer's: normalizer {str(normalizer)[:120]}, "
        f"pre-tokenizer {str(pre)[:120]}.",
        hint=_NO_GUESS,
    )
