"""What `quantization_config` of a config.json says: the method, the format and its parameters.

The words are those of the tools that write it; `quantization.json` has the sources. Nothing is guessed: what is not
understood is refused with the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from qlangchain.artifacts.bounds import short
from qlangchain.errors import UnsupportedModelError
from qlangchain.types import Method

Scheme = Method


@dataclass(frozen=True, slots=True)
class Quantization:
    """What a config.json says of its weights.

    `format` is INT4, W4A16, FP8, NVFP4, BF16 and the like; "unknown" is full precision of an unnamed type. `bits` are
    those of a weight, `group_size` the weights that share a scale (None: a whole row or tensor). None is what the
    config does not say.
    """

    scheme: Method
    format: str
    bits: int | None = None
    group_size: int | None = None
    symmetric: bool | None = None
    desc_act: bool | None = None
    notes: tuple[str, ...] = ()


def read_quantization(config: Mapping[str, Any]) -> Quantization:
    """Read how the weights beside this config.json are stored; without a `quantization_config` in full precision.

    Raises:
        UnsupportedModelError: a method that no engine here reads, or parameters that are missing or make no sense.

    """
    found = find_quantization_config(config)
    if found is None:
        dtype = _text(config, "dtype") or _text(config, "torch_dtype")
        format = quantization_data()["dtypes"].get(dtype.removeprefix("torch."), "unknown")
        return Quantization(Method.NONE, format, {"BF16": 16, "F16": 16, "F32": 32}.get(format))
    if not isinstance(found, Mapping):
        _refuse(f"quantization_config is {short(found)}, expected an object")
    method = str(found.get("quant_method", "")).lower()
    if not method and "quantization" in config:
        method = "mlx"  # mlx-lm writes the same object under both names, without a method
    method = quantization_data()["aliases"].get(method, method)
    readers = {
        "gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed_tensors, "modelopt": _modelopt,
        "fp8": _fp8, "fbgemm_fp8": _fp8, "mxfp4": _mxfp4,
    }  # fmt: skip
    if method not in readers:
        _refuse(quantization_data()["refused_methods"].get(method) or f"its quant_method is {short(method)}")
    return readers[method](found)


def find_quantization_config(config: Mapping[str, Any]) -> Any:
    """The config's object about quantization, which multimodal models keep with their text model; None without one."""
    for place in (config, *(config.get(part) for part in ("text_config", "llm_config", "language_config"))):
        if isinstance(place, Mapping):
            # compression_config: compressed-tensors of 2024; quantization alone: MLX.
            for key in ("quantization_config", "compression_config", "quantization"):
                if place.get(key) is not None:
                    return place[key]
    return None


def _gptq(found: Mapping[str, Any]) -> Quantization:
    bits, group_size = _bits(found, "bits", known=(2, 3, 4, 8)), _whole(found.get("group_size"))
    symmetric, desc_act = _flag(found.get("sym")), _flag(found.get("desc_act"))
    notes = []
    if desc_act and group_size != -1:
        notes.append("desc_act=True: vLLM refuses it since it ignores the order of groups.")
    if symmetric is False:
        notes.append("sym=False: no Marlin kernel reads it.")
    if found.get("dynamic"):
        notes.append("Some layers are stored otherwise (dynamic).")
    return Quantization(Method.GPTQ, f"INT{bits}", bits, _group(group_size), symmetric, desc_act, tuple(notes))


def _awq(found: Mapping[str, Any]) -> Quantization:
    bits = _bits(found, "bits", "w_bit", known=(4,))
    zero_point = _flag(found.get("zero_point"))
    group_size = _whole(found.get("group_size", found.get("q_group_size")))
    symmetric = None if zero_point is None else not zero_point
    return Quantization(Method.AWQ, f"INT{bits}", bits, _group(group_size), symmetric)


def _fp8(found: Mapping[str, Any]) -> Quantization:
    block = found.get("weight_block_size")
    notes = (
        (f"Blocks of {block[0]} by {block[1]} share a scale.",) if isinstance(block, list) and len(block) == 2 else ()
    )
    return Quantization(Method.FP8, "FP8", 8, symmetric=True, notes=notes)


def _mxfp4(found: Mapping[str, Any]) -> Quantization:
    return Quantization(Method.MXFP4, "MXFP4", 4, 32, symmetric=True)  # blocks of 32: OCP Microscaling 1.0


