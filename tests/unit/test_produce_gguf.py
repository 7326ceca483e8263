"""Conversion to GGUF: the bytes, the refusals, and that nothing half-written is ever left behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qlangchain.artifacts.headers import check_servable, read_gguf_header
from qlangchain.errors import (
    CorruptFileError,
    DiskFullError,
    InvalidInputError,
    MissingDependencyError,
    ModelNotFoundError,
    NoWeightsError,
    ProductionError,
    QlangchainError,
    UnsafeWeightsError,
    UnsupportedModelError,
)
from qlangchain.produce import checkpoint, gguf, kquants
from qlangchain.produce.gguf import FILE_TYPES, produce_gguf
from qlangchain.produce.tokenizer import read_tokenizer, recognise

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 64, 96, 4, 2, 16, 300
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": 1, "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS, "vocab_size": VOCAB, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": False, "eos_token_id": 257,
}  # fmt: skip
MARKS = ["<|endoftext|>", "<|im_end|>", "<tool_call>"]
TOKENIZER: dict[str, Any] = {
    "added_tokens": [{"id": 256 + n, "content": mark, "special": n < 2} for n, mark in enumerate(MARKS)],
    "normalizer": None,
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        ],
    },
    "post_processor": None,
    "model": {"type": "BPE", "vocab": {chr(300 + n): n for n in range(255)} | {"ab": 255}, "merges": ["a b"]},
}

Weights = dict[str, np.ndarray[Any, np.dtype[np.float32]]]
Make = Callable[..., Path]


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    head_dim = config.get("head_dim", HEAD_DIM)
    layer = "model.layers.0."
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        layer + "input_layernorm.weight": (HIDDEN,),
        layer + "post_attention_layernorm.weight": (HIDDEN,),
        layer + "self_attn.q_proj.weight": (HEADS * head_dim, HIDDEN),
        layer + "self_attn.k_proj.weight": (KV_HEADS * head_dim, HIDDEN),
        layer + "self_attn.v_proj.weight": (KV_HEADS * head_dim, HIDDEN),
        layer + "self_attn.o_proj.weight": (HIDDEN, HEADS * head_dim),
        layer + "mlp.gate_proj.weight": (INNER, HIDDEN),
        layer + "mlp.up_proj.weight": (INNER, HIDDEN),
        layer + "mlp.down_proj.weight": (HIDDEN, INNER),
    }
    if not config.get("tie_word_embeddings"):
        found["lm_head.weight"] = (VOCAB, HIDDEN)
    if config.get("architectures") == ["Qwen2ForCausalLM"] or config.get("attention_bias"):
        found |= {f"{layer}self_attn.{x}_proj.bias": (found[f"{layer}self_attn.{x}_proj.weight"][0],) for x in "qkv"}
    if config.get("architectures") == ["Qwen3ForCausalLM"]:
        found |= {f"{layer}self_attn.{x}_norm.weight": (head_dim,) for x in "qk"}
    return found


def as_bytes(values: Any, dtype: str) -> bytes:
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype({"F16": "<f2", "F32": "<f4"}.get(dtype, "<f4")).tobytes()


def write_safetensors(path: Path, weights: Weights, dtype: str = "F32") -> None:
    entries, blobs, at = {}, [], 0
    for name, values in weights.items():
        blob = as_bytes(values, dtype)
        entries[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"".join(blobs))


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a model directory; returns it. `weights` of the last one are in `make.weights`."""

    def make(
        *, dtype: str = "F32", tokenizer: dict[str, Any] | None = None, change: Callable[[Weights], None] | None = None,
        **config: Any,
    ) -> Path:  # fmt: skip
        source = tmp_path / "Tiny"
        shutil.rmtree(source, ignore_errors=True)
        source.mkdir()
        full = {key: value for key, value in (CONFIG | config).items() if value is not None}
        random = np.random.default_rng(3)
        weights = {name: random.standard_normal(shape, np.float32) for name, shape in shapes(full).items()}
        if dtype != "F32":  # values that the type can hold exactly, so that the comparisons are exact
            weights = {name: (v.view(np.uint32) & 0xFFFF0000).view(np.float32) for name, v in weights.items()}
        if change:
            change(weights)
        write_safetensors(source / "model.safetensors", weights, dtype)
        (source / "config.json").write_text(json.dumps(full))
        (source / "tokenizer.json").write_text(json.dumps(tokenizer or TOKENIZER))
        make.weights = weights  # type: ignore[attr-defined]
        return source

    return make


