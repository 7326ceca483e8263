"""`VLLM`: langchain-community's arguments, on a vLLM server that runs already or on llama.cpp here.

There is no vLLM engine in this version. What llama.cpp can serve it serves, without quantizing it, as vLLM would;
what it cannot (AWQ, GPTQ) is refused with the way to a server.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Final

from pydantic import Field

from qlangchain import settings
from qlangchain.artifacts import source as sources
from qlangchain.compat import tables
from qlangchain.compat.arguments import Table
from qlangchain.compat.llama_cpp import _Translated
from qlangchain.errors import InvalidInputError, UnsupportedModelError
from qlangchain.models.base import notify
from qlangchain.models.llm import QuantizedLLM

# vLLM loads float32 checkpoints in float16 unless dtype= says otherwise (vllm.LLM, argument dtype).
_AUTO: Final = {"bfloat16": "BF16", "float16": "F16", "float32": "F16"}
_FORMATS: Final = {"half": "F16", "float16": "F16", "bfloat16": "BF16", "float": "F32", "float32": "F32"}


class VLLM(_Translated, QuantizedLLM):
    """A text model with the arguments of langchain-community's VLLM. The prompt goes to the model as it is.

    With endpoint=, or QLANGCHAIN_VLLM_ENDPOINT set, it speaks to that server. Without, llama.cpp serves the model
    if it is a GGUF file or a directory of full-precision weights, and a warning says so.

    Raises:
        UnsupportedModelError: the weights are AWQ or GPTQ, and there is no server.
        UnsupportedRequestError: an argument is asked for that cannot be honoured, with what to do instead.
        InvalidInputError: an argument is not known or cannot be.

    """

    _known: ClassVar[Table] = tables.VLLM

    raw: bool = Field(default=True, description="Send the text as it is, without the model's chat template.")
    temperature: float | None = Field(default=1.0, ge=0)
    top_p: float | None = Field(default=1.0, ge=0, le=1)
    max_tokens: int | None = Field(default=512, ge=1)
    dtype: str = Field(default="auto", description="The type of the weights: auto, half, bfloat16 or float32.")

    def __init__(self, **given: Any) -> None:
        super().__init__(**{"endpoint": settings.read().vllm_endpoint, **given})

    @classmethod
    def _completed(cls, ours: dict[str, Any]) -> dict[str, Any]:
        if ours.get("endpoint"):
            return ours
        model = os.fsdecode(ours["model"])
        format = ours.get("format") or _format(model, ours.get("dtype", "auto"))
        served = f"as {format}" if format else "as it is"
        notify(f"VLLM: there is no vLLM engine in this version; llama.cpp serves {model} {served}.")
        # llama.cpp would otherwise choose among 40 tokens of at least 0.05 of the best one's probability.
        return {"top_k": 0, "min_p": 0.0, **ours, "format": format}


def _format(model: str, dtype: str) -> str | None:
    """The unquantized format for a directory of weights; None for everything else, which is served as it is."""
    if dtype not in ("auto", *_FORMATS):
        raise InvalidInputError(f"dtype={dtype!r} is not known.", hint=f"Known: auto, {', '.join(_FORMATS)}.")
    path = sources.DEMO_DIRECTORY if model == sources.DEMO else Path(model).expanduser()
    try:
        there = (path / "config.json").stat()
    except (OSError, ValueError):  # a file, or nothing: the first call says what is wrong with it
        return None
    return _format_in(path, dtype, there.st_mtime_ns)


@lru_cache(maxsize=64)
def _format_in(path: Path, dtype: str, changed: int) -> str | None:
    config = sources.read_config(path)
    quantized = config.get("quantization_config") or config.get("compression_config")
    if quantized:
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else "unknown"
        raise UnsupportedModelError(
            f"{path} holds {str(method).upper()} weights; there is no vLLM engine in this version to serve them.",
            hint=tables.SERVE,
        )
    if not any(path.glob("*.safetensors")):
        return None
    own = str(config.get("dtype") or config.get("torch_dtype") or "float16")
    return _AUTO.get(own, "F16") if dtype == "auto" else _FORMATS[dtype]
