"""The advice that follows from figures: what it is given for, in which order, and with which gain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlangchain.artifacts.source import DEMO_DIRECTORY, read_config
from qlangchain.evaluate.advice import Findings, Symptom, accuracy, advise, memory, speed
from qlangchain.selection.architecture import from_config
from qlangchain.selection.weights import file_bytes
from qlangchain.types import Method

LLAMA = from_config(
    {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "max_position_embeddings": 131072, "tie_word_embeddings": False,
    }
)  # fmt: skip


def findings(format: str = "Q4_0", method: Method = Method.GGUF, **changes: Any) -> Findings:
    weights = file_bytes(LLAMA, format) if method is Method.GGUF else 5_700_000_000
    plain = Findings(format, method, LLAMA, 8.03e9, weights=weights, threads=8, cores=8)
    return replace(plain, **changes)


def test_nothing_is_advised_where_nothing_is_wrong() -> None:
    fine = findings("Q8_0", kl=0.001, speed=10.0, predicted=10.0, whole_speed=6.0)
    assert accuracy(fine) == speed(fine) == ()
    small = findings("Q4_K_M", kl=0.005, speed=20.0, predicted=20.0, whole_speed=6.0)
    assert advise(small) == ()


ACCURACY = [
    # format, method, changes, words that the remedies hold, in order
    ("Q4_K_M", Method.GGUF, {"kl": 0.2}, ["importance matrix", "Q5_", "Q8_0"]),
    ("Q4_K_M", Method.GGUF, {"kl": 0.2, "imatrix": True}, ["Q5_", "Q8_0"]),
    ("Q4_0", Method.GGUF, {"kl": 0.2}, ["Q4_K_S", "Q8_0"]),
    ("GPTQ-INT4", Method.GPTQ, {"kl": 0.2}, ["more text", "groups of 32", "AWQ-INT4", "GPTQ-INT8"]),
    ("GPTQ-INT4", Method.GPTQ, {"kl": 0.2, "group_size": 32}, ["more text", "AWQ-INT4", "GPTQ-INT8"]),
    ("GPTQ-INT4", Method.GPTQ, {"kl": 0.2, "group_size": -1}, ["more text", "groups of 32", "AWQ-INT4", "GPTQ-INT8"]),
    ("AWQ-INT4", Method.AWQ, {"kl": 0.2}, ["more text", "groups of 32", "GPTQ-INT4", "GPTQ-INT8"]),
]


@pytest.mark.parametrize(("format", "method", "changes", "words"), ACCURACY)
def test_remedies_for_accuracy_come_in_order(
    format: str, method: Method, changes: dict[str, Any], words: list[str]
) -> None:
    given_advice = accuracy(findings(format, method, **changes))
    assert len(given_advice) == len(words)
    for one, word in zip(given_advice, words, strict=True):
        assert one.symptom is Symptom.ACCURACY
        assert word in one.remedy
        assert "0.2000 nats" in one.why
        assert one.gain


def test_a_gain_within_one_published_table_is_a_figure() -> None:
    last = accuracy(findings("Q4_K_M", kl=0.3))[-1]
    # llama.cpp's Llama-3-8B: 0.001355 for Q8_0, 0.031273 for Q4_K_M.
    assert f"{0.3 * 0.001355 / 0.031273:.4f}" in last.gain
    assert "larger" in last.gain
    published = accuracy(findings("Q4_0"))
    assert published and "not measured" in published[0].why


SPEED = [
    ({"is_quantized": False, "format": "F16", "weights": file_bytes(LLAMA, "F16")}, "Quantize it"),
    ({"threads": 2}, "8 threads"),
    ({"threads": 16}, "8 threads at most"),
    ({"has_gpu": True}, "hybrid"),
    ({"speed": 5.0, "predicted": 20.0}, "what else uses"),
    ({"speed": 10.0, "predicted": 11.0, "whole_speed": 10.0}, "Q4_0 or Q4_K_M"),
    ({"kernel_problem": "vLLM refuses it"}, "another engine"),
    ({"format": "GPTQ-INT8", "method": Method.GPTQ, "runtime": "transformers"}, "Q8_0 on llama.cpp"),
    (
        {"format": "AWQ-INT4", "method": Method.AWQ, "runtime": "transformers", "device": "gpu", "gpu_layers": -1},
        "vLLM",
    ),
]


@pytest.mark.parametrize(("changes", "words"), SPEED)
def test_each_reason_for_slowness_has_its_remedy(changes: dict[str, Any], words: str) -> None:
    found = speed(replace(findings(), **changes))
    assert len(found) == 1
    assert words in found[0].remedy
    assert found[0].symptom is Symptom.SPEED


def test_a_large_cache_comes_before_smaller_weights() -> None:
    found = memory(findings("Q8_0", context=32768, slots=4))
    assert [one.remedy.split()[0] for one in found] == ["Serve", "Halve", "Keep", "Take"]
    assert "context_length=16384" in found[1].remedy
    assert "8.0 GiB less" in found[1].gain  # 16 GiB of f16 cache: 2 * 32 layers * 1024 * 2 bytes * 131,072 tokens
    assert all("less" in one.gain for one in found)
    assert [one.remedy for one in memory(findings("Q8_0"))] == ["Take Q4_K_M."]
    assert memory(findings("Q4_0")) == ()


def test_the_demo_model_is_advised_as_well() -> None:
    config = read_config(DEMO_DIRECTORY)
    model = from_config(config)
    found = Findings("BF16", Method.GGUF, model, 5.8e6, is_quantized=False, weights=11_500_000)
    assert {one.symptom for one in advise(found)} == {Symptom.SPEED, Symptom.MEMORY}


FORMATS = ["Q2_K", "Q4_0", "Q4_K_M", "Q5_1", "Q6_K", "Q8_0", "IQ4_XS", "IQ3_M", "GPTQ-INT4", "GPTQ-INT8", "AWQ-INT4"]


@given(
    st.sampled_from(FORMATS),
    st.floats(0, 5) | st.none(),
    st.sampled_from([1e8, 5e8, 3e9, 8e9, 7e10]),
    st.integers(1, 64),
    st.integers(1, 64),
    st.floats(0.1, 1000) | st.none(),
    st.floats(0.1, 1000) | st.none(),
    st.integers(256, 131072),
    st.sampled_from(["f16", "q8_0"]),
)
def test_any_figures_give_whole_advice(
    format: str, kl: float | None, size: float, threads: int, cores: int, speed: float | None, whole: float | None,
    context: int, kind: str,
) -> None:  # fmt: skip
    method = Method.GPTQ if format.startswith("GPTQ") else Method.AWQ if format.startswith("AWQ") else Method.GGUF
    found = Findings(
        format, method, LLAMA, size, kl=kl, threads=threads, cores=cores, speed=speed, predicted=whole,
        whole_speed=whole, weights=5_000_000_000, context=context, kv_type=kind,
    )  # fmt: skip
    given_advice = advise(found)
    assert all(one.remedy.endswith((".", ")")) and one.why and one.gain for one in given_advice)
    assert [one.symptom for one in given_advice] == sorted(
        (one.symptom for one in given_advice), key=list(Symptom).index
    )
    assert len({one.remedy for one in given_advice}) == len(given_advice)
