"""GPTQ's solver: round the weights of a layer one input at a time, and let the rest make good for the error.

For inputs X the layer's error is ||(W - Q) X||^2 = tr(dW H dW^T) with H = X X^T. With the upper Cholesky factor U of
H^-1, the best correction of the columns that are still free, after column i was rounded with the error e, is
-e / U[i, i] * U[i, i+1:]. Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers" (arXiv:2210.17323), section 3; the order by importance is the "act-order" of its code.

Weights are kept with the inputs first, shape (columns, rows), so that one step works on contiguous memory, and the
layers that share their inputs (q, k and v) are solved as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qlangchain.errors import ProductionError

if TYPE_CHECKING:
    from torch import Tensor

# Outputs are independent, so some are solved together: few enough to stay in the cache, and below the 32,768 values
# from which torch wakes its threads for an operation, which costs more than the columns' small steps themselves.
_ROWS = 2048
_LEAF = 16  # columns rounded one by one before their errors are passed on as one matrix product
_SHRINKS = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79, 0.76, 0.73, 0.7)
_DAMPINGS = (1.0, 5.0, 25.0, 100.0)


@dataclass(frozen=True, slots=True)
class Grid:
    """What the codes may be: `bits` wide, symmetric around 2**(bits-1), one scale for `group_size` inputs (-1: all)."""

    bits: int
    group_size: int

    @property
    def zero(self) -> int:
        """The code of the weight 0."""
        return int(2 ** (self.bits - 1))

    @property
    def top(self) -> int:
        """The largest code."""
        return int(2**self.bits - 1)

    def span(self, columns: int) -> int:
        """Inputs in a group of a layer of `columns` inputs."""
        return columns if self.group_size == -1 else self.group_size


@dataclass(frozen=True, slots=True)
class Solution:
    """A solved layer: `codes` uint8 (columns, rows), `scales` f32 (groups, rows), `groups` int32 (columns,)."""

    codes: Tensor
    scales: Tensor
    groups: Tensor


def portable_scales(scales: Tensor) -> Tensor:
    """Round scales to values that bfloat16 and float16 both hold, so that every reader computes the same weights.

    Eight significant bits are bfloat16's; below 2**-14 float16 loses bits, and above 65,504 it has no values.
    """
    import torch

    rounded = scales.to(torch.bfloat16).clamp(2.0**-24, 65280.0).to(torch.float16).to(torch.bfloat16)
    return rounded.float()


def search_scales(weights: Tensor, importance: Tensor, grid: Grid) -> Tensor:
    """The scale of each row of a group that loses least when it is rounded, weighted by the inputs' importance.

    `weights` has the shape (groups, span, rows) and `importance` (groups, span, 1); returns (groups, rows). Each
    candidate shrinks the range that holds all weights: clipping the largest can pay for finer steps.
    """
    import torch

    full = weights.abs().amax(dim=1) * (2.0 / grid.top)
    best = portable_scales(full)
    if grid.bits >= 8:  # the steps are so fine that clipping never pays
        return best
    lowest = torch.full_like(best, torch.inf)
    for shrink in _SHRINKS:
        scales = portable_scales(full * shrink)
        wide = scales[:, None, :]
        codes = torch.div(weights, wide).round_().clamp_(-grid.zero, grid.top - grid.zero)
        loss = codes.mul_(wide).sub_(weights).square_().mul_(importance).sum(dim=1)
        better = loss < lowest
        best = torch.where(better, scales, best)
        lowest = torch.where(better, loss, lowest)
    return best


def inverse_factor(gram: Tensor, damping: float, order: Tensor | None = None) -> Tensor:
    """The upper triangular U with H^-1 = U^T U of the damped Gram matrix H with its columns in `order`.

    `damping` is the part of the mean diagonal that is added to the diagonal; where H is still not positive definite
    to the precision of float32, it is raised. With J the reversal of an order and J H J = L L^T, U = J L^-1 J.
    Raises `ProductionError` where H is not finite.
    """
    import torch

    backwards = torch.arange(len(gram) - 1, -1, -1) if order is None else order.flip(0)
    damped = gram.index_select(0, backwards).index_select(1, backwards)
    diagonal = damped.diagonal()
    mean = float(diagonal.mean())
    if not 0 <= mean < float("inf"):
        raise ProductionError(
            "The activations that reach a layer are infinite or no numbers.",
            hint="The model overflows on the calibration text; check that its weights are whole.",
        )
    added = 0.0
    for factor in _DAMPINGS:
        wanted = damping * factor * mean or 1.0  # a layer that no text reaches is rounded to nearest
        diagonal += wanted - added
        added = wanted
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            del damped, diagonal  # these matrices decide how much memory it takes
            _invert_lower(lower)
            found: Tensor = lower.flip(0, 1)
            return found
    raise ProductionError(
        "The calibration activations of a layer have no usable covariance.",
        hint="Pass more varied calibration text; fifty different paragraphs are enough.",
    )


def _invert_lower(lower: Tensor) -> None:
    """Invert a lower triangular matrix in place, by halves: a third of the work of solving for the identity."""
    import torch

    size = len(lower)
    if size <= 128:
        lower.copy_(torch.linalg.solve_triangular(lower, torch.eye(size), upper=False))
        return
    half = size // 2
    _invert_lower(lower[:half, :half])
    _invert_lower(lower[half:, half:])
    lower[half:, :half] = -(lower[half:, half:] @ (lower[half:, :half] @ lower[:half, :half]))


def solve(weights: Tensor, gram: Tensor, grid: Grid, *, act_order: bool, desc_act: bool, damping: float) -> Solution:
    """Round `weights`, shape (columns, rows), for inputs with the Gram matrix `gram`.

    With `act_order` the columns that carry most are rounded first, while most others can still make good for them;
    the groups stay where they are. With `desc_act` the groups, too, are formed in that order (`g_idx`).
    """
    import torch

    columns, rows = weights.shape
    span = grid.span(columns)
    importance = gram.diagonal().clone()
    importance += importance.mean() * damping
    order = torch.argsort(importance, descending=True, stable=True) if act_order or desc_act else torch.arange(columns)
    groups = torch.arange(columns) // span
    if desc_act:
        groups = groups[torch.argsort(order)]
    static = None
    if act_order and not desc_act:
        grouped = importance.view(-1, span, 1)
        static = torch.cat(
            [
                search_scales(part.reshape(-1, span, part.shape[1]), grouped, grid)
                for part in torch.split(weights, _ROWS, dim=1)
            ],
            dim=1,
        )
    factor = inverse_factor(gram, damping, order)
    codes = torch.empty(columns, rows, dtype=torch.uint8)
    scales = torch.empty(columns // span, rows) if static is None else static
    for start in range(0, rows, _ROWS):
        part = slice(start, min(start + _ROWS, rows))
        work = _Rounding(weights[order, part], factor, grid, scales[:, part], groups[order], static is None)
        work.solve(0, columns)
        codes[order, part] = work.codes
    return Solution(codes, scales, groups.to(torch.int32))


class _Rounding:
    """The rounding of some rows: `weights` become the corrected ones, then the errors that were passed on."""

    def __init__(self, weights: Tensor, factor: Tensor, grid: Grid, scales: Tensor, groups: Tensor, free: bool) -> None:
        import torch

        self.weights, self.factor, self.grid, self.scales, self.free = weights, factor, grid, scales, free
        self.groups = groups.tolist()
        self.span = grid.span(len(weights)) if free else _LEAF
        self.leaf = min(self.span, _LEAF)
        self.codes = torch.empty(weights.shape, dtype=torch.uint8)
        self.diagonal = factor.diagonal().tolist()
        # What an error in a column costs is its square over U[i, i]^2 (the paper's equation 2).
        self.cost = factor.diagonal().square().reciprocal()

    def solve(self, start: int, end: int) -> None:
        """Round the columns from `start` to `end`, passing errors on in products as large as they can be."""
        if self.free and end - start == self.span:
            # Everything before this group has been passed on to all of it, so its scales can be chosen.
            here = slice(start, start + self.span)
            self.scales[start // self.span] = search_scales(
                self.weights[None, here], self.cost[None, here, None], self.grid
            )[0]
        if end - start <= self.leaf:
            self._round(start, end)
            return
        unit = self.span if end - start > self.span else self.leaf
        middle = start + max(1, (end - start) // unit // 2) * unit
        self.solve(start, middle)
        self.weights[middle:end].addmm_(self.factor[start:middle, middle:end].T, self.weights[start:middle], alpha=-1.0)
        self.solve(middle, end)

    def _round(self, start: int, end: int) -> None:
        grid, factor, zero = self.grid, self.factor, self.grid.zero
        for column in range(start, end):
            weight = self.weights[column]
            scale = self.scales[self.groups[column]]
            level = (weight / scale).round_().clamp_(-zero, grid.top - zero)
            self.codes[column] = level + zero
            weight.sub_(level.mul_(scale)).div_(self.diagonal[column])  # from here on the row holds its error
            if column + 1 < end:
                self.weights[column + 1 : end].addr_(factor[column, column + 1 : end], weight, alpha=-1.0)
