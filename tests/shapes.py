"""The shapes of models that the tests of selection share: `config.json` of 43 models, as far as size depends on it.

After the published files; where one is not certain, the shape is at least one of its kind, and llama.cpp was asked
about the very same.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from qlangchain.selection.architecture import Architecture, from_config

DATA = Path(__file__).parent / "data"
CONFIGS: dict[str, dict[str, Any]] = {
    **json.loads((DATA / "models.json").read_text(encoding="utf-8")),
    **json.loads((DATA / "more_models.json").read_text(encoding="utf-8")),
}
PUBLISHED: dict[str, Any] = tomllib.loads((DATA / "published_sizes.toml").read_text(encoding="utf-8"))


def shape(name: str) -> Architecture:
    """The architecture of one of them."""
    return from_config(CONFIGS[name])