def read_back(path: Path) -> dict[str, tuple[str, bytes]]:
    header = read_gguf_header(path)
    content = path.read_bytes()
    return {t.name: (t.type, content[t.offset : t.offset + t.nbytes]) for t in header.tensors}


def quantized(values: Any, kind: str) -> bytes:
    return bytes(quants.quantize(np.ascontiguousarray(values), GGMLQuantizationType[kind]).tobytes())


@pytest.mark.parametrize("format", FILE_TYPES)
def test_the_bytes_are_those_of_gguf_quants(make: Make, tmp_path: Path, format: str) -> None:
    source = make(dtype="BF16")
    found = read_back(produce_gguf(source, tmp_path / "out.gguf", format))
    weights = make.weights  # type: ignore[attr-defined]
    matrix = weights["model.layers.0.mlp.up_proj.weight"]
    assert found["blk.0.ffn_up.weight"] == (format, quantized(matrix, format))
    logits = format if format in ("F32", "F16", "BF16") else "Q8_0"
    assert found["output.weight"] == (logits, quantized(weights["lm_head.weight"], logits))
    embeddings = weights["model.embed_tokens.weight"]
    assert found["token_embd.weight"] == (format, quantized(embeddings, format))
    assert found["output_norm.weight"] == ("F32", weights["model.norm.weight"].tobytes())
    header = read_gguf_header(tmp_path / "out.gguf")
    check_servable(header)
    assert header.metadata["general.file_type"] == FILE_TYPES[format]
    assert header.metadata["general.name"] == "Tiny"
    assert header.get("rope.dimension_count") == HEAD_DIM
    if format == "BF16":  # copied bit by bit
        assert found["blk.0.ffn_up.weight"][1] == as_bytes(matrix, "BF16")


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_chunks_do_not_show(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    source = make(dtype=dtype, attention_bias=True)
    whole = produce_gguf(source, tmp_path / "whole.gguf", "q4_0").read_bytes()
    for values in (1, 1000, 70 * HIDDEN):
        monkeypatch.setattr(checkpoint, "CHUNK_VALUES", values)
        assert produce_gguf(source, tmp_path / "chunks.gguf", "Q4_0").read_bytes() == whole


def test_llama_s_rotary_pairs_become_neighbours_and_qwen_s_stay(make: Make, tmp_path: Path) -> None:
    for architecture in ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"):
        changes = {"head_dim": HEAD_DIM} if "Qwen3" in architecture else {}
        source = make(architectures=[architecture], attention_bias=architecture == "LlamaForCausalLM", **changes)
        found = read_back(produce_gguf(source, tmp_path / "out.gguf", "F32"))
        weights = make.weights  # type: ignore[attr-defined]
        for part, heads in (("q", HEADS), ("k", KV_HEADS)):
            for suffix in ("weight", "bias"):
                values = weights.get(f"model.layers.0.self_attn.{part}_proj.{suffix}")
                if values is None:
                    continue
                if "Qwen" not in architecture:  # row 2i of a head was row i, row 2i + 1 was row i + half
                    order = [
                        head * HEAD_DIM + half * HEAD_DIM // 2 + i
                        for head in range(heads)
                        for i in range(HEAD_DIM // 2)
                        for half in (0, 1)
                    ]
                    values = values[order]
                assert found[f"blk.0.attn_{part}.{suffix}"][1] == values.tobytes()
        value = weights["model.layers.0.self_attn.v_proj.weight"]
        assert found["blk.0.attn_v.weight"][1] == value.tobytes()
        assert ("blk.0.attn_q_norm.weight" in found) == ("Qwen3" in architecture)
        assert ("blk.0.attn_v.bias" in found) == (architecture in ("LlamaForCausalLM", "Qwen2ForCausalLM"))


def test_tied_embeddings_make_the_logits(make: Make, tmp_path: Path) -> None:
    source = make(tie_word_embeddings=True)
    found = read_back(produce_gguf(source, tmp_path / "out.gguf", "Q4_0"))
    assert "output.weight" not in found
    assert found["token_embd.weight"][0] == "Q8_0"

    def copy_the_head(weights: Weights) -> None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]

    again = produce_gguf(make(tie_word_embeddings=True, change=copy_the_head), tmp_path / "again.gguf", "Q4_0")
    assert again.read_bytes() == (tmp_path / "out.gguf").read_bytes()


def test_columns_that_do_not_divide_stay_f16(make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def narrow(weights: Weights) -> None:
        name = "model.layers.0.mlp.{}_proj.weight"
        for part, shape in (("gate", (90, HIDDEN)), ("up", (90, HIDDEN)), ("down", (HIDDEN, 90))):
            weights[name.format(part)] = np.ones(shape, np.float32)

    source = make(intermediate_size=90, change=narrow)
    found = read_back(produce_gguf(source, tmp_path / "out.gguf", "Q8_0"))
    assert found["blk.0.ffn_down.weight"][0] == "F16"
    assert found["blk.0.ffn_up.weight"][0] == "Q8_0"
    assert "blk.0.ffn_down.weight stays F16: its 90 columns do not divide by 32" in caplog.text


def shard(source: Path, weight_map: dict[str, str] | None = None) -> dict[str, str]:
    """Cut model.safetensors into two files with an index."""
    from qlangchain.artifacts.headers import read_safetensors_header

    whole = source / "model.safetensors"
    header, content = read_safetensors_header(whole), whole.read_bytes()
    names = list(header.tensors)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in files.items():
        tensors = {
            name: np.frombuffer(content, "<f4", int(np.prod(t.shape)), t.offset).reshape(t.shape)
            for name, t in header.tensors.items()
            if name in part
        }
        write_safetensors(source / file, tensors)
    whole.unlink()
    found = {name: file for file, part in files.items() for name in part}
    (source / checkpoint.INDEX).write_text(json.dumps({"weight_map": found if weight_map is None else weight_map}))
    return found


def test_shards_give_the_same_bytes(make: Make, tmp_path: Path) -> None:
    source = make()
    whole = produce_gguf(source, tmp_path / "whole.gguf", "Q5_1").read_bytes()
    shard(source)
    assert produce_gguf(source, tmp_path / "shards.gguf", "Q5_1").read_bytes() == whole


HOSTILE = ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "a\\b.safetensors", "..\\x.safetensors",
           "C:x.safetensors", ".safetensors", "x.safetensors\0", "~x.safetensors", "x.bin", "", "x.safetensors\n",
           "..", "-rf.safetensors", "％2e.safetensors", 5, None]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_an_index_cannot_name_files_elsewhere(make: Make, tmp_path: Path, name: Any) -> None:
    source = make()
    shard(source, {"model.norm.weight": name})
    with pytest.raises(UnsafeWeightsError, match="no plain name"):
        produce_gguf(source, tmp_path / "out.gguf", "F16")


def test_incomplete_shards(make: Make, tmp_path: Path) -> None:
    source = make()
    found = shard(source)
    second = source / "model-00002-of-00002.safetensors"
    (source / checkpoint.INDEX).write_text(json.dumps({"weight_map": found | {"x": second.name}}))
    with pytest.raises(CorruptFileError, match=r"model-00002-of-00002.safetensors does not hold x"):
        produce_gguf(source, tmp_path / "out.gguf", "F16")
    second.unlink()
    with pytest.raises(CorruptFileError, match=r"1 of the 2 files .* are missing: model-00002-of-00002.safetensors"):
        produce_gguf(source, tmp_path / "out.gguf", "F16")
    (source / checkpoint.INDEX).unlink()
    shutil.copy(source / "model-00001-of-00002.safetensors", source / "other.safetensors")
    with pytest.raises(CorruptFileError, match=r"and no model\.safetensors\.index\.json"):
        produce_gguf(source, tmp_path / "out.gguf", "F16")


ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
REFUSALS: list[tuple[dict[str, Any], type[QlangchainError], str]] = [
    ({"quantization_config": {"quant_method": "gptq"}}, UnsupportedModelError, r"already quantized \(gptq\)"),
    ({"auto_map": {"AutoModel": "modeling.X"}}, UnsafeWeightsError, "auto_map"),
    ({"architectures": ["MixtralForCausalLM"], "num_local_experts": 8}, UnsupportedModelError, "mixture of 8 experts"),
    ({"architectures": ["GemmaForCausalLM"]}, UnsupportedModelError, "Known: LlamaForCausalLM"),
    ({"architectures": None, "model_type": "bert"}, UnsupportedModelError, "'bert' is not known"),
    ({"hidden_act": "gelu"}, UnsupportedModelError, "activation 'gelu'"),
    ({"partial_rotary_factor": 0.5}, UnsupportedModelError, "full rotary"),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, UnsupportedModelError, "'dynamic'"),
    ({"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": 16}}, UnsupportedModelError, "'yarn'"),
    ({"rope_scaling": {"type": "linear"}}, CorruptFileError, "linear has no factor"),
    ({"rope_scaling": {"type": "linear", "factor": -1}}, CorruptFileError, "factor = -1"),
    ({"hidden_size": None}, CorruptFileError, "hidden_size = None"),
    ({"hidden_size": True}, CorruptFileError, "hidden_size = True"),
    ({"num_hidden_layers": 2000}, CorruptFileError, "expected a whole number from 1 to 512"),
    ({"num_hidden_layers": 2}, CorruptFileError, "hold no model.layers.1.input_layernorm.weight"),
    ({"num_key_value_heads": 3}, CorruptFileError, "3 key-value heads"),
    ({"rms_norm_eps": 0}, CorruptFileError, "rms_norm_eps = 0"),
    ({"vocab_size": 290}, CorruptFileError, r"has the shape \[300, 64\]; config.json says \[290, 64\]"),
    ({"vocab_size": 100}, CorruptFileError, "config.json says vocab_size 100"),
    ({"attention_bias": True, "architectures": ["Qwen3ForCausalLM"]}, UnsupportedModelError, "no model.layers.0.self"),
    ({"rope_scaling": "linear"}, CorruptFileError, "not a table"),
    ({"rope_theta": 1e300}, CorruptFileError, "rope_theta"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "words"), REFUSALS)
