"""What config.json says, read strictly: a value that llama.cpp cannot follow is refused, never dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlangchain.errors import CorruptFileError, UnsafeWeightsError, UnsupportedModelError
from qlangchain.produce.checkpoint import read_json

# transformers' class -> llama.cpp's architecture. Mistral is the llama graph with other numbers.
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
# Each kind of rope scaling: the numbers that GGUF can express, and those that it needs.
_ROPE_KINDS: dict[str, tuple[set[str], set[str]]] = {
    "default": (set(), set()),
    "linear": ({"factor"}, {"factor"}),
    "llama3": (
        {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
        {"factor", "low_freq_factor", "high_freq_factor"},
    ),
    "yarn": ({"factor", "attention_factor", "original_max_position_embeddings"}, {"factor"}),
}
_READY_MADE = "Look for a ready-made GGUF of this model, or pass another model."


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions. `kind` is default, linear, llama3 or yarn; `values` are that kind's own numbers."""

    theta: float
    kind: str
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The numbers that a dense decoder is made of, in config.json's words."""

    model_class: str
    architecture: str
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
    notices: tuple[str, ...]
    raw: Mapping[str, Any]


def read_config(directory: Path) -> ModelConfig:
    """Read `directory`/config.json.

    Raises `UnsupportedModelError` for what is not known or cannot be expressed in GGUF, `UnsafeWeightsError`
    where the model needs code of its own, `CorruptFileError` for values that cannot be right.
    """
    raw = read_json(directory / "config.json")
    _refuse(raw)
    model_class = _model_class(raw)
    heads = _integer(raw, "num_attention_heads", 1, 4096)
    hidden = _integer(raw, "hidden_size", 1, 1 << 20)
    kv_heads = heads if raw.get("num_key_value_heads") is None else _integer(raw, "num_key_value_heads", 1, heads)
    head_dim, explicit = _head_dim(raw, model_class, hidden, heads)
    if heads % kv_heads or head_dim % 2:
        raise CorruptFileError(
            f"config.json has {heads} heads, {kv_heads} key-value heads and head_dim {head_dim}.",
            hint="The heads must be a multiple of the key-value heads, and head_dim even.",
        )
    if ARCHITECTURES[model_class] == "qwen2" and heads * head_dim != hidden:
        raise UnsupportedModelError(
            f"A qwen2 of {heads} heads of {head_dim} and hidden size {hidden} cannot be expressed in GGUF.",
            hint="Pass another model.",
        )
    context = _integer(raw, "max_position_embeddings", 1, 1 << 31)
    return ModelConfig(
        model_class=model_class,
        architecture=ARCHITECTURES[model_class],
        name=_name(directory, raw),
        hidden_size=hidden,
        layers=_integer(raw, "num_hidden_layers", 1, 512),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        explicit_head_dim=explicit,
        intermediate_size=_integer(raw, "intermediate_size", 1, 1 << 24),
        vocab_size=_integer(raw, "vocab_size", 1, 1 << 24),
        context_length=context,
        rms_norm_eps=_number(raw.get("rms_norm_eps", 1e-6), "rms_norm_eps"),
        tied=raw.get("tie_word_embeddings", False) is True,
        rope=_rope(raw, context),
        notices=_window_notices(raw, model_class, context),
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
    for key in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"):
        if isinstance(raw.get(key), int) and raw[key] > 1:
            raise UnsupportedModelError(
                f"This is a mixture of {raw[key]} experts, not a dense model.", hint=_READY_MADE
            )


def _model_class(raw: Mapping[str, Any]) -> str:
    classes = raw.get("architectures")
    model_class = classes[0] if isinstance(classes, list) and classes else raw.get("model_type")
    if not isinstance(model_class, str) or model_class not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"The architecture {str(model_class)[:60]!r} is not known.",
            hint=f"Known: {', '.join(ARCHITECTURES)}. {_READY_MADE}",
        )
    if raw.get("hidden_act", "silu") not in ("silu", "swish"):
        raise UnsupportedModelError(
            f"llama.cpp's {ARCHITECTURES[model_class]} has no activation {raw['hidden_act']!r}.", hint=_READY_MADE
        )
    if raw.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModelError("Only full rotary embeddings can be converted.", hint=_READY_MADE)
    return model_class


def _head_dim(raw: Mapping[str, Any], model_class: str, hidden: int, heads: int) -> tuple[int, bool]:
    if raw.get("head_dim") is not None:
        return _integer(raw, "head_dim", 1, 1 << 14), True
    if model_class == "Qwen3ForCausalLM":  # transformers' default, whatever hidden_size / heads is
        return 128, True
    if hidden % heads:
        raise CorruptFileError(f"hidden_size {hidden} does not divide by {heads} heads.", hint="Check config.json.")
    return hidden // heads, False


def _rope(raw: Mapping[str, Any], context: int) -> Rope:
    """Transformers 5 keeps it in `rope_parameters`, older versions in `rope_theta` and `rope_scaling`."""
    parts = [raw.get(key) or {} for key in ("rope_scaling", "rope_parameters")]
    if not all(isinstance(part, dict) for part in parts):
        raise CorruptFileError("config.json has a rope scaling that is not a table.", hint="Download it again.")
    table = parts[0] | parts[1]
    theta = _number(table.pop("rope_theta", raw.get("rope_theta", 10000.0)), "rope_theta")
    kind = table.pop("rope_type", table.pop("type", "default"))
    table = {key: value for key, value in table.items() if value is not None and key not in ("type", "finetuned")}
    allowed, needed = _ROPE_KINDS.get(kind if isinstance(kind, str) else "", (None, set()))
    # llama.cpp's graphs of these architectures do not read the two betas, so only their defaults are right.
    usual = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}
    strange = {key for key in table if key not in (allowed or ()) and table[key] != usual.get(key)}
    if allowed is None or (strange and kind != "default"):
        raise UnsupportedModelError(
            f"The rope scaling {str(kind)[:40]!r} with {sorted(table)[:8]} cannot be expressed in GGUF.",
            hint="Known: default, linear, llama3, yarn (with its usual betas). " + _READY_MADE,
        )
    if missing := needed - table.keys():
        raise CorruptFileError(f"The rope scaling {kind} has no {min(missing)}.", hint="Check config.json.")
    values = {key: _number(table[key], key) for key in allowed if key in table}
    if kind in ("llama3", "yarn"):
        original = raw.get("original_max_position_embeddings", context)
        values.setdefault("original_max_position_embeddings", _number(original, "original_max_position_embeddings"))
    return Rope(theta, kind, values)


def _window_notices(raw: Mapping[str, Any], model_class: str, context: int) -> tuple[str, ...]:
    """llama.cpp's graphs of these architectures attend to everything, as its own converter accepts."""
    if model_class == "MistralForCausalLM":
        window = raw.get("sliding_window", 4096)  # transformers' default; later versions of Mistral say null
    else:
        window = raw.get("sliding_window") if raw.get("use_sliding_window") is True else None
    if not isinstance(window, int) or window >= context:
        return ()
    return (f"Trained with a sliding window of {window} tokens; llama.cpp attends to all, so longer prompts differ.",)


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


def _number(value: object, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise CorruptFileError(
            f"config.json has {key} = {value!r:.60}, expected a number above zero.", hint="Download config.json again."
        )
    return float(value)
