"""The solver against rounding to nearest, on correlated inputs, singular covariances, and every order of columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from unit.quantizable import one_thread as one_thread  # noqa: E402, PLC0414 - a fixture

from qlangchain.errors import ProductionError  # noqa: E402
from qlangchain.produce import gptq_solver  # noqa: E402
from qlangchain.produce.awq_search import fit, rounded, search_clips, search_input_scales  # noqa: E402
from qlangchain.produce.gptq_solver import Grid, inverse_factor, portable_scales, solve  # noqa: E402

ORDERS = {"plain": (False, False), "static": (True, False), "desc": (False, True)}


def correlated(columns: int, samples: int, seed: int) -> Any:
    """Inputs of a low rank with noise, and a few that are much larger, as in a language model."""
    random = torch.Generator().manual_seed(seed)
    mixed = torch.randn(samples, columns // 4, generator=random) @ torch.randn(columns // 4, columns, generator=random)
    inputs = mixed + 0.3 * torch.randn(samples, columns, generator=random)
    inputs[:, :: columns // 4] *= 6
    return inputs


def dequantized(solution: Any, grid: Grid) -> Any:
    return (solution.codes.float() - grid.zero) * solution.scales[solution.groups.long()]


def error(weights: Any, rounded_weights: Any, inputs: Any) -> float:
    return float((inputs @ (weights - rounded_weights)).square().sum())


def nearest(weights: Any, grid: Grid) -> Any:
    grouped = weights.view(-1, grid.span(len(weights)), weights.shape[1])
    scales = grouped.abs().amax(1, keepdim=True) * 2 / grid.top
    return ((grouped / scales).round().clamp(-grid.zero, grid.top - grid.zero) * scales).view_as(weights)


@pytest.mark.parametrize("order", ORDERS)
@given(
    seed=st.integers(0, 10_000),
    bits=st.sampled_from([4, 8]),
    size=st.sampled_from([(64, 16), (64, 64), (128, 32), (96, -1), (128, 128)]),
    rows=st.sampled_from([8, 40]),
)
@settings(max_examples=12)
def test_it_beats_rounding_to_nearest(order: str, seed: int, bits: int, size: tuple[int, int], rows: int) -> None:
    columns, group_size = size
    grid = Grid(bits, group_size)
    inputs = correlated(columns, 300, seed)
    weights = torch.randn(columns, rows, generator=torch.Generator().manual_seed(seed + 1))
    act_order, desc_act = ORDERS[order]
    solution = solve(
        weights.clone(), inputs.T @ inputs / 300, grid, act_order=act_order, desc_act=desc_act, damping=0.01
    )
    assert error(weights, dequantized(solution, grid), inputs) < 0.6 * error(weights, nearest(weights, grid), inputs)
    if not desc_act:
        expected = np.arange(columns) // grid.span(columns)
        np.testing.assert_array_equal(solution.groups.numpy(), expected)
    assert sorted(solution.groups.tolist()) == sorted((np.arange(columns) // grid.span(columns)).tolist())


def test_many_outputs_are_solved_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = correlated(64, 200, 1)
    gram = inputs.T @ inputs / 200
    weights = torch.randn(64, 40, generator=torch.Generator().manual_seed(2))
    settings = {"act_order": True, "desc_act": False, "damping": 0.01}
    whole = solve(weights, gram.clone(), Grid(4, 32), **settings)
    monkeypatch.setattr(gptq_solver, "_ROWS", 16)
    monkeypatch.setattr(gptq_solver, "_LEAF", 8)
    parts = solve(weights, gram.clone(), Grid(4, 32), **settings)
    torch.testing.assert_close(whole.scales, parts.scales)
    assert (whole.codes != parts.codes).float().mean() < 0.01  # sums in another order may tip a rounding


@pytest.mark.parametrize("inputs", [
    torch.zeros(10, 32), torch.ones(10, 32), torch.eye(32)[:3], torch.randn(5, 32) * 1e-12, torch.randn(5, 32) * 1e12,
])  # fmt: skip
def test_a_covariance_that_is_singular(inputs: Any) -> None:
    weights = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    solution = solve(weights, inputs.T @ inputs, Grid(4, 32), act_order=True, desc_act=False, damping=0.01)
    relative = (dequantized(solution, Grid(4, 32)) - weights).norm() / weights.norm()
    assert relative < 0.6  # weights that no input reaches are kept all the same


def test_inputs_that_are_no_numbers() -> None:
    gram = torch.full((32, 32), torch.nan)
    with pytest.raises(ProductionError, match="no numbers"):
        solve(torch.randn(32, 8), gram, Grid(4, 32), act_order=True, desc_act=False, damping=0.01)


def test_the_factor_is_one_of_the_inverse() -> None:
    inputs = correlated(48, 500, 3).double()
    gram = (inputs.T @ inputs / 500).float()
    damped = gram.double() + 0.01 * gram.diagonal().mean() * torch.eye(48)
    factor = inverse_factor(gram, 0.01).double()
    assert (factor.tril(-1) == 0).all()
    torch.testing.assert_close(factor.T @ factor @ damped, torch.eye(48).double(), atol=2e-3, rtol=0)


@given(st.floats(1e-9, 1e6))
def test_portable_scales_are_the_same_in_both_types(value: float) -> None:
    scale = portable_scales(torch.tensor([value]))
    assert scale.item() > 0
    assert scale.half().float() == scale == scale.bfloat16().float()
    if 1e-4 < value < 6e4:
        assert abs(scale.item() / value - 1) <= 2**-8


def test_scales_that_are_searched_lose_less_than_full_ones() -> None:
    weights = torch.randn(4, 32, 50, generator=torch.Generator().manual_seed(5))
    importance = torch.rand(4, 32, 1, generator=torch.Generator().manual_seed(6)) * 10

    def loss(scales: Any) -> float:
        wide = scales[:, None]
        return float((((weights / wide).round().clamp(-8, 7) * wide - weights).square() * importance).sum())

    full = portable_scales(weights.abs().amax(1) * 2 / 15)
    assert loss(gptq_solver.search_scales(weights, importance, Grid(4, 32))) < 0.95 * loss(full)


def test_awq_scales_up_what_carries_most() -> None:
    inputs = correlated(64, 400, 4)
    gram = inputs.T @ inputs / 400
    weights = torch.randn(64, 32, generator=torch.Generator().manual_seed(5))
    factors = search_input_scales(weights, gram, inputs.abs().mean(0), 32)
    grouped = weights.view(2, 32, 32)
    scaled = rounded((weights * factors[:, None]).view_as(grouped)).view_as(weights) / factors[:, None]
    plain = rounded(grouped).view_as(weights)
    assert error(weights, scaled, inputs) < 0.8 * error(weights, plain, inputs)
    assert factors[::16].mean() > factors.mean()


def test_awq_clips_no_worse_than_not_at_all() -> None:
    inputs = correlated(64, 400, 4)
    gram = inputs.T @ inputs / 400
    weights = torch.randn(64, 32, generator=torch.Generator().manual_seed(5)) ** 3
    codes, scales, zeros = search_clips(weights, gram, 32)
    grouped = weights.view(2, 32, 32)
    clipped = (codes.view(2, 32, 32).float() - zeros[:, None].float()) * scales[:, None]
    blocks = torch.stack([gram[:32, :32], gram[32:, 32:]])

    def loss(values: Any) -> float:
        return float((torch.bmm(blocks, values - grouped) * (values - grouped)).sum())

    assert loss(clipped) < 0.9 * loss(rounded(grouped))
    assert codes.max() <= 15 and zeros.max() <= 15


@given(st.integers(0, 1000), st.sampled_from([0.0, 1e-6, 1.0, 1e4]))
def test_awq_grids_hold_zero(seed: int, size: float) -> None:
    grouped = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(seed)) * size + size
    scales, zeros = fit(grouped)
    assert torch.isfinite(scales).all() and (scales > 0).all()
    assert ((zeros >= 0) & (zeros <= 15) & (zeros == zeros.round())).all()
