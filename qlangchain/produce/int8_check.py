"""Is a directory of 8-bit compressed-tensors still the model that it was made from? Each layer beside its source.

`weight` holds whole numbers of 8 bits, or `weight_packed` four of them in an int32, shifted by 128; `weight_scale` has
a column for each group of inputs. Source: compressed-tensors' compressors/pack_quantized and naive_quantized.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from qlangchain.artifacts.headers import SafetensorsTensor, read_safetensors_header
from qlangchain.errors import CorruptFileError
from qlangchain.produce.checkpoint import Checkpoint, open_checkpoint
from qlangchain.produce.verify import LIMITS, LayerError, error_of, unscaled

_SCALE: Final = ".weight_scale"
_DTYPES: Final = {"I8": "<i1", "I32": "<i4", "BF16": "<u2", "F16": "<f2", "F32": "<f4"}


def examine(target: Path, source: Path, *, smoothed: bool) -> tuple[list[LayerError], list[str]]:
    """The error of each layer, and what is wrong: sentences, none where the directory may be trusted.

    `smoothed` says that factors of the inputs were moved into the layers before (SmoothQuant). Raises what
    `open_checkpoint` raises, and `CorruptFileError`.
    """
    stored: dict[str, tuple[Path, SafetensorsTensor]] = {
        name: (path, tensor)
        for path in sorted(target.glob("*.safetensors"))
        for name, tensor in read_safetensors_header(path).tensors.items()
    }
    checkpoint = open_checkpoint(source)
    names = [name.removesuffix(_SCALE) for name in stored if name.endswith(_SCALE)]
    errors = [_compare(stored, checkpoint, name, smoothed) for name in names]
    return errors, [*_missing(stored, checkpoint, names), *_too_far(errors)]


def _missing(stored: dict[str, Any], checkpoint: Checkpoint, names: list[str]) -> Iterator[str]:
    if not names:
        yield "No layer of it is quantized."
    for name in checkpoint.tensors:
        stems = (name, f"{name.removesuffix('.weight')}.weight_packed")
        if not any(stem in stored for stem in stems) and name != "lm_head.weight" and "inv_freq" not in name:
            yield f"{name} is missing."


def _too_far(errors: list[LayerError]) -> Iterator[str]:
    for error in errors:
        if not error.relative < LIMITS[8]:
            yield f"{error.name} is off by {error.relative:.3f} of its size, where at most {LIMITS[8]} is usual."


def _compare(stored: dict[str, Any], checkpoint: Checkpoint, name: str, smoothed: bool) -> LayerError:
    if f"{name}.weight" not in checkpoint.tensors:
        raise CorruptFileError(f"{name} is quantized, and the source has no such layer.", hint="Make it anew.")
    weights = np.concatenate(list(checkpoint.chunks(f"{name}.weight")))
    packed = f"{name}.weight_packed" in stored
    codes = _read(*stored[f"{name}.weight_packed" if packed else f"{name}.weight"])
    whole = codes.view(np.uint8).astype(np.float32) - 128 if packed else codes.astype(np.float32)
    scales = _read(*stored[name + _SCALE]).astype(np.float32)
    if whole.shape != weights.shape or scales.shape[0] != len(whole) or whole.shape[1] % scales.shape[1]:
        raise CorruptFileError(
            f"{name} has the shape {list(whole.shape)}, the source's has {list(weights.shape)}.", hint="Make it anew."
        )
    values = (whole.reshape(*scales.shape, -1) * scales[:, :, None]).reshape(whole.shape)
    return LayerError(name, error_of(unscaled(values, weights) if smoothed else values, weights), 0.0)


def _read(path: Path, tensor: SafetensorsTensor) -> npt.NDArray[Any]:
    dtype = np.dtype(_DTYPES[tensor.dtype])
    values = np.fromfile(path, dtype, math.prod(tensor.shape), offset=tensor.offset)
    if values.size != math.prod(tensor.shape):
        raise CorruptFileError(f"{path.name} ended inside {tensor.name}.", hint="Make the directory anew.")
    shaped = values.reshape(tensor.shape)
    return (shaped.astype(np.uint32) << 16).view(np.float32) if tensor.dtype == "BF16" else shaped
