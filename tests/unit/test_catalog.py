"""The catalogue: its files against a schema, its names, and the default for each amount of memory."""

from __future__ import annotations

import re
import tomllib
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlangchain import catalog
from qlangchain.catalog import Model
from qlangchain.selection.formats import canonical, table
from qlangchain.selection.kernels import supported
from qlangchain.types import Gpu

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
LICENCES = {
    "apache-2.0", "mit", "llama3.1", "llama3.2", "llama3.3", "qwen", "qwen-research", "unconfirmed",
}  # fmt: skip
KINDS = {"chat", "embedding"}
CARD = Gpu("a card", 80 << 30, 80 << 30, compute_capability=(9, 0))


@pytest.mark.parametrize("model", catalog.models(), ids=lambda model: model.id)
def test_an_entry_is_whole(model: Model) -> None:
    assert ID.fullmatch(model.id)
    assert model.kind in KINDS
    assert model.licence in LICENCES
    assert (model.licence == "unconfirmed") <= ("licence" in model.unconfirmed)
    assert model.aliases
    assert all(alias == alias.lower() and re.fullmatch(r"[a-z0-9][a-z0-9.-]*", alias) for alias in model.aliases)
    sizes = (
        "parameters", "context", "active_parameters", "layers", "attention_layers", "hidden_size", "heads", "kv_heads",
        "head_size", "sliding_window", "experts", "experts_used", "kv_bytes_per_token",
    )  # fmt: skip
    for name in sizes:
        value = getattr(model, name)
        assert value is None or (type(value) is int and value > 0), name
    assert 1e7 < model.parameters < 2e12
    assert (model.active_parameters or 0) <= model.parameters
    assert (model.attention_layers or 0) <= (model.layers or 0)
    assert (model.experts_used or 0) <= (model.experts or 0)
    assert set(model.unconfirmed) <= set(Model.__slots__)
    assert model.repositories
    for repository in model.repositories:
        assert ID.fullmatch(repository.id)
        assert repository.formats
        assert repository.official <= (repository.id.partition("/")[0] == model.id.partition("/")[0])
        for format in repository.formats:
            assert format == "GGUF" or canonical(format) == format
            assert format == "GGUF" or supported(format, "vllm", CARD) is None
        for file in repository.files:
            assert file.name.endswith(".gguf")
            assert canonical(file.format) == file.format
            # Between one and a half and seventeen bits for each parameter.
            assert 1.5 / 8 < file.bytes / model.parameters < 17 / 8, file.name
    if model.gated:
        assert model.alternatives
        assert not any(catalog.lookup(other).gated for other in model.alternatives)  # type: ignore[union-attr]


def test_the_kv_cache_follows_from_the_heads() -> None:
    """A key and a value of two bytes for each layer with attention, KV head and place in it."""
    checked = 0
    for model in catalog.models():
        layers = model.attention_layers or model.layers
        if model.kv_bytes_per_token and layers and model.kv_heads and model.head_size:
            assert layers * model.kv_heads * model.head_size * 2 * 2 == model.kv_bytes_per_token, model.id
            checked += 1
    assert checked >= 25


def test_no_name_stands_for_two_models() -> None:
    names = [name.lower() for model in catalog.models() for name in (model.id, *model.aliases)]
    assert len(set(names)) == len(names)
    repositories = [one.id for model in catalog.models() for one in model.repositories]
    assert len(set(repositories)) == len(repositories)


def test_every_file_says_where_it_comes_from_and_is_read() -> None:
    names = {entry.name for entry in resources.files("qlangchain.catalog").iterdir() if entry.name.endswith(".toml")}
    assert names == {"qwen.toml", "llama_mistral_openai.toml", "others.toml", "defaults.toml"}
    for name in names:
        text = resources.files("qlangchain.catalog").joinpath(name).read_text(encoding="utf-8")
        assert "hub" in text.partition("[[")[0] or "Sources" in text.partition("[[")[0]
        assert tomllib.loads(text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen3.5-4b", "Qwen/Qwen3.5-4B"),
        ("QWEN3.5-4B", "Qwen/Qwen3.5-4B"),
        (" qwen3.5-4b:Q8_0 ", "Qwen/Qwen3.5-4B"),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "Qwen/Qwen2.5-7B-Instruct"),
        ("bartowski/Meta-Llama-3.1-8B-Instruct-GGUF", "meta-llama/Llama-3.1-8B-Instruct"),
        ("unsloth/gemma-4-12b-it-GGUF:Q4_K_M", "google/gemma-4-12B-it"),
        ("nobody/nothing", None),
        ("", None),
        (":", None),
    ],
)
def test_lookup(name: str, expected: str | None) -> None:
    found = catalog.lookup(name)
    assert (found.id if found else None) == expected


