"""AWQ's two searches, on Gram matrices instead of activations: which inputs to scale up, and where to clip.

Rounding an input's weights loses less when they are scaled up by s and the input itself is divided by s; that costs
nothing where the division can be folded into what makes the input. The loss of a layer is tr(dW H dW^T) with the Gram
matrix H of its inputs, so the calibration text need not be run again for each candidate. Source: Lin et al., "AWQ:
Activation-aware Weight Quantization" (arXiv:2306.00978), section 3; candidates and clipping follow its code.

Weights have the shape (columns, rows), inputs first. Codes have 4 bits and a zero point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qlangchain.produce.gptq_solver import portable_scales

if TYPE_CHECKING:
    from torch import Tensor

_TOP = 15
_ROWS = 512  # outputs that a candidate is judged by: an even sample, the same for all candidates
_RATIOS = tuple(step / 20 for step in range(21))
_CLIPS = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.72, 0.68, 0.64, 0.6, 0.56)
_CLIPPED_ROWS = 1024  # outputs clipped together, which bounds the memory


def fit(grouped: Tensor, clip: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
    """Scales and zero points that hold `clip` times the range of each row of each group.

    `grouped` has the shape (groups, span, rows); both results have (groups, rows).
    """
    low = grouped.amin(dim=1).clamp(max=0) * clip
    high = grouped.amax(dim=1).clamp(min=0) * clip
    scales = portable_scales((high - low) / _TOP)
    return scales, (-low / scales).round().clamp(0, _TOP)


def to_codes(grouped: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """The codes of weights, as floats, shape (groups, span, rows)."""
    return (grouped / scales[:, None]).round_().add_(zeros[:, None]).clamp_(0, _TOP)


def rounded(grouped: Tensor, clip: float = 1.0) -> Tensor:
    """The weights after rounding, in their own shape (groups, span, rows)."""
    scales, zeros = fit(grouped, clip)
    return to_codes(grouped, scales, zeros).sub_(zeros[:, None]).mul_(scales[:, None])


def search_input_scales(
    weights: Tensor, gram: Tensor, magnitude: Tensor, span: int, tie: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """The factor for each input, shape (columns,), with which rounding loses least; ones where none helps.

    `magnitude` is the mean |x| of each input. `tie` makes equal what has to be equal, where inputs share a factor.
    """
    import torch

    rows = weights[:, :: -(-weights.shape[1] // _ROWS)]
    grouped = rows.reshape(-1, span, rows.shape[1])
    relative = (grouped.abs() / grouped.abs().amax(dim=1, keepdim=True).clamp(min=1e-9)).mean(dim=2).reshape(-1)
    best, lowest = torch.ones_like(magnitude), torch.inf
    for weigh in (False, True):
        for ratio in _RATIOS:
            scales = magnitude.clamp(min=1e-6) ** ratio
            if weigh:
                scales = scales / relative.clamp(min=1e-4) ** (1 - ratio)
            scales = (scales / (scales.max() * scales.min()).sqrt()).clamp(1e-3, 1e3)
            if tie:
                scales = tie(scales)
            error = rounded((rows * scales[:, None]).view_as(grouped)).view_as(rows) / scales[:, None] - rows
            loss = float((error * (gram @ error)).sum())
            if loss < lowest:
                best, lowest = scales, loss
    return best


def search_clips(weights: Tensor, gram: Tensor, span: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (columns, rows) uint8, scales and zero points (groups, rows) after the best clipping of each group.

    The loss takes in how the inputs of one group go together, not those of different groups.
    """
    import torch

    blocks = torch.stack([gram[at : at + span, at : at + span] for at in range(0, len(gram), span)])
    parts = []
    for part in torch.split(weights, _CLIPPED_ROWS, dim=1):
        grouped = part.reshape(-1, span, part.shape[1])
        best_scales, best_zeros = fit(grouped)
        lowest = torch.full_like(best_scales, torch.inf)
        for clip in _CLIPS:
            scales, zeros = fit(grouped, clip)
            error = to_codes(grouped, scales, zeros).sub_(zeros[:, None]).mul_(scales[:, None]).sub_(grouped)
            loss = torch.bmm(blocks, error).mul_(error).sum(dim=1)
            better = loss < lowest
            lowest = torch.where(better, loss, lowest)
            best_scales, best_zeros = torch.where(better, scales, best_scales), torch.where(better, zeros, best_zeros)
        codes = to_codes(grouped, best_scales, best_zeros).to(torch.uint8).view_as(part)
        parts.append((codes, best_scales, best_zeros.to(torch.uint8)))
    codes, scales, zeros = (torch.cat(list(column), dim=1) for column in zip(*parts, strict=True))
    return codes, scales, zeros