def test_models_that_cannot_be_converted(
    make: Make, tmp_path: Path, changes: dict[str, Any], error: type[QlangchainError], words: str
) -> None:
    if changes.keys() & {"vocab_size", "num_key_value_heads", "hidden_size"}:  # the weights stay as they were
        source = make()
        config = {key: value for key, value in (CONFIG | changes).items() if value is not None}
        (source / "config.json").write_text(json.dumps(config))
    else:
        source = make(**changes)
    with pytest.raises(error, match=words) as caught:
        produce_gguf(source, tmp_path / "out.gguf", "F16")
    assert caught.value.hint
    assert not (tmp_path / "out.gguf").exists()


def test_directories_that_hold_no_model(make: Make, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    with pytest.raises(ModelNotFoundError):
        produce_gguf(tmp_path / "none", out, "F16")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(NoWeightsError):
        produce_gguf(empty, out, "F16")
    (empty / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(UnsafeWeightsError, match=r"pytorch_model\.bin"):
        produce_gguf(empty, out, "F16")
    (empty / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedModelError, match="LoRA"):
        produce_gguf(empty, out, "F16")
    source = make()
    with pytest.raises(InvalidInputError, match="is a file"):
        produce_gguf(source / "config.json", out, "F16")
    with pytest.raises(InvalidInputError, match="is a directory"):
        produce_gguf(source, empty, "F16")
    with pytest.raises(InvalidInputError, match=r"F32.*Q4_K_M"):
        produce_gguf(source, out, "Q9_9")
    for name, content in (("tokenizer.json", None), ("config.json", "{"), ("config.json", "[]")):
        source = make()
        (source / name).unlink()
        if content is not None:
            (source / name).write_text(content)
        with pytest.raises(CorruptFileError if content else ModelNotFoundError, match=name):
            produce_gguf(source, out, "F16")
    (source := make()).joinpath("model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(CorruptFileError, match="truncated"):
        produce_gguf(source, out, "F16")


def set_value(value: float) -> Callable[[Weights], None]:
    def change(weights: Weights) -> None:
        weights["model.layers.0.mlp.up_proj.weight"][5, 5] = value

    return change


def test_values_that_a_format_cannot_hold(make: Make, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    for value in (np.nan, np.inf):
        with pytest.raises(CorruptFileError, match="up_proj"):
            produce_gguf(make(change=set_value(value)), out, "Q8_0")
    with pytest.raises(ProductionError, match="65,504"):
        produce_gguf(make(change=set_value(1e6)), out, "F16")
    produce_gguf(make(change=set_value(1e6)), out, "BF16")


def test_unknown_tensors_and_types_are_not_dropped(make: Make, tmp_path: Path) -> None:
    def add(weights: Weights) -> None:
        weights["model.vision.weight"] = np.ones((2, 2), np.float32)

    with pytest.raises(UnsupportedModelError, match=r"no model\.vision\.weight"):
        produce_gguf(make(change=add), tmp_path / "out.gguf", "F16")

    def computed(weights: Weights) -> None:
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)

    produce_gguf(make(change=computed), tmp_path / "out.gguf", "F16")
    source = make()
    content = (source / "model.safetensors").read_bytes().replace(b'"F32"', b'"I32"')
    (source / "model.safetensors").write_bytes(content)
    with pytest.raises(UnsupportedModelError, match="is I32"):
        produce_gguf(source, tmp_path / "out.gguf", "F16")


def nothing_else(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A directory that holds an older file, which must survive every failure."""
    directory = tmp_path / "room"
    directory.mkdir()
    (directory / "out.gguf").write_bytes(b"older")
    return directory


FAULTS = [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "Input/output error"),
          KeyboardInterrupt(), MemoryError(), RuntimeError("a bug")]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize("place", ["write", "fsync", "verify", "replace", "progress"])
def test_a_failure_leaves_what_was_there(
    make: Make, room: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException, place: str
) -> None:
    source = make()
    calls = 0

    def fail(*_: Any, **__: Any) -> Any:
        nonlocal calls
        calls += 1
        if place in ("write", "progress") and calls < 5:  # in the middle
            return b""
        raise fault

    if place == "write":
        encode = gguf._encode
        monkeypatch.setattr(gguf, "_encode", lambda *args: fail() or encode(*args))
    elif place == "verify":
        monkeypatch.setattr(gguf, "verify_gguf", fail)
    elif place != "progress":
        monkeypatch.setattr(os, place, fail)
    expected = {errno.ENOSPC: DiskFullError, errno.EIO: ProductionError}.get(getattr(fault, "errno", None), type(fault))
    with pytest.raises(expected):
        produce_gguf(source, room / "out.gguf", "Q8_0", progress=fail if place == "progress" else None)
    monkeypatch.undo()
    assert nothing_else(room) == ["out.gguf"]
    assert (room / "out.gguf").read_bytes() == b"older"
    produce_gguf(source, room / "out.gguf", "Q8_0")
    check_servable(read_gguf_header(room / "out.gguf"))


def test_a_disk_without_room_is_seen_before_writing(make: Make, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    monkeypatch.setattr(gguf, "write_gguf", lambda *_: pytest.fail("it began to write"))
    with pytest.raises(DiskFullError, match="1 are free"):
        produce_gguf(source, room / "out.gguf", "Q8_0")
    assert (room / "out.gguf").read_bytes() == b"older"


CHILD = """
import os, resource, signal, sys
from pathlib import Path
from qlangchain.produce.gguf import produce_gguf
source, target, how = sys.argv[1:]
if how == "limit":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    produce_gguf(Path(source), Path(target), "F32",
                 progress=lambda done, _: done > 60_000 and os.kill(os.getpid(), signal.SIGKILL))
except Exception as error:
    print(type(error).__name__)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")
@pytest.mark.parametrize(("how", "answer"), [("limit", "DiskFullError"), ("kill", "")])
def test_a_real_end_in_the_middle(make: Make, room: Path, how: str, answer: str) -> None:
    source = make()
    path = os.pathsep.join(part for part in sys.path if part)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(source), str(room / "out.gguf"), how],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.stdout.strip() == answer, done.stderr
    assert (room / "out.gguf").read_bytes() == b"older"
    if how == "limit":
        assert nothing_else(room) == ["out.gguf"]


def test_progress_ends_at_the_file_s_size(make: Make, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    out = produce_gguf(make(), tmp_path / "new" / "out.gguf", "Q4_1", progress=lambda *both: seen.append(both))
    assert seen[-1] == (out.stat().st_size, out.stat().st_size)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def metadata_of(make: Make, tmp_path: Path, **changes: Any) -> Any:
    return read_gguf_header(produce_gguf(make(**changes), tmp_path / "out.gguf", "F16")).metadata


def test_rope_scaling(make: Make, tmp_path: Path) -> None:
    linear = metadata_of(make, tmp_path, rope_scaling={"type": "linear", "factor": 4.0})
    assert (linear["llama.rope.scaling.type"], linear["llama.rope.scaling.factor"]) == ("linear", 4.0)
    yarn = metadata_of(
        make, tmp_path, rope_theta=None,
        rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 5e5, "attention_factor": 2.0,
                         "original_max_position_embeddings": 32, "beta_fast": 32},
    )  # fmt: skip
    assert yarn["llama.rope.freq_base"] == 5e5
    assert yarn["llama.rope.scaling.original_context_length"] == 32
    assert yarn["llama.rope.scaling.attn_factor"] == pytest.approx(2.0 / (0.1 * np.log(4.0) + 1))
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}  # fmt: skip
    llama3 = metadata_of(make, tmp_path, rope_scaling=scaling)
    assert not any("scaling" in key for key in llama3)
    kind, raw = read_back(tmp_path / "out.gguf")["rope_freqs.weight"]
    factors = np.frombuffer(raw, np.float32)
    assert (kind, len(factors)) == ("F32", HEAD_DIM // 2)
    assert (factors[0], factors[-1]) == (1.0, 8.0)


def test_a_sliding_window_is_announced(make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metadata_of(make, tmp_path, architectures=["MistralForCausalLM"], sliding_window=64)
    assert "sliding window of 64 tokens" in caplog.text
    caplog.clear()
    metadata_of(make, tmp_path, sliding_window=64, use_sliding_window=False)
    assert not caplog.text


def test_a_head_size_of_its_own(make: Make, tmp_path: Path) -> None:
    metadata = metadata_of(make, tmp_path, architectures=["Qwen3ForCausalLM"], head_dim=32)
    assert metadata["qwen3.attention.key_length"] == metadata["qwen3.attention.value_length"] == 32


def test_the_vocabulary(make: Make, tmp_path: Path) -> None:
    metadata = metadata_of(make, tmp_path)
    tokens, types = metadata["tokenizer.ggml.tokens"].read(), metadata["tokenizer.ggml.token_type"].read()
    assert tokens[255:259] == ["ab", *MARKS]
    assert types[254:259] == [1, 1, 3, 3, 4]
    assert tokens[259:] == [f"[PAD{n}]" for n in range(259, VOCAB)]
    assert set(types[259:]) == {5}
    assert metadata["tokenizer.ggml.merges"].read() == ["a b"]
    assert metadata["tokenizer.ggml.eos_token_id"] == 257
    assert metadata["tokenizer.ggml.bos_token_id"] == 257  # none of its own: a token that ends a text
    assert metadata["tokenizer.ggml.add_bos_token"] is False
    assert "tokenizer.chat_template" not in metadata


def test_special_tokens_and_templates(make: Make, tmp_path: Path) -> None:
    source = make(tokenizer=TOKENIZER | {"post_processor": template("<|endoftext|>", "A")})
    (source / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": "<|im_end|>"}, "pad_token": "<|endoftext|>", "chat_template": "{{ 1 }}"})
    )
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, 258, 256]}))
    metadata = read_gguf_header(produce_gguf(source, tmp_path / "out.gguf", "F16")).metadata
    assert [metadata.get(f"tokenizer.ggml.{x}_token_id") for x in ("bos", "eos", "padding", "eot", "eom")] == [
        256, 257, 256, 258, None,
    ]  # fmt: skip
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert metadata["tokenizer.chat_template"] == "{{ 1 }}"
    (source / "chat_template.jinja").write_text("{{ 2 }}")
    (source / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False, "bos_token": "<|endoftext|>"}))
    metadata = read_gguf_header(produce_gguf(source, tmp_path / "out.gguf", "F16")).metadata
    assert metadata["tokenizer.chat_template"] == "{{ 2 }}"
    assert metadata["tokenizer.ggml.add_bos_token"] is False


