"""Bounded readers of GGUF and safetensors headers, which run before any native parser sees a file.

`gguf.GGUFReader` hangs on a 43-byte file whose array claims 2**63 items, and llama.cpp ends its process on
some well-formed values, so neither may be the first to read a file that somebody else wrote. Here every
length is compared with a limit and with the bytes that are left before anything is allocated, and every
defect is a `CorruptFileError` that says what is wrong. Only the header is read: the tensors are checked for
size and place, not for content. Each takes at most 2 s of CPU time and 200 MiB of memory, whatever a file claims,
and reads through ranges, so that a header on the hub is read as one on the disk is (`remote_header.py`).

Formats: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and
https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from qlangchain.artifacts.bounds import corrupt, short
from qlangchain.artifacts.gguf_header import (
    GGML_TYPES,
    GgufArray,
    GgufHeader,
    GgufTensor,
    parse_gguf_header,
    read_gguf_header,
)
from qlangchain.artifacts.safetensors_header import (
    SafetensorsHeader,
    SafetensorsTensor,
    parse_safetensors_header,
    read_safetensors_header,
)
from qlangchain.errors import UnsupportedModelError

__all__ = [
    "GGML_TYPES",
    "GgufArray",
    "GgufHeader",
    "GgufTensor",
    "SafetensorsHeader",
    "SafetensorsTensor",
    "check_servable",
    "parse_gguf_header",
    "parse_safetensors_header",
    "read_gguf_header",
    "read_safetensors_header",
]

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS: llama.cpp ends the process above it
MAX_HEADS = 4096
# What image programs keep in GGUF files: IMG_ARCH_LIST in loader.py of ComfyUI-GGUF.
_IMAGES = frozenset(
    ("flux", "sd1", "sdxl", "sd3", "aura", "hidream", "cosmos", "ltxv", "hyvid", "wan", "lumina2", "qwen_image")
)


def check_servable(header: GgufHeader, *, exists: Callable[[Path], bool] = Path.is_file) -> None:
    """Refuse a header on which llama.cpp would end its process instead of reporting an error.

    `exists` tells whether another part of a split model is there.

    Raises `CorruptFileError` for impossible sizes and `UnsupportedModelError` for a file that is well formed
    but is no model that can be served by itself.
    """
    path, metadata = header.path, header.metadata
    kind = metadata.get("general.type", "model")
    if kind != "model" or header.architecture == "clip":
        raise UnsupportedModelError(
            f"{path.name} is of the type {kind if kind != 'model' else 'mmproj'!r}.", hint="Pass the model itself."
        )
    if not header.architecture:
        corrupt(path, "it has no general.architecture")
    if header.architecture in _IMAGES:
        raise UnsupportedModelError(
            f"{path.name} is of the architecture {header.architecture!r}, which makes images and no text.",
            hint="Pass a language model.",
        )
    for name, low, high in (
        ("block_count", 1, MAX_LAYERS), ("attention.head_count", 0, MAX_HEADS),
        ("attention.head_count_kv", 0, MAX_HEADS), ("embedding_length", 1, 1 << 20),
        ("context_length", 1, 1 << 31), ("feed_forward_length", 0, 1 << 24), ("vocab_size", 1, 1 << 24),
        ("attention.key_length", 1, 1 << 14), ("attention.value_length", 1, 1 << 14),
        ("rope.dimension_count", 0, 1 << 14), ("expert_count", 0, 4096),
    ):  # fmt: skip
        value = header.get(name)
        if value is None:
            if name in ("block_count", "embedding_length"):
                corrupt(path, f"it has no {header.architecture}.{name}")
            continue
        for item in value if isinstance(value, GgufArray) and len(value) <= MAX_LAYERS else (value,):
            if isinstance(item, bool) or not isinstance(item, int) or not low <= item <= high:
                corrupt(path, f"{header.architecture}.{name} is {short(item)}, expected {low} to {high}")
    _check_tokens(header)
    _check_split(header, exists)


def _check_tokens(header: GgufHeader) -> None:
    model = header.metadata.get("tokenizer.ggml.model")
    if model in (None, "none"):
        return
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, GgufArray) or not tokens.holds_strings or not len(tokens):
        corrupt(header.path, "it has no list of tokens")
    # As llama-vocab.cpp does, which asserts that no token occurs twice after it has named the empty ones.
    items = [token or b"[EMPTY_%d]" % number for number, token in enumerate(tokens.read_bytes())]
    if len(set(items)) != len(items):
        corrupt(header.path, f"{len(items) - len(set(items))} tokens occur twice in its vocabulary")


def _check_split(header: GgufHeader, exists: Callable[[Path], bool]) -> None:
    count, number = header.metadata.get("split.count", 1), header.metadata.get("split.no", 0)
    if not isinstance(count, int) or not isinstance(number, int) or not 0 <= number < max(count, 1) <= 9999:
        corrupt(header.path, f"it claims to be part {short(number)} of {short(count)}")
    if count <= 1:
        return
    if not (match := re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", header.path.name)):
        corrupt(header.path, f"it is one of {count} parts, and its name does not end in -00001-of-{count:05}.gguf")
    if number:
        raise UnsupportedModelError(
            f"{header.path.name} is part {number + 1} of {count}.", hint="Pass the first part; the others are found."
        )
    for part in range(2, count + 1):
        sibling = header.path.with_name(f"{match[1]}-{part:05}-of-{count:05}.gguf")
        if not exists(sibling):
            corrupt(header.path, f"its part {sibling.name} is missing", "Download all parts into one directory.")
