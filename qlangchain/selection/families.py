"""The architectures whose blocks are known, from `families.toml`."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib import resources

from qlangchain.selection.layers import Traits


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture: `name` as in GGUF files, the rest as `families.toml` explains it."""

    name: str
    model_types: tuple[str, ...] = ()
    tied: bool = False
    sliding: int | str = "layers"
    dense_first: bool = False
    window: int = 0
    recurrent_every: int = 0
    traits: Traits = Traits()

    @property
    def period(self) -> int:
        """Every how many layers one looks at everything, 0 where no such rule is."""
        return self.sliding if isinstance(self.sliding, int) else 0


@lru_cache(maxsize=1)
def families() -> dict[str, Family]:
    """All families, by their name in GGUF files."""
    text = (resources.files(__package__) / "families.toml").read_text(encoding="utf-8")
    of_blocks = {field.name for field in fields(Traits)}
    found = {}
    for name, row in tomllib.loads(text).items():
        types = tuple(row.pop("model_types"))
        blocks = {key: row.pop(key) for key in list(row) if key in of_blocks}
        if "norms" in blocks:
            blocks["norms"] = tuple(blocks["norms"])
        traits = Traits(**blocks)
        found[name] = Family(name, types, traits=traits, **row)
    return found


def by_model_type(model_type: str) -> Family | None:
    """The family that a `config.json` of this `model_type` belongs to, None where it is not known."""
    return next((family for family in families().values() if model_type in family.model_types), None)
