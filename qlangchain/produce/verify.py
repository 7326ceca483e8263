"""Is a directory of GPTQ or AWQ weights what it says, and is it still the model that it was made from?

First the structure: every tensor of the source is there, whole or as a quantized layer of the right shapes and types;
zero points agree with `checkpoint_format`; groups are in order; `quantize_config.json` says what config.json says.
Then each layer's weights are computed as a reader would and compared with the source's, and at last the whole model
is run on held-out text, beside the source and beside a plain rounding to the nearest (`divergence.py`).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qlangchain.errors import CancelledError, CorruptFileError, UnsupportedModelError
from qlangchain.produce.checkpoint import Checkpoint, open_checkpoint, read_json
from qlangchain.produce.packing import QuantizedLinear, sequential_groups
from qlangchain.produce.quantized_files import PARTS, QuantizedFiles, Scheme, open_quantized
from qlangchain.produce.rounding import nearest

Progress = Callable[[str, int, int], None]
Values = npt.NDArray[np.float32]

# ||W - Q|| / ||W||, by bits. Rounding to nearest in groups of 128 makes 0.11 and 0.008 of normally distributed
# weights, GPTQ up to 0.21 (it minimizes another error), and a zero point that is off by one 0.4 and more.
LIMITS = {4: 0.25, 8: 0.03}
_TIMES_NEAREST = 2.0  # heavy tails and long groups make every rounding worse, so nearest is the yardstick there
_NARROWED = 0.01  # what storing in 16 bits may change in a tensor that is not quantized
_FLOOR = 0.02  # nats: below it a divergence is small whatever rounding to nearest would give


@dataclass(frozen=True, slots=True)
class LayerError:
    """||W - Q|| / ||W|| of a layer, and what rounding to nearest on the same grid would make."""

    name: str
    relative: float
    nearest: float


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far the quantized model's predictions are from the source's on held-out text.

    `nats` is the mean KL divergence per token, `nearest` that of rounding to nearest, and `same_first` the part of
    the tokens where both think the same token most likely.
    """

    nats: float
    nearest: float
    same_first: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Report:
    """What was found. `problems` is empty where the directory may be trusted; sizes are in bytes."""

    scheme: Scheme
    layers: tuple[LayerError, ...]
    divergence: Divergence | None
    problems: tuple[str, ...]
    nbytes: int

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify_directory(
    target: Path,
    source: Path | None = None,
    *,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> Report:
    """Examine the quantized directory `target`, against the full-precision directory `source` that it was made from.

    Without `source`, or where its architecture is not known here, what needs it is left out. `progress` is called
    with the stage, what is done and what there is. Raises what `open_quantized` and `open_checkpoint` raise where
    there is nothing to examine, `MissingDependencyError` and `CancelledError`.
    """
    target = Path(target)
    found = open_quantized(target)
    nbytes = sum(path.stat().st_size for path in set(found.files.values()))
    checkpoint = open_checkpoint(Path(source)) if source else None
    problems = [*_config_problems(found), *_structure_problems(found, checkpoint)]
    layers: list[LayerError] = []
    divergence = None
    if not problems:
        names = found.layers()
        for done, name in enumerate(names, 1):
            if cancel is not None and cancel.is_set():
                raise CancelledError("The check was cancelled.")
            layer = found.layer(name)
            faults = list(_layer_problems(found.scheme, name, layer))
            problems += faults
            if checkpoint is not None and not faults:
                layers.append(_compare(found, checkpoint, name, layer))
            if progress:
                progress("compare", done, len(names))
        problems += _error_problems(found.scheme, layers)
    if not problems and checkpoint is not None:
        problems += _kept_problems(found, checkpoint)
    if not problems and source:
        try:
            divergence = _diverge(found, Path(source), progress, cancel)
        except UnsupportedModelError:  # somebody else's tool made it, of an architecture that cannot be run here
            divergence = None
        if divergence is not None and not divergence.nats <= max(2 * divergence.nearest, _FLOOR):
            problems.append(
                f"The predictions diverge by {divergence.nats:.3f} nats per token from the source's; "
                f"rounding to nearest makes {divergence.nearest:.3f}."
            )
    return Report(found.scheme, tuple(layers), divergence, tuple(problems), nbytes)


def _diverge(
    found: QuantizedFiles, source: Path, progress: Progress | None, cancel: threading.Event | None
) -> Divergence:
    from qlangchain.produce.divergence import measure

    nats, nearest, same_first, tokens = measure(found, source, progress=progress, cancel=cancel)
    return Divergence(nats, nearest, same_first, tokens)


def _config_problems(found: QuantizedFiles) -> Iterator[str]:
    """Where the two files that say how it is quantized contradict each other, readers go different ways."""
    path = found.directory / "quantize_config.json"
    if not path.is_file():
        return
    try:
        other = read_json(path)
    except CorruptFileError as error:
        yield error.message
        return
    table: dict[str, Any] = found.config["quantization_config"]
    for key in ("bits", "group_size", "desc_act", "sym", "zero_point"):
        if key in other and key in table and other[key] != table[key]:
            yield f"config.json says {key}={table[key]!r}, quantize_config.json {other[key]!r}."
    formats = [str(one.get("checkpoint_format") or one.get("format") or "gptq") for one in (table, other)]
    if found.scheme.method == "gptq" and formats[0] != formats[1]:
        yield f"config.json says checkpoint_format={formats[0]!r}, quantize_config.json {formats[1]!r}."


def _structure_problems(found: QuantizedFiles, checkpoint: Checkpoint | None) -> Iterator[str]:
    scheme, tensors = found.scheme, found.tensors
    layers = found.layers()
    explained: set[str] = set()
    for name in layers:
        absent = [part for part in PARTS[scheme.method] if f"{name}.{part}" not in tensors]
        if absent:
            yield f"{name} has no {' and no '.join(absent)}."
            continue
        explained |= {f"{name}.{part}" for part in PARTS[scheme.method]} | {f"{name}.bias"}
        shape = _linear_shape(found, checkpoint, name)
        if isinstance(shape, str):
            yield shape
            continue
        for part, expected in scheme.expected(*shape).items():
            tensor = tensors[f"{name}.{part}"]
            if tensor.shape != expected:
                yield f"{name}.{part} has the shape {list(tensor.shape)}, expected {list(expected)}."
            allowed = ("F16", "BF16", "F32") if part == "scales" else ("I32",)
            if tensor.dtype not in allowed:
                yield f"{name}.{part} is {tensor.dtype}, expected {' or '.join(allowed)}."
    if checkpoint is None:
        return
    tied = found.config.get("tie_word_embeddings", True) is not False
    for name, tensor in checkpoint.tensors.items():
        explained.add(name)
        if name.removesuffix(".weight") in layers and name.endswith(".weight"):
            if name in tensors:
                yield f"{name} is there twice, quantized and whole."
        elif name not in tensors:
            if not (name == "lm_head.weight" and tied) and "inv_freq" not in name:
                yield f"{name} is missing."
        elif tensors[name].shape != tensor.shape:
            yield f"{name} has the shape {list(tensors[name].shape)}, the source's has {list(tensor.shape)}."
    for name in sorted(tensors.keys() - explained - {"lm_head.weight"}):
        if not (name.endswith(".bias") and name.removesuffix(".bias") in layers):
            yield f"{name} is not of this model."


def _linear_shape(found: QuantizedFiles, checkpoint: Checkpoint | None, name: str) -> tuple[int, int] | str:
    """(columns, rows) of a layer by the source, or else by its own tensors; a sentence where the source has none."""
    if checkpoint is None:
        qweight, scales = found.tensors[f"{name}.qweight"].shape, found.tensors[f"{name}.scales"].shape
        per = 32 // found.scheme.bits if found.scheme.method == "gptq" else 1
        return qweight[0] * per, scales[-1]
    weight = checkpoint.tensors.get(f"{name}.weight")
    if weight is None and name == "lm_head":
        weight = checkpoint.tensors.get("model.embed_tokens.weight")
    if weight is None or len(weight.shape) != 2:
        return f"{name} is quantized, and the source has no such layer."
    return weight.shape[1], weight.shape[0]


def _layer_problems(scheme: Scheme, name: str, layer: QuantizedLinear) -> Iterator[str]:
    columns, groups = len(layer.groups), len(layer.scales)
    if not np.isfinite(layer.scales).all() or not layer.scales.any(axis=0).all():
        yield f"{name}.scales holds zeros, infinities or no numbers."
    middle = 2 ** (scheme.bits - 1)
    if scheme.symmetric and not (layer.zeros == middle).all():
        stored = layer.zeros.astype(int) - (1 if scheme.checkpoint_format == "gptq" else 0)
        expected = middle - (1 if scheme.checkpoint_format == "gptq" else 0)
        yield (
            f"{name}.qzeros holds {sorted({int(value) for value in np.unique(stored)})[:4]} where a symmetric "
            f"{scheme.checkpoint_format} has {expected}: the zero points follow another checkpoint_format."
        )
    if scheme.method == "awq":
        return
    if layer.groups.min() < 0 or layer.groups.max() >= groups:
        yield f"{name}.g_idx names groups that do not exist."
    elif not scheme.desc_act and (layer.groups != sequential_groups(columns, scheme.group_size)).any():
        yield f"{name}.g_idx is out of order, and desc_act is off: readers will ignore it."
    elif scheme.desc_act and len(set(np.bincount(layer.groups, minlength=groups).tolist())) > 1:
        yield f"{name}.g_idx has groups of different sizes."


def _compare(found: QuantizedFiles, checkpoint: Checkpoint, name: str, layer: QuantizedLinear) -> LayerError:
    full = f"{name}.weight" if f"{name}.weight" in checkpoint.tensors else "model.embed_tokens.weight"
    weights: Values = np.ascontiguousarray(np.concatenate(list(checkpoint.chunks(full))).T)
    values = layer.dequantized()
    if found.scheme.method == "awq":
        values = unscaled(values, weights)
    relative = error_of(values, weights)
    return LayerError(name, relative, error_of(nearest(weights, found.scheme), weights))


def error_of(values: Values, weights: Values) -> float:
    """||W - Q|| / ||W||, and ||Q|| where all weights are zero."""
    norm = _norm(weights)
    return _norm(values - weights) / norm if norm else _norm(values)


def _norm(values: Values) -> float:
    """The Euclidean norm, whose squares do not overflow whatever the values are."""
    largest = max(float(values.max(initial=0)), -float(values.min(initial=0)))
    return largest * float(np.linalg.norm(values / np.float32(largest))) if 0 < largest < math.inf else largest


def unscaled(values: Values, weights: Values) -> Values:
    """Undo AWQ's factors, which other layers or norms make good for: the best one for each input and output.

    Fitted by least squares in turns, as a product of two vectors.
    """
    for _ in range(3):
        for axis in (1, 0):
            square = (values * values).sum(axis=axis, keepdims=True)
            factor = (values * weights).sum(axis=axis, keepdims=True) / np.where(square > 0, square, 1)
            values = values * factor
    return values


def _error_problems(scheme: Scheme, layers: list[LayerError]) -> Iterator[str]:
    for layer in layers:
        limit = max(LIMITS[scheme.bits], _TIMES_NEAREST * layer.nearest)
        if not layer.relative < limit:
            said = "no number" if math.isnan(layer.relative) else f"{layer.relative:.3f}"
            yield f"{layer.name} is off by {said} of its size, where at most {limit:.3f} is usual."


def _kept_problems(found: QuantizedFiles, checkpoint: Checkpoint) -> Iterator[str]:
    """What is not quantized is as it was, but for AWQ's factors in the norms and biases of the blocks."""
    for name, tensor in checkpoint.tensors.items():
        if name not in found.tensors or (found.scheme.method == "awq" and len(tensor.shape) == 1):
            continue
        at = 0
        for chunk in checkpoint.chunks(name):
            rows = chunk.reshape(-1) if len(tensor.shape) == 1 else chunk
            stored = found.read(name, at, at + len(rows)).astype(np.float32)
            if not error_of(stored, rows) <= _NARROWED:
                yield f"{name} is not what the source has."
                break
            at += len(rows)
