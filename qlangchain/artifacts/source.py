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

from qlangchain.artifacts.finding import HubModel
from qlangchain.artifacts.headers import GgufArray, GgufHeader, check_servable, read_gguf_header
from qlangchain.artifacts.model_id import is_address
from qlangchain.artifacts.quantization import Quantization, read_quantization
from qlangchain.artifacts.shard_index import check_indices
from qlangchain.errors import (
    CorruptFileError,
    InvalidInputError,
    ModelNotFoundError,
    NoWeightsError,
    UnsafeWeightsError,
)
from qlangchain.selection.architecture import from_config, from_gguf
from qlangchain.selection.facts import ModelFacts
from qlangchain.selection.weights import Weights, measured
from qlangchain.types import Method

DEMO: Final = "demo"
DEMO_DIRECTORY: Final = Path(__file__).parents[1] / "demo" / "model"
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_MAX_CONFIG: Final = 16 * 1024 * 1024
_MAX_LAYER_VALUES: Final = 512  # of an array with a number for each layer; longer ones are vocabularies


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF file that can be served: its path, the format that its header names, its size in bytes.

    `weights` is what its tensors take, from the header; None where the file is one of several parts.
    """

    path: Path
    format: str
    size_bytes: int
    weights: Weights | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model's weights are. `weights` is a directory of full-precision safetensors, or None.

    `directory` is one of safetensors of any kind, which some engines serve as it lies there, and `quantization` what
    its config.json says of them. `hub` is what the hub offers, where it was asked, and `asked` the
    words that led into the store.
    """

    facts: ModelFacts
    files: tuple[GgufFile, ...] = ()
    weights: Path | None = None
    chat_template: str | None = None
    directory: Path | None = None
    quantization: Quantization | None = None
    hub: HubModel | None = None
    asked: str = ""

    @property
    def weight_bytes(self) -> int:
        """The size of the full-precision weights in bytes, 0 where there are none."""
        return sum(f.stat().st_size for f in self.weights.glob("*.safetensors")) if self.weights else 0

    @property
    def directory_bytes(self) -> int:
        """The size of the directory's weights in bytes, quantized or not; 0 where there are none."""
        return sum(f.stat().st_size for f in self.directory.glob("*.safetensors")) if self.directory else 0


def locate(model: str | os.PathLike[str]) -> Source:
    """Find a model: "demo", the path of a GGUF file, or the path of a directory.

    Raises:
        InvalidInputError: `model` is neither a name nor a path.
        ModelNotFoundError: it is not on this machine.
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
    raise _not_found(text)


def _not_found(model: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"There is no model {model!r}: no such file or directory, and it is no hub id.",
        hint="Pass the path of a directory or a .gguf file, a hub id such as Qwen/Qwen3-4B, or 'demo'.",
    )


def is_path(model: str) -> bool:
    """Whether a word looks like a path of this machine, so that nobody else is to be asked for it."""
    if is_address(model):
        return False
    return Path(model).is_absolute() or model.startswith((".", "~")) or model.endswith((".gguf", *_PICKLES, "/"))


def _file(path: Path) -> Source:
    if path.suffix.lower() in _PICKLES and not _begins_as_gguf(path):  # early GGUF files were named .bin
        raise UnsafeWeightsError(
            f"{path.name} is a pickle, which can run code when it is loaded.",
            hint="Use the model's safetensors or GGUF files.",
        )
    if path.suffix == ".safetensors":
        raise InvalidInputError(f"{path.name} is one file of a model.", hint=f"Pass its directory, {path.parent}.")
    file, header = _gguf(path)
    return Source(facts=gguf_facts(header), files=(file,), chat_template=_header_template(header))


def _begins_as_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _directory(path: Path, *, name: str) -> Source:
    ggufs = sorted(p for p in path.glob("*.gguf") if not _is_companion(p))
    weights = sorted(path.glob("*.safetensors"))
    if weights:
        files = tuple(_gguf(p)[0] for p in ggufs)
        config = read_config(path)
        if config.get("auto_map"):
            raise UnsafeWeightsError(
                f"{path} brings code of its own (auto_map in config.json), which is never run.",
                hint="Take a version of the model that needs none, or a GGUF file of it.",
            )
        check_indices(path)
        quantization = read_quantization(config)
        return Source(
            _config_facts(path, name),
            files,
            weights=path if quantization.scheme is Method.NONE else None,
            chat_template=_directory_template(path),
            directory=path,
            quantization=quantization,
        )
    if ggufs:
        read = [_gguf(p) for p in ggufs]
        header = read[0][1]
        return Source(gguf_facts(header), tuple(file for file, _ in read), chat_template=_header_template(header))
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
    format = format_of(header)
    count = header.metadata.get("split.count", 1)
    if isinstance(count, int) and count > 1:
        # The header of the first part knows its own tensors only; sizes are the sum of all parts.
        first = re.compile(rf"-00001-of-{count:05}\.gguf$")
        parts = [path.with_name(first.sub(f"-{part:05}-of-{count:05}.gguf", path.name)) for part in range(1, count + 1)]
        return GgufFile(path, format, sum(part.stat().st_size for part in parts)), header
    return GgufFile(path, format, header.file_size, weights_of(header)), header


def weights_of(header: GgufHeader) -> Weights:
    """Return what the tensors of a GGUF file take, by its header."""
    listed = ((tensor.name, tensor.shape, tensor.type, tensor.nbytes) for tensor in header.tensors)
    return measured(gguf_facts(header).architecture, format_of(header), listed)


def format_of(header: GgufHeader) -> str:
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


def gguf_facts(header: GgufHeader) -> ModelFacts:
    """Return what choosing needs to know of the model in a GGUF file; raises UnsupportedModelError."""
    names = {tensor.name: tensor.shape for tensor in header.tensors}
    embedding = names.get("token_embd.weight", ())
    whole = header.metadata.get("split.count", 1) in (None, 0, 1)
    metadata = {
        key: list(value) if isinstance(value, GgufArray) and len(value) <= _MAX_LAYER_VALUES else value
        for key, value in header.metadata.items()
        if not key.startswith("tokenizer.")
    }
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    vocabulary = int(embedding[1]) if len(embedding) == 2 else len(tokens) if isinstance(tokens, GgufArray) else 0
    return ModelFacts(
        name=str(header.metadata.get("general.name") or header.path.stem),
        architecture=from_gguf(
            metadata, vocabulary=vocabulary, tied="output.weight" not in names if whole and embedding else None
        ),
    )


def _config_facts(path: Path, name: str) -> ModelFacts:
    return ModelFacts(name=name, architecture=from_config(read_config(path)))


def read_config(path: Path) -> dict[str, Any]:
    """Read `config.json` of a model directory.

    Raises NoWeightsError where there is none and CorruptFileError where it is not a JSON object.
    """
    file = path / "config.json"
    if not file.is_file():
        raise NoWeightsError(f"{path} holds no config.json.", hint="Fetch the whole model directory.")
    try:
        if file.stat().st_size > _MAX_CONFIG:
            raise ValueError("too large")
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptFileError(f"{file} is not readable JSON: {error}.", hint="Fetch the file again.") from error
    if not isinstance(config, dict):
        raise CorruptFileError(f"{file} is not a JSON object.", hint="Fetch the file again.")
    return config
