"""What a quantized directory holds: tensors in their final types, both configs, and the files of the tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlangchain.artifacts.headers import read_safetensors_header
from qlangchain.produce.blocks import storage_dtype
from qlangchain.produce.shards import Piece, write_shards, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from qlangchain.produce.decoders import Decoder
    from qlangchain.produce.packing import QuantizedLinear

# What goes with the weights: tokenizers, chat templates, generation settings, licences. Never code.
_KEPT = ("*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "NOTICE*")
_OTHERS = ("config.json", "quantize_config.json", "quant_log.csv")
_LARGEST = 256 << 20
_DTYPES = {"bfloat16": "BF16", "float16": "F16"}


def block_file(room: Path, index: int) -> Path:
    """Where the tensors of a finished block lie."""
    return room / f"block-{index}.safetensors"


def write_block(
    room: Path,
    decoder: Decoder,
    index: int,
    layers: Mapping[str, QuantizedLinear],
    others: Mapping[str, Tensor],
    encode: Callable[[QuantizedLinear], Mapping[str, Any]],
) -> None:
    """Write all tensors of a block: quantized layers, changed ones, and the rest as the source has it.

    The file has its name only when it is on the disk; from then on the block is finished.
    """
    import torch

    storage = storage_dtype(decoder)
    prefix = f"model.layers.{index}."
    tensors: dict[str, Tensor] = {}
    for full in decoder.block_tensors(index):
        name = full.removeprefix(prefix)
        if (layer := layers.get(name.removesuffix(".weight"))) is not None and name.endswith(".weight"):
            for part, values in encode(layer).items():
                packed = torch.from_numpy(values)
                narrow = packed.to(storage) if packed.dtype == torch.float32 else packed
                tensors[f"{full.removesuffix('.weight')}.{part}"] = narrow
        else:
            value = others[name] if name in others else decoder.tensor(index, name)
            tensors[full] = value.to(storage)
    write_tensors(block_file(room, index), tensors)


def write_directory(
    decoder: Decoder,
    quantization: Mapping[str, Any],
    room: Path,
    target: Path,
    shard_bytes: int,
    progress: Callable[[int, int], None],
) -> None:
    """Put the finished blocks in `room` together with everything else into the new directory `target`.

    Raises `OSError`, and what `progress` raises.
    """
    target.mkdir()
    stored = _DTYPES[str(storage_dtype(decoder)).removeprefix("torch.")]
    outer = [
        Piece(tensor, decoder.checkpoint.files[name], stored if tensor.dtype == "F32" else tensor.dtype)
        for name in decoder.outer_tensors()
        for tensor in [decoder.checkpoint.tensors[name]]
    ]
    blocks = [
        Piece(tensor, block_file(room, index), tensor.dtype)
        for index in range(decoder.layers)
        for tensor in read_safetensors_header(block_file(room, index)).tensors.values()
    ]
    total = sum(piece.nbytes for piece in [*outer, *blocks])
    write_shards(target, [*outer, *blocks], shard_bytes=shard_bytes, progress=lambda done: progress(done, total))
    dtype = str(storage_dtype(decoder)).removeprefix("torch.")
    config = {key: value for key, value in decoder.raw.items() if key != "torch_dtype"}
    config |= {"dtype": dtype, "quantization_config": dict(quantization)}
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    (target / "quantize_config.json").write_text(json.dumps(dict(quantization), indent=2) + "\n", "utf-8")
    for pattern in _KEPT:
        for path in sorted(decoder.source.glob(pattern)):
            wanted = path.name not in _OTHERS and not path.name.endswith(".index.json")
            if wanted and path.is_file() and path.stat().st_size <= _LARGEST:
                shutil.copyfile(path, target / path.name)
