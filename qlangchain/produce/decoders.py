"""A decoder that is never whole in memory: its config, its safetensors, and one block at a time.

The model is built on torch's meta device, where tensors have shapes and no bytes. The trunk (embedding, rotary
positions, masks) runs once on real numbers with a recorder in the place of every block, which tells what each block
is called with; then any block can be filled from the files and run by itself.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlangchain.errors import (
    CorruptFileError,
    InvalidInputError,
    MissingDependencyError,
    UnsafeWeightsError,
    UnsupportedModelError,
)
from qlangchain.produce.checkpoint import Checkpoint, open_checkpoint, read_json
from qlangchain.produce.stored import read_rows, read_tensor

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_OTHER_WAY = (
    "The library gptqmodel knows more architectures: pip install gptqmodel optimum in an environment of its own, or "
    "choose GGUF."
)


@dataclass(frozen=True, slots=True)
class Architecture:
    """How the blocks of a decoder are made: see decoders.toml."""

    model_class: str
    steps: tuple[tuple[str, ...], ...]
    value: str
    up: str
    norms: tuple[str, ...]
    offset: int

    @property
    def linears(self) -> tuple[str, ...]:
        """The linear layers of a block in the order in which they are reached."""
        return tuple(name for step in self.steps for name in step)


@lru_cache(maxsize=1)
def architectures() -> dict[str, Architecture]:
    """The table of decoders.toml, by transformers' class name."""
    table = tomllib.loads(Path(__file__).with_name("decoders.toml").read_text("utf-8"))
    return {
        name: Architecture(
            model_class=name,
            steps=tuple(tuple(step) for step in table["layouts"][row["layout"]]["steps"]),
            value=table["layouts"][row["layout"]]["value"],
            up=table["layouts"][row["layout"]]["up"],
            norms=tuple(row["norms"]),
            offset=row["offset"],
        )
        for name, row in table["architectures"].items()
    }


def require_torch() -> None:
    """Raise `MissingDependencyError` where torch, transformers or safetensors are not installed."""
    if absent := [name for name in ("torch", "transformers", "safetensors") if not importlib.util.find_spec(name)]:
        raise MissingDependencyError(
            f"Quantizing with GPTQ or AWQ needs {' and '.join(absent)}.",
            hint="Install them: pip install 'qlangchain[quantize]'.",
        )