def template(*names: str) -> dict[str, Any]:
    def piece(name: str) -> dict[str, Any]:
        return {"Sequence": {"id": "A", "type_id": 0}} if name == "A" else {"SpecialToken": {"id": name, "type_id": 0}}

    return {"type": "TemplateProcessing", "single": [piece(name) for name in names]}


def changed(**parts: Any) -> dict[str, Any]:
    model = TOKENIZER["model"] | parts.pop("model", {})
    return TOKENIZER | parts | {"model": model}


SPLIT = TOKENIZER["pre_tokenizer"]["pretokenizers"][0]
BYTES = TOKENIZER["pre_tokenizer"]["pretokenizers"][1]


@pytest.mark.parametrize(
    ("tokenizer", "error", "words"),
    [
        (changed(model={"type": "Unigram"}), UnsupportedModelError, "'Unigram'"),
        (changed(model={"dropout": 0.1}), UnsupportedModelError, "dropout"),
        (changed(model={"end_of_word_suffix": "</w>"}), UnsupportedModelError, "suffixes"),
        (changed(model={"ignore_merges": True}), UnsupportedModelError, "ignore_merges=True"),
        (changed(pre_tokenizer=None), UnsupportedModelError, "pre-tokenizer is not one"),
        (changed(pre_tokenizer={"type": "Sequence", "pretokenizers": [SPLIT]}), UnsupportedModelError, "pre-tokenizer"),
        (
            changed(pre_tokenizer={"type": "Sequence", "pretokenizers": [SPLIT | {"behavior": "Removed"}, BYTES]}),
            UnsupportedModelError, "Removed",
        ),
        (
            changed(pre_tokenizer={"type": "Sequence", "pretokenizers": [SPLIT | {"invert": True}, BYTES]}),
            UnsupportedModelError, "invert",
        ),
        (changed(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True}), UnsupportedModelError, "prefix"),
        (changed(normalizer={"type": "Lowercase"}), UnsupportedModelError, "Lowercase"),
        (changed(post_processor={"type": "BertProcessing"}), UnsupportedModelError, "post-processor"),
        (changed(post_processor=template("<|endoftext|>", "<|im_end|>", "A")), UnsupportedModelError, "post-processor"),
        (changed(post_processor=template("<missing>", "A")), UnsupportedModelError, "post-processor"),
        (changed(model={"merges": ["a"]}), CorruptFileError, "merge 'a'|merge a"),
        (changed(model={"merges": [["a b", "c"]]}), UnsupportedModelError, "blanks"),
        (changed(added_tokens=[{"content": "x"}]), CorruptFileError, "without content or id"),
        (changed(added_tokens=[{"content": "x", "id": 5}]), CorruptFileError, "two tokens at 5"),
        (changed(added_tokens=[{"content": "ab", "id": 299}]), CorruptFileError, "two ids"),
        (changed(added_tokens=[{"content": "x", "id": 300}]), CorruptFileError, "vocab_size 300"),
        (changed(model={"byte_fallback": True}), UnsupportedModelError, "0 of the 256"),
    ],
)  # fmt: skip
def test_tokenizers_that_are_not_guessed(
    make: Make, tokenizer: dict[str, Any], error: type[QlangchainError], words: str
) -> None:
    with pytest.raises(error, match=words):
        read_tokenizer(make(tokenizer=tokenizer), VOCAB)


