"""Whatever a user passes by mistake: a named error with a hint, nothing half-written, and the caller lives on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from langchain_core.exceptions import ModelError

from qlangchain import get_chat_model, get_llm
from qlangchain.artifacts.source import DEMO_DIRECTORY
from qlangchain.errors import (
    CorruptFileError,
    ModelNotFoundError,
    NoWeightsError,
    OfflineError,
    QlangchainError,
    UnsafeWeightsError,
    UnsupportedModelError,
)


def copy(target: Path) -> Path:
    shutil.copytree(DEMO_DIRECTORY, target, ignore=shutil.ignore_patterns("*.gguf"))
    return target


def empty(path: Path) -> Path:
    path.mkdir()
    return path


def pickled(path: Path) -> Path:
    copy(path)
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    return path


def pickle_file(path: Path) -> Path:
    return pickled(path) / "pytorch_model.bin"


def unknown_architecture(path: Path) -> Path:
    copy(path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(
        json.dumps({**config, "architectures": ["FancyForCausalLM"], "model_type": "fancy"})
    )
    return path


def remote_code(path: Path) -> Path:
    copy(path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    return path


def truncated(path: Path) -> Path:
    copy(path)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return path


def torn_header(path: Path) -> Path:
    copy(path)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    return path


def text_file(path: Path) -> Path:
    file = path.with_suffix(".gguf")
    file.write_text("<html>Please log in</html>")
    return file


def empty_file(path: Path) -> Path:
    file = path.with_suffix(".gguf")
    file.touch()
    return file


def no_config(path: Path) -> Path:
    copy(path)
    (path / "config.json").unlink()
    return path


def no_tokenizer(path: Path) -> Path:
    copy(path)
    (path / "tokenizer.json").unlink()
    return path


def broken_config(path: Path) -> Path:
    copy(path)
    (path / "config.json").write_text("{ not json")
    return path


def unknown_pre_tokenizer(path: Path) -> Path:
    copy(path)
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    for step in tokenizer["pre_tokenizer"]["pretokenizers"]:
        if "pattern" in step:
            step["pattern"] = {"Regex": r"\w+|\W+"}
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    return path


def quantized_already(path: Path) -> Path:
    copy(path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    return path


MISTAKES: dict[Callable[[Path], Path], type[QlangchainError]] = {
    empty: NoWeightsError,
    pickled: UnsafeWeightsError,
    pickle_file: UnsafeWeightsError,
    unknown_architecture: UnsupportedModelError,
    remote_code: UnsafeWeightsError,
    truncated: CorruptFileError,
    torn_header: CorruptFileError,
    text_file: CorruptFileError,
    empty_file: CorruptFileError,
    no_config: NoWeightsError,
    no_tokenizer: QlangchainError,
    broken_config: CorruptFileError,
    unknown_pre_tokenizer: UnsupportedModelError,
    quantized_already: UnsupportedModelError,
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_bad_model_is_a_named_error(
    mistake: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("QLANGCHAIN_HOME", str(home))
    model = mistake(tmp_path / "model")
    for make in (get_llm, get_chat_model):
        with pytest.raises(MISTAKES[mistake]) as caught:
            make(model, hardware="cpu").invoke("Hello")
        assert isinstance(caught.value, ModelError)
        assert caught.value.hint
        assert not caught.value.is_retryable
    # What was measured of this machine is true whatever became of the model.
    left = [path for path in home.rglob("*") if path.is_file() and path.parent.name not in ("locks", "hardware")]
    assert left == []


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("/no/such/directory", ModelNotFoundError),
        ("missing.gguf", ModelNotFoundError),
        ("nonsense", ModelNotFoundError),
        ("Some/Model-7B", OfflineError),
        ("Some/Model-7B-GGUF:Q4_K_M", OfflineError),
    ],
)
def test_a_model_that_is_not_there_is_a_named_error(model: str, error: type[QlangchainError]) -> None:
    with pytest.raises(error) as caught:
        get_llm(model, hardware="cpu", offline=True).invoke("Hello")
    assert caught.value.hint
    assert model.split(":", maxsplit=1)[0] in str(caught.value)
