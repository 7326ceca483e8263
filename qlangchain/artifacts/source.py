"""From what the user calls a model to what is there: a directory of weights, a GGUF file, the demo model."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from qlangchain.artifacts.headers import GgufArray, GgufHeader, check_servable, read_gguf_header
from qlangchain.errors import (
    CorruptFileError,
    InvalidInputError,
    ModelNotFoundError,
    NoWeightsError,
    OfflineError,
    UnsafeWeightsError,
    UnsupportedModelError,
)
from qlangchain.selection.memory import kv_bytes_per_token
from qlangchain.types import ModelFacts

DEMO: Final = "demo"
DEMO_DIRECTORY: Final = Path(__file__).parents[1] / "demo" / "model"
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?")
_MAX_CONFIG: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF file that can be served: its path, the format that its header names, its size in bytes."""

    path: Path
    format: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model's weights are. `weights` is a directory of full-precision safetensors, or None."""

    facts: ModelFacts
    files: tuple[GgufFile, ...] = ()
    weights: Path | None = None
    chat_template: str | None = None

    @property
    def weight_bytes(self) -> int:
        """The size of the full-precision weights in bytes, 0 where there are none."""
        return sum(f.stat().st_size for f in self.weights.glob("*.safetensors")) if self.weights else 0


def locate(model: str | os.PathLike[str], *, offline: bool = False) -> Source:
    """Find a model: "demo", the path of a GGUF file, or the path of a directory.

    Raises:
        InvalidInputError: `model` is neither a name nor a path.
        ModelNotFoundError, OfflineError: it is not on this machine.
        NoWeightsError, UnsafeWeightsError, UnsupportedModelError, CorruptFileError: it is, and cannot be used.

    """
    if not isinstance(model, str | os.PathLike) or not (text := os.fsdecode(model)).strip():
        raise InvalidInputError(f"model={model!r} names no model.", hint="Pass a path, a hub id, or 'demo'.")
    if model == DEMO:
        return _directory(DEMO_DIRECTORY, name="qlangchain-demo")
    try:
        path = Path(text).expanduser()
        is_directory, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long for the system, "~" of nobody, a NUL
        why = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        raise ModelNotFoundError(f"{text[:200]!r} cannot be a path: {why}.", hint="Check the path.") from error
    try:
        if is_directory:
            return _directory(path, name=path.resolve().name)
        if is_file:
            return _file(path)
    except OSError as error:
        raise ModelNotFoundError(f"{path} cannot be read: {error.strerror}.", hint="Check its permissions.") from error
    raise _not_found(text, offline)


def _not_found(model: str, offline: bool) -> Exception:
    path = Path(model)
    looks_local = path.is_absolute() or model.startswith((".", "~")) or model.endswith((".gguf", *_PICKLES))
    if not looks_local and _HUB_ID.fullmatch(model):
        if offline:
            return OfflineError(f"{model!r} is not on this machine, and offline mode is on.")
        return ModelNotFoundError(
            f"{model!r} is not on this machine, and this version does not fetch from the hub.",
            hint=f"Fetch it with `hf download {model.split(':', maxsplit=1)[0]} --local-dir DIR` and pass DIR.",
        )
    return ModelNotFoundError(
        f"There is no model {model!r}: no such file or directory, and it is no hub id.",
        hint="Pass the path of a directory or a .gguf file, or 'demo'.",
    )


def _file(path: Path) -> Source:
    if path.suffix.lower() in _PICKLES and not _begins_as_gguf(path):  # early GGUF files were named .bin
        raise UnsafeWeightsError(
            f"{path.name} is a pickle, which can run code when it is loaded.",
            hint="Use the model's safetensors or GGUF files.",
        )
    if path.suffix == ".safetensors":
        raise InvalidInputError(f"{path.name} is one file of a model.", hint=f"Pass its directory, {path.parent}.")
    file, header = _gguf(path)
    return Source(facts=_gguf_facts(header), files=(file,), chat_template=_header_template(header))


