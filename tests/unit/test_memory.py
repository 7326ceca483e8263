"""What a model takes in memory: llama.cpp's own figures, frozen, and properties that hold for every model."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import CONFIGS, DATA, shape

from qlangchain.errors import InvalidInputError
from qlangchain.selection.architecture import Attention, from_config
from qlangchain.selection.budgets import transformers, vllm
from qlangchain.selection.checkpoints import Checkpoint, Layout, checkpoint
from qlangchain.selection.kv_cache import KV_TYPES, Load, bytes_per_token, kv_bytes
from qlangchain.selection.memory import (
    CUDA_CONTEXT,
    GPU_MARGIN,
    Memory,
    compute_bytes,
    kv_bytes_per_token,
    need,
    output_bytes,
    slots_that_fit,
    split,
)
from qlangchain.selection.weights import predicted

MIB, GIB = 1 << 20, 1 << 30
FROZEN = json.loads((DATA / "llama_memory.json").read_text(encoding="utf-8"))
NAMES = st.sampled_from(sorted(json.loads((DATA / "models.json").read_text(encoding="utf-8"))))


@pytest.mark.parametrize("row", FROZEN, ids=lambda row: f"{row['model']}-{row['format']}-{row['load']['context']}")
def test_llama_cpp_says_the_same(row: dict[str, Any]) -> None:
    """Weights and cache to the byte (the weights of Gemma 4 but for padding), the whole within 64 MiB or 1 %."""
    model = shape(row["model"])
    memory = need(model, predicted(model, row["format"]), Load(**row["load"], mmap=False))
    assert memory.kv == row["kv"]
    assert memory.weights == pytest.approx(row["weights"], abs=4096)
    assert abs(memory.engine - row["total"]) <= max(64 * MIB, row["total"] // 100)


def test_the_frozen_figures_cover_enough() -> None:
    assert len(FROZEN) >= 30
    assert len({row["model"] for row in FROZEN}) >= 20
    assert len({row["format"] for row in FROZEN}) >= 6
    assert len({(row["load"]["kv_key"], row["load"]["kv_value"]) for row in FROZEN}) >= 3
    assert any(row["load"]["unified"] for row in FROZEN)


@pytest.mark.parametrize(
    ("name", "context", "mib"),
    [
        ("llama-3.1-8b", 8192, 1024),
        ("llama-3.1-8b", 131072, 16384),
        ("llama-2-7b", 4096, 2048),
        ("gemma-3-4b", 131072, 2734),
        ("deepseek-v3", 65536, 4392),
    ],
)
def test_the_cache_of_well_known_models(name: str, context: int, mib: int) -> None:
    assert kv_bytes(shape(name), Load(context=context)) == mib * MIB


@pytest.mark.parametrize(
    ("name", "slots", "ubatch", "mib"),
    [
        ("qwen3.5-9b", 1, 512, 128), ("qwen3.5-9b", 64, 512, 342), ("qwen3-next-80b-a3b", 16, 256, 96),
        ("qwen3-next-80b-a3b", 64, 512, 329), ("granite-4.0-h-small", 16, 512, 257),
        ("granite-4.0-h-small", 64, 512, 643), ("lfm2-1.2b", 64, 512, 69), ("lfm2-1.2b", 3, 2048, 206),
    ],
)  # fmt: skip
def test_the_states_of_many_requests_are_held_twice_while_they_are_computed(
    name: str, slots: int, ubatch: int, mib: int
) -> None:
    """The graph's buffer as xllamacpp 2026.10 reports it (`no_alloc`) for 512 tokens of context to a request."""
    load = Load(context=512, slots=slots, ubatch=ubatch)
    assert compute_bytes(shape(name), load) / MIB == pytest.approx(mib, rel=0.05, abs=45)


