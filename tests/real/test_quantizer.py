"""Making and judging real models: the demo model through every method, kills in the middle, importance matrices."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from real.models import byte_level_tokenizer, compare_logprobs, engine, gemma_tokenizer, save_model, spm_tokenizer

from qlangchain import ModelQuantizer, quantize
from qlangchain.artifacts.headers import read_gguf_header
from qlangchain.artifacts.source import DEMO_DIRECTORY
from qlangchain.errors import InvalidInputError, ProductionError
from qlangchain.produce import gguf_check, imatrix, kquants
from qlangchain.produce.gguf import produce_gguf
from qlangchain.quantizer.examine import examine
from qlangchain.toolchains import worker
from qlangchain.toolchains.worker import Progress

pytest.importorskip("torch")
pytest.importorskip("transformers")
LLAMA_CPP = pytest.mark.skipif(not importlib.util.find_spec("llama_cpp"), reason="needs llama-cpp-python")
QUICK: dict[str, Any] = {"samples": 8, "sequence_length": 128}


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_gptq_goes_on_after_kill_9(tmp_path: Path) -> None:
    seen: list[int] = []

    def kill(progress: Progress) -> None:
        if progress.stage == "quantize" and progress.done >= 6:
            for child in psutil.Process().children():
                os.kill(child.pid, signal.SIGKILL)

    def note(progress: Progress) -> None:
        if progress.stage == "quantize":
            seen.append(progress.done)

    source, out = tmp_path / "m", tmp_path / "out"
    save_model(source, "llama", byte_level_tokenizer(), dtype="bfloat16")
    with pytest.raises(ProductionError, match="was killed"):
        quantize(source, "gptq", out, progress=kill, **QUICK)
    assert [path.name for path in out.iterdir()] == [".gptq-4bit.quantizing"]
    made = quantize(source, "gptq", out, progress=note, **QUICK)
    assert seen[0] > 4  # the first of three blocks, of four steps each, was finished
    assert [path.name for path in out.iterdir()] == ["gptq-4bit"]
    assert made.kl is not None and made.error is not None and made.error < 0.25
    found = examine(made.path)
    assert (found.method, found.format, found.is_sound) == ("GPTQ", "INT4", True)
    assert 4 < found.bits_per_weight < 8
    assert found.kernels["llamacpp"] and not found.kernels["transformers"]
    with pytest.raises(InvalidInputError, match="already"):
        quantize(source, "gptq", out, **QUICK)


def test_a_result_is_replaced_only_by_a_better_one(tmp_path: Path) -> None:
    """Where the new production fails, the old one stays."""
    old = tmp_path / "out" / "gptq-8bit"
    old.mkdir(parents=True)
    (old / "config.json").write_text("{}")
    save_model(tmp_path / "m", "qwen3", byte_level_tokenizer(), dtype="bfloat16", head_dim=64, num_hidden_layers=1)
    quantizer = ModelQuantizer(tmp_path / "m", tmp_path / "out", overwrite=True)
    with pytest.raises(InvalidInputError, match="group size"):
        quantizer.quantize_int8(group_size=100, **QUICK)
    assert (old / "config.json").read_text() == "{}"
    made = quantizer.quantize_int8(**QUICK)
    assert made == old and json.loads((old / "config.json").read_text())["quantization_config"]["bits"] == 8
    assert [path.name for path in old.parent.iterdir()] == ["gptq-8bit"]


def test_importance_is_the_mean_square_of_what_reaches_a_layer(tmp_path: Path) -> None:
    import torch

    from qlangchain.produce import calibration

    model = save_model(tmp_path / "m", "phi3", spm_tokenizer(), original_max_position_embeddings=512)
    found = imatrix.collect(tmp_path / "m", samples=3, sequence_length=64, work=tmp_path / "work")
    assert not list((tmp_path / "work").iterdir())
    tokenizer = calibration.load_tokenizer(tmp_path / "m")
    tokens = calibration.samples_of(tokenizer, calibration.default_texts(), 3, 64)
    expected: dict[str, Any] = {}
    names = {"self_attn.qkv_proj": "attn_qkv", "self_attn.o_proj": "attn_output", "mlp.gate_up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down"}  # fmt: skip
    for index, layer in enumerate(model.model.layers):
        for theirs, ours in names.items():
            key = f"blk.{index}.{ours}.weight"
            layer.get_submodule(theirs).register_forward_pre_hook(
                lambda _, inputs, key=key: expected.__setitem__(key, inputs[0].reshape(-1, inputs[0].shape[-1]))
            )
    with torch.no_grad():
        model(tokens)
    assert found.values.keys() == expected.keys() and found.tokens == 192
    for key, inputs in expected.items():
        np.testing.assert_allclose(found.values[key], (inputs**2).mean(0).numpy(), rtol=1e-3, atol=1e-6)


@LLAMA_CPP
@pytest.mark.parametrize("format", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_plain_types_are_what_llama_cpp_s_quantizer_writes(format: str, tmp_path: Path) -> None:
    """Bit for bit where both write the same type; what makes the logits is Q6_K there and Q8_0 here."""
    whole = produce_gguf(DEMO_DIRECTORY, tmp_path / "whole.gguf", "BF16")
    theirs = tmp_path / "theirs.gguf"
    arguments = {"source": str(whole), "target": str(theirs), "file_type": kquants.NUMBERS[format], "threads": 1}
    worker.run(
        "qlangchain.produce.llama_quantize:quantize", arguments, environment={"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    ours = produce_gguf(DEMO_DIRECTORY, tmp_path / "ours.gguf", format)
    mine, other = ({tensor.name: tensor for tensor in read_gguf_header(path).tensors} for path in (ours, theirs))
    assert mine.keys() == other.keys()
    same = [name for name in mine if mine[name].type == other[name].type]
    assert set(mine) - set(same) <= {"output.weight", "token_embd.weight"} and len(same) > 50
    for name in same:
        one, two = (
            np.fromfile(path, np.uint8, tensor.nbytes, offset=tensor.offset)
            for path, tensor in ((ours, mine[name]), (theirs, other[name]))
        )
        np.testing.assert_array_equal(one, two, err_msg=name)
    nats = [gguf_check.divergence(path, DEMO_DIRECTORY).nats for path in (ours, theirs)]
    assert nats[0] <= 1.02 * nats[1] + 1e-6


@LLAMA_CPP
def test_an_importance_matrix_makes_three_bits_better(tmp_path: Path) -> None:
    matrix = tmp_path / "m.gguf"
    imatrix.write(imatrix.collect(DEMO_DIRECTORY), matrix)
    plain = produce_gguf(DEMO_DIRECTORY, tmp_path / "plain.gguf", "Q3_K_S")
    weighted = produce_gguf(DEMO_DIRECTORY, tmp_path / "weighted.gguf", "Q3_K_S", imatrix=matrix)
    before, after = (gguf_check.divergence(path, DEMO_DIRECTORY).nats for path in (plain, weighted))
    assert after < 0.97 * before


@LLAMA_CPP
@pytest.mark.parametrize("format", ["IQ2_XXS", "IQ3_XXS", "IQ1_M", "Q4_0"])
def test_types_with_an_importance_matrix_are_served(format: str, tmp_path: Path) -> None:
    quick = {"head_dim": 64, "query_pre_attn_scalar": 64, "tie_word_embeddings": True, "num_hidden_layers": 3}
    model = save_model(tmp_path / "m", "gemma3", gemma_tokenizer(), dtype="bfloat16", sliding_window=33, **quick)
    matrix = tmp_path / "m.imatrix.gguf"
    imatrix.write(imatrix.collect(tmp_path / "m", samples=4, sequence_length=64), matrix)
    made = quantize(tmp_path / "m", "gguf", tmp_path, format=format, imatrix=matrix, divergence=False)
    header = read_gguf_header(made.path)
    assert header.metadata["general.file_type"] == kquants.NUMBERS[format]
    with engine(made.path) as running:
        worst, _ = compare_logprobs(model, running)
    assert worst < 30  # random weights in two bits are far off; they load and compute


@LLAMA_CPP
def test_tensors_that_get_larger_types_are_announced(tmp_path: Path) -> None:
    save_model(tmp_path / "m", "llama", gemma_tokenizer(), hidden_size=192, intermediate_size=384, num_hidden_layers=1)
    with pytest.warns(UserWarning, match=r"do not divide by 256"):
        made = quantize(tmp_path / "m", "gguf", tmp_path, format="Q4_K_M", divergence=False)
    assert made.bits_per_weight is not None and made.bits_per_weight > 5
    assert "192, 384" in made.notices[-1]


@LLAMA_CPP
def test_a_matrix_is_kept_for_the_run_after_a_kill(tmp_path: Path) -> None:
    stages: list[str] = []

    def kill(progress: Progress) -> None:
        if progress.stage == "write":
            for child in psutil.Process().children():
                os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(ProductionError, match="was killed"):
        quantize("demo", "gguf", tmp_path, format="IQ2_XS", imatrix=True, progress=kill, **QUICK)
    assert not list(tmp_path.glob("*.gguf"))
    made = quantize(
        "demo", "gguf", tmp_path, format="IQ2_XS", imatrix=True, progress=lambda p: stages.append(p.stage), **QUICK
    )
    assert "imatrix" not in stages
    assert made.path.is_file() and not list(tmp_path.glob(".qlangchain-demo-IQ2_XS*"))


def test_the_divergence_of_a_file_is_that_of_its_weights(tmp_path: Path) -> None:
    """F32 holds the source to the bit, and the order of rows and the norms are undone, so nothing diverges."""
    for kind, tokenizer, changes in (
        ("llama", spm_tokenizer(), {"num_key_value_heads": 4}),
        ("gemma2", gemma_tokenizer(), {"head_dim": 64, "query_pre_attn_scalar": 64, "tie_word_embeddings": True}),
    ):
        save_model(tmp_path / kind, kind, tokenizer, **changes)
        made = quantize(tmp_path / kind, "gguf", tmp_path, format="F32")
        found = gguf_check.divergence(made.path, tmp_path / kind)
        assert abs(found.nats) < 1e-5 and found.same_first == 1.0
