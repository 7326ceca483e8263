"""From what the user calls a model to what is there, and to a named error for everything else."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlangchain import pipeline
from qlangchain.artifacts.source import DEMO_DIRECTORY, Source, locate
from qlangchain.errors import (
    ArtifactError,
    CorruptFileError,
    InvalidInputError,
    ModelNotFoundError,
    NoWeightsError,
    OfflineError,
    UnsafeWeightsError,
    UnsupportedModelError,
)
from qlangchain.produce import gguf_file as kv
from qlangchain.selection.facts import Offer
from qlangchain.types import Method, Origin

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "hidden_size": 512,
    "num_hidden_layers": 3,
    "max_position_embeddings": 1024,
    "vocab_size": 64,
    "intermediate_size": 1024,
}
METADATA = {
    "general.architecture": kv.string("llama"),
    "general.name": kv.string("A small one"),
    "llama.block_count": kv.uint32(3),
    "llama.embedding_length": kv.uint32(512),
    "llama.attention.head_count": kv.uint32(8),
    "llama.attention.head_count_kv": kv.uint32(2),
    "llama.context_length": kv.uint32(1024),
}
TENSOR = kv.TensorLayout("token_embd.weight", (4, 64), "Q8_0")


def write_gguf(path: Path, tensor: kv.TensorLayout = TENSOR, **metadata: bytes) -> Path:
    """A GGUF file; keywords change the metadata, with two underscores for a dot."""
    changes = {name.replace("__", "."): value for name, value in metadata.items()}
    data = bytes(tensor.nbytes + kv.padding(tensor.nbytes))
    path.write_bytes(kv.encode_header({**METADATA, **changes}, [tensor]) + data)
    return path


def write_safetensors(path: Path) -> Path:
    header = json.dumps({"a": {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory of full-precision weights."""
    directory = tmp_path / "a model 模型"
    directory.mkdir()
    write_safetensors(directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(CONFIG))
    return directory


# What is found.


def test_the_demo_model() -> None:
    source = locate("demo")
    assert source.weights == DEMO_DIRECTORY
    assert source.facts.name == "qlangchain-demo"
    assert source.weight_bytes > 1_000_000


def test_a_directory_of_full_precision(model: Path) -> None:
    source = locate(model)
    assert (source.weights, source.files, source.facts.name) == (model, (), model.name)
    assert source.facts.max_context == 1024
    assert source.facts.kv_bytes_per_token == 3 * 2 * (64 + 64) * 2
    assert source.weight_bytes == (model / "model.safetensors").stat().st_size


def test_a_gguf_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "anything.gguf", general__file_type=kv.uint32(15))
    source = locate(path)
    (file,) = source.files
    assert (file.path, file.format, file.size_bytes) == (path, "Q4_K_M", path.stat().st_size)
    assert source.weights is None
    assert source.weight_bytes == 0
    assert source.facts.name == "A small one"
    assert source.facts.max_context == 1024
    assert source.facts.kv_bytes_per_token == 3 * 2 * (64 + 64) * 2


@pytest.mark.parametrize("name", ["Q4_0.gguf", "model.Q2_K.gguf", "weights.bin.gguf"])
def test_the_format_is_the_headers_never_the_names(tmp_path: Path, name: str) -> None:
    assert locate(write_gguf(tmp_path / name)).files[0].format == "Q8_0"


