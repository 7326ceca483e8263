"""Calibration text as tokens: a model's own tokenizer, samples of one length, none padded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlangchain.artifacts.source import DEMO_DIRECTORY
from qlangchain.errors import CorruptFileError, InvalidInputError

if TYPE_CHECKING:
    from torch import Tensor

SAMPLES, LENGTH = 128, 512
MIN_TOKENS = 4096  # what a calibration needs where the number of samples is left open
_HELD_OUT_MARK = "\n%% held out\n"


def default_texts() -> list[str]:
    """The calibration text that ships with the project, of several kinds and languages; about 200,000 characters."""
    texts = _general()[0].split("\n%%\n")
    for path in sorted((DEMO_DIRECTORY.parent / "corpus").glob("*.jsonl")):
        for line in path.read_text("utf-8").splitlines():
            pair = json.loads(line)
            texts.append(f"{pair['train'][0]}\n{pair['answer']}")
    return texts


def held_out_texts() -> list[str]:
    """A short text that is never calibrated on, for the check of what was made."""
    return _general()[1].split("\n%%\n")


def _general() -> tuple[str, str]:
    calibration, _, held_out = Path(__file__).with_name("calibration.txt").read_text("utf-8").partition(_HELD_OUT_MARK)
    return calibration, held_out


def load_tokenizer(source: Path) -> Any:
    """The tokenizer of a model directory, without running code of its own.

    Raises `CorruptFileError` where transformers cannot load it.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers raises whatever its readers stumble over
        raise CorruptFileError(
            f"The tokenizer in {source} cannot be loaded: {str(error)[:200]}.",
            hint="Download the model again, with tokenizer.json or tokenizer.model.",
        ) from error


def samples_of(
    tokenizer: Any, texts: Sequence[str], samples: int | None, length: int, *, at_least: int = MIN_TOKENS
) -> Tensor:
    """Cut texts into samples of `length` tokens, int64 (samples, length), spread evenly over the texts.

    Where the tokenizer puts a token before every text (many models attend to it), each sample begins with it.
    Without `samples` it is as many as there are, at most `SAMPLES`, and not less than `at_least` tokens. Raises
    `InvalidInputError` where the texts are too short, with the tokens that are there and that are needed.
    """
    import torch

    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise InvalidInputError("The calibration texts are no list of strings.", hint="Pass [text, ...].")
    check_counts(samples, length)
    first = _first_tokens(tokenizer)
    if length < len(first) + 8:
        raise InvalidInputError(f"A sequence length of {length} is too short.", hint="Pass 128 or more; 512 is usual.")
    ids: list[int] = []
    for text in texts:
        ids += tokenizer(text + "\n\n", add_special_tokens=False, verbose=False)["input_ids"]
    each = length - len(first)
    there = len(ids) // each
    needed = samples if samples is not None else max(1, -(-at_least // length))
    if there < needed:
        raise InvalidInputError(
            f"The calibration text is too short: {len(ids):,} tokens, where {needed} samples of {length} need "
            f"{needed * each:,}.",
            hint="Pass more text, fewer samples or a shorter sequence length; or no text, for the one that ships "
            "with qlangchain.",
        )
    count = samples if samples is not None else min(there, SAMPLES)
    starts = [place * (len(ids) - each) // max(1, count - 1) for place in range(count)]
    return torch.tensor([first + ids[start : start + each] for start in starts])


def check_counts(samples: int | None, length: int | None) -> None:
    """Raise `InvalidInputError` where the samples or their length, None for the usual, are not whole numbers from 1."""
    for name, value in (("samples", samples), ("sequence_length", length)):
        if value is not None and (type(value) is not int or value < 1):
            raise InvalidInputError(
                f"{name}={value!r:.40} is not a whole number above zero.", hint="Pass one, or None for what is usual."
            )


def _first_tokens(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer puts before a text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for place in range(len(whole) - len(plain) + 1):
        if whole[place : place + len(plain)] == plain:
            return list(whole[:place])
    return []
