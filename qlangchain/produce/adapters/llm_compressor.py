"""llm-compressor, for whole numbers of 8 bits in the compressed-tensors format that vLLM reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from qlangchain.errors import InvalidInputError

SCHEMES = ("W8A8", "W8A16")


def quantize(
    source: str,
    target: str,
    scheme: str,
    samples: Sequence[Sequence[int]],
    progress: Any = None,
) -> dict[str, Any]:
    """Quantize the model directory `source` into `target`; `scheme` is one of `SCHEMES`, `samples` are token ids.

    W8A8 smooths the activations first (SmoothQuant) and then rounds the weights by GPTQ; W8A16 rounds them alone.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    if scheme not in SCHEMES:
        raise InvalidInputError(f"The scheme {scheme!r} is not known.", hint=f"Known: {', '.join(SCHEMES)}.")
    import torch
    from datasets import Dataset  # type: ignore[import-not-found, unused-ignore]
    from llmcompressor import oneshot  # type: ignore[import-not-found, unused-ignore]
    from llmcompressor.modifiers.quantization import GPTQModifier  # type: ignore[import-not-found, unused-ignore]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if progress is not None:
        progress("load", 0, 1)
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto", trust_remote_code=False)
    # An order of columns makes no sense with one scale for all of them, and some readers refuse config.json for it.
    order: dict[str, Any] = {"actorder": None} if scheme == "W8A8" else {}
    recipe: list[Any] = [GPTQModifier(targets="Linear", scheme=scheme, ignore=["lm_head"], **order)]
    if scheme == "W8A8":
        from llmcompressor.modifiers.transform.smoothquant import (  # type: ignore[import-not-found, unused-ignore]
            SmoothQuantModifier,
        )

        recipe.insert(0, SmoothQuantModifier(smoothing_strength=0.8))
    if not torch.cuda.is_available():
        from llmcompressor.pipelines.cache import IntermediatesCache  # type: ignore[import-not-found, unused-ignore]

        IntermediatesCache.pin_memory = lambda *a, **k: None  # it pins memory for a card that is not there
    data = Dataset.from_list([{"input_ids": list(ids), "attention_mask": [1] * len(ids)} for ids in samples])
    if progress is not None:
        progress("quantize", 0, 1)
    oneshot(
        model=model, dataset=data, recipe=recipe, max_seq_length=max(map(len, samples)),
        num_calibration_samples=len(samples),
    )  # fmt: skip
    model.save_pretrained(target, save_compressed=True)
    AutoTokenizer.from_pretrained(source, trust_remote_code=False, local_files_only=True).save_pretrained(target)
    return {"tool": "llm-compressor"}
