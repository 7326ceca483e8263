"""The user's own text and prompts: a file or the words themselves, and what identifies them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlangchain.errors import InvalidInputError

_LARGEST = 64 << 20  # bytes of a text or of prompts; some thousand tokens are enough to judge by
_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation to be continued, in OpenAI's form, and the answer that is wanted, where one is known."""

    messages: tuple[Mapping[str, Any], ...]
    wanted: str | None = None

    @property
    def text(self) -> str:
        """The last message, which a model without a chat template is given."""
        return str(self.messages[-1].get("content") or "")


def read_text(text: str | os.PathLike[str] | None) -> str:
    """The text to judge by: the words themselves, a file (a path, or a string that is one), or the one that ships.

    Raises InvalidInputError where it cannot be read.
    """
    if text is None:
        from qlangchain.produce.calibration import held_out_texts

        return "\n\n".join(held_out_texts())
    if isinstance(text, os.PathLike) or _is_file(text):
        return _read(Path(text))
    if not isinstance(text, str):
        raise InvalidInputError(f"text={text!r} is no text.", hint="Pass a str, or the Path of a file.")
    return text


def digest(text: str) -> str:
    """The SHA-256 of a text, in hex."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def read_prompts(prompts: str | os.PathLike[str] | Iterable[Any] | None) -> tuple[Prompt, ...]:
    """Prompts from a file or a sequence.

    A `.jsonl` or `.json` file holds strings or objects, any other file one prompt in each line that is not empty.
    An object has "prompt" or "messages" and perhaps "answer", the text that is wanted. Raises InvalidInputError,
    with the number of the prompt that is not right.
    """
    if prompts is None:
        return ()
    if isinstance(prompts, str | os.PathLike):
        prompts = _items(Path(prompts))
    found = tuple(_prompt(item, number) for number, item in enumerate(prompts, 1))
    if not found:
        raise InvalidInputError("There are no prompts.", hint="One a line, or JSON lines with 'prompt' and 'answer'.")
    return found


def _items(path: Path) -> Sequence[Any]:
    content = _read(path)
    lines = [line for line in content.splitlines() if line.strip()]
    try:
        if path.suffix == ".json":
            items = json.loads(content)
            if not isinstance(items, list):
                raise InvalidInputError(f"{path} is no JSON array.", hint="Expected an array of prompts.")
            return items
        return [json.loads(line) for line in lines] if path.suffix == ".jsonl" else lines
    except (ValueError, RecursionError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(
            f"{path} is not readable JSON: {error}.", hint="One JSON value in each line."
        ) from error


def _prompt(item: Any, number: int) -> Prompt:
    if isinstance(item, Prompt):
        return item
    if isinstance(item, str) and item.strip():
        return Prompt(({"role": "user", "content": item},))
    if isinstance(item, Mapping):
        wanted = item.get("answer")
        messages: Any = item.get("messages")
        if messages is None and isinstance(item.get("prompt"), str):
            messages = [{"role": "user", "content": item["prompt"]}]
        if _is_conversation(messages) and (wanted is None or isinstance(wanted, str)):
            return Prompt(tuple(messages), wanted)
    raise InvalidInputError(
        f"Prompt {number} is not one: {str(item)[:80]!r}.",
        hint='A text, or {"prompt": "...", "answer": "..."}, or {"messages": [{"role": "user", "content": "..."}]}.',
    )


def _is_conversation(messages: Any) -> bool:
    return (
        isinstance(messages, list | tuple)
        and len(messages) > 0
        and all(isinstance(one, Mapping) and one.get("role") in _ROLES for one in messages)
        and isinstance(messages[-1].get("content"), str)
    )


def _is_file(text: Any) -> bool:
    if not isinstance(text, str) or "\n" in text or len(text) > 4096:
        return False
    try:
        return Path(text).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):
        return False


def _read(path: Path) -> str:
    try:
        path = path.expanduser()
        if path.stat().st_size > _LARGEST:
            raise InvalidInputError(
                f"{path} has more than {_LARGEST >> 20} MiB.", hint="Some pages are enough: cut out a part."
            )
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}.", hint="Check the path.") from error
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} is not text in UTF-8.", hint="Save it as UTF-8.") from error
