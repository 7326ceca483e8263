"""What the reference predicts for a text, kept on the disk, so that it need not be in memory with a candidate.

A directory with the tokens, and one row of log-probabilities in float16 for each token that is predicted. Small
log-probabilities belong to tokens that hardly matter, and those near 0 are the precise ones in float16: the error of
a divergence is below a hundred-thousandth of a nat.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from qlangchain.errors import DiskFullError, InvalidInputError
from qlangchain.evaluate.figures import LOWEST, Floats, log_softmax, perplexity

LIMIT: Final = 2 << 30  # bytes that a reference may take on the disk
FEWEST: Final = 16  # tokens; less is no text
_ROWS: Final = 64  # rows that are converted at once


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some tokens of a text, each but the first predicted by the reference.

    `tokens` (length,), `log_probabilities` (length - 1, vocabulary) in float16, `favourites` and `losses`
    (length - 1,).
    """

    tokens: npt.NDArray[np.int64]
    log_probabilities: npt.NDArray[np.float16]
    favourites: npt.NDArray[np.int64]
    losses: npt.NDArray[np.float64]


def cut(tokens: Sequence[int], length: int, *, prefix: Sequence[int] = (), most: int | None = None) -> list[list[int]]:
    """Cut a text into chunks of at most `length` tokens that do not overlap, each begun with `prefix`.

    `most` is how many tokens are predicted at most. A last chunk of fewer than `FEWEST` tokens is left out. Raises
    InvalidInputError where nothing is left.
    """
    if length < FEWEST + len(prefix):
        raise InvalidInputError(f"Chunks of {length} tokens are too short.", hint="512 is usual.")
    each, chunks, predicted = length - len(prefix), [], 0
    for start in range(0, len(tokens), each):
        chunk = [*prefix, *tokens[start : start + each]]
        if most is not None:
            chunk = chunk[: most - predicted + 1]
        if len(chunk) < FEWEST + len(prefix):
            break
        chunks.append(chunk)
        predicted += len(chunk) - 1
    if not chunks:
        raise InvalidInputError(
            f"The text is too short: {len(tokens)} tokens, where at least {FEWEST} are needed.",
            hint="Pass some pages of text of the kind that the model is for; a file as a Path.",
        )
    return chunks


def rows_within(limit: int, vocabulary: int, free: int | None = None) -> int:
    """How many tokens may be predicted so that a reference takes `limit` bytes at most, and half of the free disk."""
    room = limit if free is None else min(limit, free // 2)
    rows = room // (2 * vocabulary)
    if rows < FEWEST:
        raise DiskFullError(
            f"Judging needs {2 * vocabulary * FEWEST >> 20} MiB of disk at least, and {room >> 20} MiB may be used.",
            hint="Free some disk, or set QLANGCHAIN_HOME to another one.",
        )
    return rows


class Writer:
    """Writes a reference, chunk by chunk; `close` completes it."""

    def __init__(self, directory: Path, chunks: Sequence[Sequence[int]], vocabulary: int) -> None:
        """Make the files, (all chunks' tokens - 1 each) rows of `vocabulary` log-probabilities."""
        self._directory, self._chunks, self._at = directory, chunks, 0
        rows = sum(len(chunk) - 1 for chunk in chunks)
        directory.mkdir(parents=True, exist_ok=True)
        self._rows = np.memmap(directory / "rows.f16", np.float16, "w+", shape=(rows, vocabulary))
        self._favourites, self._losses = np.zeros(rows, np.int64), np.zeros(rows, np.float64)

    def add(self, index: int, logits: Floats) -> None:
        """Take in the logits (length, vocabulary) of a chunk, in order; the last row predicts nothing of it."""
        came = np.asarray(self._chunks[index][1:], dtype=np.int64)
        for at in range(0, len(came), _ROWS):
            part = log_softmax(logits[at : min(at + _ROWS, len(came))])
            rows = slice(self._at, self._at + len(part))
            self._favourites[rows] = part.argmax(axis=-1)
            self._losses[rows] = -part[np.arange(len(part)), came[at : at + len(part)]]
            self._rows[rows] = np.maximum(part, LOWEST)
            self._at += len(part)

    def close(self) -> float:
        """Complete the directory and return the reference's own perplexity."""
        self._rows.flush()
        np.savez(
            self._directory / "known.npz",
            tokens=np.concatenate([np.asarray(chunk, dtype=np.int64) for chunk in self._chunks]),
            favourites=self._favourites,
            losses=self._losses,
        )
        shape: dict[str, Any] = {"vocabulary": self._rows.shape[1], "lengths": [len(chunk) for chunk in self._chunks]}
        (self._directory / "reference.json").write_text(json.dumps(shape), encoding="utf-8")
        return perplexity(self._losses)


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference that was written; nothing of it is in memory but what is looked at."""

    directory: Path
    vocabulary: int
    lengths: tuple[int, ...]

    @property
    def longest(self) -> int:
        """The tokens of the longest chunk."""
        return max(self.lengths)

    def chunks(self) -> Iterator[Chunk]:
        """The chunks in order."""
        known = np.load(self.directory / "known.npz")
        shape = (sum(self.lengths) - len(self.lengths), self.vocabulary)
        rows = np.memmap(self.directory / "rows.f16", np.float16, "r", shape=shape)
        token = row = 0
        for length in self.lengths:
            part = slice(row, row + length - 1)
            yield Chunk(
                known["tokens"][token : token + length], rows[part], known["favourites"][part], known["losses"][part]
            )
            token, row = token + length, row + length - 1


def open_reference(directory: Path) -> Reference:
    """Read what `Writer.close` completed."""
    shape = json.loads((directory / "reference.json").read_text(encoding="utf-8"))
    return Reference(directory, shape["vocabulary"], tuple(shape["lengths"]))
