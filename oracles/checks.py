"""Checks of what comes into the library, made once, where it comes in."""

import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from .base import Polytope


class NotFinite(ValueError):
    """Scores are NaN or `+inf`, as those of a network whose training has diverged."""


def check_finite(scores: Tensor, dim: int = -1, some_allowed: bool = False) -> None:
    """Raises `NotFinite` if a score is NaN or +inf, ValueError if (with `some_allowed`) a row along `dim` is `-inf` throughout.

    One reduction and one host synchronisation. Code that is compiled or transformed (`torch.compile`, `torch.func.vmap`)
    cannot branch on data: there nothing is checked.
    """
    if cannot_branch(scores) or scores.numel() == 0:
        return
    if not some_allowed and scores.detach().max().item() < torch.inf:  # NaN spreads
        return
    peak = scores.detach().amax(dim)
    sound = peak < torch.inf
    if some_allowed:
        sound &= peak > -torch.inf
    if sound.all():
        return
    row = tuple((~sound).nonzero()[0].tolist())
    value = float(peak[row])
    where = f"scores row {row[0] if len(row) == 1 else row}" if row else "scores"
    if value == -torch.inf:
        raise ValueError(f"{where} has -inf in every entry, so nothing is allowed; leave at least one entry finite")
    raise NotFinite(
        f"{where} holds {'NaN' if value != value else '+inf'}; scores must be finite, or -inf to forbid an entry "
        f"(look for a division by zero or an overflow upstream)"
    )


def check_float(scores: Tensor) -> None:
    """Raises ValueError unless `scores` is a tensor of floating point numbers."""
    if not isinstance(scores, Tensor):
        got = type(scores).__name__
        raise ValueError(f"scores must be a float tensor, not {got}; convert them, e.g. torch.tensor(scores)")
    if not scores.is_floating_point():
        raise ValueError(f"scores must be a float tensor, not {scores.dtype}; convert them, e.g. scores.float()")


def check_polytope(polytope: object) -> None:
    """Raises ValueError unless it is one: an object with `dim` and `maximize`."""
    if isinstance(polytope, type) or not hasattr(polytope, "dim") or not hasattr(polytope, "maximize"):
        got = f"the class {polytope.__name__}" if isinstance(polytope, type) else repr(polytope)
        raise ValueError(f"polytope must be an object with `dim` and `maximize`, e.g. BernoulliCube(8), not {got}")


def check_dimension(scores: Tensor, polytope: Polytope) -> None:
    """Raises ValueError unless `polytope` is one, with a `dim`, and `scores` a float tensor [*B, dim]."""
    check_polytope(polytope)
    check_float(scores)
    if scores.dim() == 0 or scores.shape[-1] != polytope.dim:
        columns = "no dimension" if scores.dim() == 0 else f"{scores.shape[-1]} columns"
        raise ValueError(f"scores has {columns} but {polytope!r} needs {polytope.dim} in the last dimension")


def check_width(structures: Tensor, dim: int) -> None:
    """Raises ValueError unless structures are [..., dim]."""
    if structures.dim() == 0 or structures.shape[-1] != dim:
        raise ValueError(f"log_prob needs structures [..., {dim}], not {list(structures.shape)}")


def check_rows(scores: Tensor, dim: int) -> None:
    """Raises ValueError unless scores are [B, dim]: what is compiled reads and writes without looking."""
    if scores.dim() != 2 or scores.shape[1] != dim:
        raise ValueError(
            f"maximize and topk take scores [B, {dim}], not {list(scores.shape)}; reshape them, and keep all columns"
        )


