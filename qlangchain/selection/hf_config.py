"""From transformers' `config.json` to an `Architecture`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from qlangchain.selection.families import Family, by_model_type
from qlangchain.selection.fields import MOST_LAYERS, Fields
from qlangchain.selection.layers import Architecture, Attention, Layer, State, Traits

# Where models that see or hear keep the description of their language model.
_NESTED: Final = ("text_config", "llm_config", "language_config")
# The values of layer_types in transformers, and older names for the same.
_KINDS: Final = {
    "full_attention": Attention.FULL,
    "attention": Attention.FULL,
    "sliding_attention": Attention.SLIDING,
    "chunked_attention": Attention.SLIDING,
    "linear_attention": Attention.RECURRENT,
    "mamba": Attention.RECURRENT,
    "mamba2": Attention.RECURRENT,
    "conv": Attention.RECURRENT,
    "recurrent": Attention.RECURRENT,
}
_UNKNOWN: Final = (
    "the family {0!r} is not known, so every layer was taken for an ordinary block of attention and network"
)


def from_config(config: Mapping[str, Any]) -> Architecture:
    """Describe the model of a `config.json`.

    A family that is not known is taken for an ordinary decoder where its config says enough for that, and
    `assumed` then says so. Sources: the fields are those of transformers' `configuration_*.py`; which windows count,
    and what a missing field means, is llama.cpp's converter (conversion/*.py).

    Raises:
        UnsupportedModelError: it does not describe a decoder, or a number in it cannot be.

    """
    values = _flat(config)
    given = Fields(values, "The config.json")
    model_type = str(values.get("model_type") or "")
    family = by_model_type(model_type)
    known = family or Family(model_type or "unknown", traits=Traits(exact=False))
    count = given.whole("num_hidden_layers", "n_layer", "num_layers", least=1, most=MOST_LAYERS)
    hidden = given.whole("hidden_size", "n_embd", "d_model", least=1, most=1 << 20)
    layers = [
        _layer(given, known, hidden, count, index, kind) for index, kind in enumerate(_kinds(given, known, count))
    ]
    ahead = given.whole("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers", default=0, most=16)
    if len(layers) + ahead > MOST_LAYERS:
        given.refuse(f"it has {count} layers and {ahead} more that predict further tokens")
    last = _layer(given, known, hidden, count, count - 1, Attention.FULL)
    layers += [replace(last, prediction=True)] * ahead
    return Architecture(
        name=known.name,
        hidden=hidden,
        vocabulary=given.whole("vocab_size", least=1, most=1 << 24),
        tied=given.flag("tie_word_embeddings", known.tied),
        max_context=_max_context(given),
        layers=_shared(tuple(layers)),
        per_layer_width=given.whole("hidden_size_per_layer_input", default=0),
        traits=_traits(given, known),
        assumed="" if family else _UNKNOWN.format(model_type),
    )


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    inner = next((config[name] for name in _NESTED if isinstance(config.get(name), Mapping)), None)
    if inner is None:
        return dict(config)
    # The outer type is that of the whole, with its eyes and ears; the inner one may be missing (Mistral 3).
    outer = {key: value for key, value in config.items() if key not in _NESTED and value is not None}
    return outer | {key: value for key, value in inner.items() if value is not None}


def _max_context(given: Fields) -> int:
    """The context that the model was made for, after what its position scaling adds.

    transformers has stretched `max_position_embeddings` already, except for YaRN with an original length beside it
    (Qwen2.5), where the file says how far it can be stretched and users opt in.
    """
    return given.whole(
        "max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", default=4096, least=1
    )


def _traits(given: Fields, family: Family) -> Traits:
    bias = given.flag("attention_bias")
    return replace(
        family.traits,
        qkv_bias=family.traits.qkv_bias or bias,
        output_bias=family.traits.output_bias or (bias and family.name in ("llama", "granite", "granitemoe")),
    )


def _kinds(given: Fields, family: Family, count: int) -> list[Attention]:
    """How each layer attends: by the list that newer configs have, or by the family's period."""
    named = given.raw("layer_types")
    if isinstance(named, list | tuple):
        if len(named) < count:
            given.refuse(f"layer_types has {len(named)} values for {count} layers")
        kinds = [_KINDS.get(str(name)) for name in named[:count]]
        if None in kinds:
            given.refuse(f"layer_types has {str(named[kinds.index(None)])[:40]!r}")
        found = [kind for kind in kinds if kind is not None]
    else:
        found = [_by_period(given, family, index) for index in range(count)]
    latent = given.raw("kv_lora_rank") is not None
    windowed = _window(given, family) > 0
    return [
        Attention.LATENT
        if latent and kind is Attention.FULL
        else Attention.FULL
        if kind is Attention.SLIDING and not windowed
        else kind
        for kind in found
    ]


def _by_period(given: Fields, family: Family, index: int) -> Attention:
    every = given.whole("full_attention_interval", default=family.recurrent_every)
    if every and given.raw("linear_num_value_heads") is not None:
        return Attention.FULL if (index + 1) % every == 0 else Attention.RECURRENT
    if (chosen := given.raw("attn_layer_indices", "full_attn_idxs")) is not None and isinstance(chosen, list):
        return Attention.FULL if index in chosen else Attention.RECURRENT
    if period := given.whole("attn_layer_period", default=0):
        return Attention.FULL if index % period == given.whole("attn_layer_offset", default=0) else Attention.RECURRENT
    period = given.whole("sliding_window_pattern", default=0) if family.period else 0
    period = period or family.period
    if not period:
        return Attention.FULL
    whole = index % period == (0 if family.dense_first else period - 1)
    return Attention.FULL if whole else Attention.SLIDING


