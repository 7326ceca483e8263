"""gptqmodel, the maintained library, for GPTQ and AWQ of architectures that ours does not know."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from qlangchain.errors import InvalidInputError


def quantize(
    source: str,
    target: str,
    method: str,
    bits: int,
    group_size: int,
    samples: Sequence[Sequence[int]],
    desc_act: bool = False,
    progress: Any = None,
) -> dict[str, Any]:
    """Quantize the model directory `source` into `target` by "gptq" or "awq"; `samples` are token ids to calibrate on.

    On a CPU it needs two workers (its pool asks for two and is given half of the cores) and AWQ its torch kernel.
    """
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from gptqmodel import BACKEND, GPTQModel  # type: ignore[import-not-found, unused-ignore]
    from gptqmodel.quantization import config as recipes  # type: ignore[import-not-found, unused-ignore]

    if method not in ("gptq", "awq"):
        raise InvalidInputError(f"gptqmodel is not asked for {method!r} here.", hint="Known: gptq, awq.")
    _tell(progress, "load", 0)
    if method == "gptq":
        recipe = recipes.GPTQConfig(bits=bits, group_size=group_size, desc_act=desc_act)
    else:
        recipe = recipes.AWQConfig(bits=bits, group_size=group_size)
    model = GPTQModel.load(source, recipe, trust_remote_code=False)
    data = [
        {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids), dtype=torch.long)} for ids in samples
    ]
    _tell(progress, "quantize", 0)
    on_cpu = method == "awq" and not torch.cuda.is_available()
    model.quantize(data, **({"backend": BACKEND.AWQ_TORCH} if on_cpu else {}))
    _tell(progress, "quantize", 1)
    model.save(target)
    return {"tool": "gptqmodel"}


def _tell(progress: Any, stage: str, done: int) -> None:
    if progress is not None:
        progress(stage, done, 1)
