"""Rotary positions as config.json describes them; what llama.cpp's graph of the model cannot follow is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qlangchain.errors import CorruptFileError, UnsupportedModelError
from qlangchain.produce.families import Family

# Each kind of scaling: the numbers that GGUF can express, and those that it needs.
_KINDS: dict[str, tuple[set[str], set[str]]] = {
    "default": (set(), set()),
    "linear": ({"factor"}, {"factor"}),
    "llama3": (
        {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
        {"factor", "low_freq_factor", "high_freq_factor"},
    ),
    "yarn": ({"factor", "attention_factor", "original_max_position_embeddings"}, {"factor"}),
    "longrope": ({"factor", "attention_factor", "original_max_position_embeddings"}, set()),
}
# llama.cpp's graphs of these architectures do not read the two betas, so only their defaults are right.
_USUAL = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}
_OLD_LONGROPE = ("su", "yarn")  # what the first models with longrope called it
READY_MADE = "Look for a ready-made GGUF of this model, or pass another model."


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions. `kind` is default, linear, llama3, yarn or longrope; `values` are that kind's own numbers.

    `dimensions` of each head are rotated. `local_theta` is the base of the layers with a window where they have
    one of their own. `short` and `long` are longrope's divisors of the frequencies, dimensions / 2 each.
    """

    theta: float
    kind: str
    values: Mapping[str, float]
    dimensions: int
    local_theta: float | None = None
    short: tuple[float, ...] = field(default=())
    long: tuple[float, ...] = field(default=())


def read_rope(raw: Mapping[str, Any], family: Family, context: int, head_dim: int) -> Rope:
    """Read it: transformers 5 keeps it in `rope_parameters`, older versions in `rope_theta` and `rope_scaling`.

    Raises `UnsupportedModelError` for what cannot be expressed in GGUF, `CorruptFileError` for values that cannot be.
    """
    table, local = _tables(raw, family)
    theta = number(table.pop("rope_theta", raw.get("rope_theta", 10000.0)), "rope_theta")
    kind = table.pop("rope_type", table.pop("type", "default"))
    if kind in _OLD_LONGROPE and "longrope" in family.ropes:
        kind = "longrope"
    part = number(table.pop("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0)), "partial_rotary_factor")
    if part > 1 or (part != 1.0 and not family.partial_rotary):
        raise UnsupportedModelError("Only full rotary embeddings can be converted.", hint=READY_MADE)
    dimensions = int(part * head_dim)
    short = _factors(table.pop("short_factor", ()), "short_factor", kind, dimensions)
    long = _factors(table.pop("long_factor", ()), "long_factor", kind, dimensions)
    table = {key: value for key, value in table.items() if value is not None and key not in ("type", "finetuned")}
    known = isinstance(kind, str) and kind in family.ropes
    allowed, needed = _KINDS[kind] if known else (set(), set())
    strange = {key for key in table if key not in allowed and table[key] != _USUAL.get(key)}
    if not known or (strange and kind != "default"):
        raise UnsupportedModelError(
            f"The rope scaling {str(kind)[:40]!r} with {sorted(table)[:8]} cannot be expressed in GGUF.",
            hint=f"Known for it: {', '.join(family.ropes)} (yarn with its usual betas). {READY_MADE}",
        )
    if missing := needed - table.keys():
        raise CorruptFileError(f"The rope scaling {kind} has no {min(missing)}.", hint="Check config.json.")
    values = {key: number(table[key], key) for key in allowed if key in table}
    if kind in ("llama3", "yarn", "longrope"):
        original = raw.get("original_max_position_embeddings", context)
        values.setdefault("original_max_position_embeddings", number(original, "original_max_position_embeddings"))
    return Rope(theta, kind, values, dimensions, local, short, long)


def _tables(raw: Mapping[str, Any], family: Family) -> tuple[dict[str, Any], float | None]:
    """The settings of the layers that attend to everything, and the rotary base of those with a window."""
    parts = [raw.get(key) or {} for key in ("rope_scaling", "rope_parameters")]
    table = {key: value for part in parts if isinstance(part, dict) for key, value in part.items()}
    full, local = (table.pop(key, None) or {} for key in ("full_attention", "sliding_attention"))
    if not all(isinstance(part, dict) for part in (*parts, full, local)):
        raise CorruptFileError("config.json has a rope scaling that is not a table.", hint="Download it again.")
    table |= full
    if family.local_rope is None:
        if local and local != table:
            raise UnsupportedModelError(
                "The layers have two kinds of rotary positions, which cannot be expressed in GGUF.", hint=READY_MADE
            )
        return table, None
    if local.get("rope_type", "default") != "default":
        raise UnsupportedModelError(
            "The layers with a window have a rope scaling, which cannot be expressed in GGUF.", hint=READY_MADE
        )
    base = local.get("rope_theta", raw.get("rope_local_base_freq", family.local_rope))
    return table, number(base, "rope_local_base_freq")


def _factors(values: object, key: str, kind: object, dimensions: int) -> tuple[float, ...]:
    if kind != "longrope":
        return ()
    if not isinstance(values, list | tuple) or len(values) != dimensions // 2:
        raise CorruptFileError(
            f"The rope scaling longrope needs {dimensions // 2} numbers as {key}.", hint="Check config.json."
        )
    return tuple(number(value, key) for value in values)


def number(value: object, key: str) -> float:
    """A number above zero from config.json. Raises `CorruptFileError`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise CorruptFileError(
            f"config.json has {key} = {value!r:.60}, expected a number above zero.", hint="Download config.json again."
        )
    return float(value)