class Decoder:
    """A decoder in full precision, read from a directory of safetensors block by block."""

    def __init__(self, source: Path) -> None:
        """Read config.json and the headers of the weights, and build the model without its numbers.

        Raises `ModelNotFoundError`, `NoWeightsError`, `UnsafeWeightsError`, `UnsupportedModelError` or
        `CorruptFileError`.
        """
        self.source = source
        if not source.is_dir():
            open_checkpoint(source)  # says what is wrong with the path
        self.raw = read_json(source / "config.json")
        self.architecture = _architecture(self.raw)
        self.checkpoint: Checkpoint = open_checkpoint(source)
        require_torch()
        self.model = _skeleton(source, self.raw)
        inner: Any = self.model.model
        self.layers = len(inner.layers)
        self.hidden_size = int(self.model.config.hidden_size)
        self.tied = HEAD not in self.checkpoint.tensors or bool(self.model.config.tie_word_embeddings)
        self._check_tensors()

    def _check_tensors(self) -> None:
        """The tensors that config.json promises are there in their shapes, and no others in the blocks."""
        expected = {name: tuple(tensor.shape) for name, tensor in self.model.state_dict().items()}
        if self.tied:
            if not self.model.config.tie_word_embeddings:
                raise CorruptFileError(
                    f"The weights hold no {HEAD}, and config.json does not tie it to the embedding.",
                    hint="Download the model again, all of its safetensors files.",
                )
            expected.pop(HEAD, None)
        found = self.checkpoint.tensors
        for name, shape in expected.items():
            if name not in found:
                raise CorruptFileError(
                    f"The weights hold no {name}, which {self.architecture.model_class} needs.",
                    hint="Download the model again, all of its safetensors files.",
                )
            if found[name].shape != shape:
                raise CorruptFileError(
                    f"{name} has the shape {list(found[name].shape)}; config.json says {list(shape)}.",
                    hint="config.json and the weights belong to different models; download both again.",
                )
        computed = {name for name in found if name.endswith("rotary_emb.inv_freq")}
        if strange := sorted(found.keys() - expected.keys() - computed - {HEAD}):
            raise UnsupportedModelError(
                f"{self.architecture.model_class} has no tensor {strange[0]} ({len(strange)} such).", hint=_OTHER_WAY
            )

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(columns, rows) of every linear layer of the blocks, by its full name without ".weight"."""
        return {
            f"model.layers.{index}.{name}": (self._block(index).get_submodule(name).in_features,
                                             self._block(index).get_submodule(name).out_features)
            for index in range(self.layers)
            for name in self.architecture.linears
        }  # fmt: skip

    def _block(self, index: int) -> Any:
        inner: Any = self.model.model
        return inner.layers[index]

    def block_tensors(self, index: int) -> list[str]:
        """The full names of the tensors of a block."""
        return [f"model.layers.{index}.{name}" for name in self._block(index).state_dict()]

    def outer_tensors(self) -> list[str]:
        """The full names of the tensors outside of the blocks: embedding, last norm, head."""
        return [
            name
            for name in self.checkpoint.tensors
            if not name.startswith("model.layers.") and "inv_freq" not in name and not (self.tied and name == HEAD)
        ]

    def tensor(self, index: int, name: str) -> Tensor:
        """A tensor of a block by its name within it, in float32."""
        return read_tensor(self.checkpoint, f"model.layers.{index}.{name}").float()

    def block(self, index: int, dtype: torch.dtype, replaced: Mapping[str, Tensor] | None = None) -> nn.Module:
        """A block with its numbers in `dtype`; `replaced` gives tensors of its own for names in the block.

        Raises `CorruptFileError` where a value is not finite or a file ends early.
        """
        prefix = f"model.layers.{index}."
        state = {name: value.to(dtype) for name, value in (replaced or {}).items()}
        for full in self.block_tensors(index):
            if (name := full.removeprefix(prefix)) not in state:
                state[name] = read_tensor(self.checkpoint, full).to(dtype)
        block: Any = copy.deepcopy(self._block(index))
        block.load_state_dict(state, strict=True, assign=True)
        return block.requires_grad_(False).eval()  # type: ignore[no-any-return]

    def compute_dtype(self) -> torch.dtype:
        """The type to run blocks in: bfloat16 where the model is stored in it and the processor multiplies it."""
        import torch

        fast = (
            getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
            or getattr(torch.cpu, "_is_amx_tile_supported", bool)()
        )
        return torch.bfloat16 if fast and self.checkpoint.dtypes() == {"BF16"} else torch.float32

    def start(self, tokens: Tensor, dtype: torch.dtype) -> tuple[Iterator[Tensor], list[dict[str, Any]]]:
        """What the first block is given for each sample of `tokens` (samples, length), and what blocks are called with.

        Only the rows of the embedding that occur are read. The arguments were recorded for one sample and hold for
        a batch of any size, since all samples are of one length and none is padded.
        """
        import torch

        used, places = torch.unique(tokens, return_inverse=True)
        trunk: Any = copy.deepcopy(self.model.model)
        _fill_buffers(self.model, trunk)
        rows = read_rows(self.checkpoint, EMBEDDING, used.tolist()).to(dtype)
        trunk.embed_tokens.weight = torch.nn.Parameter(rows, requires_grad=False)
        trunk.embed_tokens.padding_idx = None
        recorders = [_recorder(layer) for layer in trunk.layers]
        trunk.layers = torch.nn.ModuleList(recorders)
        trunk.norm = torch.nn.Identity()

        def embedded(sample: Tensor) -> Tensor:
            with torch.inference_mode():
                trunk(input_ids=sample[None], use_cache=False)
            return recorders[0].seen  # type: ignore[no-any-return]

        embedded(places[0])
        return map(embedded, places), [recorder.arguments for recorder in recorders]


def _recorder(layer: Any) -> Any:
    """A stand-in for a block that keeps what it is called with and passes its input on."""
    import torch

    class Recorder(torch.nn.Module):
        seen: Tensor
        arguments: dict[str, Any]

        def __init__(self) -> None:
            super().__init__()
            for name, value in vars(layer).items():  # some trunks ask a block for its kind of attention
                if not name.startswith("_") and isinstance(value, str | int | bool):
                    setattr(self, name, value)

        def forward(self, hidden_states: Tensor, *rest: Any, **named: Any) -> Tensor:
            self.seen = hidden_states
            self.arguments = dict(zip(names, rest, strict=False)) | named
            return hidden_states

    names = [name for name in inspect.signature(layer.forward).parameters if name != "hidden_states"]
    return Recorder()


def run_block(block: nn.Module, hidden: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """The output of a block for a batch of inputs (samples, length, hidden)."""
    out = block(hidden, **arguments)
    return out[0] if isinstance(out, tuple) else out  # type: ignore[no-any-return]


def refuse_quantized(raw: Mapping[str, Any]) -> None:
    """Raise `UnsupportedModelError` where a config.json says that the weights are quantized already."""
    for key in ("quantization_config", "compression_config"):
        if quantization := raw.get(key):
            method = quantization.get("quant_method", "?") if isinstance(quantization, dict) else "?"
            raise UnsupportedModelError(
                f"This model is already quantized ({method}); quantizing it again would lose quality twice.",
                hint="Pass the original model, in BF16, F16 or F32.",
            )


def _architecture(raw: Mapping[str, Any]) -> Architecture:
    if raw.get("auto_map"):
        raise UnsafeWeightsError(
            "config.json asks for code of its own (auto_map), and qlangchain never runs a model's code.",
            hint="Pass a model whose architecture transformers itself knows.",
        )
    refuse_quantized(raw)
    classes = raw.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else None
    known = architectures()
    if not isinstance(name, str) or name not in known or any(int(raw.get(key) or 0) > 1 for key in _EXPERTS):
        raise UnsupportedModelError(
            f"The blocks of {str(name)[:60]!r} are not known here.", hint=f"Known: {', '.join(known)}. {_OTHER_WAY}"
        )
    return known[name]


def _skeleton(source: Path, raw: Mapping[str, Any]) -> Any:
    """The model on the meta device, with the attention that its config asks for."""
    import torch
    import transformers

    model_class: Any = getattr(transformers, raw["architectures"][0], None)
    if model_class is None:
        raise UnsupportedModelError(
            f"The installed transformers {transformers.__version__} has no {raw['architectures'][0]}.",
            hint="Install a newer one: pip install -U transformers.",
        )
    try:
        config = model_class.config_class.from_dict(dict(raw))
        with torch.device("meta"):
            model = model_class(config)
    except Exception as error:  # transformers raises whatever its config classes stumble over
        raise CorruptFileError(
            f"config.json in {source} does not describe a {raw['architectures'][0]}: {str(error)[:200]}.",
            hint="Download config.json again.",
        ) from error
    strange = {
        name
        for name, module in model.model.layers[0].named_modules()
        if hasattr(module, "in_features") and name not in architectures()[raw["architectures"][0]].linears
    }
    if strange:
        raise UnsupportedModelError(
            f"The blocks of this model have layers that are not known here: {', '.join(sorted(strange))}.",
            hint=_OTHER_WAY,
        )
    return model.eval()


def _fill_buffers(model: Any, trunk: Any) -> None:
    """Compute what is not stored in files (rotary frequencies, Gemma's embedding scale) the way transformers does."""
    import torch

    for name, module in trunk.named_modules():
        own = list(module.named_buffers(recurse=False))
        if name.startswith("layers.") or not own:
            continue
        for buffer, value in own:
            module._buffers[buffer] = torch.empty_like(value, device="cpu")
        model._init_weights(module)


def check_sizes(shapes: Mapping[str, tuple[int, int]], bits: int, group_size: int, known: Sequence[int]) -> None:
    """Refuse a group size that does not divide the inputs of every layer, and layers that cannot be packed.

    Raises `InvalidInputError` with the sizes of `known` that do divide, or `UnsupportedModelError`.
    """
    if type(group_size) is not int:
        raise InvalidInputError(f"The group size {group_size!r:.40} is no whole number.", hint="128 is usual.")
    per = 32 // bits
    for name, (columns, rows) in shapes.items():
        if columns % per or rows % per:
            raise UnsupportedModelError(
                f"{name} has {columns} inputs and {rows} outputs, which do not divide by {per} as {bits} bits need it.",
                hint="Choose GGUF for this model.",
            )
    fitting = [size for size in known if size == -1 or all(columns % size == 0 for columns, _ in shapes.values())]
    if group_size not in fitting:
        name, columns = next(((n, c) for n, (c, _) in shapes.items() if group_size < 1 or c % group_size), ("", 0))
        what = f"does not divide the {columns} inputs of {name}" if name and group_size > 0 else "is not a known one"
        listed = ", ".join(map(str, fitting)) or "none; choose GGUF"
        raise InvalidInputError(
            f"The group size {group_size!r} {what}.",
            hint=f"For this model: {listed}{' (-1 is one group)' if -1 in fitting else ''}.",
        )
