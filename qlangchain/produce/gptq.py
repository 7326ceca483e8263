"""Directories in GPTQ's format, 4 or 8 bits, symmetric: see `gptq_solver.py` for how the weights are rounded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlangchain.errors import InvalidInputError
from qlangchain.produce.blocks import Activations, Block, Gram
from qlangchain.produce.directory import Progress, produce_directory
from qlangchain.produce.gptq_solver import Grid, solve
from qlangchain.produce.packing import QuantizedLinear, encode_gptq

if TYPE_CHECKING:
    from torch import Tensor

BITS = (4, 8)


@dataclass(frozen=True, slots=True)
class GptqRecipe:
    """How to quantize by GPTQ.

    `act_order` rounds the columns in the order of their importance while the groups stay where they are, which every
    reader takes; `desc_act` forms the groups, too, in that order, which vLLM no longer reads. `damping` is the part
    of the mean diagonal that steadies the covariance.
    """

    bits: int = 4
    group_size: int = 128
    desc_act: bool = False
    act_order: bool = True
    damping: float = 0.01

    def __post_init__(self) -> None:
        if type(self.bits) is not int or self.bits not in BITS:
            raise InvalidInputError(
                f"GPTQ in {self.bits!r} bits is not made here.",
                hint="Known: 4 and 8, which transformers and vLLM read. GGUF has formats of 2, 3, 5 and 6 bits.",
            )
        if not 0 < self.damping < 1:
            raise InvalidInputError(f"damping={self.damping!r} is not between 0 and 1.", hint="0.01 is usual.")

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """The group sizes that readers of the format know."""
        return (-1, 16, 32, 64, 128, 256, 512, 1024)

    def config(self) -> dict[str, Any]:
        """The `quantization_config` in the words of gptqmodel, which transformers and vLLM read as well."""
        from qlangchain import __version__

        return {
            "quant_method": "gptq",
            "bits": self.bits,
            "group_size": self.group_size,
            "desc_act": self.desc_act,
            "sym": True,
            "lm_head": False,
            "true_sequential": True,
            "damp_percent": self.damping,
            "checkpoint_format": "gptq",
            "format": "gptq",
            "pack_dtype": "int32",
            "meta": {"quantizer": [f"qlangchain:{__version__}"], "static_groups": self.act_order and not self.desc_act},
        }

    def encode(self, layer: QuantizedLinear) -> dict[str, Any]:
        """The tensors of a layer on disk; scales are float16 in this format, and have been rounded to it."""
        tensors = encode_gptq(layer, self.bits)
        return tensors | {"scales": tensors["scales"].astype("<f2")}

    def quantize(
        self, block: Block, outputs: Activations, done: Callable[[], None]
    ) -> tuple[dict[str, QuantizedLinear], dict[str, Tensor]]:
        """Quantize the layers of a block step by step, each on what the layers before it now give it.

        Writes what the quantized block gives to `outputs`. Returns the layers by their names in the block, and no
        other changed tensors. `done` is called after each step.
        """
        import torch

        grid = Grid(self.bits, self.group_size)
        layers: dict[str, QuantizedLinear] = {}
        for step in block.architecture.steps:
            weights = [block.weight(name) for name in step]
            gram = Gram(weights[0].shape[0])
            block.watch({step[0]: gram.add})
            widths = [weight.shape[1] for weight in weights]
            solved = solve(
                torch.cat(weights, dim=1), gram.finish(), grid,
                act_order=self.act_order, desc_act=self.desc_act, damping=self.damping,
            )  # fmt: skip
            del weights
            parts = zip(step, torch.split(solved.codes, widths, 1), torch.split(solved.scales, widths, 1), strict=True)
            for name, codes, scales in parts:
                layer = QuantizedLinear(
                    codes.contiguous().numpy(),
                    torch.full(scales.shape, grid.zero, dtype=torch.uint8).numpy(),
                    scales.contiguous().numpy(),
                    solved.groups.numpy(),
                )
                block.put(name, torch.from_numpy(layer.dequantized()))
                layers[name] = layer
            done()
        block.watch({}, outputs)
        return layers, {}


def produce_gptq(
    source: Path,
    target: Path,
    *,
    bits: int = 4,
    group_size: int = 128,
    desc_act: bool = False,
    act_order: bool = True,
    damping: float = 0.01,
    texts: Sequence[str] | None = None,
    samples: int | None = None,
    sequence_length: int | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
    work: Path | None = None,
) -> Path:
    """Quantize the model directory `source` by GPTQ into the new directory `target`, and return its path.

    The settings are those of `GptqRecipe`; the other arguments and the errors those of `produce_directory`.
    """
    recipe = GptqRecipe(bits, group_size, desc_act, act_order, damping)
    return produce_directory(
        source,
        target,
        recipe,
        texts=texts,
        samples=samples,
        sequence_length=sequence_length,
        progress=progress,
        cancel=cancel,
        work=work,
    )[0]
