"""How large a directory of safetensors is in each of the formats that vLLM and transformers read.

Where the files exist, their bytes are the answer. The hub's count of parameters is none: it counts packed int32 words,
eight weights each, as one (llmfit #1045). This is the arithmetic for before they exist. Only the matrices of layers
are quantized: embeddings, the output matrix, norms, biases and routers stay in 16 bits, which is why a small model with
a large vocabulary gains so little.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from qlangchain.errors import InvalidInputError
from qlangchain.selection.layers import Architecture
from qlangchain.selection.tensors import Tensor, tensors
from qlangchain.selection.weights import Weights

_HEADER: Final = 130  # bytes of a safetensors header for each tensor: its name, type, shape and place
_WHOLE: Final = ("ssm_conv", "shortconv.conv", "ssm_a", "ssm_d", "per_layer_model_proj", "nextn.eh_proj")


class Layout(StrEnum):
    """How a quantized matrix lies in a safetensors file."""

    FULL = "full"  # 16 bits a weight
    GPTQ = "gptq"
    AWQ = "awq"
    PACKED = "pack-quantized"  # compressed-tensors W4A16, W8A16
    INT8 = "int-quantized"  # compressed-tensors W8A8
    FP8 = "fp8"
    MXFP4 = "mxfp4"
    NVFP4 = "nvfp4"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A format of a directory. `group` is the weights to a scale, -1 for one scale to an output channel.

    In FP8 a positive `group` means blocks of that many rows and columns, -1 one scale to an output channel and 0 one to
    a matrix. `symmetric` has no zero points, where the layout can leave them out. With `head_copied` a tied output
    matrix is in the file a second time, as some versions of llm-compressor write it.
    """

    layout: Layout
    bits: int = 4
    group: int = 128
    symmetric: bool = False
    head_copied: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (2, 3, 4, 8, 16) or self.group < -1 or (self.group == 0 and self.layout is not Layout.FP8):
            raise InvalidInputError(
                f"bits={self.bits}, group={self.group} is no format.", hint="Bits: 2, 3, 4, 8; groups: -1, 32, 64, 128."
            )

    def matrix_bytes(self, rows_in: int, out: int) -> int:
        """The bytes of one linear layer with `rows_in` inputs and `out` outputs, with scales and all.

        Layouts: AutoGPTQ and gptqmodel (`qweight`, `qzeros`, `scales` in 16 bits, `g_idx` in int32), AutoAWQ (the same
        without `g_idx`), compressed-tensors (`weight_packed` or `weight`, `weight_scale`, `weight_zero_point`,
        `weight_shape` of two int64), transformers' FP8 (`weight_scale_inv` in f32), OCP MXFP4 (a byte of scale to 32
        weights), NVFP4 (a byte to 16, and two f32).
        """
        weights = rows_in * out
        groups = (-(-rows_in // self.group) if self.group > 0 else 1) * out
        packed = weights * self.bits // 8
        zeros = groups * self.bits // 8
        match self.layout:
            case Layout.GPTQ:
                return packed + zeros + 2 * groups + 4 * rows_in
            case Layout.AWQ:
                return packed + zeros + 2 * groups
            case Layout.PACKED:
                return packed + 2 * groups + (0 if self.symmetric else zeros) + 16
            case Layout.INT8:
                return weights + 2 * out
            case Layout.FP8 if self.group > 0:
                return weights + 4 * -(-rows_in // self.group) * -(-out // self.group)
            case Layout.FP8:
                return weights + (2 * out if self.group else 8)
            case Layout.MXFP4:
                return weights // 2 + weights // 32
            case Layout.NVFP4:
                return weights // 2 + weights // 16 + 8
        return 2 * weights


def checkpoint(model: Architecture, format: Checkpoint) -> Weights:
    """The weights of `model` in that format, in bytes, headers included.

    In MXFP4 only the experts are quantized, as in the models that are published so.
    """
    count = len(model.layers)
    layers, experts = [0] * count, [0] * count
    embedding = output = total = 0
    for tensor in tensors(model):
        size = _size(tensor, format) + _HEADER
        total += size
        if tensor.layer >= 0:
            layers[tensor.layer] += size
            experts[tensor.layer] += size if tensor.is_expert else 0
        elif tensor.name == "output.weight":
            output += size
        elif tensor.name == "token_embd.weight":
            embedding += size
    if format.head_copied and model.tied:
        output = embedding
        total += output
    idle = sum(size for layer, size in zip(model.layers, layers, strict=True) if layer.prediction)
    return Weights(str(format.layout), total, embedding, output, tuple(layers), tuple(experts), idle)


def _size(tensor: Tensor, format: Checkpoint) -> int:
    if not _is_quantized(tensor, format):
        return 2 * tensor.elements
    columns, rows, *many = tensor.shape
    if "attn_k_b" in tensor.name:  # half of one matrix in safetensors, from the compressed vector to all heads
        columns, rows = rows, columns
    each = format.matrix_bytes(columns, rows)
    return each * (many[0] if many else 1)


def _is_quantized(tensor: Tensor, format: Checkpoint) -> bool:
    if format.layout is Layout.FULL or tensor.layer < 0 or not tensor.is_matrix or not tensor.name.endswith(".weight"):
        return False
    if "_norm" in tensor.name or "ffn_gate_inp" in tensor.name or any(part in tensor.name for part in _WHOLE):
        return False
    return tensor.is_expert or format.layout is not Layout.MXFP4
