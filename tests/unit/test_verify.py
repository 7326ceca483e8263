"""A directory that is not what it says is found out, whatever is wrong with it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from safetensors.torch import load_file, save_file
from unit.quantizable import QUICK, edit_json, make_model
from unit.quantizable import one_thread as one_thread  # noqa: PLC0414 - a fixture

from qlangchain.errors import (
    CorruptFileError,
    ModelNotFoundError,
    NoWeightsError,
    QlangchainError,
    UnsupportedModelError,
)
from qlangchain.produce import verify
from qlangchain.produce.awq import produce_awq
from qlangchain.produce.gptq import produce_gptq
from qlangchain.produce.verify import verify_directory

Tensors = dict[str, Any]
UP = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("source") / "model")


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    room = tmp_path_factory.mktemp("made")
    return {
        "gptq": produce_gptq(source, room / "gptq", **QUICK),
        "gptq8": produce_gptq(source, room / "gptq8", bits=8, **QUICK),
        "desc": produce_gptq(source, room / "desc", desc_act=True, **QUICK),
        "awq": produce_awq(source, room / "awq", **QUICK),
    }


@pytest.fixture
def copy(made: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a directory, with its tensors changed."""

    def copy(method: str, change: Callable[[Tensors], None] | None = None) -> Path:
        shutil.copytree(made[method], tmp_path / method)
        if change:
            tensors = load_file(tmp_path / method / "model.safetensors")
            change(tensors)
            save_file({n: t.contiguous() for n, t in tensors.items()}, tmp_path / method / "model.safetensors")
        return tmp_path / method

    return copy


@pytest.mark.parametrize("method", ["gptq", "gptq8", "desc", "awq"])
def test_what_is_right_passes(method: str, made: dict[str, Path], source: Path) -> None:
    report = verify_directory(made[method], source)
    assert report.is_sound
    assert report.problems == ()
    assert len(report.layers) == 3 * 7
    assert report.divergence is not None
    assert 0 <= report.divergence.nats < max(2 * report.divergence.nearest, 0.02)
    assert report.nbytes == (made[method] / "model.safetensors").stat().st_size
    limit = 0.03 if method == "gptq8" else 0.25
    assert all(0 < layer.relative < limit for layer in report.layers)


def test_without_the_source_the_structure_is_still_examined(made: dict[str, Path], copy: Callable[..., Path]) -> None:
    report = verify_directory(made["gptq"])
    assert report.is_sound and report.layers == () and report.divergence is None
    assert not verify_directory(copy("gptq", lambda t: t.pop(f"{UP}.scales"))).is_sound


def plus_one(tensors: Tensors) -> None:
    for name in tensors:
        if name.endswith("qzeros"):
            tensors[name] += 0x11111111


def transposed_nibbles(tensors: Tensors) -> None:
    words = tensors[f"{UP}.qweight"].numpy().view(np.uint32)
    swapped = ((words & 0x0F0F0F0F) << 4) | ((words >> 4) & 0x0F0F0F0F)
    tensors[f"{UP}.qweight"][:] = type(tensors[f"{UP}.qweight"])(swapped.view(np.int32))


