"""Is a GGUF file still the model that it was made from? Rows of every tensor are computed as a reader would.

Three slabs of rows, from the beginning, the middle and the end, tell a wrong order of rows, a norm that lacks its
offset, or a wrong type as surely as all rows would, in memory that does not grow with the model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, quants

from qlangchain.artifacts.headers import GGML_TYPES, GgufTensor, read_gguf_header
from qlangchain.errors import CorruptFileError, ProductionError
from qlangchain.produce.architectures import Mapped, pair_neighbours
from qlangchain.produce.gguf import GgufPlan, plan_gguf

if TYPE_CHECKING:
    from qlangchain.produce.verify import Divergence

Values = npt.NDArray[np.float32]
_SLAB = 64
_BITS = {name: 8 * size / block for name, block, size in GGML_TYPES.values()}
_SCALE = 2.6  # rounding in b bits makes about 2^(1.6 - b) of normally distributed weights; twice that is allowed
_LARGEST, _LEAST = 0.9, 0.01


@dataclass(frozen=True, slots=True)
class TensorError:
    """||W - Q|| / ||W|| over the rows of a tensor that were looked at, and the most that its type may make."""

    name: str
    type: str
    relative: float
    limit: float


def errors(path: Path, plan: GgufPlan) -> list[TensorError]:
    """Compare the matrices and vectors of the file `path` with the source that `plan` names."""
    found = {tensor.name: tensor for tensor in read_gguf_header(path).tensors}
    result = []
    for layout, source in plan.tensors:
        tensor = found[layout.name]
        worst = 0.0
        for start in _starts(layout.shape, source):
            count = min(_span(source), _rows(layout.shape) - start)
            expected = _expected(plan, source, start, count)
            norm = _norm(expected)
            off = _norm(_read(path, tensor, start, count) - expected)
            worst = max(worst, off / norm if norm else off)
        limit = min(_LARGEST, max(_LEAST, 2.0 ** (_SCALE - _BITS[tensor.type])))
        result.append(TensorError(layout.name, tensor.type, worst, limit))
    return result


def check_errors(path: Path, plan: GgufPlan) -> None:
    """Raise `ProductionError` where a tensor is further from its source than its type explains."""
    bad = [error for error in errors(path, plan) if not error.relative <= error.limit]
    if bad:
        raise ProductionError(
            f"The file that was made is not the model: {bad[0].name} ({bad[0].type}) is off by {bad[0].relative:.3f} "
            f"of its size, where at most {bad[0].limit:.3f} is usual; {len(bad)} such tensors.",
            hint="Please report it with the model's name; or choose another format.",
        )


def _norm(values: Values) -> float:
    """Return the Euclidean norm, in float64 since squares of float32 overflow from 1.8e19 on."""
    return float(np.linalg.norm(values.astype(np.float64)))


def _rows(shape: tuple[int, ...]) -> int:
    return 1 if len(shape) == 1 else shape[0]


def _span(source: Mapped | Values) -> int:
    """Rows of a slab: whole heads where they were reordered."""
    head = source.head_dim if isinstance(source, Mapped) and source.head_dim else 1
    return -(-_SLAB // head) * head


def _starts(shape: tuple[int, ...], source: Mapped | Values) -> list[int]:
    span = _span(source)
    slabs = -(-_rows(shape) // span)
    return [number * span for number in sorted({0, slabs // 2, slabs - 1})]


def _expected(plan: GgufPlan, source: Mapped | Values, start: int, count: int) -> Values:
    if not isinstance(source, Mapped):
        return source.reshape(1, -1)
    values = plan.checkpoint.rows(source.source, start, count)
    ordered = pair_neighbours(values, source.head_dim) if source.head_dim else values
    return ordered + np.float32(source.offset)


def _read(path: Path, tensor: GgufTensor, start: int, count: int) -> Values:
    """Rows of a tensor of the file as float32."""
    rows = _rows(tensor.shape[::-1])
    width = tensor.nbytes // rows
    raw = np.fromfile(path, np.uint8, count * width, offset=tensor.offset + start * width)
    if raw.size != count * width:
        raise CorruptFileError(f"{path.name} ended inside {tensor.name}.", hint="Make it anew.")
    if tensor.type in ("F32", "F16"):
        values = raw.view("<f4" if tensor.type == "F32" else "<f2").astype(np.float32)
    else:
        values = quants.dequantize(raw.reshape(count, width), GGMLQuantizationType[tensor.type]).astype(np.float32)
    return values.reshape(count, -1)


def divergence(
    path: Path,
    source: Path,
    *,
    progress: Callable[[str, int, int], None] | None = None,
    cancel: threading.Event | None = None,
) -> Divergence:
    """How far its predictions are from the source's on held-out text; `nearest` is 4 bits in groups of 32, rounded.

    The dequantized weights compute with torch, as `divergence.measure` does it, so what differs is the weights
    alone. Raises what that raises.
    """
    from qlangchain.produce import divergence as running
    from qlangchain.produce.quantized_files import QuantizedFiles
    from qlangchain.produce.verify import Divergence

    # It asks for what `_Dequantized` has in common with a directory: the names, the scheme, and whole tensors.
    found = cast("QuantizedFiles", _Dequantized(path, plan_gguf(source, "F32")))
    nats, nearest, same_first, tokens = running.measure(found, source, progress=progress, cancel=cancel)
    return Divergence(nats, nearest, same_first, tokens)


class _Dequantized:
    """A GGUF file under the names and in the order of the model that it was made from."""

    def __init__(self, path: Path, plan: GgufPlan) -> None:
        from qlangchain.produce.quantized_files import Scheme

        self.path = path
        self.scheme = Scheme("awq", 4, 32, symmetric=False)
        stored = {tensor.name: tensor for tensor in read_gguf_header(path).tensors}
        self.tensors: Mapping[str, Any] = {
            one.source: (stored[one.name], one) for _, one in plan.tensors if isinstance(one, Mapped)
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Values:
        """A tensor as the model has it, or its rows from `start` to `stop`, float32."""
        tensor, mapped = self.tensors[name]
        rows = _rows(mapped.shape)
        if mapped.head_dim:
            whole = _apart(_read(self.path, tensor, 0, rows) - np.float32(mapped.offset), mapped.head_dim)
            return whole.reshape(mapped.shape)[start:stop]
        count = min(rows, rows if stop is None else stop) - start
        values = _read(self.path, tensor, start, count) - np.float32(mapped.offset)
        return values.reshape(-1) if len(mapped.shape) == 1 else values


def _apart(values: Values, head_dim: int) -> Values:
    """Undo `pair_neighbours`."""
    if values.shape[0] == 1:
        return _apart(values.reshape(-1, 1), head_dim).reshape(1, -1)
    pairs = values.reshape(-1, head_dim // 2, 2, values.shape[1])
    return pairs.swapaxes(1, 2).reshape(values.shape)