@pytest.mark.parametrize(
    ("name", "context", "slots", "ubatch", "mib"),
    [("llama-3.1-8b", 300, 1, 512, 73), ("llama-3.1-8b", 777, 1, 1024, 190), ("gemma-3-4b", 300, 1, 512, 50)],
)
def test_no_more_tokens_are_computed_at_once_than_a_context_has(
    name: str, context: int, slots: int, ubatch: int, mib: int
) -> None:
    """As xllamacpp 2026.10 reports it: the cache is padded to 256 tokens, the batch is not."""
    load = Load(context=context, slots=slots, ubatch=ubatch)
    assert compute_bytes(shape(name), load) / MIB == pytest.approx(mib, rel=0.08)


def test_a_quantized_cache_is_smaller_by_its_blocks() -> None:
    model = shape("llama-3.1-8b")
    sizes = {kind: kv_bytes(model, Load(context=8192, kv_key=kind, kv_value=kind)) / GIB for kind in KV_TYPES}
    assert sizes["Q8_0"] == 8.5 / 16
    assert sizes["Q4_0"] == sizes["IQ4_NL"] == 4.5 / 16
    assert sizes["F32"] == 2


def test_kv_heads_of_each_layer_count() -> None:
    """Peer bug 4: Gemma 4's layers differ in heads and widths."""
    model = shape("gemma-4-12b")
    whole = [layer for layer in model.layers if layer.attention is Attention.FULL]
    assert {(layer.kv_heads, layer.key_width) for layer in model.layers} == {(8, 256), (1, 512)}
    assert bytes_per_token(model) == len(whole) * 2 * 512 * 2


def test_layers_that_do_not_attend_keep_no_cache() -> None:
    """Peer bug 4: a quarter of the layers of Qwen 3.5 attend; the rest keeps a state that does not grow."""
    model = shape("qwen3.5-4b")
    assert bytes_per_token(model) == 32768
    short, long = kv_bytes(model, Load(context=256)), kv_bytes(model, Load(context=512))
    assert long - short == 256 * 32768
    states = short - 256 * 32768
    assert states == 24 * 4 * (3 * (4096 + 2 * 16 * 128) + 128 * 4096)


def test_layers_that_read_an_earlier_cache_keep_none() -> None:
    model = shape("gemma-4-e2b")
    assert sum(layer.caches for layer in model.layers) == 15


def test_the_default_context_is_the_callers_not_the_models() -> None:
    """Peer bug 3: nothing here takes 262,144 tokens because the model could."""
    model = shape("qwen3.5-4b")
    assert model.max_context == 262144
    assert kv_bytes(model, Load(context=8192)) < kv_bytes(model, Load(context=model.max_context)) / 20


def test_parts_add_up() -> None:
    model = shape("llama-3.1-8b")
    memory = need(model, predicted(model, "Q4_K_M"), Load(context=8192))
    assert memory.engine == memory.weights + memory.kv + memory.compute + memory.output
    assert memory.total == memory.engine + memory.overhead + memory.margin
    assert memory.cached > 2.5 * GIB  # Q4_K is copied into another order; the file's pages can be dropped
    assert need(model, predicted(model, "Q4_K_M"), Load(context=8192, mmap=False)).cached == 0
    assert need(model, predicted(model, "Q4_K_M"), Load(context=8192), margin=0).margin == 0


def test_fitting_has_three_answers() -> None:
    memory = Memory(weights=100, margin=10)
    assert [memory.fits(size) for size in (110, 105, 99)] == ["fits", "tight", "does not fit"]


def test_an_engine_for_embeddings_computes_a_text_at_once() -> None:
    """Figures of xllamacpp 2026.10 for the demo model's shape: all tokens give logits, which are most of it."""
    config = {
        "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 768, "vocab_size": 4096,
        "max_position_embeddings": 2048, "tie_word_embeddings": True,
    }  # fmt: skip
    model = from_config(config)
    for context, slots, mib in ((2048, 1, 50.08), (1024, 1, 23.04), (2048, 4, 60.11)):
        load = Load.embedding(context, slots)
        # Not below; above where llama.cpp lays the logits where a mask was, which a longer context may undo.
        assert 0.99 * mib <= compute_bytes(model, load) / MIB <= 1.25 * mib, (context, slots)
    assert compute_bytes(model, Load(context=2048, slots=4)) / MIB == pytest.approx(9.02, rel=0.15)
    assert output_bytes(model, Load(context=2048, slots=4)) == 4 * 4 * 4096


