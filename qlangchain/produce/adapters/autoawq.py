"""AutoAWQ, archived by its authors: AWQ as it was made until 2025."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from qlangchain.errors import InvalidInputError


def quantize(
    source: str,
    target: str,
    group_size: int,
    texts: Sequence[str],
    samples: int,
    length: int,
    progress: Any = None,
) -> dict[str, Any]:
    """Quantize the model directory `source` into `target` by AWQ in 4 bits, on a CPU or a GPU.

    AutoAWQ passes over every text that is longer than `length` tokens without a word, so the texts are cut into
    pieces that are shorter. Raises `InvalidInputError` where nothing is left to calibrate on.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    from awq import AutoAWQForCausalLM  # type: ignore[import-not-found, unused-ignore]
    from transformers import AutoTokenizer

    if progress is not None:
        progress("load", 0, 1)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, local_files_only=True)
    pieces = _cut(tokenizer, texts, length)[:samples]
    if not pieces:
        raise InvalidInputError("The calibration text is empty.", hint="Pass more text.")
    model = AutoAWQForCausalLM.from_pretrained(source, device_map=_device())
    if progress is not None:
        progress("quantize", 0, 1)
    model.quantize(
        tokenizer,
        quant_config={"zero_point": True, "q_group_size": group_size, "w_bit": 4, "version": "GEMM"},
        calib_data=pieces,
        max_calib_samples=samples,
        max_calib_seq_len=length,
    )
    model.save_quantized(target)
    tokenizer.save_pretrained(target)
    return {"tool": "autoawq", "samples": len(pieces)}


def _device() -> str:
    import torch

    return "auto" if torch.cuda.is_available() else "cpu"


def _cut(tokenizer: Any, texts: Sequence[str], length: int) -> list[str]:
    """Texts of at most three quarters of `length` tokens: decoding and encoding again may add a few."""
    most = max(8, length * 3 // 4)
    ids = [one for text in texts for one in tokenizer(text + "\n\n", add_special_tokens=False)["input_ids"]]
    return [tokenizer.decode(ids[at : at + most]) for at in range(0, len(ids), most)]
