"""Importance matrices: how much each input of each layer matters, which llama.cpp's quantizer weighs errors by.

The figure is the mean square of what reaches a column of a layer's weight on a calibration text. It is collected
with torch on the full-precision model, block by block, so that memory holds one block and one batch. The file is
llama.cpp's own (tools/imatrix/README.md): a GGUF of the type "imatrix" with two tensors for each weight,
`<weight>.in_sum2` and `<weight>.counts`; the older format, which many hub repositories still hold, is read as well.
"""

from __future__ import annotations

import contextlib
import shutil
import struct
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qlangchain.artifacts.headers import read_gguf_header
from qlangchain.errors import CancelledError, CorruptFileError, DiskFullError, InvalidInputError, ModelNotFoundError
from qlangchain.produce import gguf_file as kv
from qlangchain.produce.families import families

if TYPE_CHECKING:
    from torch import Tensor

    from qlangchain.produce.decoders import Decoder

Progress = Callable[[str, int, int], None]
Values = npt.NDArray[np.float32]

_SUMS, _COUNTS = ".in_sum2", ".counts"
_MAX_FILE = 1 << 30
_MAX_ENTRIES, _MAX_NAME, _MAX_COLUMNS = 1 << 16, 1 << 10, 1 << 24
SAMPLES = 100  # chunks that llama.cpp's own documentation collects on


