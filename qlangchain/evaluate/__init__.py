"""Judging: perplexity, KL divergence, agreement, size, memory and speed, measured on one's own text and machine.

`compare` takes a model and formats, `evaluate` a chain and prompts. The room itself can be called and is `evaluate`:
`from qlangchain import evaluate` gives a function, in whatever order its modules were imported.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from qlangchain.evaluate.chain import ChainRow, Evaluation, evaluate
    from qlangchain.evaluate.comparison import compare
    from qlangchain.evaluate.result import Comparison, Row

__all__ = ["ChainRow", "Comparison", "Evaluation", "Row", "compare", "evaluate"]

_FACE: Final = {
    "ChainRow": "chain",
    "Comparison": "result",
    "Evaluation": "chain",
    "Row": "result",
    "compare": "comparison",
    "evaluate": "chain",
}


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_FACE[name]}"), name)
    globals()[name] = value
    return value


class _Callable(types.ModuleType):
    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return __getattr__("evaluate")(*arguments, **named)


sys.modules[__name__].__class__ = _Callable
