"""`VLLM`: langchain-community's arguments, on vLLM in an environment of its own, on a server, or on llama.cpp.

vLLM serves directories of safetensors where its environment is there. GGUF files, and full-precision weights where it
is not, are served by llama.cpp, without quantizing them, as vLLM would; a warning says so. What neither can serve is
refused with the way to do it.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Final

from pydantic import Field

from qlangchain import settings
from qlangchain.artifacts import source as sources
from qlangchain.artifacts.quantization import Quantization, quantization_data, read_quantization
from qlangchain.compat import tables
from qlangchain.compat.arguments import Table
from qlangchain.compat.llama_cpp import _Translated
from qlangchain.errors import InvalidInputError, MissingDependencyError, UnsupportedRequestError
from qlangchain.models.base import notify
from qlangchain.models.llm import QuantizedLLM
from qlangchain.runtimes import vllm
from qlangchain.types import Method

# vLLM loads float32 checkpoints in float16 unless dtype= says otherwise (vllm.LLM, argument dtype).
_AUTO: Final = {"BF16": "BF16", "F16": "F16", "F32": "F16"}
_FORMATS: Final = {"half": "F16", "float16": "F16", "bfloat16": "BF16", "float": "F32", "float32": "F32"}


class VLLM(_Translated, QuantizedLLM):
    """A text model with the arguments of langchain-community's VLLM. The prompt goes to the model as it is.

    With endpoint=, or QLANGCHAIN_VLLM_ENDPOINT set, it speaks to that server. Else vLLM serves the model where there
    is an environment with it (`qlangchain env create vllm`), and llama.cpp what it can where there is none.

    Raises:
        MissingDependencyError: the weights are for vLLM alone, and there is neither an environment nor a server.
        UnsupportedRequestError: an argument is asked for that cannot be honoured, with what to do instead.
        InvalidInputError: an argument is not known or cannot be.

    """

    _known: ClassVar[Table] = tables.VLLM
    _owner: ClassVar[str] = "VLLM"

    raw: bool = Field(default=True, description="Send the text as it is, without the model's chat template.")
    temperature: float | None = Field(default=1.0, ge=0)
    top_p: float | None = Field(default=1.0, ge=0, le=1)
    max_tokens: int | None = Field(default=512, ge=1)
    dtype: str = Field(default="auto", description="The type to compute in: auto, half, bfloat16 or float32.")
    quantization: str | None = Field(default=None, description="What the weights must be, such as awq.")

    def __init__(self, **given: Any) -> None:
        super().__init__(**{"endpoint": settings.read().vllm_endpoint, **given})

    @classmethod
    def _completed(cls, ours: dict[str, Any]) -> dict[str, Any]:
        own = {name: ours.pop(name) for name in tables.SETTINGS if name in ours}
        if ours.get("endpoint"):
            return ours
        model, dtype = os.fsdecode(ours["model"]), ours.get("dtype", "auto")
        if dtype not in ("auto", *_FORMATS):
            raise InvalidInputError(f"dtype={dtype!r} is not known.", hint=f"Known: auto, {', '.join(_FORMATS)}.")
        found = _look(model)
        _agree(cls._owner, model, found, ours.get("quantization"))
        gguf = ours.get("format") or model.lower().endswith(".gguf") or (found is None and Path(model).is_file())
        if gguf or ours.get("runtime") not in (None, "vllm"):
            return cls._on_llama_cpp(ours, own, model, found)
        if found is None and not ours.get("quantization") and not ours.get("runtime"):
            return {**ours, "engine_settings": cls._asked(own, ours) or None}  # the planner will see what it is
        needed = found is None or found.scheme is not Method.NONE or ours.get("runtime") == "vllm"
        if not vllm.is_there():
            if needed:
                what = found.scheme if found else ours.get("quantization")
                raise MissingDependencyError(
                    f"{model} holds {str(what).upper()} weights, and there is no vLLM on this machine to serve them.",
                    hint=tables.SERVE,
                )
            return cls._on_llama_cpp(ours, own, model, found)
        return {**ours, "runtime": "vllm", "engine_settings": cls._asked(own, ours) or None}

    @classmethod
    def _asked(cls, own: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
        """The settings of vLLM's own that ask for something."""
        asked = {name: value for name, value in own.items() if not tables.VLLM[name].asks_nothing(value, own)}
        if ours.get("dtype", "auto") != "auto":
            asked["dtype"] = ours["dtype"]
        return asked | (ours.get("engine_settings") or {})

    @classmethod
    def _on_llama_cpp(
        cls, ours: dict[str, Any], own: dict[str, Any], model: str, found: Quantization | None
    ) -> dict[str, Any]:
        asked = {name: value for name, value in own.items() if not tables.VLLM[name].asks_nothing(value, own)}
        asked |= ours.pop("engine_settings", None) or {}
        if "kv_cache_dtype" in asked:
            raise UnsupportedRequestError(
                f"{cls._owner} cannot honour kv_cache_dtype={asked['kv_cache_dtype']!r}: llama.cpp serves {model}, and "
                "its KV cache is f16.",
                hint="Leave it out.",
            )
        if asked:
            told = ", ".join(f"{name}={value!r}" for name, value in asked.items())
            notify(
                f"{cls._owner}: these arguments have no effect here: {told} (llama.cpp serves, and plans by itself)."
            )
        format, dtype = ours.get("format"), ours.get("dtype", "auto")
        if format is None and found is not None:
            format = _AUTO.get(found.format, "F16") if dtype == "auto" else _FORMATS[dtype]
        served = f"as {format}" if format else "as it is"
        why = "there is no vLLM here (`qlangchain env create vllm`)" if found else "vLLM does not serve GGUF here"
        notify(f"{cls._owner}: {why}; llama.cpp serves {model} {served}.")
        # llama.cpp would otherwise choose among 40 tokens of at least 0.05 of the best one's probability.
        return {"top_k": 0, "min_p": 0.0, **ours, "format": format}


def _look(model: str) -> Quantization | None:
    """How the weights of a directory are stored; None for everything else, which the first call says more about."""
    path = sources.DEMO_DIRECTORY if model == sources.DEMO else Path(model).expanduser()
    try:
        there = (path / "config.json").stat()
    except (OSError, ValueError):
        return None
    return _read(path, there.st_mtime_ns)


@lru_cache(maxsize=64)
def _read(path: Path, changed: int) -> Quantization | None:
    quantization = read_quantization(sources.read_config(path))
    return quantization if any(path.glob("*.safetensors")) else None


def _agree(owner: str, model: str, found: Quantization | None, asked: object) -> None:
    """Refuse a quantization= that the weights do not have: nothing is quantized while it is loaded."""
    if asked in (None, "gguf" if found is None else None):
        return
    known = {scheme.value.lower() for scheme in Method} - {"none", "gguf"}
    name = quantization_data()["aliases"].get(asked, asked)
    if name not in known:
        raise UnsupportedRequestError(
            f"{owner} cannot honour quantization={asked!r}: nothing is quantized while it is loaded.",
            hint=f"Leave it out; weights may be stored as {', '.join(sorted(known))}.",
        )
    there = "GGUF" if model.lower().endswith(".gguf") else found.scheme.value if found is not None else None
    if there is not None and there.lower() != name:
        stored = "in full precision" if there == Method.NONE else f"as {there}"
        raise UnsupportedRequestError(
            f"{owner} cannot honour quantization={asked!r}: the weights of {model} are stored {stored}.",
            hint="Leave it out: the format is read from the weights.",
        )