JUNK: list[Any] = [None, True, -1, 0, 2**70, 1e308, "", "x", "\ud800", [], [[]], {}, {"type": "Sequence"}, [None] * 3]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_junk_anywhere_in_the_json_is_an_error_of_ours(make: Make, tmp_path: Path, data: st.DataObject) -> None:
    source = make(tokenizer=TOKENIZER | {"post_processor": template("<|endoftext|>", "A")}, rope_scaling=ROPE)
    (source / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "x"}, "chat_template": "y"}))
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, 258]}))
    names = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
    path = source / data.draw(st.sampled_from(names))
    whole: Any = [json.loads(path.read_text())]
    node, key = whole, 0
    while isinstance(node[key], dict | list) and node[key] and (node is whole or data.draw(st.booleans())):
        node = node[key]
        key = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else list(range(len(node)))))
    node[key] = data.draw(st.sampled_from(JUNK))
    path.write_text(json.dumps(whole[0]))
    try:
        produce_gguf(source, tmp_path / "out.gguf", "Q8_0")
    except QlangchainError as error:
        assert error.message and error.hint  # noqa: PT017 - both outcomes are right
    else:
        check_servable(read_gguf_header(tmp_path / "out.gguf"))


def test_pretokenizers_are_told_apart() -> None:
    assert recognise(TOKENIZER) == "qwen2"
    assert recognise(changed(normalizer={"type": "NFC"})) == "qwen2"
    llama3 = SPLIT | {"pattern": {"Regex": QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")}}
    pre = {"type": "Sequence", "pretokenizers": [llama3, BYTES]}
    assert recognise(changed(pre_tokenizer=pre, model={"ignore_merges": True})) == "llama-bpe"
    assert recognise(changed(pre_tokenizer=pre)) == "smaug-bpe"
    assert recognise(changed(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False})) == "gpt-2"


SPM_NORMALIZER = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}


