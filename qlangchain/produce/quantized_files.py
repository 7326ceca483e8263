"""A directory of GPTQ or AWQ weights as files say it: the config, the tensors, the layers that are quantized."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qlangchain.artifacts.headers import SafetensorsTensor, read_safetensors_header
from qlangchain.errors import CorruptFileError, NoWeightsError, UnsupportedModelError
from qlangchain.produce.checkpoint import INDEX, read_json
from qlangchain.produce.packing import CHECKPOINT_FORMATS, QuantizedLinear, decode_awq, decode_gptq

_DTYPES = {"I32": "<i4", "F16": "<f2", "F32": "<f4", "BF16": "<u2"}
PARTS = {"gptq": ("qweight", "qzeros", "scales", "g_idx"), "awq": ("qweight", "qzeros", "scales")}


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a directory says that it is quantized. `group_size` -1 is one group for all inputs of a layer."""

    method: str
    bits: int
    group_size: int
    symmetric: bool = True
    desc_act: bool = False
    checkpoint_format: str = "gptq"

    def expected(self, columns: int, rows: int) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor of a layer of `columns` inputs and `rows` outputs."""
        per = 32 // self.bits
        groups = -(-columns // (columns if self.group_size == -1 else self.group_size))
        shapes: dict[str, tuple[int, ...]] = {"qzeros": (groups, rows // per), "scales": (groups, rows)}
        if self.method == "awq":
            return {"qweight": (columns, rows // per), **shapes}
        return {"qweight": (columns // per, rows), **shapes, "g_idx": (columns,)}


@dataclass(frozen=True, slots=True)
class QuantizedFiles:
    """The tensors of a quantized directory and the files that they lie in."""

    directory: Path
    scheme: Scheme
    config: Mapping[str, Any]
    tensors: Mapping[str, SafetensorsTensor]
    files: Mapping[str, Path]

    def layers(self) -> list[str]:
        """The full names of the quantized layers."""
        return [name.removesuffix(".qweight") for name in self.tensors if name.endswith(".qweight")]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """A tensor, or its rows from `start` to `stop`; BF16 is widened to float32.

        Raises `CorruptFileError` where the file ends early.
        """
        tensor = self.tensors[name]
        if tensor.dtype not in _DTYPES:
            raise CorruptFileError(f"The tensor {name} is {tensor.dtype}.", hint="Make the directory anew.")
        dtype = np.dtype(_DTYPES[tensor.dtype])
        rows = min(tensor.shape[0], tensor.shape[0] if stop is None else stop) - start
        columns = math.prod(tensor.shape[1:])
        offset = tensor.offset + start * columns * dtype.itemsize
        values = np.fromfile(self.files[name], dtype, rows * columns, offset=offset)
        if values.size != rows * columns:
            raise CorruptFileError(f"{self.files[name].name} ended inside {name}.", hint="Make the directory anew.")
        if tensor.dtype == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return values.reshape(rows, *tensor.shape[1:])

    def layer(self, name: str) -> QuantizedLinear:
        """A quantized layer in whole numbers."""
        tensors = {part: self.read(f"{name}.{part}") for part in PARTS[self.scheme.method]}
        if self.scheme.method == "awq":
            return decode_awq(tensors)
        return decode_gptq(tensors, self.scheme.bits, self.scheme.checkpoint_format)


def open_quantized(directory: Path) -> QuantizedFiles:
    """Read config.json and the headers of a directory of GPTQ or AWQ weights.

    Raises `NoWeightsError` where nothing is quantized, `UnsupportedModelError` for other methods and layouts, and
    `ModelNotFoundError` or `CorruptFileError`.
    """
    config = read_json(directory / "config.json")
    scheme = _scheme(directory, config)
    if (directory / INDEX).is_file():
        weight_map = read_json(directory / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(
            isinstance(name, str) and Path(name).name == name for name in weight_map.values()
        ):
            raise CorruptFileError(f"{directory / INDEX} is not an index of files.", hint="Download it again.")
        names = sorted(set(weight_map.values()))
    else:
        names = sorted(path.name for path in directory.glob("*.safetensors"))
    tensors: dict[str, SafetensorsTensor] = {}
    files: dict[str, Path] = {}
    for name in names:
        for tensor in read_safetensors_header(directory / name).tensors.values():
            tensors[tensor.name], files[tensor.name] = tensor, directory / name
    if not any(name.endswith(".qweight") for name in tensors):
        raise NoWeightsError(
            f"{directory} says that it is quantized by {scheme.method}, and holds no quantized layer.",
            hint="Download or make the directory anew.",
        )
    return QuantizedFiles(directory, scheme, config, tensors, files)


def _scheme(directory: Path, config: Mapping[str, Any]) -> Scheme:
    table = config.get("quantization_config")
    if not isinstance(table, dict):
        raise NoWeightsError(
            f"config.json in {directory} has no quantization_config: its weights are not quantized.",
            hint="Pass a directory of GPTQ or AWQ weights.",
        )
    method = str(table.get("quant_method", "")).lower()
    bits, group_size = table.get("bits", table.get("w_bit")), table.get("group_size", table.get("q_group_size"))
    if type(bits) is not int or type(group_size) is not int or (group_size < 1 and group_size != -1):
        raise CorruptFileError(
            f"The quantization_config in {directory} has {bits=!r} and {group_size=!r}.", hint="Download it again."
        )
    version = str(table.get("version", "gemm")).lower()
    layout = str(table.get("checkpoint_format") or table.get("format") or "gptq").lower()
    known = bits in (4, 8) and layout in CHECKPOINT_FORMATS if method == "gptq" else bits == 4 and version == "gemm"
    if method not in PARTS or not known:
        what = f"{method or 'an unnamed method'} in {bits} bits, {layout if method == 'gptq' else version}"
        raise UnsupportedModelError(
            f"{directory} is quantized by {what}.", hint="Known: gptq (v1 and v2) in 4 or 8 bits, awq gemm in 4 bits."
        )
    return Scheme(
        method=method,
        bits=bits,
        group_size=group_size,
        symmetric=bool(table.get("sym", True)) if method == "gptq" else not table.get("zero_point", True),
        desc_act=bool(table.get("desc_act", False)),
        checkpoint_format=layout if method == "gptq" else "awq",
    )
