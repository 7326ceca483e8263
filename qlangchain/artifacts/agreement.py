"""Whether weights can be those of a base model: architecture, parameters and vocabulary compared with its config."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from qlangchain.artifacts.listing import Listing
from qlangchain.artifacts.quantization import find_quantization_config, read_quantization
from qlangchain.errors import UnsupportedModelError
from qlangchain.types import Method

PARAMETER_MARGIN: Final = 0.02
# A model with vision, audio or drafting layers counts them, and its GGUF file leaves them out or keeps them apart.
_LEAST_OF_MANY_PARTS: Final = 0.6
_PADDING_ROWS: Final = 1024  # unused rows of an embedding: added for speed, or cut off again when converting
# Not intermediate_size: Qwen2 72B was padded there so that groups of 128 divide it.
_WEIGHTS: Final = re.compile(r"model(?:-\d+-of-\d+)?\.safetensors")
_SHAPES: Final = ("hidden_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True, slots=True)
class HeaderFacts:
    """What the header of a set of weights says. None is what it does not say.

    `architecture` is GGUF's `general.architecture` or the `model_type` beside safetensors, `parameters` the number of
    weights after unpacking (never of packed integers), `vocabulary` the number of tokens.
    """

    architecture: str | None = None
    parameters: int | None = None
    vocabulary: int | None = None


class Agreement(NamedTuple):
    """`fault` says where the two disagree, `compared` what could be compared at all."""

    fault: str | None
    compared: tuple[str, ...]


def compare(base: Listing, facts: HeaderFacts) -> Agreement:
    """Compare what a header says with the base model: what either does not say is not compared."""
    checks = {
        "architecture": _architecture_fault(base, facts.architecture),
        "parameters": _parameter_fault(base, facts.parameters),
        "vocabulary": _vocabulary_fault(base, facts.vocabulary),
    }
    fault = next((found for found in checks.values() if found), None)
    return Agreement(fault, tuple(name for name, found in checks.items() if found is not None))


def compare_configs(base: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """Why two config.json cannot be of one model, or None; shapes that either leaves out are not compared."""
    for name in _SHAPES:
        ours, theirs = _text(base, name), _text(config, name)
        if _is_count(ours) and _is_count(theirs) and ours != theirs:
            return f"Its config.json says {name} {theirs}, the base model's {ours}."
    return compare(Listing("", "", config=base), config_facts(config)).fault


def config_facts(config: Mapping[str, Any]) -> HeaderFacts:
    """What a config.json says of the weights beside it. It does not count parameters."""
    architecture = config.get("model_type") or _text(config, "model_type")
    vocabulary = _text(config, "vocab_size")
    return HeaderFacts(
        architecture=architecture if isinstance(architecture, str) else None,
        vocabulary=vocabulary if _is_count(vocabulary) else None,
    )


def plausible_size(base: Listing | None, weight_bytes: int, bits: int | None) -> str | None:
    """Why weights of this size in bytes cannot hold the whole base model, or None.

    A file with half of its format's nominal bits per weight, or with less than 1.2 (IQ1_S has 1.56), is a drafter,
    an adapter or a fragment.
    """
    parameters = _full_precision_parameters(base) if base else None
    if base is None or parameters is None:
        return None
    share = _LEAST_OF_MANY_PARTS if _has_more_parts(base.config) else 1.0
    found = weight_bytes * 8 / parameters
    if found < max(1.2, (bits or 0) / 2) * share:
        return f"It has {found:.2f} bits for each of the model's {parameters:,} parameters, too few to be all of it."
    return None


def parameters_by_size(base: Listing) -> int | None:
    """The parameters of full-precision weights by the bytes of their files; None where these do not tell."""
    try:
        kind = read_quantization(base.config)
    except UnsupportedModelError:
        return None
    files = [file.size_bytes for file in base.files if _WEIGHTS.fullmatch(file.name)]
    return sum(files) * 8 // kind.bits if kind.scheme is Method.NONE and kind.bits and sum(files) else None


def _architecture_fault(base: Listing, found: str | None) -> str | None:
    """A fault, "" where both agree, None where they cannot be compared; so do the next two."""
    if not found:
        return None
    types = {one for one in (base.config.get("model_type"), _text(base.config, "model_type")) if isinstance(one, str)}
    known = {name for one in types for name in _architectures().get(one, ())}
    if isinstance(base.gguf.get("architecture"), str):
        known.add(base.gguf["architecture"])
    alike = {re.sub(r"[-_]", "", name.lower()) for name in types | known}
    theirs = {re.sub(r"[-_]", "", name.lower()) for name in (found, *_architectures().get(found, ()))}
    if theirs & alike:
        return ""
    if not known and not set(_architectures()).intersection(types):
        return None
    shown = " or ".join(sorted(known or types))
    return f"It is of the architecture {found!r}, and the base model is {shown!r}."


def _parameter_fault(base: Listing, found: int | None) -> str | None:
    parameters = _full_precision_parameters(base)
    if not found or parameters is None:
        return None
    possible = [parameters]
    vocabulary, width = _text(base.config, "vocab_size"), _text(base.config, "hidden_size")
    if _is_count(vocabulary) and _is_count(width) and _text(base.config, "tie_word_embeddings") is not False:
        # Tied embeddings are written once or twice.
        possible += [parameters + vocabulary * width, parameters - vocabulary * width]
    if any(abs(found - one) <= PARAMETER_MARGIN * one for one in possible):
        return ""
    if _has_more_parts(base.config) and _LEAST_OF_MANY_PARTS * parameters <= found <= max(possible):
        return ""
    return f"It has {found:,} parameters, and the base model {parameters:,}."


def _vocabulary_fault(base: Listing, found: int | None) -> str | None:
    vocabulary = _text(base.config, "vocab_size")
    if not found or not _is_count(vocabulary):
        return None
    # Converting may cut unused rows off; only padding adds some, and it ends at a multiple of 8.
    below = 0 <= vocabulary - found <= _PADDING_ROWS
    padded = 0 < found - vocabulary < _PADDING_ROWS and found % 8 == 0
    return "" if below or padded else f"It has {found:,} tokens, and the base model {vocabulary:,}."


def _full_precision_parameters(base: Listing) -> int | None:
    """The base's parameters; None where its own weights are packed, whose elements are not parameters."""
    return base.parameters if base.parameters and find_quantization_config(base.config) is None else None


def _has_more_parts(config: Mapping[str, Any]) -> bool:
    parts = ("vision_config", "audio_config", "visual", "mm_vision_tower")
    drafting = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers")
    return any(config.get(part) for part in parts) or any(_text(config, name) for name in drafting)


def _text(config: Mapping[str, Any], name: str) -> Any:
    """A value of the text model, which multimodal configs keep one level down."""
    inner = config.get("text_config")
    if isinstance(inner, Mapping) and inner.get(name) is not None:
        return inner[name]
    return config.get(name)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


@lru_cache(maxsize=1)
def _architectures() -> dict[str, list[str]]:
    data = json.loads(Path(__file__).with_name("architectures.json").read_text(encoding="utf-8"))
    architectures: dict[str, list[str]] = data["architectures"]
    return architectures
