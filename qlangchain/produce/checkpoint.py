"""A directory of safetensors, read in chunks of rows.

No torch: bfloat16 is the upper half of float32, so it is widened by a shift. The files are read with plain
reads rather than mapped, so that the memory in use is one chunk and a file that shrinks meanwhile is an error
instead of a SIGBUS.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qlangchain.artifacts.headers import SafetensorsTensor, read_safetensors_header
from qlangchain.errors import (
    CorruptFileError,
    InvalidInputError,
    ModelNotFoundError,
    NoWeightsError,
    UnsafeWeightsError,
    UnsupportedModelError,
)

INDEX = "model.safetensors.index.json"
CHUNK_VALUES = 1 << 20  # 4 MiB as float32; the quantizers' temporaries are about five times that
MAX_JSON = 256 << 20
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors")
_DTYPES: dict[str, np.dtype[Any]] = {"BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of a model and the files that they lie in."""

    directory: Path
    tensors: dict[str, SafetensorsTensor]
    files: dict[str, Path]

    def dtypes(self) -> set[str]:
        """The safetensors types of the matrices."""
        return {tensor.dtype for tensor in self.tensors.values() if len(tensor.shape) > 1}

    def renamed(self, beginnings: tuple[str, ...], instead: str) -> Checkpoint:
        """The same tensors, with `instead` in place of the first of `beginnings` that a name has."""
        names = {
            name: next((instead + name.removeprefix(one) for one in beginnings if name.startswith(one)), name)
            for name in self.tensors
        }
        tensors = {new: self.tensors[name] for name, new in names.items()}
        return Checkpoint(self.directory, tensors, {new: self.files[name] for name, new in names.items()})

    def chunks(self, name: str, multiple: int = 1) -> Iterator[npt.NDArray[np.float32]]:
        """The rows of a tensor as float32, shape (rows, columns), in chunks of a multiple of `multiple` rows.

        A vector is one row. Raises `CorruptFileError` where a value is not finite or the file ends early.
        """
        tensor = self.tensors[name]
        rows, columns = (1, tensor.shape[0]) if len(tensor.shape) == 1 else tensor.shape
        step = max(1, CHUNK_VALUES // (columns * multiple)) * multiple
        dtype = _DTYPES[tensor.dtype]
        with self.files[name].open("rb") as file:
            file.seek(tensor.offset)
            for start in range(0, rows, step):
                count = (min(start + step, rows) - start) * columns
                raw = np.fromfile(file, dtype, count)
                if raw.size != count:
                    raise CorruptFileError(
                        f"{self.files[name].name} ended inside {name}.", hint="Was it changed meanwhile? Call again."
                    )
                values = _widen(raw, tensor.dtype).reshape(-1, columns)
                if not np.isfinite(values).all():
                    raise CorruptFileError(
                        f"The tensor {name} in {self.files[name].name} holds values that are infinite or no numbers.",
                        hint="The weights are damaged or were trained to overflow; download them again.",
                    )
                yield values

    def rows(self, name: str, start: int, count: int) -> npt.NDArray[np.float32]:
        """`count` rows of a tensor from `start` on as float32, shape (count, columns); a vector is one row."""
        tensor = self.tensors[name]
        dtype, columns = _DTYPES[tensor.dtype], tensor.shape[-1]
        offset = tensor.offset + start * columns * dtype.itemsize
        raw = np.fromfile(self.files[name], dtype, count * columns, offset=offset)
        if raw.size != count * columns:
            raise CorruptFileError(
                f"{self.files[name].name} ended inside {name}.", hint="Was it changed meanwhile? Call again."
            )
        return _widen(raw, tensor.dtype).reshape(count, columns)


def _widen(raw: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float32]:
    if dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float32, copy=False)


