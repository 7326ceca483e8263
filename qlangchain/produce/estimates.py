"""What making an artifact will take, before it begins: time, memory, disk, and the size of the result.

Times come from counting operations and from a look at how fast this processor multiplies; they are estimates, and
the time left that is shown while the work goes on is better.
"""

from __future__ import annotations

import os
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlangchain.errors import UnsupportedModelError

_CONVERTER = 200 << 20  # Python, numpy and the chunks of the converter: at most 300 MiB
_EFFICIENCY = 0.4  # of the speed of a large multiplication, over everything that is not one
_START = 12.0  # seconds for two children to load torch and transformers
_CHECK_TOKENS = 2048  # three models run beside each other in the check
_SHARE = 2.6  # forward passes of a block that GPTQ makes: each step runs it up to its layers again
_AWQ_GRID = 20  # scales that are tried


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds, bytes of memory at the peak, bytes of disk on the way, and the size of the result in bytes."""

    seconds: float
    memory: int
    disk: int
    written: int


def gguf(source: Path, format: str, *, matrix_tokens: int = 0) -> Estimate:
    """Estimate a conversion. Raises what `plan_gguf` raises."""
    from qlangchain.artifacts.bounds import short
    from qlangchain.produce.gguf import FILE_TYPES, plan_gguf
    from qlangchain.selection.weights import file_bytes, formats

    rates = tomllib.loads(Path(__file__).with_name("estimates.toml").read_text(encoding="utf-8"))
    plain = format in FILE_TYPES and not matrix_tokens
    plan = plan_gguf(source, format if plain else "BF16")
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    read = sum(tensor.nbytes for tensor in plan.checkpoint.tensors.values())
    if plain:
        return Estimate(read / rates["plain"][format], _CONVERTER, plan.nbytes, plan.nbytes)
    kinds = [kind for kind in rates["quantizer"] if format.startswith(kind)]
    if not kinds:
        raise UnsupportedModelError(f"The format {short(format)} is not known.", hint="Choose another.")
    seconds = read / rates["plain"]["BF16"] + read / (rates["quantizer"][max(kinds, key=len)] * threads)
    weights = sum(values for values in _sizes(plan))
    if matrix_tokens:
        seconds += 2.0 * weights * matrix_tokens / multiplications()
    written = plan.nbytes
    if format in formats():
        from qlangchain.artifacts.source import read_config
        from qlangchain.selection.architecture import from_config

        written = file_bytes(from_config(read_config(source)), format)
    return Estimate(seconds, _CONVERTER + plan.nbytes, 2 * plan.nbytes, written)


def _sizes(plan: Any) -> list[int]:
    return [layout.shape[0] * layout.shape[1] for layout, _ in plan.tensors if len(layout.shape) == 2]


def blocks(source: Path, method: str, bits: int, group_size: int, tokens: Sequence[int]) -> Estimate:
    """Estimate GPTQ or AWQ on `tokens` = (samples, length). Raises what `Decoder` raises."""
    from qlangchain.produce import requirements
    from qlangchain.produce.decoders import Decoder

    decoder = Decoder(source)
    needs = requirements.estimate(decoder, bits, group_size, tokens, decoder.compute_dtype())
    count = float(tokens[0] * tokens[1])
    work = 0.0
    grams = set()
    for name, (columns, rows) in decoder.linear_shapes().items():
        passes = _SHARE if method == "gptq" else 1.0
        work += 2.0 * columns * rows * (passes * count + 3 * _CHECK_TOKENS)
        work += columns * columns * rows * (1.0 if method == "gptq" else 2.0 * _AWQ_GRID)
        step = next(step[0] for step in decoder.architecture.steps if name.endswith(step))
        key = f"{name.split('.')[2]} {step}"
        if key not in grams:
            grams.add(key)
            work += count * columns * columns + 2.0 * columns**3
    head = int(decoder.model.config.vocab_size) * decoder.hidden_size
    work += 2.0 * head * 3 * _CHECK_TOKENS
    outer = sum(decoder.checkpoint.tensors[name].nbytes for name in decoder.outer_tensors())
    span = group_size if group_size > 0 else decoder.hidden_size
    layers = sum(columns * rows for columns, rows in decoder.linear_shapes().values())
    return Estimate(
        _START + work / multiplications(), needs.memory, needs.disk, int(layers * (bits / 8 + 3 / span)) + outer
    )


def multiplications() -> float:
    """Operations per second that this processor does in practice, from a tenth of a second of them."""
    import torch

    one = torch.ones(768, 768)
    one @ one
    count, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < 0.1 or not count:
        one @ one
        count += 1
    return _EFFICIENCY * count * 2.0 * 768**3 / taken
