"""The tensors of a model's GGUF file, by name and shape, before the file exists.

Shapes are in ggml's order: columns, the length of a row, come first. Source: llama.cpp, src/models/*.cpp
`load_arch_tensors`; names: gguf-py/gguf/constants.py. The vectors of rotary frequencies that llama.cpp does not
ask for (at most 2 KiB) are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from qlangchain.selection.layers import Architecture, Attention, Layer


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor: its name in the file, its shape (columns first), and its layer, -1 outside of all layers."""

    name: str
    shape: tuple[int, ...]
    layer: int = -1

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Whether it has rows and columns."""
        return len(self.shape) > 1

    @property
    def is_expert(self) -> bool:
        """Whether it holds the matrices or biases of all experts of a layer."""
        return "_exps." in self.name

    @property
    def kind(self) -> str:
        """Its name without the layer's number."""
        return self.name.split(".", 2)[2] if self.layer >= 0 else self.name

    @property
    def stays_whole(self) -> bool:
        """Whether it is kept in 32 bits: vectors, and what is too small and too sensitive to quantize.

        Source: llama.cpp, conversion/base.py, `prepare_tensors`.
        """
        return not self.is_matrix or _is_sensitive(self.kind)


@lru_cache(maxsize=512)
def _is_sensitive(kind: str) -> bool:
    small = ("_norm.", "ffn_gate_inp", "ssm_conv1d", "shortconv.conv.")
    return not kind.endswith(".weight") or any(part in kind for part in small)