@dataclass(frozen=True, slots=True)
class ImportanceMatrix:
    """The mean squared inputs by the names of weights in GGUF, each of the shape (columns,).

    `tokens` is what they were collected on, 0 where the file does not say it.
    """

    values: Mapping[str, Values]
    tokens: int = 0

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise `InvalidInputError` where it belongs to another model. `shapes` are (rows, columns) by name."""
        fitting = self.values.keys() & shapes.keys()
        if not fitting:
            raise InvalidInputError(
                f"The importance matrix names {next(iter(self.values), 'nothing')!r}, and this model has no such "
                f"tensor.",
                hint="Pass the one that was made for this model, or imatrix=True to have it made.",
            )
        for name in fitting:
            if self.values[name].size != shapes[name][-1]:
                raise InvalidInputError(
                    f"The importance matrix has {self.values[name].size} columns for {name}; the model has "
                    f"{shapes[name][-1]}.",
                    hint="Pass the one that was made for this model, or imatrix=True to have it made.",
                )


def collect(
    source: Path,
    texts: Sequence[str] | None = None,
    *,
    samples: int | None = None,
    sequence_length: int | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
    work: Path | None = None,
) -> ImportanceMatrix:
    """Collect the importance matrix of the model directory `source` on `texts` (None: those that ship with us).

    `progress` is called with "imatrix", the blocks that are done and all of them. The activations between two blocks
    lie in a directory of their own in `work` (None: the system's temporary one). Raises what `Decoder` and
    `samples_of` raise, `DiskFullError` and `CancelledError`.
    """
    from qlangchain.produce import calibration
    from qlangchain.produce.blocks import Activations, Block
    from qlangchain.produce.decoders import Decoder, require_torch

    require_torch()
    decoder = Decoder(Path(source))
    context = int(getattr(decoder.model.config, "max_position_embeddings", calibration.LENGTH))
    length = sequence_length or min(calibration.LENGTH, context)
    chosen = calibration.default_texts() if texts is None else texts
    tokens = calibration.samples_of(calibration.load_tokenizer(source), chosen, samples, length)[
        : samples or SAMPLES
    ]  # fmt: skip
    names = _names(decoder)
    dtype = decoder.compute_dtype()
    shape = (*tokens.shape, decoder.hidden_size)
    found: dict[str, Values] = {}

    def check() -> None:
        if cancel is not None and cancel.is_set():
            raise CancelledError("Collecting the importance matrix was cancelled.")

    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
    room = Path(tempfile.mkdtemp(prefix="imatrix-", dir=work))
    try:
        need = 2 * int(np.prod(shape)) * dtype.itemsize
        kv.check_room(room, need)
        inputs = Activations(room / "inputs-0.bin", shape, dtype)
        start, arguments = decoder.start(tokens, dtype)
        inputs.write(start)
        for index in range(decoder.layers):
            check()
            outputs = Activations(room / f"inputs-{index + 1}.bin", shape, dtype)
            block = Block(decoder, index, inputs, arguments[index], check)
            squares = {step[0]: _Squares(block.columns(step[0])) for step in decoder.architecture.steps}
            block.watch({name: one.add for name, one in squares.items()}, outputs)
            for step in decoder.architecture.steps:
                for name in step:
                    found[f"blk.{index}.{names[name]}.weight"] = squares[step[0]].mean()
            inputs.path.unlink()
            inputs = outputs
            if progress:
                progress("imatrix", index + 1, decoder.layers)
    except OSError as error:
        raise DiskFullError(
            f"The importance matrix could not be collected in {room.parent}: {error}.",
            hint="Free some disk, or pass fewer samples.",
        ) from error
    finally:
        shutil.rmtree(room, ignore_errors=True)
    return ImportanceMatrix(found, tokens.numel())


class _Squares:
    """The sum of the squares of each input of a layer."""

    def __init__(self, columns: int) -> None:
        import torch

        self.sums, self.count = torch.zeros(columns, dtype=torch.float64), 0

    def add(self, inputs: Tensor) -> None:
        flat = inputs.reshape(-1, inputs.shape[-1]).float()
        self.sums += (flat * flat).sum(dim=0)
        self.count += len(flat)

    def mean(self) -> Values:
        return (self.sums / max(1, self.count)).float().numpy()


def _names(decoder: Decoder) -> dict[str, str]:
    """llama.cpp's name of each linear layer of a block."""
    family = families().get(decoder.architecture.model_class)
    if family is None:
        raise InvalidInputError(
            f"{decoder.architecture.model_class} is not written as GGUF here.", hint="Choose GPTQ or AWQ for it."
        )
    return {name: part for part, (name, _, _) in family.linears.items()}


def write(matrix: ImportanceMatrix, target: Path, *, dataset: str = "text") -> None:
    """Write it as llama.cpp does; the file appears complete or not at all. Raises what `published` raises."""
    tensors: list[tuple[kv.TensorLayout, Values]] = []
    count = max(1, matrix.tokens)
    for name, values in sorted(matrix.values.items()):
        tensors.append((kv.TensorLayout(name + _SUMS, (1, values.size), "F32"), values * np.float32(count)))
        tensors.append((kv.TensorLayout(name + _COUNTS, (1, 1), "F32"), np.array([count], np.float32)))
    metadata = {
        "general.type": kv.string("imatrix"),
        "imatrix.datasets": kv.strings([dataset]),
        "imatrix.chunk_count": kv.uint32(1),
        "imatrix.chunk_size": kv.uint32(count),
    }
    header = kv.encode_header(metadata, [layout for layout, _ in tensors])
    size = len(header) + sum(layout.nbytes + kv.padding(layout.nbytes) for layout, _ in tensors)
    with kv.published(target, size, read) as temporary, temporary.open("xb") as file:
        file.write(header)
        for layout, values in tensors:
            file.write(values.astype("<f4").tobytes() + bytes(kv.padding(layout.nbytes)))


def read(path: Path) -> ImportanceMatrix:
    """Read an importance matrix in llama.cpp's new or old format. Raises `ModelNotFoundError`, `CorruptFileError`."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelNotFoundError(f"{path} cannot be read: {error}.", hint="Check the path.") from error
    if size > _MAX_FILE:
        raise CorruptFileError(f"{path.name} is larger than {_MAX_FILE:,} bytes.", hint="It is no importance matrix.")
    matrix = _read_gguf(path) if magic == b"GGUF" else _read_old(path)
    for name, values in matrix.values.items():
        if not np.isfinite(values).all() or (values < 0).any():
            raise CorruptFileError(
                f"The importance matrix {path.name} holds values for {name} that no mean square can have.",
                hint="Make it anew.",
            )
    return matrix


def is_matrix(path: Path) -> bool:
    """Whether a file looks like an importance matrix rather than like a text to make one on."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        start = file.read(1 << 12)
        return start.startswith(b"GGUF") or b"\0" in start
    return False


def _read_gguf(path: Path) -> ImportanceMatrix:
    header = read_gguf_header(path)
    if header.metadata.get("general.type") != "imatrix":
        raise CorruptFileError(f"{path.name} is a GGUF of another type.", hint="Pass an importance matrix.")
    tensors = {tensor.name: tensor for tensor in header.tensors}
    values: dict[str, Values] = {}
    tokens = 0
    with path.open("rb") as file:
        for name, sums in tensors.items():
            counts = tensors.get(name.removesuffix(_SUMS) + _COUNTS)
            if not name.endswith(_SUMS):
                continue
            experts = 1 if counts is None else int(np.prod(counts.shape))
            if counts is None or sums.type != "F32" or counts.type != "F32" or sums.nbytes % (4 * experts):
                raise CorruptFileError(f"{path.name} has no right counts for {name}.", hint="Make it anew.")
            total = np.frombuffer(_bytes(file, sums), "<f4").reshape(experts, -1)
            number = np.frombuffer(_bytes(file, counts), "<f4")[:, None]
            mean = np.where(number > 0, total / np.where(number > 0, number, 1), 1.0)
            values[name.removesuffix(_SUMS)] = mean.reshape(-1).astype(np.float32)
            tokens = max(tokens, int(number.max(initial=0)))
    if not values:
        raise CorruptFileError(f"{path.name} is empty.", hint="Make it anew.")
    return ImportanceMatrix(values, tokens)


def _bytes(file: Any, tensor: Any) -> bytes:
    file.seek(tensor.offset)
    return bytes(file.read(tensor.nbytes))


def _read_old(path: Path) -> ImportanceMatrix:
    """The format before October 2025: sums over calls, each with its name and the number of calls."""
    blob = path.read_bytes()
    at = 0

    def take(size: int) -> bytes:
        nonlocal at
        if size < 0 or at + size > len(blob):
            raise CorruptFileError(f"{path.name} is no importance matrix, or it ends early.", hint="Make it anew.")
        at += size
        return blob[at - size : at]

    def whole(most: int) -> int:
        (value,) = struct.unpack("<i", take(4))
        if not 0 <= value <= most:
            raise CorruptFileError(f"{path.name} is no importance matrix.", hint="Pass one, or a text file.")
        return int(value)

    values: dict[str, Values] = {}
    for _ in range(whole(_MAX_ENTRIES)):
        name = take(whole(_MAX_NAME)).decode("utf-8", "replace")
        calls = whole((1 << 31) - 1)
        sums = np.frombuffer(take(4 * whole(_MAX_COLUMNS)), "<f4")
        values[name] = (sums / max(1, calls)).astype(np.float32)
    if not values:
        raise CorruptFileError(f"{path.name} is empty.", hint="Make it anew.")
    return ImportanceMatrix(values)
