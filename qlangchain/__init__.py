"""qlangchain: from "I want a local model" to a LangChain model that works.

The names below are loaded when they are first used: `import qlangchain` costs next to nothing, and
`choose_quantization_method` needs neither LangChain nor numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

__version__ = "0.1.0"

if TYPE_CHECKING:
    from qlangchain.evaluate.chain import evaluate
    from qlangchain.evaluate.comparison import compare
    from qlangchain.hardware import detect as detect_hardware
    from qlangchain.models.cache import set_cache
    from qlangchain.models.chat import ChatQuantized
    from qlangchain.models.embeddings import QuantizedEmbeddings
    from qlangchain.models.factory import get_chat_model, get_embeddings, get_llm
    from qlangchain.models.llm import QuantizedLLM
    from qlangchain.pipeline import plan, pull
    from qlangchain.quantizer import ModelQuantizer, quantize
    from qlangchain.selection.choose import choose_quantization_method

__all__ = [
    "ChatQuantized",
    "ModelQuantizer",
    "QuantizedEmbeddings",
    "QuantizedLLM",
    "__version__",
    "choose_quantization_method",
    "compare",
    "detect_hardware",
    "evaluate",
    "get_chat_model",
    "get_embeddings",
    "get_llm",
    "plan",
    "pull",
    "quantize",
    "set_cache",
]

_FACE: Final = {
    "ChatQuantized": ("qlangchain.models.chat", "ChatQuantized"),
    "ModelQuantizer": ("qlangchain.quantizer", "ModelQuantizer"),
    "QuantizedEmbeddings": ("qlangchain.models.embeddings", "QuantizedEmbeddings"),
    "QuantizedLLM": ("qlangchain.models.llm", "QuantizedLLM"),
    "choose_quantization_method": ("qlangchain.selection.choose", "choose_quantization_method"),
    "compare": ("qlangchain.evaluate.comparison", "compare"),
    "detect_hardware": ("qlangchain.hardware", "detect"),
    "evaluate": ("qlangchain.evaluate.chain", "evaluate"),
    "get_chat_model": ("qlangchain.models.factory", "get_chat_model"),
    "get_embeddings": ("qlangchain.models.factory", "get_embeddings"),
    "get_llm": ("qlangchain.models.factory", "get_llm"),
    "plan": ("qlangchain.pipeline", "plan"),
    "pull": ("qlangchain.pipeline", "pull"),
    "quantize": ("qlangchain.quantizer", "quantize"),
    "set_cache": ("qlangchain.models.cache", "set_cache"),
}


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _FACE[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
