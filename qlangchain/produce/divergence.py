"""How far a quantized model's predictions are from its source's, in the memory of one block and a slice of the head.

Three models run side by side, block by block: the source, the quantized one as a reader computes it, and the source
rounded to nearest on the same grid, which is the yardstick. The vocabulary is gone through in slices with running
sums, so that the logits of a token are never whole.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlangchain.errors import CancelledError
from qlangchain.produce.calibration import held_out_texts, load_tokenizer, samples_of
from qlangchain.produce.decoders import EMBEDDING, HEAD, NORM, Decoder, run_block
from qlangchain.produce.quantized_files import QuantizedFiles
from qlangchain.produce.rounding import nearest
from qlangchain.produce.stored import read_rows, read_tensor

if TYPE_CHECKING:
    from torch import Tensor

LENGTH, SAMPLES = 256, 8
_SLICE = 4096  # rows of the head at once


def measure(
    found: QuantizedFiles,
    source: Path,
    *,
    texts: Sequence[str] | None = None,
    samples: int = SAMPLES,
    progress: Callable[[str, int, int], None] | None = None,
    cancel: threading.Event | None = None,
) -> tuple[float, float, float, int]:
    """Return the mean KL divergence per token in nats, that of rounding to nearest, the agreement, and the tokens.

    At most `samples` samples of `LENGTH` tokens are cut from `texts`, by default from the text that ships.
    Raises what `Decoder` raises, and `CancelledError`.
    """
    import torch

    decoder = Decoder(source)
    context = int(getattr(decoder.model.config, "max_position_embeddings", LENGTH))
    length = min(LENGTH, context)
    tokens = samples_of(load_tokenizer(source), held_out_texts() if texts is None else texts, None, length, at_least=1)[
        :samples
    ]
    embedded, arguments = decoder.start(tokens, torch.float32)
    states = [torch.cat(list(embedded))] * 3  # the source, the quantized one, the source rounded to nearest
    with torch.inference_mode():
        for index in range(decoder.layers):
            if cancel is not None and cancel.is_set():
                raise CancelledError("The check was cancelled.")
            for place, replaced in enumerate((None, _stored(found, decoder, index), _nearest(found, decoder, index))):
                states[place] = run_block(
                    decoder.block(index, torch.float32, replaced), states[place], arguments[index]
                )
            if progress:
                progress("verify", index + 1, decoder.layers)
        reference, *others = [
            _normed(decoder, state, norm).reshape(-1, decoder.hidden_size)
            for state, norm in zip(states, (None, found, None), strict=True)
        ]
        cap = getattr(decoder.model.config, "final_logit_softcapping", None)
        results = [
            _compare(reference, other, _heads(decoder, model), cap)
            for other, model in zip(others, (found, None), strict=True)
        ]
    return results[0][0], results[1][0], results[0][1], len(reference)


def _stored(found: QuantizedFiles, decoder: Decoder, index: int) -> dict[str, Tensor]:
    import torch

    prefix = f"model.layers.{index}."
    replaced = {}
    for full in decoder.block_tensors(index):
        layer = full.removesuffix(".weight")
        if f"{layer}.qweight" in found.tensors:
            values = torch.from_numpy(found.layer(layer).dequantized()).T.contiguous()
        else:
            values = torch.from_numpy(found.read(full)).float()
        replaced[full.removeprefix(prefix)] = values
    return replaced


def _nearest(found: QuantizedFiles, decoder: Decoder, index: int) -> dict[str, Tensor]:
    import torch

    names = [f"{name}.weight" for name in decoder.architecture.linears]
    return {
        name: torch.from_numpy(nearest(decoder.tensor(index, name).T.numpy(), found.scheme)).T.contiguous()
        for name in names
    }


def _normed(decoder: Decoder, state: Tensor, found: QuantizedFiles | None) -> Tensor:
    import torch

    norm: Any = copy.deepcopy(decoder.model.model.norm)
    weight = torch.from_numpy(found.read(NORM)) if found else read_tensor(decoder.checkpoint, NORM)
    norm.load_state_dict({"weight": weight.float()}, assign=True)
    return norm(state)  # type: ignore[no-any-return]


def _heads(decoder: Decoder, found: QuantizedFiles | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Slices of the rows of the source's head, with those of the other model."""
    import torch

    name = EMBEDDING if decoder.tied else HEAD
    rows = decoder.checkpoint.tensors[name].shape[0]
    whole = None
    if found is not None and "lm_head.qweight" in found.tensors:
        whole = torch.from_numpy(found.layer("lm_head").dequantized()).T
    for at in range(0, rows, _SLICE):
        part = read_rows(decoder.checkpoint, name, range(at, min(at + _SLICE, rows))).float()
        if found is None:
            yield part, part
        elif whole is not None:
            yield part, whole[at : at + _SLICE]
        else:
            other = found.read(HEAD if HEAD in found.tensors else EMBEDDING, at, at + _SLICE)
            yield part, torch.from_numpy(other).float()


def _compare(
    reference: Tensor, other: Tensor, heads: Iterator[tuple[Tensor, Tensor]], cap: float | None
) -> tuple[float, float]:
    """The mean KL divergence in nats, and how often both put the same token first."""
    import torch

    low = torch.full((len(reference),), -torch.inf)
    top_p, top_q = low.clone(), low.clone()  # the largest logits so far
    sum_p, sum_q, cross = torch.zeros_like(low), torch.zeros_like(low), torch.zeros_like(low)
    first_p, first_q = torch.zeros_like(low, dtype=torch.long), torch.zeros_like(low, dtype=torch.long)
    at = 0
    for head_p, head_q in heads:
        p, q = reference @ head_p.T, other @ head_q.T
        if cap:
            p, q = torch.tanh(p / cap) * cap, torch.tanh(q / cap) * cap
        max_p, max_q = p.max(dim=1), q.max(dim=1)
        first_p = torch.where(max_p.values > top_p, max_p.indices + at, first_p)
        first_q = torch.where(max_q.values > top_q, max_q.indices + at, first_q)
        new_p, new_q = torch.maximum(top_p, max_p.values), torch.maximum(top_q, max_q.values)
        weights = (p - new_p[:, None]).exp()
        cross = cross * (top_p - new_p).exp() + (weights * (p - q)).sum(dim=1)
        sum_p = sum_p * (top_p - new_p).exp() + weights.sum(dim=1)
        sum_q = sum_q * (top_q - new_q).exp() + (q - new_q[:, None]).exp().sum(dim=1)
        top_p, top_q = new_p, new_q
        at += len(head_p)
    divergence = cross / sum_p - (top_p + sum_p.log()) + (top_q + sum_q.log())
    return float(divergence.mean()), float((first_p == first_q).float().mean())
