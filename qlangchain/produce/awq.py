"""Directories in AWQ's gemm format, 4 bits with zero points: see `awq_search.py` for the two searches.

The factors of the inputs of q, k, v and of gate and up are folded into the norms before them; those of o_proj into
the rows of v_proj, and those of down_proj into the rows of up_proj, which make their inputs one by one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlangchain.errors import InvalidInputError
from qlangchain.produce.awq_search import search_clips, search_input_scales
from qlangchain.produce.blocks import Activations, Block, Gram
from qlangchain.produce.directory import Progress, produce_directory
from qlangchain.produce.packing import QuantizedLinear, encode_awq, sequential_groups

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class AwqRecipe:
    """How to quantize by AWQ. `bits` is 4, the only width of the format."""

    bits: int = 4
    group_size: int = 128

    def __post_init__(self) -> None:
        if type(self.bits) is not int or self.bits != 4:
            raise InvalidInputError(
                f"AWQ in {self.bits!r} bits does not exist: its format has 4.", hint="Choose bits=4, or GPTQ for 8."
            )

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """The group sizes that readers of the format know."""
        return (16, 32, 64, 128)

    def config(self) -> dict[str, Any]:
        """The `quantization_config` in the words of AutoAWQ, which gptqmodel, transformers and vLLM read."""
        return {
            "quant_method": "awq",
            "bits": self.bits,
            "group_size": self.group_size,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": None,
        }

    def encode(self, layer: QuantizedLinear) -> dict[str, Any]:
        """The tensors of a layer on disk; scales are narrowed to the type of the model, which holds them exactly."""
        return encode_awq(layer)

    def quantize(
        self, block: Block, outputs: Activations, done: Callable[[], None]
    ) -> tuple[dict[str, QuantizedLinear], dict[str, Tensor]]:
        """Quantize the layers of a block, and write what the block gave before to `outputs`.

        Returns the layers and the other tensors that were changed (norms and biases), by their names in the block.
        `done` is called after each step.
        """
        steps = block.architecture.steps
        grams = {step[0]: Gram(block.columns(step[0])) for step in steps}
        block.watch({name: gram.add for name, gram in grams.items()}, outputs)
        scaled = _Scaled(block, {name: block.weight(name) for step in steps for name in step})
        magnitudes = {name: gram.magnitude / max(1, gram.tokens) for name, gram in grams.items()}
        matrices = {name: gram.finish() for name, gram in grams.items()}
        attention, output, mlp, down = steps
        # The rows of v and up first: what they become is what the steps before have to round.
        for step, maker in ((output, block.architecture.value), (down, block.architecture.up)):
            scaled.fold_into_rows(step[0], maker, matrices[step[0]], magnitudes[step[0]], self.group_size)
            done()
        for step, norm in zip((attention, mlp), block.architecture.norms, strict=True):
            scaled.fold_into_norm(step, norm, matrices[step[0]], magnitudes[step[0]], self.group_size)
            done()
        layers = {}
        for step in steps:
            for name in step:
                weight = scaled.weights.pop(name)
                codes, scales, zeros = search_clips(weight, matrices[step[0]], self.group_size)
                layers[name] = QuantizedLinear(
                    codes.numpy(), zeros.numpy(), scales.numpy(), sequential_groups(len(codes), self.group_size)
                )
        return layers, scaled.others


class _Scaled:
    """The weights of a block, shape (columns, rows), while factors are folded into them."""

    def __init__(self, block: Block, weights: dict[str, Tensor]) -> None:
        self.block, self.weights = block, weights
        self.others: dict[str, Tensor] = {}

    def fold_into_norm(self, step: tuple[str, ...], norm: str, gram: Tensor, magnitude: Tensor, span: int) -> None:
        """Scale the inputs of a step, and divide the weight of the norm that makes them."""
        import torch

        factors = search_input_scales(torch.cat([self.weights[name] for name in step], 1), gram, magnitude, span)
        offset = self.block.architecture.offset
        before = self.block.stored(f"{norm}.weight")
        # The norm is stored in 16 bits, so the layers are scaled by what its rounding really divides by.
        after = ((before + offset) / factors - offset).to(self.block.storage)
        exact = (before + offset) / (after.float() + offset)
        usable = torch.isfinite(exact) & (exact > 0)
        factors = torch.where(usable, exact, 1.0)
        self.others[f"{norm}.weight"] = torch.where(usable, after, before.to(self.block.storage))
        for name in step:
            self.weights[name] *= factors[:, None]
        gram /= factors[:, None] * factors[None, :]

    def fold_into_rows(self, layer: str, maker: str, gram: Tensor, magnitude: Tensor, span: int) -> None:
        """Scale the inputs of a layer, and divide the last rows of the layer that makes them.

        With grouped-query attention one row of v makes the inputs of several heads, which then share a factor.
        """
        made = self.block.made_rows(maker)
        # Inputs lie as (rows that are shared, heads that share them, head_dim).
        shape = (-1, len(magnitude) // made, self.block.head_dim if made < len(magnitude) else made)

        def tie(factors: Tensor) -> Tensor:
            return factors.view(shape).log().mean(dim=1, keepdim=True).exp().expand(shape).reshape(-1)

        factors = search_input_scales(self.weights[layer], gram, magnitude, span, tie)
        rows = factors.view(shape)[:, 0].reshape(-1)
        self.weights[layer] *= factors[:, None]
        self.weights[maker][:, -made:] /= rows
        gram /= factors[:, None] * factors[None, :]
        if (name := f"{maker}.bias") in self.block:
            bias = self.block.stored(name)
            bias[-made:] /= rows
            self.others[name] = bias


def produce_awq(
    source: Path,
    target: Path,
    *,
    bits: int = 4,
    group_size: int = 128,
    texts: Sequence[str] | None = None,
    samples: int | None = None,
    sequence_length: int | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
    work: Path | None = None,
) -> Path:
    """Quantize the model directory `source` by AWQ into the new directory `target`, and return its path.

    The settings are those of `AwqRecipe`; the other arguments and the errors those of `produce_directory`.
    """
    return produce_directory(
        source,
        target,
        AwqRecipe(bits, group_size),
        texts=texts,
        samples=samples,
        sequence_length=sequence_length,
        progress=progress,
        cancel=cancel,
        work=work,
    )[0]
