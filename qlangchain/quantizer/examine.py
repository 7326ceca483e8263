"""What a quantized model really holds, and how it would run on this machine."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from qlangchain import hardware as machine
from qlangchain import pipeline
from qlangchain.artifacts.headers import read_gguf_header, read_safetensors_header
from qlangchain.artifacts.quantization import read_quantization
from qlangchain.artifacts.source import format_of, read_config
from qlangchain.errors import ModelNotFoundError, NoWeightsError, QlangchainError
from qlangchain.selection.kernels import supported
from qlangchain.toolchains import worker
from qlangchain.toolchains.worker import Progress
from qlangchain.types import Method

RUNTIMES: Final = ("llamacpp", "vllm", "transformers")
_FULL: Final = ("F32", "F16", "BF16")
# The methods whose layers `jobs.verify` can examine one by one.
_EXAMINED: Final = (Method.GPTQ, Method.AWQ, Method.GGUF)


@dataclass(frozen=True, slots=True)
class Examined:
    """What was found. Sizes are in bytes; `types` counts the tensors by their types.

    `kernels` says for each runtime why it has no kernel for these weights on this machine, "" where it has one.
    `memory`, `context_length`, `batch` and `runtime` are how it would be run here, None with a `note` where it
    cannot be planned. `figures` are the errors and the KL divergence against the source, where there is one.
    """

    path: Path
    method: str
    format: str
    quantized: bool
    bits_per_weight: float
    size_bytes: int
    types: Mapping[str, int]
    kernels: Mapping[str, str]
    memory: int | None = None
    context_length: int | None = None
    batch: int | None = None
    runtime: str = ""
    note: str = ""
    compared: bool = False
    figures: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong with it, and it is quantized at all."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON takes it, the figures among the rest."""
        found = asdict(self)
        figures = found.pop("figures")
        return {**found, **figures, "path": str(self.path)}


def examine(
    path: Path,
    source: Path | None = None,
    *,
    context_length: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Examined:
    """Examine a GGUF file or a directory of safetensors, against the full-precision `source` where it is given.

    Raises `ModelNotFoundError`, `NoWeightsError`, `CorruptFileError` and what planning raises about its config.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise ModelNotFoundError(f"There is no {path}.", hint="Check the path.")
    method, format, symmetric, desc_act, sizes = _read_directory(path) if path.is_dir() else _read_file(path)
    nbytes = sum(size for _, size, _ in sizes)
    values = sum(count for _, _, count in sizes)
    here = machine.detect()
    gpu = here.gpus[0] if here.gpus else None
    kernels = {
        runtime: supported(
            format, runtime, gpu, method=method.value, flags=here.flags, symmetric=symmetric, desc_act=desc_act
        )
        or ""
        for runtime in RUNTIMES
    }
    quantized = format not in _FULL and method is not Method.NONE
    answer: dict[str, Any] = {}
    if quantized and method in _EXAMINED:
        arguments = {"target": str(path), "source": str(source) if source else None}
        answer = worker.run("qlangchain.produce.jobs:verify", arguments, progress=progress)
    problems = tuple(answer.pop("problems", ()))
    if quantized and values and 8 * nbytes / values > 15.5:
        problems += (f"It says {method.value} {format}, and its tensors take {8 * nbytes / values:.1f} bits a weight.",)
    return Examined(
        path=path,
        method=method.value,
        format=format,
        quantized=quantized,
        bits_per_weight=8 * nbytes / max(1, values),
        size_bytes=nbytes,
        types=dict(Counter(type for type, _, _ in sizes).most_common()),
        kernels=kernels,
        compared=source is not None,
        figures={name: value for name, value in answer.items() if name not in ("size_bytes", "notices")},
        problems=problems,
        **_planned(path, context_length),
    )


def _planned(path: Path, context_length: int | None) -> dict[str, Any]:
    try:
        plan = pipeline.plan(path, context_length=context_length)
    except QlangchainError as error:
        return {"note": error.message}
    memory = None
    if plan.estimate is not None:
        memory = plan.estimate.gpu or plan.estimate.memory
    return {
        "memory": memory, "context_length": plan.context_length, "batch": plan.slots, "runtime": plan.runtime,
    }  # fmt: skip


_Sizes = list[tuple[str, int, int]]  # the type of each tensor, its bytes, and the weights that it stands for


def _read_file(path: Path) -> tuple[Method, str, bool, bool, _Sizes]:
    header = read_gguf_header(path)
    sizes = [(tensor.type, tensor.nbytes, math.prod(tensor.shape)) for tensor in header.tensors]
    return Method.GGUF, format_of(header), True, False, sizes


def _read_directory(path: Path) -> tuple[Method, str, bool, bool, _Sizes]:
    found = read_quantization(read_config(path))
    tensors = [
        tensor
        for file in sorted(path.glob("*.safetensors"))
        for tensor in read_safetensors_header(file).tensors.values()
    ]
    if not tensors:
        raise NoWeightsError(f"{path} holds no safetensors.", hint="Pass a model directory, or a GGUF file.")
    per = 32 // found.bits if found.bits else 1
    sizes = []
    for tensor in tensors:
        # What is packed into whole numbers of 32 bits stands for several weights; scales and zeros for none.
        packed = tensor.dtype == "I32" and tensor.name.endswith(("qweight", "weight_packed"))
        extra = tensor.name.endswith(("qzeros", "scales", "g_idx", "weight_scale", "weight_shape", "weight_zero_point"))
        count = 0 if extra else math.prod(tensor.shape) * (per if packed else 1)
        sizes.append((tensor.dtype, tensor.nbytes, count))
    return found.scheme, found.format, found.symmetric is not False, bool(found.desc_act), sizes
