"""What was made, with the figures of its check."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Made:
    """A quantized model. It stands for its path wherever a path is taken.

    Sizes are in bytes. `error` is the mean of ||W - Q|| / ||W|| over the layers, and `worst_error` that of
    `worst_layer`. `kl` is the mean KL divergence to the source in nats per token over `kl_tokens` of held-out text,
    and `same_first` the part of them where both think the same token most likely. None is what was not measured.
    """

    path: Path
    method: str
    format: str
    size_bytes: int
    source_bytes: int
    seconds: float
    tool: str = "qlangchain"
    bits_per_weight: float | None = None
    error: float | None = None
    worst_error: float | None = None
    worst_layer: str = ""
    kl: float | None = None
    same_first: float | None = None
    kl_tokens: int = 0
    notices: tuple[str, ...] = ()

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON takes it."""
        return {**asdict(self), "path": str(self.path)}

    @classmethod
    def of(cls, found: Mapping[str, Any], **more: Any) -> Made:
        """From what a job answered, and what its caller knows."""
        known = {field.name for field in fields(cls)}
        values = {name: value for name, value in {**found, **more}.items() if name in known}
        return cls(**{**values, "notices": tuple(values.get("notices", ()))})