@lru_cache(maxsize=32)
def tensors(model: Architecture) -> tuple[Tensor, ...]:
    """All tensors of the model in the order in which llama.cpp quantizes them: by layer."""
    hidden = model.hidden
    norm = "token_embd_norm" if model.name == "lfm2" else "output_norm"  # LFM2's last norm has the first one's name
    found = [Tensor("token_embd.weight", (hidden, model.vocabulary)), Tensor(f"{norm}.weight", (hidden,))]
    if not model.tied:
        found.append(Tensor("output.weight", (hidden, model.vocabulary)))
    if wide := model.per_layer_width:
        every = wide * len(model.layers)
        found += [
            Tensor("per_layer_token_embd.weight", (every, model.vocabulary)),
            Tensor("per_layer_model_proj.weight", (hidden, every)),
            Tensor("per_layer_proj_norm.weight", (wide,)),
        ]
    if model.name == "gemma4":  # which frequencies its layers over the whole context turn
        found += [Tensor("rope_freqs.weight", (max(_widest(model) // 2, 1),))]
    for index, layer in enumerate(model.layers):
        for name, shape in _block(model, layer):
            if all(shape):
                found.append(Tensor(f"blk.{index}.{name}", shape, index))
    return tuple(found)


def _widest(model: Architecture) -> int:
    return max((layer.key_width for layer in model.layers if layer.attention is Attention.FULL), default=0)


def _block(model: Architecture, layer: Layer) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden = model.hidden
    yield from ((f"{name}.weight", (hidden,)) for name in model.traits.norms)
    if layer.attention is Attention.LATENT:
        yield from _latent(layer, hidden)
    elif layer.attention is Attention.RECURRENT:
        yield from _recurrent(model, layer)
    elif layer.attention is not Attention.NONE:
        yield from _attention(model, layer)
    yield from _network(model, layer)
    if model.per_layer_width:
        yield "inp_gate.weight", (hidden, model.per_layer_width)
        yield "proj.weight", (model.per_layer_width, hidden)
        yield "post_norm.weight", (hidden,)
    if model.name == "gemma4":
        yield "layer_output_scale.weight", (1,)
    if layer.prediction:
        yield "nextn.eh_proj.weight", (2 * hidden, hidden)
        for name in ("enorm", "hnorm", "shared_head_norm"):
            yield f"nextn.{name}.weight", (hidden,)


def _attention(model: Architecture, layer: Layer) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, traits = model.hidden, model.traits
    queries = layer.heads * layer.key_width
    # Layers that read an earlier layer's cache still have their own matrices in the file; llama.cpp wants none of
    # them, and the converter writes what the checkpoint has.
    keys, values = layer.kv_heads * layer.key_width, layer.kv_heads * layer.value_width
    asked = queries * (2 if traits.gated_query else 1)
    if traits.fused_qkv:
        yield "attn_qkv.weight", (hidden, asked + keys + values)
    else:
        yield "attn_q.weight", (hidden, asked)
        yield "attn_k.weight", (hidden, keys)
        if layer.values:
            yield "attn_v.weight", (hidden, values)
    if traits.qkv_bias:
        yield "attn_q.bias", (asked,)
        yield "attn_k.bias", (keys,)
        yield "attn_v.bias", (values,)
    yield "attn_output.weight", (layer.heads * layer.value_width, hidden)
    if traits.output_bias:
        yield "attn_output.bias", (hidden,)
    if traits.qk_norm:
        # OLMo 2 normalizes all heads together, the others each by itself.
        whole = model.name == "olmo2"
        yield "attn_q_norm.weight", (queries if whole else layer.key_width,)
        yield "attn_k_norm.weight", (keys if whole else layer.key_width,)
    if traits.sinks:
        yield "attn_sinks.weight", (layer.heads,)


def _latent(layer: Layer, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    queries = layer.heads * layer.key_width
    if rank := layer.query_rank:
        yield "attn_q_a.weight", (hidden, rank)
        yield "attn_q_a_norm.weight", (rank,)
        yield "attn_q_b.weight", (rank, queries)
    else:
        yield "attn_q.weight", (hidden, queries)
    yield "attn_kv_a_mqa.weight", (hidden, layer.latent + layer.rope)
    yield "attn_kv_a_norm.weight", (layer.latent,)
    yield "attn_k_b.weight", (layer.key_width - layer.rope, layer.latent, layer.heads)
    yield "attn_v_b.weight", (layer.latent, layer.value_width, layer.heads)
    yield "attn_output.weight", (layer.heads * layer.value_width, hidden)


def _recurrent(model: Architecture, layer: Layer) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, state = model.hidden, layer.state
    if state is None:
        return
    if not state.size:  # LFM2's short convolution
        yield "shortconv.conv.weight", (state.kernel, hidden)
        yield "shortconv.in_proj.weight", (hidden, 3 * hidden)
        yield "shortconv.out_proj.weight", (hidden, hidden)
        return
    mixed = state.inner + 2 * state.groups * state.size
    yield "ssm_conv1d.weight", (state.kernel, mixed)
    if model.traits.gated_query:  # Qwen's gated delta net
        yield "attn_qkv.weight", (hidden, mixed)
        yield "attn_gate.weight", (hidden, state.inner)
        yield "ssm_dt.bias", (state.rank,)
        yield "ssm_a", (state.rank,)
        if model.name == "qwen3next":
            yield "ssm_ba.weight", (hidden, 2 * state.rank)
        else:
            yield "ssm_beta.weight", (hidden, state.rank)
            yield "ssm_alpha.weight", (hidden, state.rank)
        yield "ssm_norm.weight", (state.inner // max(state.rank, 1),)
    else:  # Mamba-2
        yield "ssm_in.weight", (hidden, 2 * state.inner + 2 * state.groups * state.size + state.rank)
        yield "ssm_conv1d.bias", (mixed,)
        yield "ssm_dt.bias", (state.rank,)
        yield "ssm_a", (1, state.rank)
        yield "ssm_d", (1, state.rank)
        yield "ssm_norm.weight", (state.inner // max(state.groups, 1), state.groups)
    yield "ssm_out.weight", (state.inner, hidden)


def _network(model: Architecture, layer: Layer) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, traits = model.hidden, model.traits
    if width := layer.feed_forward:
        if traits.fused_ffn:
            yield "ffn_up.weight", (hidden, 2 * width)
        else:
            yield "ffn_gate.weight", (hidden, width)
            yield "ffn_up.weight", (hidden, width)
        yield "ffn_down.weight", (width, hidden)
    if not (experts := layer.experts):
        return
    yield "ffn_gate_inp.weight", (hidden, experts)
    width = layer.expert_width
    if layer.feed_forward:  # Gemma 4: experts beside the dense network, gate and up in one
        yield "ffn_gate_inp.scale", (hidden,)
        for name in ("pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2"):
            yield f"{name}.weight", (hidden,)
        yield "ffn_gate_up_exps.weight", (hidden, 2 * width, experts)
        yield "ffn_down_exps.scale", (experts,)
    else:
        yield "ffn_gate_exps.weight", (hidden, width, experts)
        yield "ffn_up_exps.weight", (hidden, width, experts)
    yield "ffn_down_exps.weight", (width, hidden, experts)
    if traits.expert_bias:
        yield "ffn_gate_inp.bias", (experts,)
        yield "ffn_gate_exps.bias", (width, experts)
        yield "ffn_up_exps.bias", (width, experts)
        yield "ffn_down_exps.bias", (hidden, experts)
    if layer.shared:
        yield "ffn_gate_shexp.weight", (hidden, layer.shared)
        yield "ffn_up_shexp.weight", (hidden, layer.shared)
        yield "ffn_down_shexp.weight", (layer.shared, hidden)
        if traits.shared_gate:
            yield "ffn_gate_inp_shexp.weight", (hidden,)
    if model.name in ("deepseek2", "glm4moe"):
        yield "exp_probs_b.bias", (experts,)