def _modelopt(found: Mapping[str, Any]) -> Quantization:
    inner = found.get("quantization")
    algorithm = str((inner if isinstance(inner, Mapping) else found).get("quant_algo", "")).upper()
    if algorithm == "FP8":
        return Quantization(Method.MODELOPT, "FP8", 8, symmetric=True)
    if algorithm == "NVFP4":
        return Quantization(Method.MODELOPT, "NVFP4", 4, 16, symmetric=True)
    return _refuse(f"its quant_algo is {short(algorithm)}, expected FP8 or NVFP4")


def _compressed_tensors(found: Mapping[str, Any]) -> Quantization:
    groups = found.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        _refuse("its quantization_config has no config_groups")
    read = [_group_scheme(name, one) for name, one in groups.items()]
    formats = sorted({one.format for one in read})
    low = min(read, key=lambda one: one.bits or 0)
    notes = ["Its layers have different formats."] if len(formats) > 1 else []
    sparsity = found.get("sparsity_config")
    if isinstance(sparsity, Mapping) and sparsity.get("format") not in (None, "dense"):
        notes.append("Its weights are sparse as well.")
    return Quantization(
        Method.COMPRESSED_TENSORS, "+".join(formats), low.bits, low.group_size, low.symmetric, notes=tuple(notes)
    )


def _group_scheme(name: str, one: Any) -> Quantization:
    """One of `config_groups`: an object with weights and input_activations, or a preset's name with its targets."""
    if isinstance(one, list):
        return Quantization(Method.COMPRESSED_TENSORS, str(name).upper(), _preset_bits(name))
    weights = one.get("weights") if isinstance(one, Mapping) else None
    if not isinstance(weights, Mapping):
        _refuse(f"its group {short(name)} says nothing about weights")
    bits, kind = _bits(weights, "num_bits"), str(weights.get("type", "int"))
    group_size, symmetric = _group(_whole(weights.get("group_size"))), _flag(weights.get("symmetric"))
    inputs = one.get("input_activations")
    inner = _bits(inputs, "num_bits") if isinstance(inputs, Mapping) else 16
    if kind not in ("int", "float") or (kind == "float" and bits not in (4, 8)):
        _refuse(f"its weights are {bits} bits of {short(kind)}")
    if kind == "float" and bits == 8:
        format = "FP8"
    elif kind == "float":
        # FP4 is NVIDIA's with groups of 16 and OCP's with groups of 32.
        if group_size not in (16, 32):
            _refuse(f"its 4-bit floats have groups of {group_size}, expected 16 (NVFP4) or 32 (MXFP4)")
        format = "NVFP4" if group_size == 16 else "MXFP4"
    else:
        format = f"W{bits}A{inner}"
    return Quantization(Method.COMPRESSED_TENSORS, format, bits, group_size, symmetric)


def _preset_bits(name: object) -> int:
    match = re.fullmatch(
        r"W([1-8])A(?:4|8|16)(?:_ASYM)?|(?:NVFP|MXFP)(4)(?:A16)?|FP(8)(?:_DYNAMIC|_BLOCK)?", str(name).upper()
    )
    if match is None:
        _refuse(f"its group {short(name)} is no preset that is known")
    return int(next(filter(None, match.groups())))


def _bits(found: Mapping[str, Any], *names: str, known: Sequence[int] = range(1, 17)) -> int:
    value = next((found[name] for name in names if found.get(name) is not None), None)
    bits = _whole(value)
    if bits is None or bits not in known:
        _refuse(f"{names[0]} is {short(value)}, expected {', '.join(map(str, known)) if len(known) < 9 else '1 to 16'}")
    return bits


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _group(size: int | None) -> int | None:
    return size if size is not None and size > 0 else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _text(config: Mapping[str, Any], key: str) -> str:
    inner = config.get("text_config")
    value = config.get(key) or (inner.get(key) if isinstance(inner, Mapping) else None)
    return value if isinstance(value, str) else ""


def _refuse(why: str) -> NoReturn:
    raise UnsupportedModelError(
        f"These weights cannot be read: {why}.", hint="Take the same model in GGUF, GPTQ, AWQ, FP8 or full precision."
    )


@lru_cache(maxsize=1)
def quantization_data() -> dict[str, Any]:
    """The contents of `quantization.json`."""
    data: dict[str, Any] = json.loads(Path(__file__).with_name("quantization.json").read_text(encoding="utf-8"))
    return data