@settings(max_examples=80)
@given(
    name=NAMES,
    context=st.integers(1, 1 << 18),
    more=st.integers(1, 1 << 16),
    slots=st.integers(1, 16),
    unified=st.booleans(),
    kinds=st.tuples(st.sampled_from(KV_TYPES), st.sampled_from(KV_TYPES)),
)
def test_more_never_takes_less(
    name: str, context: int, more: int, slots: int, unified: bool, kinds: tuple[str, str]
) -> None:
    model = shape(name)
    weights = predicted(model, "Q4_K_M")
    load = Load(context=context, slots=slots, unified=unified, kv_key=kinds[0], kv_value=kinds[1])
    here = need(model, weights, load)
    for changed in ({"context": context + more}, {"slots": slots + 1}, {"kv_key": "F32", "kv_value": "F32"}):
        there = need(model, weights, replace(load, **changed))
        assert there.kv >= here.kv, changed
        assert there.total >= here.total, changed
    assert here.kv > 0
    assert min(here.weights, here.compute, here.output, here.overhead, here.margin) > 0


@settings(max_examples=40)
@given(name=NAMES, free=st.integers(0, 100 * GIB), more=st.integers(0, 50 * GIB), context=st.integers(256, 65536))
def test_a_split_never_exceeds_the_gpu_and_more_memory_never_holds_less(
    name: str, free: int, more: int, context: int
) -> None:
    model = shape(name)
    weights, load = predicted(model, "Q4_K_M"), Load(context=context)
    here, there = split(model, weights, load, free), split(model, weights, load, free + more)
    assert here.gpu.total <= free or here.gpu_layers == 0
    assert there.gpu.weights >= here.gpu.weights
    assert here.gpu.kv + here.cpu.kv == kv_bytes(model, load)
    # A tied output lies on both sides: rows are looked up on the CPU, the product is made on the GPU.
    twice = weights.embedding if model.tied and here.gpu_layers else 0
    assert here.gpu.weights + here.cpu.weights == weights.loaded + twice


def test_experts_go_to_the_cpu_first() -> None:
    model = shape("qwen3-30b-a3b")
    weights, load = predicted(model, "Q4_K_M"), Load(context=8192)
    mixed = split(model, weights, load, 12 * GIB)
    assert mixed.gpu_layers == len(model.layers) + 1
    assert 0 < mixed.cpu_experts < len(model.layers)
    assert mixed.gpu.kv == kv_bytes(model, load)
    layers = split(model, weights, load, 12 * GIB, experts_first=False)
    assert layers.cpu_experts == 0
    assert 0 < layers.gpu_layers < len(model.layers)


def test_a_number_of_layers_that_is_asked_for_is_kept() -> None:
    model = shape("llama-3.1-8b")
    weights, load = predicted(model, "Q4_K_M"), Load(context=8192)
    assert split(model, weights, load, 0, gpu_layers=10).gpu_layers == 10
    every = split(model, weights, load, 0, gpu_layers=-1)
    assert every.gpu_layers == 33
    assert every.gpu_share > 0.9
    nothing = split(model, weights, load, 80 * GIB, gpu_layers=0)
    assert nothing.gpu == Memory()
    assert nothing.cpu.engine == need(model, weights, load).engine


def test_a_gpu_that_holds_nothing_is_left_alone() -> None:
    model = shape("llama-3.1-8b")
    tiny = split(model, predicted(model, "Q4_K_M"), Load(context=8192), CUDA_CONTEXT + GPU_MARGIN)
    assert (tiny.gpu_layers, tiny.gpu.total, tiny.gpu_share) == (0, 0, 0.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"context": 0}, {"context": -1}, {"slots": 0}, {"slots": 257}, {"ubatch": 0}, {"context": True},
        {"context": 2.5}, {"kv_key": "Q4_K"}, {"kv_value": "int4"}, {"context": 1 << 40},
    ],
)  # fmt: skip
def test_a_load_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        Load(**({"context": 512} | wrong))


