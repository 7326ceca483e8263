"""A directory of safetensors -> one GGUF file, with numpy and the gguf package alone: no compiler, no torch.

`plan_gguf` reads the headers and says what will be written, to the byte; `produce_gguf` writes it, tensor by
tensor in chunks of rows, so that the memory in use does not grow with the model.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, quants

from qlangchain.artifacts.headers import check_servable, read_gguf_header
from qlangchain.errors import ArtifactError, CancelledError, InvalidInputError, ProductionError
from qlangchain.produce import gguf_file as kv
from qlangchain.produce.architectures import Mapped, map_tensors, model_metadata, pair_neighbours, rope_factors
from qlangchain.produce.checkpoint import Checkpoint, open_checkpoint
from qlangchain.produce.model_config import read_config
from qlangchain.produce.tokenizer import read_tokenizer

logger = logging.getLogger(__name__)

VERSION = 1  # to be raised by one whenever the same source would give other bytes

# llama.cpp's LLAMA_FTYPE numbers of the formats that are written here, without llama.cpp.
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}
# Formats that llama.cpp's own quantizer writes, and those that it writes with an importance matrix alone.
K_FILE_TYPES = {
    "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16,
    "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ3_S": 26, "IQ3_M": 27, "IQ4_XS": 30,
}  # fmt: skip
IMATRIX_FILE_TYPES = {
    "IQ2_XXS": 19, "IQ2_XS": 20, "Q2_K_S": 21, "IQ3_XS": 22, "IQ3_XXS": 23, "IQ1_S": 24, "IQ2_S": 28, "IQ2_M": 29,
    "IQ1_M": 31,
}  # fmt: skip
PLAIN_FORMATS = tuple(FILE_TYPES)
_WHOLE = ("F32", "F16", "BF16")
_REPORT = "Please report it with the model's name."


@dataclass(frozen=True, slots=True)
class GgufPlan:
    """What `produce_gguf` will write: the header, the tensors with their sources, the size in bytes."""

    checkpoint: Checkpoint
    format: str
    header: bytes
    tensors: tuple[tuple[kv.TensorLayout, Mapped | npt.NDArray[np.float32]], ...]
    nbytes: int
    notices: tuple[str, ...]


def check_architecture(source: Path) -> None:
    """Raise UnsupportedModelError or another ArtifactError where config.json says that this cannot be converted."""
    read_config(source)


def plan_gguf(source: Path, format: str, *, name: str | None = None) -> GgufPlan:
    """Check the model in `source` and lay out its GGUF in one of `FILE_TYPES`.

    `name` becomes `general.name`. Nothing is written and no weights are read. Raises `InvalidInputError`,
    `ModelNotFoundError`, `NoWeightsError`, `UnsafeWeightsError`, `UnsupportedModelError` or `CorruptFileError`.
    """
    if format not in FILE_TYPES:
        raise InvalidInputError(f"{format!r} is not written here.", hint=f"Known: {', '.join(FILE_TYPES)}.")
    if not (source / "config.json").is_file():
        open_checkpoint(source)  # says what is wrong with the path
    config = read_config(source)
    checkpoint = open_checkpoint(source, without=config.family.other_parts if config.has_parts else ())
    if config.has_parts:
        checkpoint = checkpoint.renamed(config.family.parts, "model.").renamed(("language_model.",), "")
    mapped_tensors = map_tensors(config, checkpoint)  # before the tokenizer: it proves vocab_size
    tokenizer = read_tokenizer(source, config.vocab_size)
    notices = [*config.notices, *tokenizer.notices]
    tensors: list[tuple[kv.TensorLayout, Mapped | npt.NDArray[np.float32]]] = []
    for factors_name, factors in rope_factors(config).items():
        tensors.append((kv.TensorLayout(factors_name, factors.shape, "F32"), factors))
    for mapped in mapped_tensors:
        kind = tensor_type(format, mapped.name, mapped.shape, config.tied)
        if kind == "F16" and format not in _WHOLE:
            notices.append(f"{mapped.name} stays F16: its {mapped.shape[-1]} columns do not divide by 32.")
        tensors.append((kv.TensorLayout(mapped.name, mapped.shape, kind), mapped))
    metadata = {
        "general.architecture": kv.string(config.architecture),
        "general.type": kv.string("model"),
        "general.name": kv.string(name or config.name),
        "general.file_type": kv.uint32(FILE_TYPES[format]),
        "general.quantization_version": kv.uint32(2),
        **model_metadata(config),
        **tokenizer.metadata,
    }
    layouts = [layout for layout, _ in tensors]
    header = kv.encode_header(metadata, layouts)
    nbytes = len(header) + sum(layout.nbytes + kv.padding(layout.nbytes) for layout in layouts)
    return GgufPlan(checkpoint, format, header, tuple(tensors), nbytes, tuple(notices))


def tensor_type(format: str, name: str, shape: tuple[int, ...], tied: bool) -> str:
    """The ggml type of one tensor, by the rules of llama.cpp's quantizer without an importance matrix.

    Vectors and norms stay F32. The matrix that makes the logits, `output.weight` or the embeddings where they
    are tied to it, gets more bits than the rest: llama.cpp takes Q6_K there, and as that needs llama.cpp
    itself, Q8_0 is taken here (8.5 bits a weight instead of 6.6). Columns that do not divide into blocks of
    32 leave the tensor F16.
    """
    if len(shape) < 2 or name.endswith("_norm.weight"):
        return "F32"
    if format in _WHOLE:
        return format
    if shape[-1] % 32:
        return "F16"
    makes_logits = name == "output.weight" or (tied and name == "token_embd.weight")
    return "Q8_0" if makes_logits else format


def produce_gguf(
    source: Path,
    target: Path,
    format: str,
    *,
    progress: Callable[[int, int], None] | None = None,
    name: str | None = None,
    imatrix: Path | None = None,
    cancel: threading.Event | None = None,
) -> Path:
    """Convert the model in the directory `source` to the file `target` and return its path.

    `format` is one of `FILE_TYPES`, written here, or of `K_FILE_TYPES` and, with the file of an importance matrix,
    `IMATRIX_FILE_TYPES`, which llama.cpp's quantizer writes (llama-cpp-python or a `llama-quantize` on PATH).
    `progress` is called with the bytes that are done and the bytes in all; setting `cancel` ends the work. The file
    appears complete and checked, or not at all. Raises what `plan_gguf` raises, `DiskFullError`,
    `MissingDependencyError`, `CancelledError` and `ProductionError`.
    """
    source, target, format = Path(source), Path(target), format.upper()
    known = [*FILE_TYPES, *K_FILE_TYPES, *IMATRIX_FILE_TYPES]
    if format not in known:
        raise InvalidInputError(f"The GGUF format {format!r} is not known.", hint=f"Known: {', '.join(known)}.")
    if imatrix is not None or format not in FILE_TYPES:
        from qlangchain.produce.kquants import produce_k_gguf

        return produce_k_gguf(source, target, format, progress=progress, name=name, imatrix=imatrix, cancel=cancel)

    def report(done: int, total: int) -> None:
        if cancel is not None and cancel.is_set():
            raise CancelledError("The conversion was cancelled.")
        if progress:
            progress(done, total)

    from qlangchain.produce.gguf_check import check_errors

    def verify(path: Path) -> None:
        verify_gguf(path, plan)
        check_errors(path, plan)

    plan = plan_gguf(source, format, name=name)
    for notice in plan.notices:
        logger.warning("%s: %s", source.name, notice)
    with (
        kv.published(target, plan.nbytes, verify) as temporary,
        temporary.open("xb") as file,
    ):
        write_gguf(plan, file, report)
    return target


def write_gguf(plan: GgufPlan, file: BinaryIO, progress: Callable[[int, int], None] | None = None) -> None:
    """Write the whole of a plan to `file`."""
    done = file.write(plan.header)
    for layout, source in plan.tensors:
        before = done
        if isinstance(source, Mapped):
            for values in plan.checkpoint.chunks(source.source, source.head_dim or 1):
                ordered = pair_neighbours(values, source.head_dim) if source.head_dim else values
                if source.offset:
                    ordered = ordered + np.float32(source.offset)
                done += file.write(_encode(ordered, layout, source.source))
                if progress:
                    progress(done, plan.nbytes)
        else:
            done += file.write(_encode(source, layout, layout.name))
        if done - before != layout.nbytes:
            raise ProductionError(f"{layout.name} came to {done - before:,} bytes, {layout.nbytes:,} were laid out.")
        done += file.write(bytes(kv.padding(layout.nbytes)))
    if progress:
        progress(done, plan.nbytes)


def _encode(values: npt.NDArray[np.float32], layout: kv.TensorLayout, source: str) -> bytes:
    with np.errstate(over="ignore"):  # an overflow of F16 is looked for below
        encoded = quants.quantize(values, GGMLQuantizationType[layout.type])
    if layout.type == "F16" and not np.isfinite(encoded).all():
        raise ProductionError(
            f"{source} holds values beyond ±65,504, which F16 cannot hold.", hint="Choose BF16, F32 or Q8_0."
        )
    return encoded.tobytes()


def verify_gguf(path: Path, plan: GgufPlan) -> None:
    """Read a finished file back with the bounded reader and compare it with its plan."""
    try:
        header = read_gguf_header(path)
        check_servable(header)
    except ArtifactError as error:
        raise ProductionError(f"The file that was made is not right: {error.message}", hint=_REPORT) from error
    written = [(tensor.name, tensor.shape[::-1], tensor.type) for tensor in header.tensors]
    if written != [(layout.name, layout.shape, layout.type) for layout, _ in plan.tensors]:
        raise ProductionError("The file that was made does not hold the tensors that were planned.", hint=_REPORT)
    if header.file_size != plan.nbytes:
        raise ProductionError(
            f"The file that was made has {header.file_size:,} bytes, not {plan.nbytes:,}.", hint=_REPORT
        )