def spm(merges: list[str], normalizer: Any = SPM_NORMALIZER, pre: Any = None, **more: Any) -> dict[str, Any]:
    pieces = ["<unk>", *(f"<0x{n:02X}>" for n in range(256)), *"abc▁", "ab", "abc", "bc"]
    model = {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "merges": merges, **more}
    return {
        "added_tokens": [{"id": 0, "content": "<unk>", "special": True}],
        "normalizer": normalizer,
        "pre_tokenizer": pre,
        "model": model | {"vocab": {piece: number for number, piece in enumerate(pieces)}},
    }


SORTED = ["a b", "b c", "a bc", "ab c"]


def test_merges_become_scores(make: Make, tmp_path: Path) -> None:
    header = read_gguf_header(produce_gguf(make(tokenizer=spm(SORTED)), tmp_path / "out.gguf", "F16"))
    check_servable(header)
    tokens = header.metadata["tokenizer.ggml.tokens"].read()
    scores = dict(zip(tokens, header.metadata["tokenizer.ggml.scores"], strict=True))
    assert scores["ab"] > scores["bc"] > scores["abc"] > scores["a"]
    types = dict(zip(tokens, header.metadata["tokenizer.ggml.token_type"], strict=True))
    assert (types["<unk>"], types["<0x41>"], types["a"], types["[PAD299]"]) == (2, 6, 1, 5)
    assert header.metadata["tokenizer.ggml.model"] == "llama"
    assert header.metadata["tokenizer.ggml.unknown_token_id"] == 0
    assert header.metadata["tokenizer.ggml.add_space_prefix"] is True


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [
        (spm(["a b", "a bc", "b c", "ab c"]), "not sorted"),
        (spm(["a b", "b c", "ab c"]), "does not merge 'a' and 'bc'"),
        (spm([*SORTED, "a c"]), "not sorted by the token that they make"),
        (spm(SORTED, ignore_merges=True), "ignores merges"),
        (spm(SORTED, normalizer=None), "no blank rule"),
        (
            spm(SORTED, None, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}),
            "no blank rule",
        ),
    ],
)
def test_vocabularies_that_llama_cpp_would_join_differently(make: Make, tokenizer: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        read_tokenizer(make(tokenizer=tokenizer), VOCAB)


def test_a_vocabulary_without_a_blank_before_the_text(make: Make, tmp_path: Path) -> None:
    for normalizer, pre in (
        (SPM_NORMALIZER["normalizers"][1], None),  # type: ignore[index]
        (None, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}),
    ):
        source = make(tokenizer=spm(SORTED, normalizer, pre))
        metadata = read_gguf_header(produce_gguf(source, tmp_path / "out.gguf", "F16")).metadata
        assert metadata["tokenizer.ggml.add_space_prefix"] is False