def _begins_as_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _directory(path: Path, *, name: str) -> Source:
    ggufs = sorted(p for p in path.glob("*.gguf") if not _is_companion(p))
    weights = sorted(path.glob("*.safetensors"))
    if weights:
        files = tuple(_gguf(p)[0] for p in ggufs)
        return Source(_config_facts(path, name), files, weights=path, chat_template=_directory_template(path))
    if ggufs:
        read = [_gguf(p) for p in ggufs]
        header = read[0][1]
        return Source(_gguf_facts(header), tuple(file for file, _ in read), chat_template=_header_template(header))
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in _PICKLES)
    if pickles:
        raise UnsafeWeightsError(
            f"{path} holds only pickle weights ({pickles[0]}), which can run code when they are loaded.",
            hint="Take the model's safetensors or GGUF files; the hub has a converter for repositories without them.",
        )
    raise NoWeightsError(f"{path} holds no weights.", hint="Expected *.safetensors with config.json, or *.gguf.")


def _header_template(header: GgufHeader) -> str | None:
    template = header.metadata.get("tokenizer.chat_template")
    return template if isinstance(template, str) else None


def _directory_template(path: Path) -> str | None:
    try:
        if (path / "chat_template.jinja").is_file():
            return (path / "chat_template.jinja").read_text(encoding="utf-8")
        template = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError):
        return None  # who serves or converts the model will say what is wrong with its files
    return template if isinstance(template, str) else None


def _is_companion(path: Path) -> bool:
    # A vision projector or an importance matrix lies beside the model and is GGUF as well, and of a model in
    # several files only the first one is passed to the engine.
    kind = read_gguf_header(path)
    if kind.metadata.get("general.type", "model") != "model" or kind.architecture in ("clip", ""):
        return True
    return bool(kind.metadata.get("split.no", 0))


def _gguf(path: Path) -> tuple[GgufFile, GgufHeader]:
    header = read_gguf_header(path)
    check_servable(header)
    return GgufFile(path, _format(header), header.file_size), header


def _format(header: GgufHeader) -> str:
    """The format by the header's own word, or else the type of most of the bytes; never by the file's name."""
    named = _file_types().get(str(header.metadata.get("general.file_type")))
    if named:
        return named
    by_type: Counter[str] = Counter()
    for tensor in header.tensors:
        by_type[tensor.type] += tensor.nbytes
    return by_type.most_common(1)[0][0] if by_type else "unknown"


@lru_cache(maxsize=1)
def _file_types() -> dict[str, str]:
    types: dict[str, str] = json.loads(Path(__file__).with_name("filetypes.json").read_text())["types"]
    return types


def _gguf_facts(header: GgufHeader) -> ModelFacts:
    layers = _largest(header.get("block_count"), 1)
    heads = _largest(header.get("attention.head_count"), 1) or 1
    kv_heads = _largest(header.get("attention.head_count_kv"), heads)
    width = _largest(header.get("embedding_length"), 1) // heads
    return ModelFacts(
        name=str(header.metadata.get("general.name") or header.path.stem),
        max_context=_largest(header.get("context_length"), 4096),
        kv_bytes_per_token=kv_bytes_per_token(
            layers,
            kv_heads,
            _largest(header.get("attention.key_length"), width),
            _largest(header.get("attention.value_length"), width),
        ),
    )


def _largest(value: Any, default: int) -> int:
    # Some models have a number of heads for each layer; what else is an array is not worth another error.
    if isinstance(value, GgufArray):
        return max((int(item) for item in value), default=default)
    return default if value is None else int(value)


def _config_facts(path: Path, name: str) -> ModelFacts:
    config = read_config(path)
    try:
        heads = int(config["num_attention_heads"])
        width = int(config.get("head_dim") or config["hidden_size"] // heads)
        return ModelFacts(
            name=name,
            max_context=int(config["max_position_embeddings"]),
            kv_bytes_per_token=kv_bytes_per_token(
                int(config["num_hidden_layers"]), int(config.get("num_key_value_heads") or heads), width, width
            ),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise UnsupportedModelError(
            f"{path / 'config.json'} does not describe a model that is known: {error!r}.",
            hint="Expected the config.json of a text model, with its layers, heads and max_position_embeddings.",
        ) from error


def read_config(path: Path) -> dict[str, Any]:
    """Read `config.json` of a model directory.

    Raises NoWeightsError where there is none and CorruptFileError where it is not a JSON object.
    """
    file = path / "config.json"
    if not file.is_file():
        raise NoWeightsError(f"{path} holds weights but no config.json.", hint="Fetch the whole model directory.")
    try:
        if file.stat().st_size > _MAX_CONFIG:
            raise ValueError("too large")
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptFileError(f"{file} is not readable JSON: {error}.", hint="Fetch the file again.") from error
    if not isinstance(config, dict):
        raise CorruptFileError(f"{file} is not a JSON object.", hint="Fetch the file again.")
    return config
