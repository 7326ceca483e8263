"""One spelling for each format, whatever a file, a repository or a user calls it, and the room's data files."""

from __future__ import annotations

import functools
import tomllib
from importlib import resources
from typing import Any, Final

# Spellings that mean the same as one of ours, in capitals. Q4_K and Q5_K are llama-quantize's own short names.
_ALIASES: Final = {
    "FP16": "F16", "HALF": "F16", "FLOAT16": "F16", "BFLOAT16": "BF16", "FP32": "F32", "FLOAT32": "F32",
    "Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "MXFP4_MOE": "MXFP4", "NVFP4A16": "NVFP4",
    "FP8-DYNAMIC": "FP8", "FP8_DYNAMIC": "FP8", "FP8-BLOCK": "FP8", "FP8_BLOCK": "FP8", "FBGEMM_FP8": "FP8",
    "W8A8-INT8": "W8A8", "INT8-W8A8": "W8A8", "W4A16_ASYM": "W4A16", "GPTQ": "GPTQ-INT4", "AWQ": "AWQ-INT4",
}  # fmt: skip
# Runtimes that are another one inside, and share its figures and kernels.
_ENGINES: Final = {"llama-cpp-python": "llamacpp", "llama-server": "llamacpp"}
_METHODS: Final = ("GPTQ", "AWQ")


@functools.lru_cache(maxsize=1024)
def canonical(format: str, method: str | None = None) -> str:
    """Return the one name that the data files have for a format, such as "Q4_K_M", "AWQ-INT4" or "W4A16".

    `method` tells GPTQ's INT4 from AWQ's; for GGUF and compressed-tensors the format says everything. A name that
    is not known comes back in capitals.

    >>> canonical("INT4", "AWQ"), canonical("gptq-int8"), canonical("UD-Q4_K_XL"), canonical("fp16")
    ('AWQ-INT4', 'GPTQ-INT8', 'Q4_K_XL', 'F16')
    """
    name = format.strip().upper().removeprefix("UD-").removeprefix("I1-").replace("INT-", "INT")
    first = (method or "").strip().upper()
    if first in _METHODS and not name.startswith(first):
        bits = name.removeprefix("INT").removesuffix("BIT").rstrip("-")
        name = f"{first}-INT{bits}" if bits.isdigit() else f"{first}-{name}"
    for known in _METHODS:
        rest = name.removeprefix(f"{known}-")
        if rest != name and rest.isdigit():  # gptq-4
            name = f"{known}-INT{rest}"
    return _ALIASES.get(name, name)


def engine_of(runtime: str) -> str:
    """Return the name that the data files have for a runtime: llama-cpp-python is llama.cpp inside."""
    return _ENGINES.get(runtime, runtime)


@functools.cache
def table(name: str) -> dict[str, Any]:
    """Return a data file of this room, read once; callers do not change what they get."""
    text = resources.files("qlangchain.selection").joinpath(name).read_text(encoding="utf-8")
    return tomllib.loads(text)
