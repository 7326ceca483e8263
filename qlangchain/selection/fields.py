"""Reading numbers from what others wrote: a `config.json`, or the metadata of a GGUF file.

Both are untrusted. A value that is missing takes its default, one that cannot be is an error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Never

from qlangchain.errors import UnsupportedModelError

MOST_LAYERS: Final = 512  # LLAMA_MAX_LAYERS
_MOST: Final = 1 << 31


class Fields:
    """Named numbers of one model. `where` is what messages call their origin."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = values
        self._lists: dict[str, list[Any]] = {}
        self.where = where

    def raw(self, *names: str) -> Any:
        """The first value there that is not null, or None."""
        return next((value for name in names if (value := self._values.get(name)) is not None), None)

    def whole(self, *names: str, default: int | None = None, least: int = 0, most: int = _MOST) -> int:
        """The first value there as a whole number; a model without it, and without a default, is not known.

        Raises UnsupportedModelError.
        """
        value = self.raw(*names)
        if value is None:
            if default is None:
                self.refuse(f"it does not say {names[0]}")
            return default
        return self._checked(names[0], value, least, most)

    def each(self, layers: int, *names: str, default: int | None = None, least: int = 0) -> list[int]:
        """One number for each layer: some models give a list, others one number for all.

        A list that is longer than the model has layers is used from its beginning (heads that predict further
        tokens may be left out of either).
        """
        value = self.raw(*names)
        if isinstance(value, Sequence) and not isinstance(value, str):
            if names[0] not in self._lists:
                if not layers <= len(value) <= MOST_LAYERS:
                    self.refuse(f"{names[0]} has {len(value)} values for {layers} layers")
                # Yes and no are 1 and 0, and a layer that has none of something may say null.
                items = [int(item) if isinstance(item, bool) else item or 0 for item in list(value)[:layers]]
                self._lists[names[0]] = [self._checked(names[0], item, 0, _MOST) for item in items]
            return self._lists[names[0]]
        return [self.whole(*names, default=default, least=least)] * layers

    def flag(self, name: str, default: bool = False) -> bool:
        """A yes or no."""
        value = self.raw(name)
        return default if value is None else bool(value)

    def refuse(self, why: str) -> Never:
        """Raise the error for a model that is not described as expected."""
        raise UnsupportedModelError(
            f"{self.where} does not describe a model that is known: {why}.",
            hint="Expected a text model, with its layers, heads, widths and vocabulary.",
        )

    def _checked(self, name: str, value: Any, least: int, most: int) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool | float) or not isinstance(value, int) or not least <= value <= most:
            self.refuse(f"{name} is {repr(value)[:40]}, expected {least} to {most}")
        return value
