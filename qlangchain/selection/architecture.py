"""Models as far as memory goes: from a `config.json`, or from the metadata of a GGUF file.

Both ways lead to the same `Architecture` for the same model, so that a plan can be made before any file exists.
"""

from __future__ import annotations

from qlangchain.selection.gguf_metadata import from_gguf
from qlangchain.selection.hf_config import from_config
from qlangchain.selection.layers import Architecture, Attention, Layer, State, Traits

__all__ = ["Architecture", "Attention", "Layer", "State", "Traits", "from_config", "from_gguf"]
