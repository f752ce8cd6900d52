"""Rows put in order by NumPy, against torch."""

import pytest
import torch
from sparsemarg.kernels import sorting
from sparsemarg.kernels.sorting import kth_largest, order_of, sorted_values
from torch import Tensor


def rows(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Numbers of one kind: apart, tied, with `-inf` or with NaN."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 4
    if kind != "apart":
        values = values.round()
    if kind == "-inf":
        values.view(-1)[::7] = -torch.inf
    if kind == "NaN":
        values.view(-1)[::997] = torch.nan
    return values.to(dtype)


@pytest.mark.parametrize("kind", ["apart", "tied", "-inf", "NaN"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(5, 7), (2000,), (64, 128), (3, 40, 31), (700, 300), (2, 0), (0, 2000)], ids=str)
def test_as_torch_sorts(shape: tuple[int, ...], dtype: torch.dtype, kind: str) -> None:
    values = rows(kind, shape, dtype)
    rising = values.sort(dim=-1).values
    assert torch.equal(sorted_values(values).nan_to_num(nan=99), rising.nan_to_num(nan=99))
    falling = sorted_values(values, descending=True)
    assert torch.equal(falling.nan_to_num(nan=99), rising.flip(-1).nan_to_num(nan=99))
    assert torch.equal(values.gather(-1, order_of(values)).nan_to_num(nan=99), rising.nan_to_num(nan=99))
    for k in {1, shape[-1] // 2, shape[-1]} & set(range(1, shape[-1] + 1)):
        assert torch.equal(kth_largest(values, k).nan_to_num(nan=99), falling[..., k - 1, None].nan_to_num(nan=99))


def test_values_are_left_alone_and_may_lie_anyhow() -> None:
    values = torch.randn(128, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for given in (values.mT, values[::2, ::3], values.requires_grad_().mT):
        before = given.detach().clone()
        assert torch.equal(sorted_values(given), before.sort(dim=-1).values)
        assert torch.equal(order_of(given), before.argsort(dim=-1))
        assert torch.equal(kth_largest(given, 3), before.sort(dim=-1, descending=True).values[..., 2:3])
        assert torch.equal(given, before)
        assert not sorted_values(given).requires_grad


def test_who_sorts(monkeypatch: pytest.MonkeyPatch) -> None:
    many, few = torch.randn(64, 128), torch.randn(8, 10)
    assert sorting._rows(many) is not None
    assert sorting._rows(few) is None
    assert sorting._rows(many.to(torch.bfloat16)) is None
    assert torch.func.vmap(lambda row: sorted_values(row))(many).equal(many.sort(dim=-1).values)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(many, torch.ones_like(many))
        assert sorting._rows(dual) is None
    monkeypatch.setenv("SPARSEMARG_KERNELS", "off")
    assert sorting._rows(many) is None
    assert torch.equal(kth_largest(many, 5), many.sort(dim=-1, descending=True).values[:, 4:5])
