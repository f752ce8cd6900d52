"""Residuals on a grid, with ties broken: what an oracle is shown does not depend on rounding, nor on who computes it."""

import pytest
import torch
from sparsemarg.layers.solvers.ties import Ties, power_of_two
from torch import Tensor


def targets() -> Tensor:
    """Rows of all scales, with zeros, entries far above the others, and numbers with no room for more digits below them."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(12, 9, generator=generator, dtype=torch.float64)
    rows *= torch.tensor([0.0, 1e-320, 1e-300, 1e-30, 1e-6, 0.25, 1.0, 3.0, 1e8, 1e30, 1e300, 1.0], dtype=torch.float64)[
        :, None
    ]
    rows[:, 2] = 0
    rows[5:8, 3] = 1e7
    rows[11] = torch.tensor([0.5, 1, 2, 4, -0.25, 0, -8, 2**-40, 3])  # powers of two belong to what is above them
    return rows


def test_the_compiled_grid_is_that_of_tensor_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = Ties.of(targets())
    monkeypatch.setenv("SPARSEMARG_KERNELS", "off")
    plain = Ties.of(targets())
    assert torch.equal(compiled.grid, plain.grid)
    assert torch.equal(compiled.tie_break, plain.tie_break)


def test_powers_of_two_are_exact() -> None:
    every = torch.arange(-1022, 1024)
    assert power_of_two(every).tolist() == [2.0**n for n in every.tolist()]


@pytest.mark.parametrize("switch", ["on", "off"])
def test_the_grid_keeps_40_bits_of_a_row_and_48_of_an_entry(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry of 0 has no scale of its own: its grid is the row's."""
    monkeypatch.setenv("SPARSEMARG_KERNELS", switch)
    rows = targets()
    grid = Ties.of(rows).grid
    assert (grid > 0).all()
    assert torch.equal(torch.frexp(grid).mantissa, torch.full_like(grid, 0.5))  # powers of two
    for row in range(3, len(rows)):
        scale = min(1.0, float(rows[row].abs().max()))
        bound = torch.maximum(rows[row].abs() * 2.0**-47, torch.full_like(rows[row], scale * 2.0**-39))
        assert (grid[row] <= bound).all()
        assert (2 * grid[row] >= bound).all()


@pytest.mark.parametrize("switch", ["on", "off"])
def test_noise_decides_nothing(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Residuals that differ by rounding noise are shown alike; equal ones differ by the tie-break; exact rows have none."""
    monkeypatch.setenv("SPARSEMARG_KERNELS", switch)
    rows = torch.tensor([[0.7, 0.7, -0.2, 0.0]], dtype=torch.float64).expand(2, -1)
    ties, exact = Ties.of(rows), torch.tensor([False, True])
    residual = torch.tensor([[0.125, 0.125, 0.0, 0.125]], dtype=torch.float64).expand(2, -1)
    shown = ties.broken(residual, exact)
    noise = 1e-15 * torch.tensor([1, -1, 1, -1])
    assert torch.equal(ties.broken(residual + noise, exact), shown)
    assert torch.equal(shown[1], residual[1])
    assert len(shown[0, [0, 1, 3]].unique()) == 3
    assert (shown[0] < residual[0]).all()
    torch.testing.assert_close(shown[0], residual[0], rtol=0, atol=4e-9)
