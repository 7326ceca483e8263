"""GPTQ and AWQ directories made by rounding to nearest, in the formats that vLLM reads, with numpy alone.

The quality is the poorest of all methods; what matters in the tests is that packing and config.json are right.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from qlangchain.artifacts.headers import read_safetensors_header

GROUP = 64
_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight columns lies in which nibble


def quantize(source: Path, target: Path, method: str, **config: Any) -> Path:
    """Write a 4-bit GPTQ ("gptq") or AWQ ("awq") directory of a model; `config` changes what it says of itself."""
    from safetensors.numpy import save_file

    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors", "*.gguf"))
    tensors: dict[str, Any] = {}
    for name, weight in _read(source / "model.safetensors").items():
        if name.removesuffix(".weight").endswith(_LINEAR):
            stem = name.removesuffix("weight")
            packed = _gptq(weight) if method == "gptq" else _awq(weight)
            tensors |= {stem + part: value for part, value in packed.items()}
        else:
            tensors[name] = weight.astype(np.float16)
    # What numpy holds transposed would be written as it lies in memory.
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, target / "model.safetensors")
    says: dict[str, Any] = {"quant_method": method, "bits": 4, "group_size": GROUP}
    if method == "gptq":
        says |= {"sym": True, "desc_act": False, "checkpoint_format": "gptq", "lm_head": False}
    else:
        says |= {"zero_point": True, "version": "gemm", "modules_to_not_convert": None}
    about = json.loads((target / "config.json").read_text())
    about |= {"dtype": "float16", "quantization_config": says | config}
    (target / "config.json").write_text(json.dumps(about))
    return target


def _read(path: Path) -> dict[str, Any]:
    """The tensors of a file in bf16 or f16, as float32: numpy does not know bf16."""
    header, raw = read_safetensors_header(path), path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    found = {}
    for name, about in json.loads(raw[8:start]).items():
        if name == "__metadata__":
            continue
        low, high = about["data_offsets"]
        bits = np.frombuffer(raw[start + low : start + high], np.uint16)
        if about["dtype"] == "BF16":
            values = (bits.astype(np.uint32) << 16).view(np.float32)
        else:
            values = bits.view(np.float16).astype(np.float32)
        found[name] = values.reshape(header.tensors[name].shape)
    return found


def _grouped(weight: Any) -> Any:
    rows, columns = weight.shape
    return weight.reshape(rows, columns // GROUP, GROUP)


def _gptq(weight: Any) -> dict[str, Any]:
    """Symmetric, zero at 8, stored as 7 (v1); packed eight along the inputs. `weight` is [out, in]."""
    groups = _grouped(weight)
    scales = np.maximum(np.abs(groups).max(-1) / 7.5, 1e-6)
    codes = np.clip(np.rint(groups / scales[..., None]) + 8, 0, 15).astype(np.uint32)
    codes = codes.reshape(weight.shape).T  # [in, out]
    shifts = (np.arange(8, dtype=np.uint32) * 4)[None, :, None]
    packed = (codes.reshape(-1, 8, codes.shape[1]) << shifts).sum(1, dtype=np.uint32)
    zeros = np.full((scales.shape[1], weight.shape[0] // 8), 0x77777777, np.uint32)
    return {
        "qweight": packed.view(np.int32),
        "qzeros": zeros.view(np.int32),
        "scales": np.ascontiguousarray(scales.T).astype(np.float16),
        "g_idx": (np.arange(weight.shape[1]) // GROUP).astype(np.int32),
    }


def _awq(weight: Any) -> dict[str, Any]:
    """With zero points, packed eight along the outputs in AWQ's order ("gemm")."""
    groups = _grouped(weight)
    low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
    scales = np.maximum((high - low) / 15, 1e-6)
    zeros = np.clip(np.rint(-low / scales), 0, 15)
    codes = np.clip(np.rint(groups / scales[..., None]) + zeros[..., None], 0, 15).reshape(weight.shape)
    return {
        "qweight": _across(codes.T),
        "qzeros": _across(zeros.T),
        "scales": np.ascontiguousarray(scales.T).astype(np.float16),
    }


def _across(codes: Any) -> Any:
    eight = codes.astype(np.uint32).reshape(codes.shape[0], -1, 8)[:, :, list(_AWQ_ORDER)]
    return (eight << (np.arange(8, dtype=np.uint32) * 4)).sum(-1, dtype=np.uint32).view(np.int32)
