"""What cannot be quantized is refused with one of our errors before anything is written."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from unit.quantizable import QUICK, TEXTS, edit_json, make_model
from unit.quantizable import one_thread as one_thread  # noqa: PLC0414 - a fixture

from qlangchain import hardware
from qlangchain.errors import (
    CorruptFileError,
    DiskFullError,
    InvalidInputError,
    MissingDependencyError,
    ModelNotFoundError,
    NoWeightsError,
    ProductionError,
    QlangchainError,
    StoreLockedError,
    UnsafeWeightsError,
    UnsupportedModelError,
)
from qlangchain.produce.awq import produce_awq
from qlangchain.produce.gptq import produce_gptq


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("pristine") / "model")


@pytest.fixture
def source(pristine: Path, tmp_path: Path) -> Path:
    shutil.copytree(pristine, tmp_path / "model")
    return tmp_path / "model"


def refused(
    source: Path, error: type[QlangchainError], words: str, make: Callable[..., Path] = produce_gptq, **settings: Any
) -> str:
    target = source.parent / "out"
    with pytest.raises(error, match=words) as caught:
        make(source, target, **(QUICK | settings))
    assert caught.value.hint
    assert not target.exists()
    return caught.value.hint


@pytest.mark.parametrize(("bits", "make"), [(3, produce_gptq), (2, produce_gptq), (8, produce_awq), ("4", produce_awq)])
def test_bits(source: Path, bits: Any, make: Callable[..., Path]) -> None:
    refused(source, InvalidInputError, "bits", make, bits=bits)


@pytest.mark.parametrize("size", [128, 48, 0, -2, 7])
def test_group_sizes_that_do_not_divide_are_answered_with_those_that_do(source: Path, size: int) -> None:
    # The inputs are 64 and 128 wide.
    hint = refused(source, InvalidInputError, f"group size {size} ", group_size=size)
    assert "-1, 16, 32, 64 (" in hint
    assert refused(source, InvalidInputError, "group size", produce_awq, group_size=size).endswith("16, 32, 64.")


def test_the_sizes_that_divide_are_those_of_all_layers(tmp_path: Path) -> None:
    source = make_model(tmp_path / "model", intermediate_size=96)
    refused(source, InvalidInputError, "no whole number", group_size="32")
    hint = refused(source, InvalidInputError, "96 inputs of model.layers.0.mlp.down_proj", group_size=64)
    assert "-1, 16, 32 (" in hint


def test_columns_that_cannot_be_packed(tmp_path: Path) -> None:
    source = make_model(tmp_path / "model", intermediate_size=100)
    refused(source, UnsupportedModelError, "do not divide by 8", group_size=-1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"texts": ["Too short."]}, "too short: .* 6 samples of 32 need 192"),
        ({"texts": [], "samples": None}, "0 tokens"),
        ({"texts": TEXTS, "samples": None, "sequence_length": 200}, "too short"),
        ({"samples": 0}, "above zero"),
        ({"sequence_length": 4}, "too short"),
        ({"sequence_length": 100_000}, "beyond the 256 tokens"),
        ({"texts": "one string"}, "no list of strings"),
        ({"texts": [1, 2]}, "no list of strings"),
        ({"damping": 0.0}, "damping"),
    ],
)
def test_calibration(source: Path, settings: dict[str, Any], words: str) -> None:
    refused(source, InvalidInputError, words, **settings)


CONFIGS: dict[str, tuple[dict[str, Any], type[QlangchainError], str]] = {
    "another architecture": ({"architectures": ["MambaForCausalLM"]}, UnsupportedModelError, "MambaForCausalLM"),
    "no architecture": ({"architectures": None}, UnsupportedModelError, "None"),
    "a mixture": ({"num_local_experts": 8}, UnsupportedModelError, "not known here"),
    "quantized": ({"quantization_config": {"quant_method": "gptq"}}, UnsupportedModelError, "already quantized .gptq"),
    "its own code": ({"auto_map": {"AutoModel": "model.X"}}, UnsafeWeightsError, "auto_map"),
    "other sizes": ({"hidden_size": 128}, CorruptFileError, "config.json says"),
    "more layers": ({"num_hidden_layers": 4}, CorruptFileError, "hold no model.layers.3"),
    "fewer layers": ({"num_hidden_layers": 2}, UnsupportedModelError, "has no tensor model.layers.2"),
    "nonsense": ({"hidden_size": "many"}, CorruptFileError, "does not describe"),
    "biases that are not there": ({"attention_bias": True}, CorruptFileError, "hold no .*bias"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs(source: Path, case: str) -> None:
    changes, error, words = CONFIGS[case]
    edit_json(source / "config.json", **changes)
    hint = refused(source, error, words)
    if error is UnsupportedModelError and "quantiz" not in case:
        assert "gptqmodel" in hint


def test_pickles(source: Path) -> None:
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    refused(source, UnsafeWeightsError, "pickled")


def test_nothing_there(source: Path, tmp_path: Path) -> None:
    (source / "model.safetensors").unlink()
    refused(source, NoWeightsError, "no safetensors")
    refused(tmp_path / "nowhere", ModelNotFoundError, "no directory")
    (source / "config.json").unlink()
    refused(source, ModelNotFoundError, "config.json")


def test_a_truncated_file(source: Path) -> None:
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(source, CorruptFileError, "truncated")


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"])
def test_weights_that_are_no_numbers(tmp_path: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    source = make_model(tmp_path / "model")
    tensors = load_file(source / "model.safetensors")
    tensors[name][:] = float("inf")
    save_file(tensors, source / "model.safetensors")
    refused(source, CorruptFileError, "infinite")


def test_no_tokenizer(source: Path) -> None:
    for path in source.glob("tokenizer*"):
        path.unlink()
    refused(source, CorruptFileError, "tokenizer")


def test_a_target_that_holds_something(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine.txt").write_text("keep")
    with pytest.raises(InvalidInputError, match="exists already"):
        produce_gptq(source, target, **QUICK)
    with pytest.raises(InvalidInputError, match="exists already"):
        produce_gptq(source, source, **QUICK)
    assert (target / "mine.txt").read_text() == "keep"


def test_memory_is_asked_for_before_the_work(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = hardware.detect()
    monkeypatch.setattr(hardware, "detect", lambda: type(small)(8 << 20, 8 << 20, small.cores))
    refused(source, ProductionError, "GiB of memory")


def test_disk_is_asked_for_before_the_work(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    refused(source, DiskFullError, "GiB of disk")


def test_without_torch(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else real(name))
    hint = refused(source, MissingDependencyError, "torch")
    assert "pip install 'qlangchain[quantize]'" in hint


def test_two_at_once(source: Path, tmp_path: Path) -> None:
    from qlangchain.artifacts.locks import hold

    with hold(tmp_path / ".out.quantizing", "work", what="making out", timeout=0):
        refused(source, StoreLockedError, "making out")
