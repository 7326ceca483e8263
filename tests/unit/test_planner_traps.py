"""The traps that planners of others fell into, each as a case, and a container on a large host.

Trap 6 (a model in several GGUF files) is in test_source.py and test_names.py, trap 7 (projectors, adapters and
matrices of importance taken for the model) in test_names.py and test_source.py.
"""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from shapes import CONFIGS, shape
from unit.inventing import AWQ, CPU_BOX, CPU_ENGINE, GIB, GPU_BOX, VLLM, produced

from qlangchain import hardware, pipeline
from qlangchain.artifacts.source import locate
from qlangchain.errors import DoesNotFitError
from qlangchain.selection.facts import ModelFacts, Offer
from qlangchain.selection.plan import Estimate, Plan
from qlangchain.selection.planner import make_plan
from qlangchain.selection.weights import file_bytes
from qlangchain.types import Method, Origin, Requirements, Target

ROOMY = replace(CPU_BOX, memory_total=1024 * GIB, memory_available=1000 * GIB)


def estimate(name: str, format: str = "Q4_K_M", **wanted: int) -> tuple[Plan, Estimate]:
    """The plan for one of the known shapes on a roomy machine."""
    plan = make_plan(Requirements(**wanted), ROOMY, ModelFacts(name, shape(name)), produced(format), CPU_ENGINE)
    assert plan.estimate
    return plan, plan.estimate


def config_of(name: str) -> dict[str, Any]:
    """The part of a config.json that describes the text model."""
    config = CONFIGS[name]
    return dict(config.get("text_config", config))


def quantized_directory(path: Path) -> int:
    """Write a GPTQ directory whose packed weights are int32, eight values in each; return its bytes."""
    path.mkdir()
    packed = {"qweight": {"dtype": "I32", "shape": [512, 1000], "data_offsets": [0, 2_048_000]}}
    header = json.dumps({"__metadata__": {"total": "512000"}, **packed}).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(2_048_000))
    config = {
        "model_type": "llama", "num_attention_heads": 8, "hidden_size": 512, "num_hidden_layers": 3,
        "intermediate_size": 1024, "vocab_size": 64, "max_position_embeddings": 1024,
        "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False},
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    return (path / "model.safetensors").stat().st_size


def test_1_the_size_of_packed_weights_is_that_of_their_file(tmp_path: Path) -> None:
    size = quantized_directory(tmp_path / "m")
    source = locate(tmp_path / "m")
    (offer,) = pipeline.offers(source)
    assert (offer.method, offer.format, offer.size_bytes) == (Method.GPTQ, "INT4", size)
    plan = make_plan(Requirements(hardware=Target.GPU), GPU_BOX, source.facts, [offer], VLLM)
    assert plan.estimate
    assert plan.estimate.parts["weights"] == size


@pytest.mark.parametrize("size", [3 * GIB, 5 * GIB, 9 * GIB])
def test_1_the_file_s_size_beats_the_rule_of_its_format(size: int) -> None:
    model = ModelFacts("m", shape("llama-3.1-8b"))
    for offer, engine, target in (
        (replace(AWQ, size_bytes=size), VLLM, Target.GPU),
        (Offer(Method.GGUF, "Q4_K_M", Origin.DOWNLOADED, size, fetch_bytes=size), CPU_ENGINE, Target.CPU),
    ):
        plan = make_plan(Requirements(hardware=target), replace(GPU_BOX, disk_free=None), model, [offer], engine)
        assert plan.estimate
        assert plan.estimate.parts["weights"] == size


def test_2_a_mixture_takes_memory_by_its_total_and_speed_by_its_active_parameters() -> None:
    (_, mixture), (_, dense) = estimate("qwen3-30b-a3b"), estimate("qwen2.5-32b")
    assert mixture.parts["weights"] == pytest.approx(dense.parts["weights"], rel=0.15)
    assert mixture.decode and dense.decode
    assert mixture.decode.expected > 5 * dense.decode.expected


@pytest.mark.parametrize("name", [name for name in sorted(CONFIGS) if shape(name).max_context > 100_000])
def test_3_the_default_context_is_not_the_longest(name: str) -> None:
    plan, _ = estimate(name, "Q4_0")
    assert plan.context_length == 8192
    assert any("the default, within the model's" in reason for reason in plan.reasons)


def test_4_layers_that_keep_a_state_take_no_cache() -> None:
    config = config_of("qwen3.5-4b")
    heads = 2 * config["num_key_value_heads"] * config["head_dim"] * 2  # keys and values in f16
    grows = [estimate("qwen3.5-4b", context_length=context, concurrency=1)[1].parts["kv"] for context in (4096, 8192)]
    assert grows[1] - grows[0] == 8 * heads * 4096  # 8 of its 32 layers attend


def test_4_the_kv_heads_of_each_layer_count() -> None:
    config = config_of("gemma-4-12b")
    whole = config["layer_types"].count("full_attention")
    row = 2 * config["num_global_key_value_heads"] * config["global_head_dim"] * 2
    grows = [estimate("gemma-4-12b", context_length=context, concurrency=1)[1].parts["kv"] for context in (8192, 16384)]
    assert grows[1] - grows[0] == whole * row * 8192


def test_4_a_head_that_predicts_further_tokens_is_not_loaded() -> None:
    model = shape("qwen3.5-4b")
    assert any(layer.prediction for layer in model.layers)
    _, figures = estimate("qwen3.5-4b", "Q8_0")
    assert figures.parts["weights"] < file_bytes(model, "Q8_0")


def test_5_experts_in_mxfp4_make_all_formats_about_as_large() -> None:
    sizes = {
        format: estimate("gpt-oss-20b", format)[1].parts["weights"] for format in ("Q2_K", "Q4_K_M", "Q8_0", "MXFP4")
    }
    assert max(sizes.values()) < 1.1 * min(sizes.values())


# A container.

_LIMITED = {
    "proc/meminfo": "MemTotal: 263192576 kB\nMemFree: 131072000 kB\nMemAvailable: 209715200 kB\n",
    "proc/self/cgroup": "0::/a/b\n",
    "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
    "sys/fs/cgroup/a/b/memory.max": f"{2 * GIB}\n",
    "sys/fs/cgroup/a/b/memory.current": f"{GIB // 8}\n",
    "sys/fs/cgroup/a/b/memory.stat": "anon 7\ninactive_file 0\nactive_file 9\n",
}


def test_a_container_of_2_gib_on_a_host_of_251(tmp_path: Path) -> None:
    for name, text in _LIMITED.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    inside = hardware.detect(root=tmp_path, environ={})
    inside = replace(inside, gpus=())  # whatever this machine has: the drivers are asked, not the copied files
    assert inside.memory_total == 2 * GIB
    plans = {
        name: make_plan(Requirements(), inside, ModelFacts(name, shape(name)), produced("Q4_0", "Q8_0"), CPU_ENGINE)
        for name in ("qwen2.5-0.5b", "llama-3.2-1b")
    }
    for plan in plans.values():
        assert plan.estimate
        assert plan.estimate.memory + plan.estimate.margin <= 2 * GIB - GIB // 8
    assert plans["llama-3.2-1b"].slots < 8
    with pytest.raises(DoesNotFitError, match=r"1\.9 GiB are free") as caught:
        make_plan(Requirements(), inside, ModelFacts("m", shape("llama-3.1-8b")), produced("Q4_0"), CPU_ENGINE)
    assert caught.value.missing_bytes > 2 * GIB
