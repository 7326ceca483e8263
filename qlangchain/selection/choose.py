"""The table that the project began with: use case, hardware and precision to a quantization method."""

from __future__ import annotations

import copy
from typing import Any, Final

from qlangchain.errors import InvalidInputError

USE_CASES: Final = ("production", "research", "personal")
HARDWARE: Final = ("gpu", "cpu", "hybrid")

_CPU_PROS = ["CPU 推理优化", "无需 GPU", "部署简单"]
_TABLE: Final[dict[tuple[str, bool], dict[str, Any]]] = {
    ("cpu", True): {"method": "GGUF", "format": "Q5_1", "library": "llama.cpp", "pros": _CPU_PROS},
    ("cpu", False): {"method": "GGUF", "format": "Q4_0", "library": "llama.cpp", "pros": _CPU_PROS},
    ("gpu", True): {"method": "AWQ", "format": "INT4", "library": "vllm/awq", "pros": ["精度更好", "推理速度快"]},
    ("gpu", False): {"method": "GPTQ", "format": "INT4", "library": "transformers", "pros": ["量化速度快", "兼容性好"]},
    ("hybrid", True): {
        "method": "GGUF",
        "format": "Q4_K_M",
        "library": "llama.cpp",
        "pros": ["灵活分配", "CPU+GPU 混合"],
    },
}
_TABLE[("hybrid", False)] = _TABLE[("hybrid", True)]


def choose_quantization_method(use_case: str, hardware: str, precision_required: bool = True) -> dict[str, Any]:
    """Return the method for a use case, as a new dict with the keys method, format, library and pros.

    Args:
        use_case: "production", "research" or "personal".
        hardware: "gpu", "cpu" or "hybrid" (a CPU with part of the layers on a GPU).
        precision_required: whether accuracy comes before size; it makes no difference for "hybrid".

    The letters' case does not matter. Where the table needs numbers (what fits, what exists, how fast it
    would be), `plan` goes on from it.

    Raises:
        InvalidInputError: also a ValueError, for a word that is not known; it lists the known ones.

    """
    _known("use_case", use_case, USE_CASES)
    row = _TABLE[(_known("hardware", hardware, HARDWARE), bool(precision_required))]
    return copy.deepcopy(row)


def _known(name: str, value: str, known: tuple[str, ...]) -> str:
    word = value.strip().lower() if isinstance(value, str) else value
    if word not in known:
        raise InvalidInputError(f"{name}={value!r} is not known.", hint=f"Known: {', '.join(known)}.")
    return str(word)
