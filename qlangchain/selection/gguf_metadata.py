"""From the metadata of a GGUF file to an `Architecture`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from qlangchain.selection.families import Family, families
from qlangchain.selection.fields import MOST_LAYERS, Fields
from qlangchain.selection.layers import Architecture, Attention, Layer, State, Traits

_SHARED: Final = "expert_shared_feed_forward_length"
_UNKNOWN: Final = (
    "the architecture {0!r} is not known, so its layers were taken for ordinary ones as far as its metadata goes"
)


def from_gguf(metadata: Mapping[str, Any], *, vocabulary: int = 0, tied: bool | None = None) -> Architecture:
    """Describe the model of a GGUF header's metadata, as llama.cpp will read it.

    `vocabulary` is the number of tokens where the caller knows it better (the second dimension of
    `token_embd.weight`); otherwise it is the length of the token list, or `vocab_size`. `tied` is whether the file
    has no `output.weight`; None asks the family.

    Sources: llama.cpp, src/llama-model.cpp `load_hparams` and src/models/*.cpp `load_arch_hparams`.

    Raises:
        UnsupportedModelError: it does not describe a decoder, or a number in it cannot be.

    """
    name = str(metadata.get("general.architecture") or "")
    own = {key[len(name) + 1 :]: value for key, value in metadata.items() if name and key.startswith(f"{name}.")}
    given = Fields(own, "The GGUF metadata")
    if not name:
        given.refuse("it does not name its architecture")
    known = families().get(name)
    family = known or Family(name, traits=Traits(exact=False))
    count = given.whole("block_count", least=1, most=MOST_LAYERS)
    ahead = given.whole("nextn_predict_layers", default=0, most=count - 1)
    layers = tuple(_layer(given, family, count, ahead, index) for index in range(count))
    one: dict[Layer, Layer] = {}
    return Architecture(
        name=name,
        hidden=given.whole("embedding_length", least=1, most=1 << 20),
        vocabulary=vocabulary or _vocabulary(given, metadata),
        tied=family.tied if tied is None else tied,
        max_context=given.whole("context_length", default=4096, least=1),
        layers=tuple(one.setdefault(layer, layer) for layer in layers),
        per_layer_width=given.whole("embedding_length_per_layer_input", default=0),
        traits=family.traits,
        assumed="" if known else _UNKNOWN.format(name),
    )


def _vocabulary(given: Fields, metadata: Mapping[str, Any]) -> int:
    tokens = metadata.get("tokenizer.ggml.tokens")
    size = len(tokens) if isinstance(tokens, Sequence) and not isinstance(tokens, str) else 0
    return size or given.whole("vocab_size", least=1, most=1 << 24)


def _layer(given: Fields, family: Family, count: int, ahead: int, index: int) -> Layer:
    heads = given.each(count, "attention.head_count", default=0)[index]
    kv_heads = given.each(count, "attention.head_count_kv", default=heads)[index]
    width = given.whole("embedding_length") // heads if heads else 0
    layer = Layer(
        Attention.FULL,
        heads=heads,
        kv_heads=kv_heads,
        key_width=given.whole("attention.key_length", default=width, most=1 << 14),
        value_width=given.whole("attention.value_length", default=width, most=1 << 14),
        own_cache=index < count - ahead - given.whole("attention.shared_kv_layers", default=_borrowed(family, count)),
        feed_forward=given.each(count, "feed_forward_length", default=0)[index],
        prediction=index >= count - ahead,
    )
    if layer.prediction:
        layer = replace(layer, own_cache=True)
    elif _is_recurrent(given, family, count, index, layer):
        layer = replace(layer, attention=Attention.RECURRENT, state=_state(given))
    elif _is_both(given, families().get(family.name), count):
        layer = replace(layer, state=_state(given))
    elif not heads or not kv_heads:
        layer = replace(layer, attention=Attention.NONE)
    elif _is_sliding(given, family, count, index):
        layer = replace(
            layer,
            attention=Attention.SLIDING,
            window=given.whole("attention.sliding_window", default=family.window),
            key_width=given.whole("attention.key_length_swa", default=layer.key_width, most=1 << 14),
            value_width=given.whole("attention.value_length_swa", default=layer.value_width, most=1 << 14),
        )
    if layer.attention is Attention.FULL and given.whole("attention.key_length_mla", default=0):
        layer = _latent(given, layer)
    return _with_experts(given, layer, count, index)


def _borrowed(family: Family, count: int) -> int:
    # llama.cpp, src/models/gemma3n.cpp: the first 20 layers have a cache, whatever the file says.
    return max(count - 20, 0) if family.name == "gemma3n" else 0


def _is_recurrent(given: Fields, family: Family, count: int, index: int, layer: Layer) -> bool:
    if given.raw("ssm.state_size", "shortconv.l_cache") is None:
        return False
    if given.raw("attention.recurrent_layers") is not None:
        return bool(given.each(count, "attention.recurrent_layers")[index])
    if family.recurrent_every:
        every = given.whole("full_attention_interval", default=family.recurrent_every, least=1)
        return (index + 1) % every != 0
    # Networks of their own stand between the layers that remember where those have none (Nemotron-H).
    widths = given.each(count, "feed_forward_length", default=0)
    return not layer.kv_heads and (not layer.feed_forward or all(widths) or family.traits.exact)


def _is_both(given: Fields, known: Family | None, count: int) -> bool:
    """Whether each layer both attends and keeps a state (Falcon-H1): there are states, and no layer without heads."""
    if known is not None or given.raw("ssm.state_size") is None:
        return False
    return all(given.each(count, "attention.head_count_kv", default=given.whole("attention.head_count", default=0)))


def _is_sliding(given: Fields, family: Family, count: int, index: int) -> bool:
    """Whether the layer keeps a window only, by llama.cpp's `load_swa_pattern` and `set_swa_pattern`.

    A list says it for each layer; a number, or else the family's period, means that each n-th layer is whole.
    """
    if family.sliding == "ignored" or not given.whole("attention.sliding_window", default=family.window):
        return False
    if family.name == "exaone4" and count != 64:  # only the 32B model has windows
        return False
    pattern = given.raw("attention.sliding_window_pattern")
    if pattern is not None and not isinstance(pattern, int):
        return bool(given.each(count, "attention.sliding_window_pattern")[index])
    period = family.period if pattern is None else int(pattern)
    if not period:
        return False
    return index % period != (0 if family.dense_first else period - 1)


def _latent(given: Fields, layer: Layer) -> Layer:
    """MLA: the file's key is the compressed vector with the positional part, and there is no value."""
    latent = given.whole("attention.kv_lora_rank", least=1)
    return replace(
        layer,
        attention=Attention.LATENT,
        kv_heads=layer.heads,  # the file says 1: all heads share the compressed vector
        key_width=given.whole("attention.key_length_mla"),
        value_width=given.whole("attention.value_length_mla"),
        latent=latent,
        rope=given.whole("rope.dimension_count", default=max(layer.key_width - latent, 0)),
        query_rank=given.whole("attention.q_lora_rank", default=0),
    )


def _state(given: Fields) -> State:
    if given.raw("ssm.state_size") is None:
        return State(kernel=given.whole("shortconv.l_cache"), inner=given.whole("embedding_length"))
    return State(
        kernel=given.whole("ssm.conv_kernel", default=4),
        inner=given.whole("ssm.inner_size"),
        size=given.whole("ssm.state_size"),
        groups=given.whole("ssm.group_count", default=0),
        rank=given.whole("ssm.time_step_rank", default=0),
    )


def _with_experts(given: Fields, layer: Layer, count: int, index: int) -> Layer:
    experts = given.whole("expert_count", default=0, most=4096)
    if not experts or index < given.whole("leading_dense_block_count", default=0):
        return layer
    used = given.each(count, "expert_used_count", default=1)[index]
    width = given.each(count, "expert_feed_forward_length", default=0)[index]
    beside = given.raw("embedding_length_per_layer_input") is not None  # Gemma 4: a dense network beside its experts
    if not width:
        # llama.cpp: without a width of their own, experts have the dense one (Mixtral), or share it out (Qwen)
        width = layer.feed_forward // max(used, 1) if given.raw(_SHARED) is not None else layer.feed_forward
    shared = given.whole(_SHARED, default=0)
    shared = shared or given.whole("expert_shared_count", default=0) * width
    return replace(
        layer,
        feed_forward=layer.feed_forward if beside else 0,
        experts=experts,
        experts_used=used,
        expert_width=width,
        shared=shared,
    )