def test_any_way_to_name_the_same_place(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    class Mine:
        def __fspath__(self) -> str:
            return str(model)

    with os.scandir(tmp_path) as entries:
        entry: Any = next(entry for entry in entries if entry.name == model.name)
    same: list[Any] = [str(model), model, f"{model}/", model.name, f"./{model.name}", f"~/{model.name}", "link"]
    for way in (*same, Mine(), entry):
        source = locate(way)
        assert source.facts.name == model.name
        assert source.weights and source.weights.samefile(model)


def test_a_directory_of_gguf_files(tmp_path: Path) -> None:
    write_gguf(tmp_path / "b.gguf", general__file_type=kv.uint32(2))
    write_gguf(tmp_path / "a.gguf", general__file_type=kv.uint32(1))
    assert [file.format for file in locate(tmp_path).files] == ["F16", "Q4_0"]


def test_gguf_beside_full_precision(model: Path) -> None:
    write_gguf(model / "made.gguf", general__file_type=kv.uint32(7))
    source = locate(model)
    assert source.weights == model
    assert [file.format for file in source.files] == ["Q8_0"]
    assert source.facts.name == model.name
    offers = pipeline.offers(source)
    file, whole = source.files[0], offers[1]
    assert offers[0] == Offer(Method.GGUF, "Q8_0", Origin.FOUND, file.size_bytes, "file:0", weights=file.weights)
    assert (whole.method, whole.origin, whole.key) == (Method.NONE, Origin.FOUND, "directory:")
    assert {offer.origin for offer in offers[2:]} == {Origin.PRODUCED}


@pytest.mark.parametrize(
    "companion",
    [
        {"general__type": kv.string("mmproj"), "general__architecture": kv.string("clip")},
        {"general__architecture": kv.string("clip")},
        {"general__type": kv.string("imatrix"), "general__architecture": kv.string("")},
        {"general__type": kv.string("adapter")},
    ],
)
def test_what_lies_beside_the_model_is_left_alone(tmp_path: Path, companion: dict[str, bytes]) -> None:
    write_gguf(tmp_path / "aaa-first-by-name.gguf", **companion)
    write_gguf(tmp_path / "model.gguf")
    source = locate(tmp_path)
    assert [file.path.name for file in source.files] == ["model.gguf"]
    with pytest.raises((UnsupportedModelError, CorruptFileError)):
        locate(tmp_path / "aaa-first-by-name.gguf")


def test_only_a_projector(tmp_path: Path) -> None:
    write_gguf(tmp_path / "mmproj.gguf", general__type=kv.string("mmproj"), general__architecture=kv.string("clip"))
    with pytest.raises(NoWeightsError):
        locate(tmp_path)


def split(directory: Path, number: int, count: int) -> Path:
    path = directory / f"model-{number + 1:05}-of-{count:05}.gguf"
    return write_gguf(path, split__no=kv.uint32(number), split__count=kv.uint32(count))


def test_a_model_in_several_files_is_one_model(tmp_path: Path) -> None:
    first, second, _ = (split(tmp_path, number, 3) for number in range(3))
    assert [file.path for file in locate(tmp_path).files] == [first]
    assert [file.path for file in locate(first).files] == [first]
    with pytest.raises(UnsupportedModelError, match="part 2 of 3"):
        locate(second)
    second.unlink()
    with pytest.raises(CorruptFileError, match="00002-of-00003"):
        locate(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "kv_heads"),
    [
        ({"llama__attention__head_count_kv": kv.int32s([1, 2, 2])}, 5),
        ({"llama__attention__head_count": kv.int32s([8, 8, 8])}, 6),
        ({"llama__feed_forward_length": kv.int32s([64, 64, 64])}, 6),
    ],
)
def test_numbers_for_each_layer(tmp_path: Path, metadata: dict[str, bytes], kv_heads: int) -> None:
    facts = locate(write_gguf(tmp_path / "m.gguf", **metadata)).facts
    assert (facts.kv_bytes_per_token, facts.max_context) == (kv_heads * (64 + 64) * 2, 1024)


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"llama__context_length": kv.int32s([1024])}, "context_length"),
        ({"llama__embedding_length": kv.int32s([512])}, "embedding_length"),
        ({"llama__block_count": kv.int32s([3])}, "block_count"),
        ({"llama__attention__head_count_kv": kv.int32s([1, 2])}, "head_count_kv"),
    ],
)
def test_a_list_where_llama_cpp_reads_one_number(tmp_path: Path, metadata: dict[str, bytes], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        locate(write_gguf(tmp_path / "m.gguf", **metadata))


# What is not there.


@pytest.mark.parametrize("name", [None, "", "  ", 5, b"demo", ["demo"], True])
def test_what_names_no_model(name: Any) -> None:
    with pytest.raises(InvalidInputError, match="names no model") as caught:
        locate(name)
    assert "demo" in caught.value.hint


HUB_IDS = ["Qwen/Qwen2.5-7B-Instruct", "unsloth/Qwen3-4B-GGUF:Q4_K_M", "a/b", "TheBloke/x_y.z-1"]


@pytest.mark.parametrize("name", HUB_IDS)
def test_a_hub_id_is_no_path_and_offline_the_hub_is_not_asked(name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        locate(name)
    with pytest.raises(OfflineError) as caught:
        pipeline.plan(name, offline=True)
    assert name in caught.value.message
    assert "offline=False" in caught.value.hint


def test_the_settings_decide_what_is_not_said() -> None:
    with pytest.raises(OfflineError):
        pipeline.plan("Qwen/Qwen3-4B")


@pytest.mark.parametrize(
    "name",
    [
        "nonsense",
        "Demo",
        "/no/such/directory",
        "./models/mine",
        "~/no/such/model",
        "~nobody-of-this-name/model",
        "missing.gguf",
        "owner/missing.gguf",
        "owner/pytorch_model.bin",
        "too/many/parts",
        "owner/",
        "/owner",
        "owner/-x",
        "C:\\models\\mine",
        "https://huggingface.co/Qwen/Qwen3-4B",
        "a\x00b",
        "owner/na\x00me",
        "\ud800",
        "模型/模型",
        "a" * 300,
        "owner/" + "a" * 5000,
        "/".join(["a" * 200] * 50),
    ],
)
def test_a_model_that_is_not_there(name: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        locate(name)
    assert caught.value.hint
    assert len(str(caught.value).encode("utf-8", "backslashreplace")) < 11_000


# What is there and cannot be used.


def test_a_directory_without_weights(tmp_path: Path) -> None:
    for name in ("config.json", "README.md", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(NoWeightsError) as caught:
        locate(tmp_path)
    assert str(tmp_path) in caught.value.message
    assert "safetensors" in caught.value.hint


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt", "model.pkl", "m.pickle"])
def test_pickles_are_not_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    for place in (tmp_path, tmp_path / name):
        with pytest.raises(UnsafeWeightsError) as caught:
            locate(place)
        assert name in caught.value.message
        assert "safetensors" in caught.value.hint
    (tmp_path / name).rename(tmp_path / name.upper())
    with pytest.raises(UnsafeWeightsError):
        locate(tmp_path / name.upper())


def test_pickles_beside_safetensors_are_ignored(model: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(b"pickle")
    assert locate(model).weights == model


def test_one_file_of_a_model_names_its_directory(model: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"model\.safetensors is one file of a model") as caught:
        locate(model / "model.safetensors")
    assert str(model) in caught.value.hint


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"just words", "text"),
        (b"<!DOCTYPE html><html>Please log in</html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "LFS"),
        (b"PK\x03\x04", "zip"),
        (b"GGUF", "cannot be used"),
        (b"GGUF\x03\x00\x00\x00" + b"\xff" * 16, "cannot be used"),
    ],
)
@pytest.mark.parametrize("place", [lambda path: path, lambda path: path.parent], ids=["file", "directory"])
def test_what_only_calls_itself_gguf(tmp_path: Path, content: bytes, said: str, place: Callable[[Path], Path]) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=said) as caught:
        locate(place(path))
    assert "model.gguf" in caught.value.message


@pytest.mark.parametrize("size", [40, 200, -17, -100])
def test_a_truncated_gguf(tmp_path: Path, size: int) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CorruptFileError):
        locate(path)


@pytest.mark.parametrize("size", [0, 7, 30, -1])
def test_truncated_safetensors_are_found_before_anything_is_made(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setenv("QLANGCHAIN_HOME", str(tmp_path / "home"))
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(CorruptFileError, match=r"model\.safetensors"):
        pipeline.prepare(model, pipeline.requirements(hardware="cpu"))
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_weights_without_a_config(model: Path) -> None:
    (model / "config.json").unlink()
    with pytest.raises(NoWeightsError, match=r"config\.json"):
        locate(model)


@pytest.mark.parametrize("content", ["", "{", "[]", "5", "null", '"text"', "[" * 100_000, "\x00", '{"a": "\ud800"}'])
def test_a_config_that_is_no_json_object(model: Path, content: str) -> None:
    (model / "config.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(CorruptFileError, match=r"config\.json"):
        locate(model)


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": None},
        {"num_attention_heads": 0},
        {"num_attention_heads": "many"},
        {"hidden_size": []},
        {"num_hidden_layers": {}},
        {"vocab_size": None},
        {"max_position_embeddings": float("inf")},
        {"max_position_embeddings": float("nan")},
        {"head_dim": "wide"},
    ],
)
def test_a_config_of_another_kind(model: Path, change: dict[str, Any]) -> None:
    (model / "config.json").write_text(json.dumps({**CONFIG, **change}))
    with pytest.raises(UnsupportedModelError, match=r"config\.json"):
        locate(model)


@pytest.mark.parametrize("missing", ["num_attention_heads", "hidden_size", "num_hidden_layers", "vocab_size"])
def test_a_config_without_what_is_needed(model: Path, missing: str) -> None:
    (model / "config.json").write_text(json.dumps({name: v for name, v in CONFIG.items() if name != missing}))
    with pytest.raises(UnsupportedModelError, match=missing):
        locate(model)


def test_a_directory_that_cannot_be_listed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, pattern: str) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "glob", refuse)
    with pytest.raises(ArtifactError, match="Permission denied") as caught:
        locate(model)
    assert str(model) in caught.value.message


def test_a_source_is_a_value(model: Path) -> None:
    assert locate(model) == locate(model)
    assert isinstance(locate(model), Source)