def check_probabilities(name: str, probs: Tensor, advice: str = "") -> None:
    """Raises ValueError unless rows of probs [*B, K] are at least 0 and sum to 1, up to the rounding of their dtype."""
    if cannot_branch(probs) or probs.numel() == 0:
        return
    given = probs.detach()
    rounding = 1e-2 if given.dtype in (torch.float16, torch.bfloat16) else 1e-3
    totals, least = given.double().sum(-1), given.amin(-1)
    wrong = ~((least >= 0) & ((totals - 1).abs() <= rounding))
    if wrong.any():
        row = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(
            f"{name}: rows are to be distributions, at least 0 and with sum 1, but row {row[0] if len(row) == 1 else row} has "
            f"sum {float(totals[row]):g} and least entry {float(least[row]):g}{advice}"
        )


def check_count(name: str, value: int, low: int, high: int | None = None) -> int:
    """`value` as an int, or a ValueError unless it is an integer in [low, high]."""
    wanted = f"at least {low}" if high is None else f"between {low} and {high}"
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise ValueError(f"{name} must be an int {wanted}, not {value!r}")
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name} must be {wanted}, not {number}")
    return number


def check_whole(name: str, numbers: Tensor, scores: Tensor) -> None:
    """Raises ValueError unless `numbers` is a tensor of ints, for problems of scores [*B, D], see `fits`."""
    batch = scores.shape[:-1]
    if not isinstance(numbers, Tensor) or numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        got = f"{numbers.dtype}" if isinstance(numbers, Tensor) else type(numbers).__name__
        raise ValueError(f"{name} must be a tensor of ints {list(batch)}, a number for each problem, not {got}")
    if not fits(numbers.shape, batch):
        raise ValueError(
            f"{name} must be {list(batch)}, a number for each problem of scores {list(scores.shape)}, not {list(numbers.shape)}"
        )


def fits(shape: Sequence[int], batch: Sequence[int]) -> bool:
    """Whether numbers of a shape are one for each problem of a batch, or fewer, broadcast; any number for a single problem."""
    return broadcasts(shape, batch) or math.prod(batch) == 1