def test_a_padding_name_that_is_taken(make: Make, tmp_path: Path) -> None:
    added = [*TOKENIZER["added_tokens"], {"id": 259, "content": "[PAD260]", "special": False, "lstrip": True}]
    header = read_gguf_header(produce_gguf(make(tokenizer=TOKENIZER | {"added_tokens": added}), tmp_path / "o", "F16"))
    assert header.metadata["tokenizer.ggml.tokens"][259:262] == ["[PAD260]", "[[PAD260]]", "[PAD261]"]
    check_servable(header)


def test_k_quants_need_a_quantizer(make: Make, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kquants.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "")
    assert not kquants.available()
    with pytest.raises(MissingDependencyError) as caught:
        produce_gguf(make(), room / "out.gguf", "Q4_K_M")
    assert "pip install 'qlangchain[llama-cpp-python]'" in caught.value.hint
    assert nothing_else(room) == ["out.gguf"]


FAKE = {
    "copies": 'cp "$1" "$2"',
    "aborts": 'echo "GGML_ASSERT failed" >&2; kill -ABRT $$',
    "fails": "echo cannot; exit 1",
    "writes half": 'head -c 5000 "$1" > "$2"',
    "writes nothing": "exit 0",
    "is full": 'echo "No space left on device"; exit 1',
}


@pytest.mark.skipif(os.name != "posix", reason="the stand-ins are shell scripts")
@pytest.mark.parametrize(
    ("what", "error", "words"),
    [
        ("copies", ProductionError, "is not Q4_K_M"),
        ("aborts", ProductionError, "GGML_ASSERT failed"),
        ("fails", ProductionError, "ended with 1"),
        ("writes half", ProductionError, "is not right"),
        ("writes nothing", ProductionError, "ended with 0"),
        ("is full", DiskFullError, "is full"),
    ],
)
def test_a_quantizer_that_fails_leaves_nothing(
    make: Make, room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    what: str, error: type[QlangchainError], words: str,
) -> None:  # fmt: skip
    tool = tmp_path / "bin" / "llama-quantize"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\n{FAKE[what]}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(kquants.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(error, match=words):
        produce_gguf(make(), room / "out.gguf", "Q4_K_M")
    assert nothing_else(room) == ["out.gguf"]
    assert (room / "out.gguf").read_bytes() == b"older"
