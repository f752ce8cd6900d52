"""A sparse distribution over structures, packed: only (row, atom) pairs that have mass."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..kernels import readable
from ..oracles.checks import check_count, check_probabilities, check_sample_shape
from ..oracles.gibbs import COMPARED
from .packed_sums import packed_entropy, packed_mean
from .stats import Stats


class SparseDistribution:
    """xi_b = sum_n probs[n] delta(atoms[n]) over the n with row[n] = b, for every b of a batch.

    Attributes:
        atoms: [N, D] the structures that have mass, in the dtype of the scores, without gradient.
        probs: [N] their probabilities, each row summing to 1; they carry the gradient.
        row: [N] int64, sorted: which batch element (flattened) a pair belongs to.
        index: [N] int64 the category of each atom where the structures are one-hot, else None.
        batch_shape: *B.
        stats: how the support was found (`SolverStats`, `TopKStats`), or None.

    Within a row the most probable atom need not come first. `first` [B + 1] int64, where each row begins in what is packed, can
    be given to who makes a distribution and has it; it has to agree with `row`.

    Raises:
        ValueError: unlike shapes; on the CPU, without `first`: rows that are not sorted, or without an atom.
    """

    def __init__(
        self,
        atoms: Tensor,
        probs: Tensor,
        row: Tensor,
        batch_shape: torch.Size | tuple[int, ...],
        index: Tensor | None = None,
        stats: Stats | None = None,
        first: Tensor | None = None,
    ) -> None:
        if atoms.dim() != 2 or probs.shape != atoms.shape[:1] or row.shape != atoms.shape[:1]:
            raise ValueError(
                f"SparseDistribution needs atoms [N, D], probs [N] and row [N], not {list(atoms.shape)}, "
                f"{list(probs.shape)} and {list(row.shape)}"
            )
        self.atoms, self.probs, self.row, self.index, self.stats = atoms, probs, row, index, stats
        self.batch_shape = torch.Size(batch_shape)
        if first is None:
            first = starts_of(row, self.batch_shape)
            _check_rows(row, first)
        self._first = first  # [B + 1], where each row starts
        self._slots: int | None = None  # see `_slots_of_largest`

    def __repr__(self) -> str:
        count, dim = self.atoms.shape
        return f"SparseDistribution(batch_shape={list(self.batch_shape)}, atoms={count}, dim={dim})"

    @classmethod
    def from_padded(cls, atoms: Tensor, probs: Tensor, prune: float = 0.0, stats: Stats | None = None) -> "SparseDistribution":
        """Packs atoms [*B, S, D] and probs [*B, S], leaving out slots with probs <= prune but for each row's heaviest.

        `prune` above 0 is lossy: what is left is not renormalised.
        """
        if atoms.dim() < 2 or probs.shape != atoms.shape[:-1]:
            raise ValueError(
                f"from_padded needs atoms [*B, S, D] and probs [*B, S], not {list(atoms.shape)}, {list(probs.shape)}"
            )
        held = probs.detach()
        if held.shape[-1] == 0:
            raise ValueError(f"from_padded needs at least one slot a row, not probs {list(probs.shape)}")
        heaviest = torch.zeros_like(held, dtype=torch.bool).scatter_(-1, held.argmax(-1, keepdim=True), True)
        return cls.pack(atoms, probs, (held > prune) | heaviest, stats)

    @classmethod
    def pack(cls, atoms: Tensor, probs: Tensor, used: Tensor, stats: Stats | None = None) -> "SparseDistribution":
        """Packs the slots of atoms [*B, S, D] and probs [*B, S] that are `used` [*B, S] bool, whatever their mass."""
        place = used.reshape(-1).nonzero()[:, 0]
        packed = atoms.detach().reshape(-1, atoms.shape[-1])[place]
        row = place.div(atoms.shape[-2], rounding_mode="floor")
        first = starts_of(row, probs.shape[:-1])  # of a row that is NaN, unchecked, no slot is used
        return cls(packed, probs.reshape(-1)[place], row, probs.shape[:-1], stats=stats, first=first)

    @classmethod
    def from_simplex(cls, probs: Tensor) -> "SparseDistribution":
        """The distribution over categories with these probabilities [*B, K], e.g. the output of sparsemax.

        Atoms are one-hot, [N, K]; `index` [N] holds the categories.

        Raises:
            ValueError: rows that are no probabilities: negative, of another sum than 1, or of no categories.
        """
        if not isinstance(probs, Tensor) or not probs.is_floating_point() or probs.dim() == 0 or probs.shape[-1] == 0:
            got = f"{list(probs.shape)} {probs.dtype}" if isinstance(probs, Tensor) else type(probs).__name__
            raise ValueError(f"from_simplex takes probabilities, floats [*B, K] with K at least 1, not {got}")
        check_probabilities("from_simplex", probs)
        place = (probs.detach().reshape(-1) > 0).nonzero()[:, 0]
        index = place % probs.shape[-1]
        atoms = probs.new_zeros(index.shape[0], probs.shape[-1]).scatter_(-1, index[:, None], 1)
        row = place.div(probs.shape[-1], rounding_mode="floor")
        first = starts_of(row, probs.shape[:-1])
        return cls(atoms, probs.reshape(-1)[place], row, probs.shape[:-1], index=index, first=first)

    def __getitem__(self, key: Any) -> "SparseDistribution":
        """The distributions of some of the batch, chosen as from a tensor of shape `batch_shape`; differentiable.

        The host waits for the device once.

        Raises:
            IndexError: a key that a tensor of that shape does not take.

        >>> q = SparseDistribution.from_simplex(torch.tensor([[0.25, 0.0, 0.75], [1.0, 0.0, 0.0]]))
        >>> q[0], q[0].probs
        (SparseDistribution(batch_shape=[], atoms=2, dim=3), tensor([0.2500, 0.7500]))
        """
        numbers = torch.arange(self.batch_shape.numel(), device=self.row.device).reshape(self.batch_shape)
        try:
            numbers = numbers[key]
        except (IndexError, TypeError, ValueError) as error:
            raise IndexError(
                f"a SparseDistribution of batch shape {list(self.batch_shape)}, indexed by {key}: {error}"
            ) from None
        chosen = numbers.reshape(-1)
        first = torch.nn.functional.pad(self._sizes()[chosen].cumsum(0), (1, 0))
        row = torch.arange(len(chosen), device=chosen.device).repeat_interleave(first.diff())
        place = torch.arange(len(row), device=row.device) + (self._first[chosen] - first[:-1])[row]
        index = None if self.index is None else self.index[place]
        stats = None if self.stats is None else self.stats[key]
        return SparseDistribution(self.atoms[place], self.probs[place], row, numbers.shape, index, stats, first)

    def __len__(self) -> int:
        """The size of the batch's first dimension."""
        if not self.batch_shape:
            raise TypeError("a SparseDistribution of batch shape [] has no length")
        return self.batch_shape[0]

    def __iter__(self) -> Iterator["SparseDistribution"]:
        return (self[number] for number in range(len(self)))

    def detach(self) -> "SparseDistribution":
        """The same without gradient."""
        return self._with(self.atoms.detach(), self.probs.detach())

    def to(self, *args: Any, **kwargs: Any) -> "SparseDistribution":
        """The same on another device, or with atoms and probabilities of another dtype, as `Tensor.to`; differentiable.

        Rows and indices stay int64, and what `stats` says of a solve float64.

        Raises:
            ValueError: a dtype that is not floating-point.
        """
        wanted = self.probs.detach().new_empty(0).to(*args, **kwargs)
        if not wanted.is_floating_point():
            raise ValueError(f"SparseDistribution.to needs a floating-point dtype, not {wanted.dtype}")
        return self._with(self.atoms.to(wanted), self.probs.to(wanted))

    def _with(self, atoms: Tensor, probs: Tensor) -> "SparseDistribution":
        """The same rows with other atoms and probabilities, on their device."""
        device = probs.device
        row, first = self.row.to(device), self._first.to(device)
        index = None if self.index is None else self.index.to(device)
        stats = None if self.stats is None else self.stats.to(device)
        return SparseDistribution(atoms, probs, row, self.batch_shape, index, stats, first)

    def padded(self) -> tuple[Tensor, Tensor]:
        """atoms [*B, S, D] and probs [*B, S] with S the largest support; unused slots are zero."""
        slots = self._slots_of_largest()
        atoms, probs = self._spread(self.atoms, slots), self._spread(self.probs, slots)
        return atoms.reshape((*self.batch_shape, *atoms.shape[1:])), probs.reshape((*self.batch_shape, slots))

    def top(self, count: int) -> tuple[Tensor, Tensor]:
        """The most probable atoms of each row and their probabilities: [*B, count, D], [*B, count].

        The most probable comes first, of equals the first; slots beyond the support are zero. Differentiable in the
        probabilities.

        >>> q = SparseDistribution.from_simplex(torch.tensor([[0.25, 0.0, 0.75]]))
        >>> q.top(2)[1]
        tensor([[0.7500, 0.2500]])
        """
        check_count("top: count", count, 1)
        atoms, probs = self.padded()
        # Compiled code does not know how many there are.
        spare = count if torch.compiler.is_compiling() else max(0, count - probs.shape[-1])
        atoms = torch.nn.functional.pad(atoms, (0, 0, 0, spare))
        probs = torch.nn.functional.pad(probs, (0, spare))
        order = probs.detach().argsort(dim=-1, descending=True, stable=True).narrow(-1, 0, count)
        place = order[..., None].expand(*order.shape, atoms.shape[-1])
        return atoms.gather(-2, place), probs.gather(-1, order)

    def expectation(self, f: Callable[[Tensor, Tensor], Tensor], *, max_atoms: int | None = None) -> Tensor:
        """E_xi[f] = sum_n probs[n] f(atoms[n], row[n]), exactly (paper eq. 1), with f evaluated once on every pair.

        Args:
            f: maps atoms [n, D] and row [n] int64 to values [n, *E]. `row` gathers what belongs to the example, e.g.
                `lambda atoms, row: loss(decoder(atoms), images[row])`.
            max_atoms: at most this many pairs at a time. f then runs again, piece by piece, in the backward pass, so that
                memory is that of one piece; its random numbers are replayed. Value and gradient do not change. What f
                changes by the way, such as the running statistics of a batch norm, it changes twice.

        Returns:
            [*B, *E]; differentiable in the probabilities and in whatever f is made of. With an empty batch f is called once,
            on [0, D]: it decides E.

        Raises:
            torch.OutOfMemoryError: f ran out of memory; the message has the `max_atoms` with which it does not, going forward.

        >>> coin = SparseDistribution.from_simplex(torch.tensor([[0.5, 0.0, 0.5]]))
        >>> coin.expectation(lambda atoms, row: atoms @ torch.tensor([1.0, 10.0, 100.0]))
        tensor([50.5000])
        """
        # Copies: what f does to them in place is not done to ours.
        values = self._evaluate(lambda atoms, row: f(atoms.clone(), row.clone()), max_atoms)
        weighted = self.probs.reshape(-1, *[1] * (values.dim() - 1)) * values
        return self._sum(weighted).reshape((*self.batch_shape, *values.shape[1:]))

    def mean(self) -> Tensor:
        """mu = sum_n probs[n] atoms[n], [*B, D]."""
        means = packed_mean(self.probs, self.atoms, self._first, self.row)
        if means is None:
            means = self._sum(self.probs[:, None] * self.atoms)
        shape = (*self.batch_shape, self.atoms.shape[1])
        return means if means.shape == shape else means.reshape(shape)

    def entropy(self) -> Tensor:
        """The Shannon entropy -sum p log p, nats, [*B]; computed in float32 for float16 and bfloat16."""
        found = packed_entropy(self.probs, self._first, self.row)
        if found is not None:
            return found if found.shape == self.batch_shape else found.reshape(self.batch_shape)
        probs = self.probs.float() if self.probs.dtype in (torch.float16, torch.bfloat16) else self.probs
        # In float16 an atom's probability can underflow to 0, where log has no gradient.
        logs = probs.clamp(min=torch.finfo(probs.dtype).tiny).log()
        return self._sum(-probs * logs).to(self.probs.dtype).reshape(self.batch_shape)

    def support_size(self) -> Tensor:
        """The number of atoms of each row, [*B] int64: decoder calls per example."""
        return self._sizes().reshape(self.batch_shape)

    def mode(self) -> Tensor:
        """The most probable atom of each row (the first of equals), [*B, D]."""
        probs = self._spread(self.probs.detach(), None)
        return self.atoms[self._first[:-1] + probs.argmax(-1)].reshape((*self.batch_shape, self.atoms.shape[1]))

    def sample(self, sample_shape: tuple[int, ...] = (), generator: torch.Generator | None = None) -> Tensor:
        """Independent atoms of each row, drawn with their probabilities, [*sample_shape, *B, D]; no gradient."""
        samples = check_sample_shape(sample_shape)
        cumulative = self._spread(self.probs.detach(), None).cumsum(-1)
        wide = cumulative.float() if cumulative.dtype in (torch.float16, torch.bfloat16) else cumulative
        shape = (samples, len(wide), 1)
        uniform = torch.rand(shape, dtype=wide.dtype, device=wide.device, generator=generator)
        drawn = (wide <= uniform * wide[:, -1:]).sum(-1)
        # Rounding may leave u above the last cumulative sum; the last atom takes that sliver.
        drawn = torch.minimum(drawn, self._sizes() - 1)
        return self.atoms[self._first[:-1] + drawn].reshape((*sample_shape, *self.batch_shape, self.atoms.shape[1]))

    def log_prob(self, structures: Tensor) -> Tensor:
        """log xi(z) in nats, `-inf` off the support: structures [*sample_shape, *B, D] -> [*sample_shape, *B].

        Structures are compared in the atoms' dtype. Cost: O(N D) time for each sample, and memory for some at a time.
        """
        own = (*self.batch_shape, self.atoms.shape[1])
        if structures.shape[max(0, structures.dim() - len(own)) :] != own:
            raise ValueError(f"log_prob needs one structure a row, {list(own)}, not {list(structures.shape)}")
        samples = math.prod(structures.shape[: structures.dim() - len(own)])
        by_row = structures.to(self.atoms.dtype).reshape(samples, self._batch(), own[-1]).transpose(0, 1)
        atoms, probs = self._spread(self.atoms, None)[:, :, None], self._spread(self.probs, None)[:, :, None]
        at_once = max(1, COMPARED // max(1, atoms.numel()))
        parts = [torch.where((atoms == part[:, None]).all(-1), probs, 0).sum(1) for part in by_row.split(at_once, 1)]
        mass = torch.cat(parts, 1).T
        logs = torch.where(mass > 0, mass, 1).log()
        return torch.where(mass > 0, logs, -torch.inf).reshape(structures.shape[:-1])

    def _evaluate(self, f: Callable[[Tensor, Tensor], Tensor], max_atoms: int | None) -> Tensor:
        count = self.row.shape[0]
        if max_atoms is not None:
            max_atoms = check_count("max_atoms", max_atoms, 1)
        pairs = count if max_atoms is None else min(count, max_atoms)
        pieces = []
        try:
            if pairs == count:
                values = f(self.atoms, self.row)
                _check_values(values, count)
                return values
            for atoms, row in zip(self.atoms.split(pairs), self.row.split(pairs), strict=True):
                values = checkpoint(f, atoms, row, use_reentrant=False) if torch.is_grad_enabled() else f(atoms, row)
                _check_values(values, row.shape[0])
                pieces.append(values)
            return torch.cat(pieces)
        except torch.OutOfMemoryError as error:
            pieces.clear()
            failed = error.with_traceback(None)  # which holds on to what f had allocated
        raise torch.OutOfMemoryError(self._advice(f, pairs)) from failed

    def _advice(self, f: Callable[[Tensor, Tensor], Tensor], failed: int) -> str:
        """What to say where f ran out of memory on `failed` pairs: how many it takes, found by trying."""
        count, sizes = len(self.row), self._sizes()
        message = (
            f"expectation: out of memory with f on {failed} of {count} pairs at a time ({len(sizes)} rows with up to "
            f"{int(sizes.amax())} atoms, {count / len(sizes):.3g} on average); "
        )
        while failed > 1:
            failed //= 2
            try:
                f(self.atoms[:failed], self.row[:failed])
            except torch.OutOfMemoryError:
                continue
            return message + f"max_atoms={failed} went through, forward at least"
        return message + "not even one pair fits: make what f computes smaller"

    def _batch(self) -> int:
        """B. By `shape`, here and elsewhere: `len`, or `numel` of a shape, would have `torch.export` hold it for fixed."""
        return self._first.shape[0] - 1

    def _sizes(self) -> Tensor:
        return self._first[1:] - self._first[:-1]

    def _slots_of_largest(self) -> int:
        """The size of the largest support, 0 for an empty batch. The host waits for the device, once for a distribution."""
        if self._slots is None:
            slots: Any = self._sizes().amax().item() if self._batch() else 0
            if torch.compiler.is_compiling():  # a number of the graph, of no use outside of it
                torch._check(slots >= 0)
                return slots
            self._slots = int(slots)
        return self._slots

    def _spread(self, values: Tensor, slots: int | None) -> Tensor:
        """[N, *E] -> [B, slots, *E], zero where a row has fewer atoms."""
        batch = self._batch()
        if slots is None:
            slots = self._slots_of_largest() if batch else 1  # argmax wants one
        place = torch.arange(self.row.shape[0], device=self.row.device) - self._first[self.row]
        spread = values.new_zeros(batch, slots, *values.shape[1:])
        return spread.index_put((self.row, place), values)

    def _sum(self, values: Tensor) -> Tensor:
        """Sums over the atoms of each row: [N, *E] -> [B, *E]. The order is fixed, on the CPU whatever the batch."""
        if values.device.type == "cpu":
            # Adding one by one in half precision would stop short: from 0.5 on, 0.001 is rounded away.
            wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
            total = wide.new_zeros(self._batch(), *values.shape[1:]).index_add(0, self.row, wide)
            return total.to(values.dtype)
        # There index_add adds in the order in which threads arrive. Here every place is written once.
        return self._spread(values, None).sum(1)


def starts_of(row: Tensor, batch_shape: torch.Size) -> Tensor:
    """Where each row begins in what is packed, and the end: [B + 1], from the rows [N], sorted."""
    return torch.searchsorted(row, torch.arange(math.prod(batch_shape) + 1, device=row.device))


def _check_rows(row: Tensor, first: Tensor) -> None:
    """Raises ValueError unless rows [N] are sorted and none lacks an atom. On the CPU alone: the host would wait for others."""
    if row.device.type != "cpu" or not readable(row):
        return
    whole = int(first[0]) == 0 and int(first[-1]) == len(row) and bool((first[1:] > first[:-1]).all())
    if not whole or not bool((row[1:] >= row[:-1]).all()):
        raise ValueError(
            f"SparseDistribution needs row sorted, and one atom or more of each of its {len(first) - 1} rows, numbered from 0; "
            f"got {row[:20].tolist()}{' ...' if len(row) > 20 else ''}: sort by row, stably, what is packed"
        )


def _check_values(values: Tensor, count: int) -> None:
    if not isinstance(values, Tensor) or values.dim() == 0 or values.shape[0] != count:
        got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"expectation: f must return one value a pair, a tensor [{count}, *E]; it returned {got}")