FAULTS: dict[str, tuple[str, Callable[[Tensors], None], str]] = {
    "no scales": ("gptq", lambda t: t.pop(f"{UP}.scales"), "has no scales"),
    "no g_idx": ("gptq", lambda t: t.pop(f"{UP}.g_idx"), "has no g_idx"),
    "a norm is missing": ("awq", lambda t: t.pop("model.norm.weight"), "model.norm.weight is missing"),
    "a layer is missing": ("awq", lambda t: [t.pop(n) for n in list(t) if UP in n], f"{UP}.weight is missing"),
    "a stranger": ("gptq", lambda t: t.update({"model.extra": t["model.norm.weight"].clone()}), "not of this model"),
    "twice": ("gptq", lambda t: t.update({f"{UP}.weight": t["lm_head.weight"].clone()}), "there twice"),
    "qweight is half": ("gptq", lambda t: t.update({f"{UP}.qweight": t[f"{UP}.qweight"][:4]}), "has the shape"),
    "qzeros for other groups": ("awq", lambda t: t.update({f"{UP}.qzeros": t[f"{UP}.qzeros"][:1]}), "has the shape"),
    "scales in whole numbers": ("gptq", lambda t: t.update({f"{UP}.scales": t[f"{UP}.scales"].int()}), "is I32"),
    "an embedding of another size": (
        "gptq", lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"][:9]}), "source's has",
    ),
    "v2 zeros in v1": ("gptq", plus_one, "holds .8. where a symmetric gptq has 7"),
    "scales doubled": ("gptq", lambda t: t[f"{UP}.scales"].mul_(2), f"{UP} is off by"),
    "scales zero": ("gptq", lambda t: t[f"{UP}.scales"].zero_(), "holds zeros"),
    "scales are no numbers": ("awq", lambda t: t[f"{UP}.scales"].fill_(float("nan")), "no numbers"),
    "groups out of order": ("gptq", lambda t: t.update({f"{UP}.g_idx": t[f"{UP}.g_idx"].flip(0)}), "out of order"),
    "groups below the first": ("gptq", lambda t: t[f"{UP}.g_idx"][:1].fill_(-1), "groups that do not exist"),
    "groups out of range": ("desc", lambda t: t[f"{UP}.g_idx"].fill_(9), "groups that do not exist"),
    "groups of different sizes": ("desc", lambda t: t[f"{UP}.g_idx"][:20].fill_(0), "different sizes"),
    "nibbles swapped": ("gptq", transposed_nibbles, f"{UP} is off by"),
    "nibbles of awq swapped": ("awq", transposed_nibbles, f"{UP} is off by"),
    "8 bits damaged": ("gptq8", lambda t: t[f"{UP}.qweight"][:2].zero_(), f"{UP} is off by"),
    "another embedding": ("gptq", lambda t: t["model.embed_tokens.weight"].mul_(1.1), "not what the source has"),
    "another head": ("awq", lambda t: t["lm_head.weight"][-5:].add_(1), "not what the source has"),
    "another norm": ("gptq", lambda t: t["model.layers.0.input_layernorm.weight"].mul_(2), "not what the source"),
    "a norm without awq's factors": (
        "awq", lambda t: t["model.layers.0.input_layernorm.weight"].fill_(1.7), "diverge",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_tensors(fault: str, copy: Callable[..., Path], source: Path) -> None:
    method, change, words = FAULTS[fault]
    report = verify_directory(copy(method, change), source)
    assert not report.is_sound
    assert re.search(words, " ".join(report.problems)), report.problems


def test_the_optimum_bug(copy: Callable[..., Path], source: Path) -> None:
    # optimum 2.3 converts the tensors to v1 and leaves gptq_v2 in config.json.
    target = copy("gptq")
    edit_json(target / "config.json", quantization_config__checkpoint_format="gptq_v2")
    assert any("config.json says checkpoint_format='gptq_v2'" in p for p in verify_directory(target, source).problems)
    (target / "quantize_config.json").unlink()
    report = verify_directory(target, source)
    assert any("holds [7] where a symmetric gptq_v2 has 8" in problem for problem in report.problems)


def test_v2_that_is_consistent_passes(copy: Callable[..., Path], source: Path) -> None:
    target = copy("gptq", plus_one)
    for name, key in (("config.json", "quantization_config__checkpoint_format"),
                      ("quantize_config.json", "checkpoint_format")):  # fmt: skip
        edit_json(target / name, **{key: "gptq_v2"})
    (target / "quantize_config.json").unlink()
    assert verify_directory(target, source).is_sound


def test_two_configs_that_disagree(copy: Callable[..., Path], source: Path) -> None:
    target = copy("gptq")
    edit_json(target / "quantize_config.json", group_size=64)
    assert "group_size=32, quantize_config.json 64" in " ".join(verify_directory(target, source).problems)


def test_another_model(made: dict[str, Path], tmp_path: Path) -> None:
    import torch

    other = make_model(tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    for name, tensor in tensors.items():
        if "proj" in name:
            tensors[name] = tensor[torch.randperm(len(tensor))].contiguous()
    save_file(tensors, other / "model.safetensors")
    assert "is off by" in " ".join(verify_directory(made["gptq"], other).problems)
    assert "is off by" in " ".join(verify_directory(made["awq"], other).problems)


REFUSED: dict[str, tuple[dict[str, Any], type[QlangchainError]]] = {
    "not quantized": ({"quantization_config": None}, NoWeightsError),
    "another method": ({"quantization_config__quant_method": "bitsandbytes"}, UnsupportedModelError),
    "3 bits": ({"quantization_config__bits": 3}, UnsupportedModelError),
    "no group size": ({"quantization_config__group_size": "many"}, CorruptFileError),
    "marlin": ({"quantization_config__checkpoint_format": "marlin"}, UnsupportedModelError),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_known_is_refused(case: str, copy: Callable[..., Path], source: Path) -> None:
    changes, error = REFUSED[case]
    target = copy("gptq")
    edit_json(target / "config.json", **changes)
    with pytest.raises(error) as caught:
        verify_directory(target, source)
    assert caught.value.hint


def test_files_that_are_missing_or_cut(copy: Callable[..., Path], source: Path, tmp_path: Path) -> None:
    target = copy("gptq")
    path = target / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CorruptFileError):
        verify_directory(target, source)
    path.unlink()
    with pytest.raises(NoWeightsError):
        verify_directory(target, source)
    with pytest.raises(ModelNotFoundError):
        verify_directory(tmp_path / "nowhere", source)


@pytest.mark.parametrize("factor", [1.0, 1e25, 1e-30])
def test_errors_are_relative_whatever_the_size_of_the_weights(factor: float) -> None:
    weights = np.random.default_rng(1).standard_normal((64, 64), np.float32)
    whole = weights * np.float32(factor)
    assert verify.error_of(whole * np.float32(1.1), whole) == pytest.approx(0.1, rel=1e-3)
    assert verify.error_of(weights * 0, weights * 0) == 0
