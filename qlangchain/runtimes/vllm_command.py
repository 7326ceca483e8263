"""From an artifact and options to the command line of a vLLM server, and what it must be asked beforehand.

The format of the weights is read from the artifact's config.json by vLLM, never forced on it.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from qlangchain.artifacts.quantization import Quantization
from qlangchain.errors import InvalidInputError, UnsupportedModelError, UnsupportedRequestError
from qlangchain.selection import budgets
from qlangchain.types import EngineOptions, EngineSettings, Gpu, Method

_DATA: Final = Path(__file__).with_name("vllm_settings.toml")
# `vllm serve` of the build for CPUs looks for a distribution named vllm, which it is not; this module is the same.
_MODULE: Final = "vllm.entrypoints.openai.api_server"
_FULL_FLOATS: Final = ("float32", "float")
_KV_SPARE: Final = 1.1  # blocks are filled in part, and one is never used
_KV_LEAST: Final = 64 * 1024 * 1024  # bytes
_ANSWER_WITH: Final = "Quantize it anew with sym=True and desc_act=False, or take it as GGUF, AWQ or in full precision."


def check_servable(quantization: Quantization, settings: Mapping[str, Any], *, on_gpu: bool) -> None:
    """Refuse, before minutes are spent on loading it, what vLLM is known not to serve.

    Seen with vLLM 0.32.0 on a CPU; what holds on every platform is read in 0.33.0 (AutoGPTQConfig).

    Raises:
        UnsupportedModelError: the weights are of a kind that vLLM refuses, with what to do instead.
        UnsupportedRequestError: one of the settings does not go with them.

    """
    if quantization.scheme is Method.GPTQ:
        if quantization.desc_act and quantization.group_size is not None:
            raise UnsupportedModelError(
                "vLLM does not serve GPTQ weights with desc_act=True, whose groups are out of order.",
                hint=_ANSWER_WITH,
            )
        if quantization.symmetric is False:
            raise UnsupportedModelError("vLLM does not serve asymmetric GPTQ weights (sym=False).", hint=_ANSWER_WITH)
        if quantization.bits not in (4, 8):
            raise UnsupportedModelError(f"vLLM does not serve {quantization.bits}-bit GPTQ weights.", hint=_ANSWER_WITH)
        if quantization.bits == 8 and not on_gpu:
            raise UnsupportedModelError(
                "vLLM serves 8-bit GPTQ weights on GPUs only.",
                hint="On a CPU take 4-bit GPTQ, or a GGUF file in Q8_0, which llama.cpp serves.",
            )
    if quantization.scheme is Method.MODELOPT and not on_gpu:
        raise UnsupportedModelError(f"vLLM serves {quantization.format} weights on GPUs only.", hint=_ANSWER_WITH)
    dtype = settings.get("dtype")
    if quantization.scheme in (Method.GPTQ, Method.AWQ) and dtype in _FULL_FLOATS:
        raise UnsupportedRequestError(
            f"vLLM computes {quantization.scheme} weights in 16 bits only, not with dtype={dtype!r}.",
            hint="Leave out dtype=, or pass 'half' or 'bfloat16'.",
        )
    check_settings(settings)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise InvalidInputError for a setting that is not among those of `vllm_settings.toml`."""
    known = _data()["settings"]
    for name in settings:
        if name not in known:
            raise InvalidInputError(f"engine_settings do not take {name} for vLLM.", hint=f"Known: {', '.join(known)}.")


def arguments(
    model: Path,
    name: str,
    options: EngineOptions,
    *,
    chat_template: str | None,
    kv_bytes_per_token: int,
    gpus: tuple[Gpu, ...] | None,
) -> list[str]:
    """Return the arguments of the server, apart from host, port and key.

    `kv_bytes_per_token` is for 16-bit values; `gpus` are those of the machine, None for a build without GPU support.
    """
    settings = dict(options.settings)
    values: dict[str, Any] = {
        "model": str(model),
        "served_model_name": name,
        "max_model_len": options.context_length,
        "max_num_seqs": options.slots,
        "load_format": "safetensors",  # never a pickle, whatever else lies there
        # Sampling that a call leaves open is vLLM's own, not what the model's author put into generation_config.json:
        # the same call must mean the same on every engine.
        "generation_config": "vllm",
        # llguidance, with its rule for whitespace: free whitespace lets a weak model lose itself in line ends.
        "structured_outputs_config": json.dumps({"backend": "guidance", "disable_any_whitespace": True}),
        "enable_auto_tool_choice": True,
        "tool_call_parser": parser_for("tool_parsers", chat_template),
        "reasoning_parser": parser_for("reasoning_parsers", chat_template),
        "disable_uvicorn_access_log": True,
    }
    if gpus is None:
        values["enforce_eager"] = True  # compiling for a CPU takes longer than it saves
        values["kv_cache_memory_bytes"] = kv_cache_bytes(options, kv_bytes_per_token, settings.get("kv_cache_dtype"))
    elif "kv_cache_memory_bytes" not in settings:
        values["gpu_memory_utilization"] = gpu_share(gpus)
    return _flags({**values, **settings})


def kv_cache_bytes(options: EngineOptions, kv_bytes_per_token: int, kv_type: object = None) -> int:
    """The bytes of a KV cache that holds all slots at their full context; by itself vLLM would take most memory."""
    scale = 0.5 if str(kv_type).startswith("fp8") else 1
    return max(_KV_LEAST, int(options.context_length * options.slots * kv_bytes_per_token * scale * _KV_SPARE))


def gpu_share(gpus: tuple[Gpu, ...]) -> float:
    """The share of a GPU's memory that vLLM may take: it refuses to start where less than that is free."""
    return min((budgets.gpu_share(gpu.free_bytes, gpu.total_bytes) for gpu in gpus), default=budgets.UTILIZATION)


def parser_for(kind: str, chat_template: str | None) -> str | None:
    """The name of vLLM's parser for tool calls ("tool_parsers") or reasoning, by what the template writes."""
    if chat_template is None:
        return None if kind == "reasoning_parsers" else "hermes"
    rows = _data()[kind]
    return next((str(row["parser"]) for row in rows if all(mark in chat_template for mark in row["marks"])), None)


def command(python: Path, given: list[str]) -> list[str]:
    """Return the command that serves, without host and port."""
    return [str(python), "-P", "-m", _MODULE, *given]


def _flags(values: Mapping[str, Any]) -> list[str]:
    flags: list[str] = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            flags.append(f"--{flag}={value}")  # one word: a value may begin with a dash
    return flags


def as_settings(given: Mapping[str, Any] | None) -> EngineSettings:
    """The settings as a value that can be compared and hashed."""
    return tuple(sorted((given or {}).items()))


@lru_cache(maxsize=1)
def _data() -> dict[str, Any]:
    return tomllib.loads(_DATA.read_text(encoding="utf-8"))
