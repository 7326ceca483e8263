"""AutoGPTQ, archived by its authors: GPTQ as it was made until 2024, on NVIDIA GPUs alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlangchain.errors import HardwareUnavailableError


def quantize(
    source: str,
    target: str,
    bits: int,
    group_size: int,
    samples: Sequence[Sequence[int]],
    desc_act: bool = False,
    progress: Any = None,
) -> dict[str, Any]:
    """Quantize the model directory `source` into `target`; `samples` are token ids to calibrate on.

    Raises `HardwareUnavailableError` without a GPU: AutoGPTQ refuses to load a model to quantize without CUDA.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    if not torch.cuda.is_available():
        raise HardwareUnavailableError(
            "AutoGPTQ quantizes on NVIDIA GPUs only, and there is none.",
            hint="Leave out tool=: qlangchain's own GPTQ runs on any processor.",
        )
    from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig  # type: ignore[import-not-found, unused-ignore]

    if progress is not None:
        progress("load", 0, 1)
    recipe = BaseQuantizeConfig(bits=bits, group_size=group_size, desc_act=desc_act, sym=True)
    model = AutoGPTQForCausalLM.from_pretrained(source, recipe)
    if progress is not None:
        progress("quantize", 0, 1)
    model.quantize(
        [{"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
         for ids in samples]
    )  # fmt: skip
    model.save_quantized(target, use_safetensors=True)
    # transformers looks for model.safetensors; AutoGPTQ names the file by its settings.
    weights = sorted(Path(target).glob("gptq_model-*.safetensors"))
    if len(weights) == 1:
        weights[0].rename(weights[0].with_name("model.safetensors"))
    return {"tool": "auto-gptq"}
