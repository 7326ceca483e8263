"""What config.json says, read strictly: a value that llama.cpp cannot follow is refused, never dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlangchain.errors import CorruptFileError, UnsafeWeightsError, UnsupportedModelError
from qlangchain.produce.checkpoint import read_json
from qlangchain.produce.families import Family, families
from qlangchain.produce.rope import READY_MADE, Rope, number, read_rope

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The numbers that a dense decoder is made of, in config.json's words.

    `windows` says of each layer whether it looks no further back than `window` tokens (None: no layer does, as far
    as llama.cpp is concerned). `has_parts` is True where the weights hold more than the text model.
    """

    model_class: str
    family: Family
    name: str
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    explicit_head_dim: bool
    intermediate_size: int
    vocab_size: int
    context_length: int
    rms_norm_eps: float
    tied: bool
    rope: Rope
    window: int | None
    windows: tuple[bool, ...]
    attention_softcap: float | None
    final_softcap: float | None
    has_parts: bool
    notices: tuple[str, ...]
    raw: Mapping[str, Any]

    @property
    def architecture(self) -> str:
        """llama.cpp's name for it."""
        return self.family.architecture


def read_config(directory: Path) -> ModelConfig:
    """Read `directory`/config.json.

    Raises `UnsupportedModelError` for what is not known or cannot be expressed in GGUF, `UnsafeWeightsError`
    where the model needs code of its own, `CorruptFileError` for values that cannot be right.
    """
    whole = read_json(directory / "config.json")
    _refuse(whole)
    model_class, family = _model_class(whole)
    raw, has_parts = _text_model(whole, family)
    _refuse_graph(raw, family)
    heads = _integer(raw, "num_attention_heads", 1, 4096)
    hidden = _integer(raw, "hidden_size", 1, 1 << 20)
    layers = _integer(raw, "num_hidden_layers", 1, 512)
    kv_heads = heads if raw.get("num_key_value_heads") is None else _integer(raw, "num_key_value_heads", 1, heads)
    head_dim, explicit = _head_dim(raw, family, hidden, heads)
    if heads % kv_heads or head_dim % 2:
        raise CorruptFileError(
            f"config.json has {heads} heads, {kv_heads} key-value heads and head_dim {head_dim}.",
            hint="The heads must be a multiple of the key-value heads, and head_dim even.",
        )
    if family.architecture in ("qwen2", "phi3") and heads * head_dim != hidden:
        raise UnsupportedModelError(
            f"A {family.architecture} of {heads} heads of {head_dim} and hidden size {hidden} cannot be expressed in "
            f"GGUF.",
            hint="Pass another model.",
        )
    context = _integer(raw, "max_position_embeddings", 1, 1 << 31)
    _refuse_scale(raw, family, layers, hidden // heads, head_dim)
    window, windows, notices = _window(raw, family, layers, context)
    if family.architecture == "gemma2" and not any(windows):  # llama.cpp ends its process on such a file
        raise UnsupportedModelError("llama.cpp's gemma2 needs a layer with a sliding window.", hint=READY_MADE)
    rope = read_rope(raw, family, context, head_dim)
    if rope.kind == "longrope":
        original = int(rope.values["original_max_position_embeddings"])
        notices = (*notices, f"llama.cpp takes the rotary factors for long texts from a context of {original:,} tokens "
                             f"on, also for short ones; transformers chooses by the length of the text.")  # fmt: skip
    if has_parts:
        notices = (*notices, "Only the text model is converted; its eyes are left out.")
    return ModelConfig(
        model_class=model_class,
        family=family,
        name=_name(directory, whole),
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        explicit_head_dim=explicit,
        intermediate_size=_integer(raw, "intermediate_size", 1, 1 << 24),
        vocab_size=_integer(raw, "vocab_size", 1, 1 << 24),
        context_length=context,
        rms_norm_eps=number(raw.get("rms_norm_eps", 1e-6), "rms_norm_eps"),
        tied=_tied(raw, family),
        rope=rope,
        window=window,
        windows=windows,
        attention_softcap=_softcap(raw, family, "attention", "attn_logit_softcapping"),
        final_softcap=_softcap(raw, family, "final", "final_logit_softcapping"),
        has_parts=has_parts,
        notices=notices,
        raw=raw,
    )


def _refuse(raw: Mapping[str, Any]) -> None:
    if raw.get("auto_map"):
        raise UnsafeWeightsError(
            "config.json asks for code of its own (auto_map), and qlangchain never runs a model's code.",
            hint="Pass a model whose architecture transformers itself knows.",
        )
    for key in ("quantization_config", "compression_config"):
        if quantization := raw.get(key):
            method = quantization.get("quant_method", "?") if isinstance(quantization, dict) else "?"
            raise UnsupportedModelError(
                f"This model is already quantized ({method}); making GGUF of it would lose quality twice.",
                hint="Pass the original model, in BF16, F16 or F32.",
            )
    for key in _EXPERTS:
        if isinstance(raw.get(key), int) and raw[key] > 1:
            raise UnsupportedModelError(f"This is a mixture of {raw[key]} experts, not a dense model.", hint=READY_MADE)


def _model_class(raw: Mapping[str, Any]) -> tuple[str, Family]:
    classes = raw.get("architectures")
    model_class = classes[0] if isinstance(classes, list) and classes else raw.get("model_type")
    family = families().get(model_class) if isinstance(model_class, str) else None
    if not isinstance(model_class, str) or family is None:
        raise UnsupportedModelError(
            f"The architecture {str(model_class)[:60]!r} is not known.",
            hint=f"Known: {', '.join(families())}. {READY_MADE}",
        )
    return model_class, family


def _text_model(raw: Mapping[str, Any], family: Family) -> tuple[Mapping[str, Any], bool]:
    """The description of the text model, with the values that may be left out, and whether it stood by itself."""
    inner = raw.get("text_config") if family.parts else None
    has_parts = isinstance(inner, dict)
    found = {**raw, **inner} if isinstance(inner, dict) else dict(raw)
    if has_parts:
        _refuse(found)
    return {**family.defaults, **found}, has_parts


def _refuse_graph(raw: Mapping[str, Any], family: Family) -> None:
    """Refuse what llama.cpp's graph of the architecture does not compute."""
    activation = raw.get("hidden_activation") or raw.get("hidden_act") or family.activations[0]
    if activation not in family.activations:
        raise UnsupportedModelError(
            f"llama.cpp's {family.architecture} has no activation {activation!r}.", hint=READY_MADE
        )
    if raw.get("use_bidirectional_attention") or raw.get("is_causal") is False:
        raise UnsupportedModelError(
            "This model looks at the tokens that follow as well; only decoders can be converted.", hint=READY_MADE
        )
    every = family.rope_every
    rotated = raw.get("no_rope_layers")  # 1 where a layer has rotary positions
    if every and isinstance(rotated, list) and any(bool(one) != bool(n % every) for n, one in enumerate(rotated, 1)):
        raise UnsupportedModelError(
            f"llama.cpp's {family.architecture} leaves out the rotary positions of each {every}th layer; this model of "
            f"others.",
            hint=READY_MADE,
        )
    if every and raw.get("no_rope_layer_interval", every) != every and not isinstance(rotated, list):
        raise UnsupportedModelError(
            f"no_rope_layer_interval is {raw['no_rope_layer_interval']!r:.20}; llama.cpp knows {every}.",
            hint=READY_MADE,
        )


def _refuse_scale(raw: Mapping[str, Any], family: Family, layers: int, width: int, head_dim: int) -> None:
    """Queries are scaled by a number that is not in GGUF: llama.cpp knows it from the number of layers."""
    if "query_pre_attn_scalar" not in family.defaults:
        return
    expected = width if layers == family.wide_scale else head_dim
    if raw["query_pre_attn_scalar"] != expected:
        raise UnsupportedModelError(
            f"query_pre_attn_scalar is {raw['query_pre_attn_scalar']!r:.30}; llama.cpp's {family.architecture} of "
            f"{layers} layers takes {expected}.",
            hint=READY_MADE,
        )


def _tied(raw: Mapping[str, Any], family: Family) -> bool:
    tied = raw.get("tie_word_embeddings")
    tied = family.tied if tied is None else tied is True
    if family.always_tied and not tied:
        raise UnsupportedModelError(
            f"llama.cpp's {family.architecture} ties the logits to the embeddings; this model has a matrix of its own.",
            hint=READY_MADE,
        )
    return tied


def _softcap(raw: Mapping[str, Any], family: Family, which: str, key: str) -> float | None:
    rule, value = family.softcaps.get(which), raw.get(key)
    if rule is None or (value is None and rule != "required"):
        return None
    if value is None or rule == "refused":
        raise UnsupportedModelError(
            f"{key} is {value!r:.30}, and llama.cpp's {family.architecture} {'needs' if value is None else 'has no'} "
            f"such limit.",
            hint=READY_MADE,
        )
    return number(value, key)


def _window(
    raw: Mapping[str, Any], family: Family, layers: int, context: int
) -> tuple[int | None, tuple[bool, ...], tuple[str, ...]]:
    """The window in tokens, which layers have it in llama.cpp, and what the user should know."""
    none = (False,) * layers
    if family.window == "none" or (family.window_switch and raw.get("use_sliding_window") is not True):
        return None, none, ()
    window = raw.get("sliding_window", family.window_default)
    if window is None:
        return None, none, ()
    window = _integer({"sliding_window": window}, "sliding_window", 1, 1 << 31)
    if family.window == "ignored":
        if window >= context:
            return window, none, ()
        return (
            window,
            none,
            (f"Trained with a sliding window of {window} tokens; llama.cpp attends to all, so longer prompts differ.",),
        )
    kinds = raw.get("layer_types")
    if kinds is None:
        every = raw.get("sliding_window_pattern", raw.get("_sliding_window_pattern")) or family.window_period
        every = _integer({"sliding_window_pattern": every}, "sliding_window_pattern", 1, 512)
        return window, tuple(bool(number % every) for number in range(1, layers + 1)), ()
    if not isinstance(kinds, list) or len(kinds) != layers or set(kinds) - {"sliding_attention", "full_attention"}:
        raise UnsupportedModelError(
            f"layer_types is {kinds!r:.60}; expected sliding_attention or full_attention for each of {layers} layers.",
            hint=READY_MADE,
        )
    return window, tuple(kind == "sliding_attention" for kind in kinds), ()


def _head_dim(raw: Mapping[str, Any], family: Family, hidden: int, heads: int) -> tuple[int, bool]:
    if raw.get("head_dim") is not None:
        return _integer(raw, "head_dim", 1, 1 << 14), True
    if family.head_dim is not None:
        return family.head_dim, True
    if hidden % heads:
        raise CorruptFileError(f"hidden_size {hidden} does not divide by {heads} heads.", hint="Check config.json.")
    return hidden // heads, False


def _name(directory: Path, raw: Mapping[str, Any]) -> str:
    name = str(raw.get("_name_or_path") or "").rstrip("/").rsplit("/", 1)[-1]
    if name:
        return name[:200]
    resolved = directory.resolve()
    if resolved.parent.name == "snapshots":  # the hub's cache: models--org--name/snapshots/<commit>
        return resolved.parent.parent.name.rsplit("--", 1)[-1]
    return resolved.name


def _integer(raw: Mapping[str, Any], key: str, low: int, high: int) -> int:
    value = raw.get(key)
    if type(value) is not int or not low <= value <= high:
        raise CorruptFileError(
            f"config.json has {key} = {value!r:.60}, expected a whole number from {low} to {high}.",
            hint="Download config.json again.",
        )
    return value
