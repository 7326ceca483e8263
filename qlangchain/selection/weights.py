"""How large the weights are in each type of GGUF file: exactly where the tensors are known, by rule before.

`file_types` restates the rules by which llama-quantize gives each tensor a type; `mixes.toml` holds them as data with
their source. What is predicted is the tensors' bytes: a file has 1 to 15 MB more of vocabulary.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from typing import Any, Final

from qlangchain.errors import InvalidInputError
from qlangchain.selection.layers import Architecture
from qlangchain.selection.tensors import Tensor, tensors

_PAD: Final = 32  # bytes: GGUF_DEFAULT_ALIGNMENT
# The `_L` files of some publishers: a mix whose embedding and output are Q8_0 (llama-quantize's
# --token-embedding-type and --output-tensor-type). Source: the model cards of bartowski.
_LARGE: Final = {"Q2_K_L": "Q2_K", "Q3_K_XL": "Q3_K_L", "Q4_K_L": "Q4_K_M", "Q5_K_L": "Q5_K_M", "Q6_K_L": "Q6_K"}
# The word for a type that some publishers leave the letter out of (microsoft, unsloth).
_SAME: Final = {"Q2_K_M": "Q2_K", "Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "MXFP4": "MXFP4_MOE"}


@lru_cache(maxsize=1)
def _data() -> dict[str, Any]:
    return tomllib.loads((resources.files(__package__) / "mixes.toml").read_text(encoding="utf-8"))


def ggml_types() -> Mapping[str, tuple[int, int]]:
    """The tensor types of ggml: name -> (values in a block, bytes of a block)."""
    return {name: (block[0], block[1]) for name, block in _data()["types"].items()}


def formats() -> tuple[str, ...]:
    """The types of GGUF file whose size can be predicted."""
    return (*_data()["mix"], *_LARGE)


@lru_cache(maxsize=4096)
def row_bytes(type: str, columns: int) -> int:
    """The bytes of one row of `columns` values; rows are whole blocks (ggml's `ggml_row_size`)."""
    try:
        block, size = _data()["types"][type]
    except KeyError:
        raise InvalidInputError(f"{type!r} is not a ggml type.", hint=f"Known: {', '.join(ggml_types())}.") from None
    return int(math.ceil(columns / block) * size)


def tensor_bytes(tensor: Tensor, type: str) -> int:
    """The bytes of a tensor in `type`, without padding."""
    return row_bytes(type, tensor.shape[0]) * math.prod(tensor.shape[1:])


@dataclass(frozen=True, slots=True)
class Weights:
    """The bytes of a model's weights, and where they lie.

    `total` is the sum over all tensors, `embedding` and `output` the two matrices of the vocabulary (a tied output is
    0), `layers` the bytes of each layer and `experts` the part of them that is experts. `idle` is the part that answers
    never touch (heads that predict further tokens). `format` is the type of file, `types` the bytes of each ggml type
    in it. `exact` is False where it was predicted.
    """

    format: str
    total: int
    embedding: int
    output: int
    layers: tuple[int, ...]
    experts: tuple[int, ...]
    idle: int = 0
    exact: bool = False
    types: Mapping[str, int] = field(default_factory=dict, hash=False, compare=False)

    @property
    def loaded(self) -> int:
        """What an engine puts into memory, in bytes."""
        return self.total - self.idle


@lru_cache(maxsize=256)
def predicted(model: Architecture, format: str, *, imatrix: bool = False) -> Weights:
    """The weights of `model` as a GGUF file of the type `format`, before it exists.

    `imatrix` says whether it would be made with an importance matrix, which changes a few types. Checked against
    the table of llama.cpp's tools/quantize/README.md (Llama-3.1-8B, 24 types, to 4 decimals of bits per weight).

    Raises InvalidInputError for a type that is not known.
    """
    found = tensors(model)
    typed = file_types(model, format, found, imatrix=imatrix)
    return _weights(
        format, model, ((tensor, typed[tensor.name], tensor_bytes(tensor, typed[tensor.name])) for tensor in found)
    )


def measured(model: Architecture, format: str, header: Iterable[tuple[str, tuple[int, ...], str, int]]) -> Weights:
    """The weights by a file's own header: name, shape, type and bytes of each tensor."""
    listed = ((Tensor(name, shape, _layer_of(name)), type, size) for name, shape, type, size in header)
    return _weights(format, model, listed, exact=True)


def _layer_of(name: str) -> int:
    parts = name.split(".", 2)
    return int(parts[1]) if parts[0] == "blk" and len(parts) == 3 and parts[1].isdecimal() else -1


def _weights(
    format: str, model: Architecture, listed: Iterable[tuple[Tensor, str, int]], *, exact: bool = False
) -> Weights:
    count = len(model.layers)
    layers, experts, types = [0] * count, [0] * count, dict[str, int]()
    embedding = output = total = 0
    for tensor, type, size in listed:
        total += size
        types[type] = types.get(type, 0) + size
        if 0 <= tensor.layer < count:
            layers[tensor.layer] += size
            experts[tensor.layer] += size if tensor.is_expert else 0
        elif tensor.name == "output.weight":
            output += size
        elif tensor.name == "token_embd.weight":
            embedding += size
    idle = sum(size for layer, size in zip(model.layers, layers, strict=True) if layer.prediction)
    return Weights(format, total, embedding, output, tuple(layers), tuple(experts), idle, exact, types)


@lru_cache(maxsize=256)
def file_bytes(model: Architecture, format: str, *, imatrix: bool = False, prediction: bool = True) -> int:
    """The predicted size of the file, in bytes: its tensors padded to 32 bytes, and its header.

    `prediction` says whether heads that predict further tokens are in it, as llama.cpp's converter writes them; some
    publishers leave them out. The header is almost all vocabulary, about 50 bytes for each token with its merges (Llama
    3.1: 128,256 tokens, 7.8 MB; Qwen2.5: 151,936 tokens, 5.9 MB). Within 0.3 % of 17 files on the hub.
    """
    found = tensors(model)
    typed = file_types(model, format, found, imatrix=imatrix)
    left_out = {index for index, layer in enumerate(model.layers) if layer.prediction and not prediction}
    sizes = (tensor_bytes(tensor, typed[tensor.name]) for tensor in found if tensor.layer not in left_out)
    return sum(-(-size // _PAD) * _PAD for size in sizes) + 50 * model.vocabulary + 64 * len(found)


def file_types(model: Architecture, format: str, listed: Iterable[Tensor], *, imatrix: bool = False) -> dict[str, str]:
    """The type that llama-quantize gives each tensor, by its name.

    Raises InvalidInputError for a type of file that is not known.
    """
    name = format.strip().upper()
    name = _SAME.get(name, name)
    large = name in _LARGE
    mix = _data()["mix"].get(_LARGE.get(name, name))
    if mix is None:
        raise InvalidInputError(
            f"format={format!r} is not a type of GGUF file that is known.", hint=f"Known: {', '.join(formats())}."
        )
    quantizer = _Quantizer(model, mix, imatrix, listed := tuple(listed))
    return {tensor.name: quantizer.type_of(tensor, large=large) for tensor in listed}


_CATEGORIES: Final = (
    ("attn_qkv.weight", "attn_v"),
    ("attn_kv_b.weight", "attn_v"),
    ("attn_v.weight", "attn_v"),
    ("attn_k.weight", "attn_k"),
    ("attn_q.weight", "attn_q"),
    ("attn_output.weight", "attn_output"),
    ("ffn_up", "ffn_up"),
    ("ffn_gate", "ffn_gate"),
    ("ffn_down", "ffn_down"),
)


class _Quantizer:
    """One pass over a model's tensors. Counts as llama.cpp's `quantize_state_impl` does, quirks included."""

    def __init__(self, model: Architecture, mix: Mapping[str, Any], imatrix: bool, listed: tuple[Tensor, ...]) -> None:
        self._mix, self._traits = mix, model.traits
        self._seen = {"attn_v": 0, "ffn_down": 0, "ffn_gate": 0, "ffn_up": 0}
        self._tied = not any(tensor.name == "output.weight" for tensor in listed)
        self._layers, self._experts, self._is_70b = len(model.layers), model.experts, _is_70b(model)
        self._values = sum(_category(tensor.kind) == "attn_v" for tensor in listed)
        self._facts = {
            "gqa4": model.query_groups >= 4,
            "experts4": self._experts >= 4,
            "experts8": self._experts == 8,
            "plain": not imatrix,
            "measured": imatrix,
        }

    def type_of(self, tensor: Tensor, *, large: bool = False) -> str:
        if tensor.stays_whole:
            return "F32"
        base: str = self._mix["base"]
        if tensor.layer < 0 and "per_layer_model_proj" in tensor.name:
            return "F16" if base != "F32" else base  # as in the full-precision file
        if self._traits.expert_type and tensor.is_expert:
            return self._traits.expert_type
        if base in ("F32", "F16", "BF16"):
            return base
        embeds = tensor.name in ("token_embd.weight", "per_layer_token_embd.weight")
        if large and (embeds or tensor.name == "output.weight"):
            return _fitting("Q8_0", tensor.shape[0])
        return _fitting(self._chosen(tensor, base, embeds), tensor.shape[0])

    def _chosen(self, tensor: Tensor, base: str, embeds: bool) -> str:
        if tensor.name == "output.weight" or (embeds and self._tied):
            if tensor.shape[0] % _data()["types"][base][0]:
                return "Q8_0"
            return str(self._mix.get("output") or ("Q8_0" if base == "Q8_0" else "Q6_K"))
        if embeds:
            return str(self._mix.get("embedding") or base)
        if "experts" in self._mix:
            return str(self._mix["experts"] if len(tensor.shape) > 2 else base)
        category = _category(tensor.kind)
        chosen = self._by_rule(tensor, category, base)
        if not self._mix.get("low"):
            chosen = self._by_model(category, chosen)
        if category in self._seen:
            self._seen[category] += 1
        return chosen

    def _by_rule(self, tensor: Tensor, category: str, base: str) -> str:
        for *words, type in self._mix.get(category, ()):
            if all(self._holds(word, tensor, category) for word in words):
                return str(type)
        return base

    def _by_model(self, category: str, chosen: str) -> str:
        if category == "attn_v" and self._is_70b and chosen in ("Q3_K", "Q4_K"):
            chosen = "Q5_K"
        if category in ("attn_v", "attn_k") and self._experts == 8:
            chosen = "Q8_0"
        return chosen

    def _holds(self, word: str, tensor: Tensor, category: str) -> bool:
        if word in self._facts:
            return self._facts[word]
        index, count = self._seen.get(category, 0), self._layers
        if category == "attn_v":
            count = self._values
        elif self._experts > 1 and not self._mix.get("low"):
            index = tensor.layer
        match word:
            case "more_bits":
                return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2
            case "eighth":
                return index < count // 8
            case "sixteenth":
                return index < count // 16
            case "middle":
                return count // 8 <= index < 7 * count // 8
            case "first2" | "first4":
                return index < int(word[-1])
        raise KeyError(word)


@lru_cache(maxsize=512)
def _category(kind: str) -> str:
    return next((category for part, category in _CATEGORIES if part in kind), "")


def _is_70b(model: Architecture) -> bool:
    """Whether llama.cpp counts it as 70B, whose values get more bits: 80 layers in a family that says so."""
    grouped = model.name != "llama" or model.query_groups != 1
    return len(model.trunk) == 80 and model.name in ("llama", "qwen2", "deci", "olmo") and grouped


@lru_cache(maxsize=4096)
def _fitting(type: str, columns: int) -> str:
    """`type`, or what stands in for it where the columns do not divide by its block."""
    blocks = _data()["types"]
    if columns % blocks[type][0] == 0:
        return type
    other = _data()["fallback"].get(type, type)
    return "F16" if columns % blocks[other][0] else str(other)
