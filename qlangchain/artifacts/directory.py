"""A directory of safetensors as one artifact: which of its files count, and what names their bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

# What engines read from a model directory. Everything else there changes no answer: READMEs, images, pickles, GGUF.
_READ: Final = frozenset((".safetensors", ".json", ".jinja", ".txt", ".model", ".tiktoken"))


def files_of(path: Path) -> tuple[Path, ...]:
    """The files of a model directory that decide what it answers, sorted by name."""
    return tuple(sorted(file for file in path.iterdir() if file.suffix in _READ and file.is_file()))


def digest_of(path: Path, digest: Callable[[Path], str]) -> str:
    """Return what names the bytes of a model directory: the SHA-256, in hex, of its files' names and digests.

    `digest` gives the SHA-256 of a file; the store's remembers it while the file looks untouched.
    """
    sum = hashlib.sha256(b"directory")
    for file in files_of(path):
        sum.update(f"{digest(file)} {file.name}\n".encode(errors="surrogateescape"))
    return sum.hexdigest()
