"""How a model makes one vector of the vectors of a text's tokens, by its own word.

GGUF says it in `<architecture>.pooling_type` (the numbers of llama.cpp's `enum llama_pooling_type`), a directory of
sentence-transformers in its `modules.json` and the pooling module's `config.json`. Most models that were trained to
generate say nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, NoReturn

from qlangchain.artifacts.headers import read_gguf_header
from qlangchain.errors import CorruptFileError, UnsupportedModelError

POOLINGS: Final = ("mean", "cls", "last")
_BY_NUMBER: Final = {1: "mean", 2: "cls", 3: "last"}
_RANK: Final = 4
_BY_FLAG: Final = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
_BY_WORD: Final = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
_MAX_JSON: Final = 1024 * 1024


def gguf_pooling(path: Path) -> str | None:
    """Return what a GGUF file says: "mean", "cls", "last", or None where it says nothing.

    Raises:
        UnsupportedModelError: it is a reranker, whose only output is one score for a pair of texts.

    """
    number = read_gguf_header(path).get("pooling_type")
    if number == _RANK:
        raise UnsupportedModelError(f"{path.name} is a reranker.", hint="Pass a model for embeddings.")
    return _BY_NUMBER.get(number) if isinstance(number, int) else None


def directory_pooling(path: Path) -> str | None:
    """Return what a directory of sentence-transformers says, or None where it is none.

    Raises:
        UnsupportedModelError: it pools in another way, or goes on with layers that a GGUF file does not have.
        CorruptFileError: its JSON cannot be read.

    """
    if not (path / "modules.json").is_file():
        return None
    modules = _read(path / "modules.json", list)
    pooling = None
    for module in modules:
        if not isinstance(module, dict):
            _no_list(path / "modules.json")
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            pooling = _module_pooling(path / str(module.get("path", "")) / "config.json")
        elif kind not in ("Transformer", "Normalize"):
            raise UnsupportedModelError(
                f"{path.name} ends in a {kind} layer, which llama.cpp does not compute.",
                hint="Pass pooling= for the vectors as they are before it, or serve the model elsewhere: endpoint=.",
            )
    return pooling


def _module_pooling(path: Path) -> str:
    config = _read(path, dict)
    named = {pooling for flag, pooling in _BY_FLAG.items() if config.get(flag) is True}
    other = [flag for flag, on in config.items() if flag.startswith("pooling_mode_") and on and flag not in _BY_FLAG]
    word = _BY_WORD.get(str(config.get("pooling_mode")))
    if word:
        named.add(word)
    if len(named) != 1 or other:
        raise UnsupportedModelError(
            f"{path} does not ask for one pooling of {', '.join(POOLINGS)}.", hint="Pass pooling= to choose one."
        )
    return named.pop()


def _read(path: Path, kind: type[list[Any]] | type[dict[str, Any]]) -> Any:
    try:
        if path.stat().st_size > _MAX_JSON:
            raise ValueError("too large")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path} is not readable JSON: {error}.", hint="Fetch the file again.") from error
    if not isinstance(found, kind):
        _no_list(path)
    return found


def _no_list(path: Path) -> NoReturn:
    raise CorruptFileError(f"{path} is not what sentence-transformers writes.", hint="Fetch the file again.")
