"""The decoders that can be written as GGUF, from `gguf_families.toml`, which says what each field means."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Family:
    """How one architecture is laid out in safetensors and in GGUF."""

    architecture: str
    classes: tuple[str, ...]
    linears: Mapping[str, tuple[str, str, str]]
    norms: Mapping[str, str]
    activations: tuple[str, ...]
    ropes: tuple[str, ...]
    window: str
    parts: tuple[str, ...] = ()
    other_parts: tuple[str, ...] = ()
    head_norms: bool = False
    norm_offset: float = 0.0
    biases: tuple[str, ...] = ()
    required_biases: tuple[str, ...] = ()
    neighbours: bool = False
    partial_rotary: bool = False
    local_rope: float | None = None
    tied: bool = False
    always_tied: bool = False
    window_default: int | None = None
    window_switch: bool = False
    window_period: int = 0
    softcaps: Mapping[str, str] = field(default_factory=dict)
    wide_scale: int = 0
    rope_every: int = 0
    head_dim: int | None = None
    metadata: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)


@lru_cache(maxsize=1)
def families() -> dict[str, Family]:
    """The family of each of transformers' classes."""
    table: dict[str, dict[str, Any]] = tomllib.loads(
        Path(__file__).with_name("gguf_families.toml").read_text(encoding="utf-8")
    )
    rows: dict[str, dict[str, Any]] = {}
    for name, row in table.items():  # a family stands after the one that it is like
        whole = {**rows.get(row.pop("like", ""), {}), "architecture": name, **row}
        rows[name] = whole
    found = {}
    for row in rows.values():
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
        family = Family(**values)
        found.update(dict.fromkeys(family.classes, family))
    return found