def test_published_lists_the_author_first() -> None:
    model = catalog.lookup("qwen3-8b")
    assert model is not None
    assert [one.id for one in model.published("awq-int4")] == ["Qwen/Qwen3-8B-AWQ"]
    assert [one.official for one in catalog.lookup("gemma-4-12b").published("GGUF")] == [True, False]  # type: ignore[union-attr]
    assert catalog.lookup("phi-4").published("Q4_K_M")  # type: ignore[union-attr]
    assert not model.published("NVFP4")


def test_what_peers_got_wrong_is_said() -> None:
    oss, moe, hybrid = (catalog.lookup(name) for name in ("gpt-oss-20b", "qwen3.6-35b", "qwen3.5-4b"))
    assert oss is not None and moe is not None and hybrid is not None
    assert oss.native_format == "MXFP4"
    assert moe.active_parameters is not None
    assert moe.active_parameters * 10 < moe.parameters
    assert hybrid.attention_layers is not None and hybrid.layers is not None
    assert hybrid.attention_layers * 4 == hybrid.layers
    assert catalog.lookup("qwen2.5-3b").licence == "qwen-research"  # type: ignore[union-attr]
    assert catalog.lookup("phi-4").context == 16384  # type: ignore[union-attr]


GIB = 1 << 30


@pytest.mark.parametrize(
    ("memory", "gpu", "expected"),
    [
        (1 * GIB, False, None),
        (3 * GIB, False, "Qwen/Qwen3.5-2B"),
        (6 * GIB, False, "Qwen/Qwen3.5-4B"),
        (14 * GIB, False, "Qwen/Qwen3.5-9B"),
        (60 * GIB, False, "Qwen/Qwen3.6-35B-A3B"),
        (6 * GIB, True, "Qwen/Qwen3.5-4B"),
        (11 * GIB, True, "Qwen/Qwen3-8B"),
        (15 * GIB, True, "Qwen/Qwen3-14B"),
        (23 * GIB, True, "Qwen/Qwen3.8-27B"),
        (80 * GIB, True, "openai/gpt-oss-120b"),
    ],
)
def test_defaults(memory: int, gpu: bool, expected: str | None) -> None:
    found = catalog.default_for(memory, gpu=gpu)
    assert (found.model if found else None) == expected


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 38), st.booleans(), st.sampled_from(sorted(KINDS)))
def test_more_memory_is_never_a_smaller_default(memory: int, more: int, gpu: bool, kind: str) -> None:
    small, large = (catalog.default_for(size, gpu=gpu, kind=kind) for size in (memory, memory + more))
    if small is not None:
        assert large is not None
        models = [catalog.lookup(one.model) for one in (small, large)]
        assert models[0] is not None and models[1] is not None
        if small.gpu == large.gpu:
            assert models[1].parameters >= models[0].parameters


def test_a_default_is_open_published_and_fits() -> None:
    for size in range(1, 200):
        for gpu in (False, True):
            for kind in KINDS:
                found = catalog.default_for(size * GIB, gpu=gpu, kind=kind)
                if found is None:
                    continue
                model = catalog.lookup(found.model)
                assert model is not None
                assert not model.gated
                assert model.licence in ("apache-2.0", "mit")
                assert found.why
                repository = next(one for one in model.repositories if one.id == found.repository)
                files = [file for file in repository.files if file.format == found.format]
                assert files or found.format in repository.formats
                for file in files:
                    kv = (model.kv_bytes_per_token or 0) * 8192
                    assert file.bytes + kv + 200_000_000 <= found.memory_at_least


def test_formats_have_a_quality() -> None:
    known = {name for one in table("published.toml")["table"] for row in one["row"] for name in row["loss"]}
    known |= set(table("published.toml")["no_figure"]) | set(table("published.toml")["at_least"])
    for model in catalog.models():
        for repository in model.repositories:
            assert {*repository.formats, *(file.format for file in repository.files)} - {"GGUF"} <= known
