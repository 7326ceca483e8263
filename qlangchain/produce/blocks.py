"""One block at work on the calibration text: its inputs lie on disk, and observers see what reaches its layers.

The activations between two blocks, (samples, length, hidden), are a file that is read and written in batches, so that
memory holds one block and one batch, however many samples and blocks there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlangchain.errors import CorruptFileError
from qlangchain.produce.decoders import Architecture, Decoder, run_block
from qlangchain.produce.shards import as_bytes

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

BATCH_TOKENS = 2048
_TILE = 1024  # columns of a Gram matrix that are computed at once

Observer = Callable[["Tensor"], None]


@dataclass(frozen=True, slots=True)
class Activations:
    """A file of numbers of the shape (samples, length, hidden), without a header."""

    path: Path
    shape: tuple[int, int, int]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Its size in bytes when it is complete."""
        samples, length, hidden = self.shape
        return samples * length * hidden * self.dtype.itemsize

    def is_complete(self) -> bool:
        """Whether the file has its size; it is renamed into place only then, so less means another origin."""
        return self.path.is_file() and self.path.stat().st_size == self.nbytes

    def batches(self) -> Iterator[Tensor]:
        """The samples in batches of about `BATCH_TOKENS` tokens."""
        import torch

        samples, length, hidden = self.shape
        step = max(1, BATCH_TOKENS // length)
        with self.path.open("rb") as file:
            for start in range(0, samples, step):
                batch = torch.empty(min(step, samples - start), length, hidden, dtype=self.dtype)
                raw = as_bytes(batch)
                if file.readinto(raw) != len(raw):
                    raise CorruptFileError(f"{self.path} ended early.", hint="Was it changed meanwhile? Call again.")
                yield batch

    def write(self, batches: Iterator[Tensor]) -> None:
        """Fill the file, which appears under its name when it is complete and on the disk."""
        partial = self.path.with_suffix(".part")
        with partial.open("wb") as file:
            for batch in batches:
                file.write(as_bytes(batch.to(self.dtype)))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.path)


def storage_dtype(decoder: Decoder) -> torch.dtype:
    """The type that whatever stays unquantized is written in: float16 for a float16 model, else bfloat16.

    A model in float32 may hold values beyond float16.
    """
    import torch

    return torch.float16 if decoder.checkpoint.dtypes() == {"F16"} else torch.bfloat16


class Gram:
    """The Gram matrix X^T X of the inputs of a layer, and the mean of |X|, summed over batches in float32."""

    def __init__(self, columns: int) -> None:
        import torch

        self.matrix = torch.zeros(columns, columns)
        self.magnitude = torch.zeros(columns)
        self.tokens = 0

    def add(self, inputs: Tensor) -> None:
        """Add inputs of any shape that ends in (columns,). Only the lower half is computed."""
        flat = inputs.reshape(-1, inputs.shape[-1]).float()
        self.tokens += len(flat)
        self.magnitude += flat.abs().sum(dim=0)
        for start in range(0, flat.shape[1], _TILE):
            here = flat[:, start : start + _TILE]
            self.matrix[start : start + _TILE, : start + here.shape[1]].addmm_(here.T, flat[:, : start + here.shape[1]])

    def finish(self) -> Tensor:
        """The whole matrix, scaled to a mean over tokens. Call it once."""
        self.matrix /= max(1, self.tokens)
        for start in range(0, len(self.matrix), _TILE):
            stop = start + _TILE
            self.matrix[start:stop, stop:] = self.matrix[stop:, start:stop].T
        return self.matrix


class _ReachedError(Exception):
    """The last layer that somebody watches was reached, so the rest of the block need not run."""


class Block:
    """A block of the decoder with the inputs that the calibration text gives it.

    `module` computes in `inputs.dtype`; `storage` is the type that whatever stays unquantized will be written in.
    `check` is called between batches and may raise to end the work.
    """

    def __init__(
        self,
        decoder: Decoder,
        index: int,
        inputs: Activations,
        arguments: Mapping[str, Any],
        check: Callable[[], None],
    ) -> None:
        self.decoder, self.index, self.inputs, self.arguments, self.check = decoder, index, inputs, arguments, check
        self.storage = storage_dtype(decoder)
        self.module: nn.Module = decoder.block(index, inputs.dtype)

    @property
    def architecture(self) -> Architecture:
        """How the block is made."""
        return self.decoder.architecture

    @property
    def head_dim(self) -> int:
        """Values of one attention head."""
        return self.columns(self.architecture.steps[1][0]) // int(self.decoder.model.config.num_attention_heads)

    def columns(self, name: str) -> int:
        """Inputs of a linear layer."""
        return int(self.module.get_submodule(name).in_features)  # type: ignore[arg-type]

    def made_rows(self, maker: str) -> int:
        """How many of the last rows of the value or up projection make the inputs of the layer behind it."""
        if maker == self.architecture.value:
            return int(self.decoder.model.config.num_key_value_heads) * self.head_dim
        return self.columns(self.architecture.steps[3][0])

    def __contains__(self, name: str) -> bool:
        return f"model.layers.{self.index}.{name}" in self.decoder.checkpoint.tensors

    def stored(self, name: str) -> Tensor:
        """A tensor of the block as it is stored, in float32."""
        return self.decoder.tensor(self.index, name)

    def weight(self, name: str) -> Tensor:
        """The stored weight of a linear layer with its inputs first, shape (columns, rows), in float32."""
        return self.stored(f"{name}.weight").T.contiguous()

    def put(self, name: str, weight: Tensor) -> None:
        """Let the block compute with another weight, shape (columns, rows), from now on."""
        self.module.get_submodule(name).weight.data.copy_(weight.T)  # type: ignore[operator]

    def watch(self, observers: Mapping[str, Observer], outputs: Activations | None = None) -> None:
        """Run all samples; `observers` see the inputs of the layers that they are named by.

        Without `outputs` a batch ends at the last layer that is watched. Layers that share inputs need one observer.
        """
        import torch

        waiting = set(observers)
        removable = []

        def hook(name: str) -> Any:
            def see(_: Any, inputs: tuple[Tensor, ...]) -> None:
                observers[name](inputs[0])
                waiting.discard(name)
                if outputs is None and not waiting:
                    raise _ReachedError

            return see

        def results() -> Iterator[Tensor]:
            for batch in self.inputs.batches():
                self.check()
                waiting.update(observers)
                try:
                    yield run_block(self.module, batch, self.arguments)
                except _ReachedError:
                    yield batch

        with torch.inference_mode():
            try:
                removable = [
                    self.module.get_submodule(name).register_forward_pre_hook(hook(name)) for name in observers
                ]
                if outputs is not None:
                    outputs.write(results())
                else:
                    for _ in results():
                        pass
            finally:
                for handle in removable:
                    handle.remove()