def test_absurd_sizes_are_refused() -> None:
    model = shape("llama-3.2-1b")
    weights, load = predicted(model, "Q4_0"), Load(context=512)
    for call in (
        lambda: split(model, weights, load, -1),
        lambda: split(model, weights, load, GIB, gpu_layers=-2),
        lambda: need(model, weights, load, margin=-1),
        lambda: vllm(model, weights, GIB, context=0),
        lambda: vllm(model, weights, GIB, context=512, utilization=1.5),
        lambda: transformers(model, weights, context=0),
    ):
        with pytest.raises(InvalidInputError, match="cannot be"):
            call()


def test_vllm_takes_what_it_is_allowed() -> None:
    model = shape("llama-3.1-8b")
    weights = checkpoint(model, Checkpoint(layout=Layout.AWQ))
    budget = vllm(model, weights, 24 * GIB, context=8192)
    assert budget.requested == int(24 * GIB * 0.92)
    assert budget.fits
    assert budget.sequence == GIB  # 8,192 tokens of 128 KiB
    assert budget.kv == budget.requested - budget.weights - budget.activations - budget.graphs
    assert budget.tokens == budget.kv // (128 * 1024) // 16 * 16
    assert not vllm(model, weights, 8 * GIB, context=131072).fits
    eight = vllm(model, weights, 24 * GIB, context=8192, element_bytes=1)
    assert eight.requests == pytest.approx(2 * budget.requests)


def test_vllm_keeps_windows_and_latent_vectors() -> None:
    weights = checkpoint(shape("gemma-3-4b"), Checkpoint(layout=Layout.FULL))
    sliding = vllm(shape("gemma-3-4b"), weights, 24 * GIB, context=131072)
    assert sliding.sequence < 0.3 * 34 * 4 * 512 * 2 * 131072
    latent = vllm(shape("deepseek-v2-lite"), weights, 24 * GIB, context=4096)
    assert latent.sequence == 27 * 576 * 2 * 4096


@settings(max_examples=40)
@given(name=NAMES, total=st.integers(GIB, 200 * GIB), context=st.integers(1, 1 << 17), more=st.integers(1, 1 << 16))
def test_vllm_never_holds_less_with_more(name: str, total: int, context: int, more: int) -> None:
    model = shape(name)
    weights = checkpoint(model, Checkpoint(layout=Layout.AWQ))
    here = vllm(model, weights, total, context=context)
    assert vllm(model, weights, total, context=context + more).sequence >= here.sequence
    assert vllm(model, weights, total + GIB, context=context).tokens >= here.tokens
    assert here.fits == (here.tokens >= context)


def test_transformers_needs_most_for_long_prompts() -> None:
    """Qwen2.5-7B AWQ: 5.39 GiB at one token, 10.98 GiB at 30,720 (measured, with 200 kB a token)."""
    model = shape("qwen2.5-7b")
    weights = checkpoint(model, Checkpoint(layout=Layout.AWQ))
    assert transformers(model, weights, context=1).total / GIB == pytest.approx(5.39, rel=0.01)
    assert transformers(model, weights, context=30720).total / GIB == pytest.approx(10.98, rel=0.02)


def test_the_functions_of_the_first_planner() -> None:
    assert kv_bytes_per_token(24, 2, 64, 64) == 24 * 2 * 128 * 2
    assert slots_that_fit(context=1000, kv_bytes_per_token=100, available=1_600_000, most=8) == 4
    assert slots_that_fit(context=1000, kv_bytes_per_token=0, available=0, most=8) == 1


def test_every_shape_has_a_size() -> None:
    for name in CONFIGS:
        model = shape(name)
        assert need(model, predicted(model, "Q4_K_M"), Load(context=4096)).total > 0