def broadcasts(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether a tensor of a shape can be expanded to the one that is wanted."""
    pairs = zip(reversed(shape), reversed(wanted), strict=False)
    return len(shape) <= len(wanted) and all(size in (1, whole) for size, whole in pairs)


def checked_lengths(lengths: Tensor, largest: int, name: str, scores: Tensor) -> Tensor:
    """The length of each problem of scores [*B, D], given as such, [*B] ints, or as a mask [*B, largest] bool, true first.

    Raises:
        ValueError: neither; a length that is not in [1, largest]; or a mask with padding before the end.
    """
    if isinstance(lengths, Tensor) and lengths.dtype == torch.bool:
        wanted = [*scores.shape[:-1], largest]
        if lengths.shape[-1:] != (largest,) or not fits(lengths.shape[:-1], scores.shape[:-1]):
            raise ValueError(f"{name}: lengths as a mask must be {wanted}, true where something is, not {list(lengths.shape)}")
        if not cannot_branch(lengths):
            after = (lengths[..., 1:] & ~lengths[..., :-1]).nonzero()
            if len(after):
                raise ValueError(
                    f"{name}: padding must come last, but the mask is false at position {int(after[0, -1])} of problem "
                    f"{shown(after[0, :-1])} and true after it: move what is there to the front"
                )
        lengths = lengths.sum(-1)
    check_whole(f"{name}: lengths", lengths, scores)
    if cannot_branch(lengths):
        return lengths
    wrong = ((lengths < 1) | (lengths > largest)).nonzero()
    if len(wrong):
        raise ValueError(
            f"{name}: lengths must be between 1 and {largest}, but that of problem {shown(wrong[0])} is "
            f"{int(lengths[tuple(wrong[0])])}: cut the problem, or build the polytope for a larger size"
        )
    return lengths


def shown(place: Tensor) -> int | tuple[int, ...]:
    """Where in a batch, for an error: the number of a problem, or those in each of several dimensions."""
    found = tuple(place.tolist())
    return found[0] if len(found) == 1 else found


def check_sample_shape(sample_shape: tuple[int, ...]) -> int:
    """How many samples a shape is for, or a ValueError unless it is one."""
    if isinstance(sample_shape, int):
        raise ValueError(f"sample needs a shape, e.g. ({sample_shape},), not the number {sample_shape}")
    for size in sample_shape:
        check_count("sample_shape: a size", size, 0)
    return math.prod(sample_shape)


def as_numbers(given: Any) -> Tensor:
    """What is given as a tensor: an array of any strides, or nested lists, as float64.

    Raises:
        TypeError, ValueError: it is nothing of the kind.
    """
    if isinstance(given, Tensor):
        return given
    if isinstance(given, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(given))
    return torch.as_tensor(given, dtype=torch.float64)


def check_pairs(name: str, given: Iterable[Sequence[int]]) -> list[tuple[int, int]]:
    """What is given as pairs of ints, or a ValueError that names it."""
    found = []
    for place, pair in enumerate(given):
        try:
            one, other = pair
            found.append((operator.index(one), operator.index(other)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} must be pairs of ints, e.g. [(0, 1), (1, 2)], but number {place} is {pair!r}") from error
    return found


def all_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite, in one pass; `isfinite` takes four. A host synchronisation."""
    if tensor.numel() == 0:
        return True
    low, high = tensor.detach().aminmax()  # NaN spreads
    return bool((low > -torch.inf) & (high < torch.inf))


def cannot_branch(tensor: Tensor) -> bool:
    """Whether the values of the tensor are out of reach: being compiled, or inside a `torch.func` transform."""
    if torch.compiler.is_compiling():
        return True
    # torch.func has no public way to ask; the attribute is in every torch that we support.
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # pyright: ignore[reportAttributeAccessIssue]


def refuse_vmap(tensor: Tensor, what: str) -> None:
    """Raises ValueError if the tensor stands for many, under `torch.func.vmap`."""
    functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    while not torch.compiler.is_compiling() and functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            raise ValueError(f"{what} cannot run under torch.func.vmap: pass the whole batch [B, D] instead")
        tensor = functorch.get_unwrapped(tensor)


def refuse_export(what: str) -> None:
    """Raises ValueError under `torch.export`: `what` iterates until its data say that it is done."""
    if torch.compiler.is_exporting():
        raise ValueError(
            f"{what} cannot be exported: how often it iterates depends on the scores. What can: sparsemax, top-k sparsemax, "
            f"sparsemap with SortedDecomposition(), and sparsemap_marginals of polytopes with a `project` in closed form"
        )


def refuse_all_but_backward(tensor: Tensor, what: str) -> None:
    """Raises ValueError in forward mode and under `torch.func.grad` and the like: `what` has derivatives by backward only."""
    if torch.compiler.is_compiling():
        return
    functorch, inner = torch._C._functorch, tensor  # pyright: ignore[reportAttributeAccessIssue]
    followed = forward_ad.unpack_dual(tensor).tangent is not None
    while not followed and functorch.is_functorch_wrapped_tensor(inner):
        followed, inner = functorch.is_gradtrackingtensor(inner), functorch.get_unwrapped(inner)
    if followed:
        raise ValueError(
            f"{what} has no derivatives under torch.func.grad, jvp and their like, nor in forward mode; take them by "
            f"backward() or torch.autograd.grad, e.g. torch.autograd.functional.jacobian for jacfwd"
        )


@contextmanager
def outside_transforms(tensor: Tensor, what: str) -> Iterator[Tensor]:
    """The values of a tensor, in its shape and without gradient, for `what` is not torch's own and cannot be transformed.

    While it is entered `torch.func` transforms are left: what is made then is a constant to them.

    Raises:
        ValueError: under `torch.func.vmap`, where the tensor stands for many.
    """
    values, functorch = tensor.detach(), torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    if functorch.peek_interpreter_stack() is None:
        yield values
        return
    # torch has no public way to leave them; this is in every torch that we support.
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    refuse_vmap(values, what)
    while functorch.is_functorch_wrapped_tensor(values):
        values = functorch.get_unwrapped(values)
    with temporarily_clear_interpreter_stack():
        yield values
