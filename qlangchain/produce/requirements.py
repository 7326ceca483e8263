"""What quantizing a model will take of memory and disk, estimated before it begins.

The figures are sums of what is held at the same time; they were compared with measured peaks of models with 12 and 24
blocks, and lean to the high side.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qlangchain import hardware
from qlangchain.errors import DiskFullError, ProductionError
from qlangchain.produce.blocks import BATCH_TOKENS

if TYPE_CHECKING:
    import torch

    from qlangchain.produce.decoders import Decoder

_PYTHON = 150 << 20  # what torch's threads and allocator take beyond the tensors


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes that quantizing takes beyond what the process has: of memory at its peak, and of disk."""

    memory: int
    disk: int


def estimate(decoder: Decoder, bits: int, group_size: int, tokens: Sequence[int], dtype: torch.dtype) -> Needs:
    """Estimate the needs for `tokens` = (samples, length), computing in `dtype`."""
    samples, length = tokens
    shapes = decoder.linear_shapes()
    first = {name: shapes[f"model.layers.0.{name}"] for name in decoder.architecture.linears}
    block = sum(columns * rows for columns, rows in first.values())
    # While a step is solved: its weights, their copy in order and the codes; the Gram matrix and what it becomes.
    solving = max(
        4 * (3 * sum(first[name][0] * first[name][1] for name in step) + 4 * first[step[0]][0] ** 2)
        for step in decoder.architecture.steps
    )
    config = decoder.model.config
    batch = max(length, BATCH_TOKENS)
    activations = batch * 4 * max(decoder.hidden_size * 8, *(columns * 3 for columns, _ in first.values()))
    # Attention that is not computed in slices holds a score for each pair of tokens and each head.
    scores = 4 * length * batch * int(config.num_attention_heads)
    scores = scores * 3 if config._attn_implementation == "eager" else 0
    memory = max(block * dtype.itemsize + solving, 8 * block) + activations + scores + _PYTHON
    outer = sum(decoder.checkpoint.tensors[name].nbytes for name in decoder.outer_tensors())
    span = group_size if group_size > 0 else decoder.hidden_size
    layers = sum(columns * rows for columns, rows in shapes.values())
    written = int(layers * (bits / 8 + 3 / span)) + outer
    disk = 2 * written + 2 * samples * length * decoder.hidden_size * dtype.itemsize
    return Needs(memory, disk)


def check(decoder: Decoder, needs: Needs, room: Path) -> None:
    """Raise `ProductionError` where memory is short, `DiskFullError` where the disk of `room` is."""
    there = hardware.detect().memory_available
    if needs.memory > there:
        raise ProductionError(
            f"Quantizing {decoder.source.name} needs about {_gib(needs.memory)} of memory; {_gib(there)} are free.",
            hint="Close other programs, pass a shorter sequence_length, or choose GGUF, which needs hardly any.",
        )
    kept = sum(path.stat().st_size for path in room.rglob("*") if path.is_file())
    free = shutil.disk_usage(room).free + kept
    if needs.disk > free:
        raise DiskFullError(
            f"Quantizing {decoder.source.name} needs about {_gib(needs.disk)} of disk in {room.parent}; "
            f"{_gib(free)} are free.",
            hint="Free some disk, write to another one, or pass fewer samples.",
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