def _window(given: Fields, family: Family) -> int:
    """The window of sliding layers in tokens, 0 where the engine ignores it or the config switches it off."""
    if family.sliding == "ignored" or given.raw("use_sliding_window") is False:
        return 0
    return given.whole("sliding_window", "attention_chunk_size", default=family.window)


def _layer(given: Fields, family: Family, hidden: int, count: int, index: int, kind: Attention) -> Layer:
    sliding = kind is Attention.SLIDING
    heads = given.each(count, "num_attention_heads", "n_head")[index]
    kv_heads = given.each(count, "num_key_value_heads", "num_kv_heads", default=heads)[index]
    if not sliding:
        kv_heads = given.whole("num_global_key_value_heads", default=kv_heads)
    width = given.whole("head_dim", default=hidden // heads if heads else 0, most=1 << 14)
    if not sliding:
        width = given.whole("global_head_dim", default=width, most=1 << 14)
    if kind not in (Attention.RECURRENT, Attention.NONE) and not (heads and kv_heads and width):
        given.refuse(f"layer {index} attends with {heads} heads, {kv_heads} of them with keys, of {width}")
    borrowed = given.whole("num_kv_shared_layers", default=0)
    layer = Layer(
        attention=kind,
        heads=heads,
        kv_heads=kv_heads,
        key_width=width,
        value_width=width,
        window=_window(given, family) if sliding else 0,
        own_cache=index < count - borrowed,
        values=not (given.flag("attention_k_eq_v") and not sliding),
        feed_forward=_feed_forward(given, count, index, borrowed),
    )
    if kind is Attention.LATENT:
        layer = _latent(given, layer)
    if kind is Attention.RECURRENT:
        layer = replace(layer, state=_state(given, hidden))
        if family.name in ("granitehybrid", "lfm2"):  # whose files have a list of heads, 0 where none attends
            layer = replace(layer, kv_heads=0)
    return _with_experts(given, layer, index)


def _feed_forward(given: Fields, count: int, index: int, borrowed: int) -> int:
    width = given.each(count, "intermediate_size", "n_inner", "ffn_dim", default=0)[index]
    if given.flag("use_double_wide_mlp") and index >= count - borrowed:
        return 2 * width
    if given.flag("block_auto_adjust_ff_dim"):  # LFM2: two thirds of it, rounded up
        width = int(2 * width / 3)
        multiple = given.whole("block_multiple_of", default=256, least=1)
        return -(-width // multiple) * multiple
    return width


def _latent(given: Fields, layer: Layer) -> Layer:
    rope = given.whole("qk_rope_head_dim")
    return replace(
        layer,
        key_width=given.whole("qk_nope_head_dim") + rope,
        value_width=given.whole("v_head_dim"),
        latent=given.whole("kv_lora_rank", least=1),
        rope=rope,
        query_rank=given.whole("q_lora_rank", default=0),
    )


def _state(given: Fields, hidden: int) -> State:
    if given.raw("linear_num_value_heads") is not None:
        rank = given.whole("linear_num_value_heads")
        return State(
            kernel=given.whole("linear_conv_kernel_dim"),
            inner=rank * given.whole("linear_value_head_dim"),
            size=given.whole("linear_key_head_dim"),
            groups=given.whole("linear_num_key_heads"),
            rank=rank,
        )
    if given.raw("conv_L_cache") is not None:
        return State(kernel=given.whole("conv_L_cache"), inner=hidden)
    return State(
        kernel=given.whole("mamba_d_conv", "conv_kernel"),
        inner=given.whole("mamba_expand", "expand") * hidden,
        size=given.whole("mamba_d_state", "ssm_state_size", "state_size"),
        groups=given.whole("mamba_n_groups", "n_groups"),
        rank=given.whole("mamba_n_heads", "mamba_num_heads", "num_heads"),
    )


def _with_experts(given: Fields, layer: Layer, index: int) -> Layer:
    """Add the experts, where the model has them and this layer is not one of its dense ones."""
    experts = given.whole("num_local_experts", "n_routed_experts", "num_experts", default=0, most=4096)
    only = given.raw("mlp_only_layers") or []
    if not isinstance(only, list):
        given.refuse("mlp_only_layers is no list")
    every = given.whole("decoder_sparse_step", "moe_layer_freq", default=1, least=1)
    dense = index < given.whole("first_k_dense_replace", default=0) or index in only or (index + 1) % every
    shared = given.whole("shared_expert_intermediate_size", "shared_intermediate_size", default=0)
    if experts < 2:
        # A dense Granite 4 keeps its network in the fields of the experts that all tokens pass.
        return replace(layer, feed_forward=shared) if shared and not layer.experts else layer
    if dense:
        return layer
    width = given.whole("moe_intermediate_size", "expert_intermediate_size", default=layer.feed_forward, least=1)
    shared = shared or given.whole("n_shared_experts", "num_shared_experts", default=0) * width
    beside = given.raw("enable_moe_block") is not None  # Gemma 4 has a dense network beside its experts
    return replace(
        layer,
        feed_forward=layer.feed_forward if beside else 0,
        experts=experts,
        experts_used=given.whole("num_experts_per_tok", "top_k_experts", "num_experts_per_token", default=1, least=1),
        expert_width=width,
        shared=shared,
    )


def _shared(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """The same layers, with one object for those that are equal."""
    one: dict[Layer, Layer] = {}
    return tuple(one.setdefault(layer, layer) for layer in layers)