def open_checkpoint(directory: Path, *, without: tuple[str, ...] = ()) -> Checkpoint:
    """Find and check the safetensors of `directory`: one file, or several with an index.

    Tensors whose names begin with one of `without` are left out. Raises `ModelNotFoundError`, `NoWeightsError`,
    `UnsafeWeightsError`, `UnsupportedModelError` or `CorruptFileError`.
    """
    if not directory.exists():
        raise ModelNotFoundError(f"There is no directory {directory}.", hint="Check the path.")
    if not directory.is_dir():
        raise InvalidInputError(f"{directory} is a file.", hint="Pass the directory that holds config.json.")
    if (directory / "model.safetensors").is_file():
        return _merge(directory, {"model.safetensors": None}, without)
    if (directory / INDEX).is_file():
        return _merge(directory, _read_index(directory), without)
    found = sorted(path.name for path in directory.glob("*.safetensors"))
    if "adapter_model.safetensors" in found:
        raise UnsupportedModelError(
            f"{directory} holds a LoRA adapter, not a model.", hint="Merge it into its base model first (peft)."
        )
    if len(found) == 1:
        return _merge(directory, {found[0]: None}, without)
    if found:
        raise CorruptFileError(
            f"{directory} holds {len(found)} safetensors files and no {INDEX}.", hint=f"Download {INDEX} too."
        )
    if pickles := sorted(path.name for path in directory.iterdir() if path.suffix in _PICKLES):
        raise UnsafeWeightsError(
            f"{directory} holds only pickled weights ({pickles[0]}), which can run code when loaded.",
            hint="Ask for a revision with safetensors, or convert them where you trust their origin.",
        )
    raise NoWeightsError(f"{directory} holds no safetensors.", hint="Pass the directory of a downloaded model.")


def _read_index(directory: Path) -> dict[str, set[str] | None]:
    """The shards that the index names, each with the tensors that it should hold."""
    weight_map = read_json(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptFileError(f"{directory / INDEX} has no weight_map.", hint="Download it again.")
    shards: dict[str, set[str] | None] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise UnsafeWeightsError(
                f"{INDEX} names the file {str(shard)[:80]!r}, which is no plain name of a safetensors file.",
                hint="Do not use this model: such a name can point outside of its directory.",
            )
        names = shards.setdefault(shard, set())
        assert names is not None
        names.add(tensor)
    if missing := sorted(shard for shard in shards if not (directory / shard).is_file()):
        raise CorruptFileError(
            f"{len(missing)} of the {len(shards)} files that {INDEX} names are missing: {', '.join(missing[:5])}.",
            hint="Download the model again; finished files are kept.",
        )
    return shards


def _merge(directory: Path, shards: dict[str, set[str] | None], without: tuple[str, ...]) -> Checkpoint:
    tensors: dict[str, SafetensorsTensor] = {}
    files: dict[str, Path] = {}
    for shard, wanted in sorted(shards.items()):
        header = read_safetensors_header(directory / shard)
        if wanted is not None and (absent := sorted(wanted - header.tensors.keys())):
            raise CorruptFileError(
                f"{shard} does not hold {absent[0]}, which {INDEX} places there.", hint="Download the model again."
            )
        for name, tensor in header.tensors.items():
            if (wanted is None or name in wanted) and not name.startswith(without or "\0"):
                tensors[name], files[name] = tensor, directory / shard
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise UnsupportedModelError(
                f"The tensor {name} is {tensor.dtype}; only BF16, F16 and F32 weights can be converted.",
                hint="Pass the unquantized model.",
            )
        if len(tensor.shape) not in (1, 2) or 0 in tensor.shape:
            raise UnsupportedModelError(
                f"The tensor {name} has the shape {list(tensor.shape)}; only vectors and matrices can be converted.",
                hint="Pass a dense text model.",
            )
    return Checkpoint(directory, tensors, files)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of the model. Raises `ModelNotFoundError` or `CorruptFileError`."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise CorruptFileError(f"{path} is larger than {MAX_JSON:,} bytes.", hint="It is not what its name says.")
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelNotFoundError(f"{path.parent} has no {path.name}.", hint="Download the whole model.") from None
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path} is no JSON ({str(error)[:80]}).", hint="Download it again.") from None
    if not isinstance(value, dict):
        raise CorruptFileError(f"{path} is not a JSON object.", hint="Download it again.")
    return value
