"""The two layouts of a quantized linear layer on disk: GPTQ's (v1 and v2) and AWQ's gemm.

A layer of `columns` inputs and `rows` outputs becomes, with 32 / bits codes in each int32:

    GPTQ  qweight int32 [columns * bits / 32, rows]    codes packed along the inputs, lowest bits first
          qzeros  int32 [groups, rows * bits / 32]     zero points; v1 stores them less one, v2 as they are
          scales  f16   [groups, rows]
          g_idx   int32 [columns]                      the group of each input
    AWQ   qweight int32 [columns, rows / 8]            codes packed along the outputs, in the order 0 2 4 6 1 3 5 7
          qzeros  int32 [groups, rows / 8]             the same order, not shifted
          scales  f16   [groups, rows]

and a weight is (code - zero) * scale of its group. Sources: `pack` of gptqmodel's nn_modules/qlinear, `from_linear`
of AutoAWQ's modules/linear/gemm.py, both of which transformers and vLLM read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.int32]

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
CHECKPOINT_FORMATS = ("gptq", "gptq_v2")


@dataclass(frozen=True, slots=True)
class QuantizedLinear:
    """A layer in whole numbers.

    `codes` has the shape (columns, rows), `zeros` and `scales` (groups, rows); `groups` names the group of each
    column.
    """

    codes: Codes
    zeros: Codes
    scales: npt.NDArray[np.float32]
    groups: npt.NDArray[np.int32]

    def dequantized(self) -> npt.NDArray[np.float32]:
        """The weights that a reader will compute, shape (columns, rows)."""
        shifted = self.codes.astype(np.float32)
        shifted -= self.zeros.astype(np.float32)[self.groups]
        shifted *= self.scales[self.groups]
        return shifted


def sequential_groups(columns: int, group_size: int) -> npt.NDArray[np.int32]:
    """The group of each of `columns` inputs where neighbours share one; -1 is one group for all."""
    size = columns if group_size == -1 else group_size
    return (np.arange(columns) // size).astype(np.int32)


def pack_down(codes: Codes, bits: int) -> Words:
    """Pack codes of the shape (n, m) along the first axis: (n * bits / 32, m), lowest bits first."""
    per = 32 // bits
    shifts = (np.arange(per, dtype=np.uint32) * bits)[None, :, None]
    parts = codes.reshape(codes.shape[0] // per, per, codes.shape[1]).astype(np.uint32) << shifts
    packed: npt.NDArray[np.uint32] = np.bitwise_or.reduce(parts, axis=1)
    return packed.view(np.int32)


def unpack_down(words: Words, bits: int) -> Codes:
    """The inverse of `pack_down`."""
    per = 32 // bits
    shifts = (np.arange(per, dtype=np.uint32) * bits)[None, :, None]
    parts = (words.view(np.uint32)[:, None, :] >> shifts) & np.uint32(2**bits - 1)
    return parts.astype(np.uint8).reshape(words.shape[0] * per, words.shape[1])


def pack_across(codes: Codes, bits: int, order: tuple[int, ...] | None = None) -> Words:
    """Pack codes of the shape (n, m) along the second axis: (n, m * bits / 32); slot i holds code `order[i]`."""
    per = 32 // bits
    parts = codes.reshape(codes.shape[0], codes.shape[1] // per, per)
    if order:
        parts = parts[:, :, list(order)]
    shifts = np.arange(per, dtype=np.uint32) * bits
    packed: npt.NDArray[np.uint32] = np.bitwise_or.reduce(parts.astype(np.uint32) << shifts, axis=2)
    return packed.view(np.int32)


def unpack_across(words: Words, bits: int, order: tuple[int, ...] | None = None) -> Codes:
    """The inverse of `pack_across`."""
    per = 32 // bits
    shifts = np.arange(per, dtype=np.uint32) * bits
    parts = ((words.view(np.uint32)[:, :, None] >> shifts) & np.uint32(2**bits - 1)).astype(np.uint8)
    if order:
        parts = parts[:, :, np.argsort(order)]
    return parts.reshape(words.shape[0], words.shape[1] * per)


def encode_gptq(layer: QuantizedLinear, bits: int) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a layer in GPTQ's v1 layout. Scales stay float32 for the writer to narrow."""
    stored = (layer.zeros.astype(np.int32) - 1) & (2**bits - 1)  # v1: a zero point of 0 wraps, and readers wrap it back
    return {
        "qweight": pack_down(layer.codes, bits),
        "qzeros": pack_across(stored.astype(np.uint8), bits),
        "scales": layer.scales,
        "g_idx": layer.groups,
    }


def decode_gptq(tensors: Mapping[str, npt.NDArray[Any]], bits: int, checkpoint_format: str) -> QuantizedLinear:
    """Read a layer in GPTQ's layout; `checkpoint_format` is one of `CHECKPOINT_FORMATS`."""
    shift = 1 if checkpoint_format == "gptq" else 0
    stored = unpack_across(tensors["qzeros"], bits).astype(np.int32)
    return QuantizedLinear(
        codes=unpack_down(tensors["qweight"], bits),
        zeros=((stored + shift) & (2**bits - 1)).astype(np.uint8),
        scales=tensors["scales"].astype(np.float32),
        groups=tensors["g_idx"],
    )


def encode_awq(layer: QuantizedLinear) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a layer of 4 bits in AWQ's gemm layout. Scales stay float32 for the writer to narrow."""
    return {
        "qweight": pack_across(layer.codes, 4, AWQ_ORDER),
        "qzeros": pack_across(layer.zeros, 4, AWQ_ORDER),
        "scales": layer.scales,
    }


def decode_awq(tensors: Mapping[str, npt.NDArray[Any]]) -> QuantizedLinear:
    """Read a layer in AWQ's gemm layout."""
    codes = unpack_across(tensors["qweight"], 4, AWQ_ORDER)
    columns, groups = codes.shape[0], tensors["scales"].shape[0]
    return QuantizedLinear(
        codes=codes,
        zeros=unpack_across(tensors["qzeros"], 4, AWQ_ORDER),
        scales=tensors["scales"].astype(np.float32),
        groups=sequential_groups(columns, columns // groups),
    )
