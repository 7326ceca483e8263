"""What choosing starts from: the model, and the ways to come by its weights. Plain values, filled by other rooms."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from qlangchain.selection.kv_cache import bytes_per_token
from qlangchain.selection.layers import Architecture
from qlangchain.selection.tensors import tensors
from qlangchain.selection.weights import Weights
from qlangchain.types import Method, Origin


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What choosing needs to know of a model: its name, and its shape as far as memory and speed go."""

    name: str
    architecture: Architecture

    @property
    def max_context(self) -> int:
        """The longest context that it was made for, in tokens."""
        return self.architecture.max_context

    @property
    def kv_bytes_per_token(self) -> int:
        """What one token takes in an f16 KV cache, in bytes."""
        return bytes_per_token(self.architecture)

    @property
    def parameters(self) -> int:
        """The number of its weights, computed from its shape."""
        return _parameters(self.architecture)


@lru_cache(maxsize=64)
def _parameters(model: Architecture) -> int:
    return sum(tensor.elements for tensor in tensors(model))


@dataclass(frozen=True, slots=True)
class Offer:
    """One way to come by weights: a file or directory that is here, one on the hub, or one that can be made.

    `size_bytes` is what the weights take on the disk; an estimate where they are still to be made. `weights` are the
    exact figures from a file's header, None where it has not been read. `fetch_bytes` and `write_bytes` are what has
    to be downloaded and written first. `key` names it to whoever made the offer; `by` is its publisher, `trust` the
    place in the order of trust (0 first). `group_size`, `symmetric` and `desc_act` are a GPTQ or AWQ directory's.
    `why_not` says what stands in its way: what has to be installed before it can be made, a licence.
    """

    method: Method
    format: str
    origin: Origin
    size_bytes: int
    key: str = ""
    by: str = ""
    trust: int = 0
    weights: Weights | None = field(default=None, hash=False)
    fetch_bytes: int = 0
    write_bytes: int = 0
    imatrix: bool = False
    group_size: int | None = None
    symmetric: bool = True
    desc_act: bool = False
    why_not: str = ""

    @property
    def label(self) -> str:
        """What it is called in reasons and tables."""
        name = self.format if self.method is Method.GGUF else f"{self.method} {self.format}"
        if self.method is Method.NONE:
            name = f"{self.format} as it is"
        return f"{name} by {self.by}" if self.by else name
