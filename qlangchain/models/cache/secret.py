"""The secret beside a cache's file: it names entries, and tells whole ones from altered ones.

Who reads the cache's file alone cannot test guesses of the prompts in it, because keys are made with the secret.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import struct
from pathlib import Path
from typing import Final

SIZE: Final = 32  # bytes, as many as SHA-256 gives
_MOST_SET_ASIDE: Final = 5  # damaged files are kept for a look, not collected for ever


def load(path: Path) -> bytes:
    """Read the secret, or make one where there is none. A damaged one is set aside.

    Raises OSError where it can be neither read nor made. Of two processes that make one, both get the same.
    """
    for _ in range(3):
        try:
            secret = path.read_bytes()
        except FileNotFoundError:
            _make(path)
            continue
        if len(secret) == SIZE:
            return secret
        set_aside(path)
    raise OSError(f"no secret could be kept at {path}")


def _make(path: Path) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.urandom(SIZE))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(partial, path)  # unlike a rename, it fails where another process was faster
        except FileExistsError:
            return
        except OSError:  # a file system without links
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Rename a damaged file to `<name>.damaged-N`; the last N is used again when all are taken."""
    for number in range(1, _MOST_SET_ASIDE + 1):
        target = path.with_name(f"{path.name}.damaged-{number}")
        if not target.exists():
            break
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        os.replace(path, target)
    return target


def entry_key(secret: bytes, prompt: str, llm_string: str) -> bytes:
    """Name an entry: HMAC-SHA256 of the prompt and the model's settings, each with its length before it.

    A prompt of a class of its own, such as one that carries messages, is another prompt than its text alone.
    """
    parts = ("" if type(prompt) is str else type(prompt).__qualname__, prompt, llm_string)
    encoded = [part.encode("utf-8", "surrogatepass") for part in parts]
    return hmac.digest(secret, b"key" + b"".join(struct.pack(">Q", len(part)) + part for part in encoded), "sha256")


def entry_tag(secret: bytes, key: bytes, created: float, value: bytes) -> bytes:
    """Sign an entry, so that a row that was altered or moved to another key is seen."""
    return hmac.digest(secret, b"tag" + key + struct.pack(">d", created) + value, "sha256")
