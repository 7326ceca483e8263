"""Calibration text from what a user calls it: nothing, a name, a file, or the texts themselves."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from qlangchain.errors import HubError, InvalidInputError, MissingDependencyError, OfflineError

Dataset = str | os.PathLike[str] | Sequence[str] | None

DEFAULT = "default"
_LARGEST = 256 << 20  # bytes of a file; a calibration reads some hundred thousand characters
_ENOUGH = 4_000_000  # characters taken of a data set on the hub: several times what 128 samples of 512 tokens need
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COLUMNS = ("text", "content", "document")


def read_texts(dataset: Dataset, *, offline: bool = True) -> list[str] | None:
    """The texts of a dataset; None is the one that ships with qlangchain (dataset None or "default").

    A file is text (paragraphs are texts), `.jsonl` or `.json` (strings, or objects with "text" or "messages"). A
    name is one of datasets.toml or the id of a data set on the hub.

    Raises:
        InvalidInputError: there is no such name or file, or what it holds is no text.
        OfflineError, MissingDependencyError, HubError: a data set on the hub cannot be fetched.

    """
    if dataset is None or dataset == DEFAULT:
        return None
    if isinstance(dataset, str | os.PathLike):
        return _named(os.fspath(dataset), offline)
    texts = list(dataset)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InvalidInputError("The calibration texts are no list of strings.", hint="Pass [text, ...].")
    return texts


def _named(name: str, offline: bool) -> list[str]:
    known = tomllib.loads(Path(__file__).with_name("datasets.toml").read_text(encoding="utf-8"))
    path = Path(name).expanduser()
    try:
        if path.is_file():
            return _file(path)
    except OSError as error:
        raise InvalidInputError(f"{name} cannot be read: {error.strerror}.", hint="Check its permissions.") from error
    if name in known:
        return _from_hub(name, known[name], offline)
    if _HUB_ID.fullmatch(name) and not path.suffix:
        return _from_hub(name, {"id": name, "config": "", "split": "train", "column": ""}, offline)
    raise InvalidInputError(
        f"There is no calibration text {name!r}: no such file, and no such name.",
        hint=f"Pass a text file, a list of texts, one of {', '.join([DEFAULT, *known])}, or the id of a data set.",
    )


def _file(path: Path) -> list[str]:
    size = path.stat().st_size
    if size > _LARGEST:
        raise InvalidInputError(
            f"{path.name} has {size / 1e6:.0f} MB; calibration reads a few at most.", hint="Pass a part of it."
        )
    try:
        text = path.read_text("utf-8-sig")
        if path.suffix == ".jsonl":
            items = [json.loads(line) for line in text.splitlines() if line.strip()]
        elif path.suffix == ".json":
            items = json.loads(text)
        else:
            items = re.split(r"\n\s*\n", text)
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path.name} is not UTF-8 text.", hint="Save it as UTF-8.") from error
    except ValueError as error:
        raise InvalidInputError(f"{path.name} is not JSON ({str(error)[:80]}).", hint="Check the file.") from error
    if not isinstance(items, list):
        raise InvalidInputError(f"{path.name} holds no list.", hint='Expected ["text", ...] or [{"text": ...}, ...].')
    texts = [text for item in items if (text := _text(item, path)).strip()]
    if not texts:
        raise InvalidInputError(f"{path.name} holds no text.", hint="Pass a file with some pages of text.")
    return texts


def _text(item: Any, path: Path) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, dict):
        for column in _COLUMNS:
            if isinstance(item.get(column), str):
                return str(item[column])
        messages = item.get("messages")
        if isinstance(messages, list):
            return "\n".join(str(one.get("content", "")) for one in messages if isinstance(one, dict))
    raise InvalidInputError(
        f"{path.name} holds {str(item)[:60]!r}, which is no text.", hint='Expected strings, or objects with "text".'
    )


def _from_hub(name: str, row: dict[str, str], offline: bool) -> list[str]:
    if offline:
        raise OfflineError(
            f"The data set {name!r} is on the hub, and offline mode is on.",
            hint="Pass a text file, or leave it out: a calibration text ships with qlangchain.",
        )
    try:
        from datasets import load_dataset  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise MissingDependencyError(
            f"Reading {name!r} from the hub needs the library datasets.",
            hint="pip install datasets; or pass a text file, or leave it out for the text that ships with qlangchain.",
        ) from error
    try:
        rows = load_dataset(row["id"], row["config"] or None, split=row["split"], streaming=True)
        return _enough(rows, row["column"], name)
    except InvalidInputError:
        raise
    except Exception as error:  # whatever it stumbles over: the network, a name, a format
        raise HubError(
            f"The data set {name!r} could not be read: {str(error)[:200]}", hint="Pass a text file instead."
        ) from error


def _enough(rows: Iterable[Any], column: str, name: str) -> list[str]:
    texts: list[str] = []
    taken = 0
    for row in rows:
        text = row.get(column) if column else next((row[one] for one in _COLUMNS if one in row), None)
        if not isinstance(text, str):
            raise InvalidInputError(f"The data set {name!r} has no column of text.", hint="Pass a text file instead.")
        if text.strip():
            texts.append(text)
            taken += len(text)
        if taken >= _ENOUGH:
            break
    return texts
