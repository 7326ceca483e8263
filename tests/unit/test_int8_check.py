"""8-bit compressed-tensors beside their source: what is right passes, and each fault is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from unit.tiny_model import Make
from unit.tiny_model import make as make  # noqa: PLC0414 - a fixture

from qlangchain.errors import CorruptFileError
from qlangchain.produce.checkpoint import open_checkpoint
from qlangchain.produce.int8_check import examine

save_file = pytest.importorskip("safetensors.numpy").save_file
LAYER = "model.layers.0.mlp.up_proj"
Tensors = dict[str, Any]


def directory(source: Path, target: Path, change: Callable[[Tensors], None], *, packed: bool) -> Path:
    """The blocks' matrices rounded to 8 bits with a scale for each 32 inputs or, not packed, for all."""
    checkpoint, tensors = open_checkpoint(source), {}
    for name, tensor in checkpoint.tensors.items():
        values = np.concatenate(list(checkpoint.chunks(name)))
        if len(tensor.shape) == 1 or not name.startswith("model.layers"):
            tensors[name] = values.reshape(tensor.shape)
            continue
        grouped = values.reshape(len(values), -1 if packed else 1, 32 if packed else values.shape[1])
        scales = np.abs(grouped).max(axis=2, keepdims=True) / 127
        codes = np.rint(grouped / scales).astype(np.int8).reshape(values.shape)
        stem = name.removesuffix(".weight")
        tensors[f"{stem}.weight_scale"] = scales[:, :, 0]
        if packed:
            tensors[f"{stem}.weight_packed"] = (codes.view(np.uint8) + np.uint8(128)).view(np.int32)
        else:
            tensors[name] = codes
    change(tensors)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, target / "model.safetensors")
    return target


@pytest.mark.parametrize("packed", [True, False])
def test_what_is_right_passes(make: Make, tmp_path: Path, packed: bool) -> None:
    source = make()
    errors, problems = examine(directory(source, tmp_path / "q", lambda _: None, packed=packed), source, smoothed=False)
    assert problems == [] and len(errors) >= 7
    assert all(0 < error.relative < 0.02 for error in errors)


def test_each_fault_is_named(make: Make, tmp_path: Path) -> None:
    source = make()

    def found(change: Callable[[Tensors], None], *, smoothed: bool = False) -> list[str]:
        return examine(directory(source, tmp_path / "q", change, packed=False), source, smoothed=smoothed)[1]

    scaled = found(lambda t: t.update({f"{LAYER}.weight_scale": t[f"{LAYER}.weight_scale"] * np.float32(1.1)}))
    assert len(scaled) == 1 and scaled[0].startswith(f"{LAYER} is off by 0.1")
    turned = found(lambda t: t.update({f"{LAYER}.weight": t[f"{LAYER}.weight"][::-1].copy()}), smoothed=True)
    assert len(turned) == 1 and LAYER in turned[0]
    assert found(lambda t: t.pop("model.norm.weight")) == ["model.norm.weight is missing."]
    with pytest.raises(CorruptFileError, match="has the shape"):
        found(lambda t: t.update({f"{LAYER}.weight": t[f"{LAYER}.weight"][:-2].copy()}))


def test_smoothing_is_allowed_for_where_it_was_done(make: Make, tmp_path: Path) -> None:
    source = make()
    factors = np.float32(2) ** np.arange(open_checkpoint(source).tensors[f"{LAYER}.weight"].shape[1], dtype=np.float32)
    other = make(change=lambda w: w.update({f"{LAYER}.weight": w[f"{LAYER}.weight"] * np.clip(factors, 1, 4)}))
    made = directory(other, tmp_path / "q", lambda _: None, packed=False)
    source = make()
    assert examine(made, source, smoothed=True)[1] == []
    assert len(examine(made, source, smoothed=False)[1]) == 1
