"""Tensors of a checkpoint as torch's, in the type that they are stored in, with plain reads of the rows asked for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qlangchain.errors import CorruptFileError
from qlangchain.produce.checkpoint import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

# safetensors' type -> the type of numpy that holds its bytes, and torch's own
_TORCH_DTYPES = {"BF16": ("uint16", "bfloat16"), "F16": ("float16", "float16"), "F32": ("float32", "float32")}


def read_tensor(checkpoint: Checkpoint, name: str) -> Tensor:
    """A tensor in the type that it is stored in. Raises `CorruptFileError` for values that are not finite."""
    shape = checkpoint.tensors[name].shape
    rows = shape[0] if len(shape) > 1 else 1
    return read_rows(checkpoint, name, range(rows)).reshape(shape)


def read_rows(checkpoint: Checkpoint, name: str, rows: Sequence[int]) -> Tensor:
    """Some rows of a matrix, shape (len(rows), columns), in the type that it is stored in."""
    import torch

    tensor = checkpoint.tensors[name]
    read_as, dtype = _TORCH_DTYPES[tensor.dtype]
    columns = tensor.shape[-1]
    size = np.dtype(read_as).itemsize
    values: Any = np.empty((len(rows), columns), read_as)
    with checkpoint.files[name].open("rb") as file:
        for first, last in _runs(rows):
            file.seek(tensor.offset + rows[first] * columns * size)
            if file.readinto(memoryview(values[first:last]).cast("B")) != (last - first) * columns * size:
                raise CorruptFileError(
                    f"{checkpoint.files[name].name} ended inside {name}.", hint="Was it changed meanwhile? Call again."
                )
    found = torch.from_numpy(values).view(getattr(torch, dtype))
    if not torch.isfinite(found).all():
        raise CorruptFileError(
            f"The tensor {name} in {checkpoint.files[name].name} holds values that are infinite or no numbers.",
            hint="The weights are damaged or were trained to overflow; download them again.",
        )
    return found


def _runs(rows: Sequence[int]) -> list[tuple[int, int]]:
    """The places in `rows` cut into runs of consecutive numbers, each read at once."""
    edges = [0, *(i for i in range(1, len(rows)) if rows[i] != rows[i - 1] + 1), len(rows)]
    return [(first, last) for first, last in itertools.pairwise(edges) if last > first]
