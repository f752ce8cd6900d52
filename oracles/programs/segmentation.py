"""Labelled segmentations of a sequence: the semi-Markov model's structures."""

from typing import Any

import torch
from torch import Tensor

from ..base import Halfspaces
from ..checks import cannot_branch, check_count, check_dimension, checked_lengths
from ..placement import lasting
from ..written import check_structures, checked_numbers, refuse
from .derivations import Derivations
from .hyperedges import Edge
from .hypergraph import Hypergraph


class Segmentation(Derivations):
    """Ways to cut L positions into segments of at most W positions with one of K labels each (Sarawagi and Cohen 2004).

    Coordinates: [a segment of width w with label k starts at i], for i < L, 1 <= w <= W, k < K, row-major, also those that
    would not fit (always 0): D = L W K. `cells` shapes them; `segments` reads a structure, `structures` writes one.

    Shorter sequences in the same batch: the sequence ends at the first position that no segment covers, the scores of all that
    would being `-inf`. `mask` sets those scores.

    Args:
        length: L.
        labels: K.
        width: W, by default L.
    """

    @lasting
    def __init__(self, length: int, labels: int = 1, width: int | None = None) -> None:
        self.length = check_count("Segmentation: length", length, 1)
        self.labels = check_count("Segmentation: labels", labels, 1)
        self.width = self.length if width is None else check_count("Segmentation: width", width, 1, self.length)
        place = torch.arange(length * self.width * labels).reshape(length, self.width, labels).tolist()
        goal = length + 1
        edges = [Edge(0)]
        for end in range(1, length + 1):
            for w in range(1, min(self.width, end) + 1):
                edges += [Edge(end, (end - w,), (place[end - w][w - 1][k],)) for k in range(labels)]
        edges += [Edge(goal, (end,), (), end - 1) for end in reversed(range(1, length + 1))]
        super().__init__(Hypergraph(length * self.width * labels, edges, goal))

    def __repr__(self) -> str:
        return f"Segmentation(length={self.length}, labels={self.labels}, width={self.width})"

    def cells(self, scores: Tensor) -> Tensor:
        """[*B, D] -> [*B, L, W, K]."""
        return scores.unflatten(-1, (self.length, self.width, self.labels))

    def segments(self, structures: Tensor) -> tuple[Tensor, Tensor]:
        """[*B, D] -> the label of each position, [*B, L] int64, -1 beyond the end; and whether a segment starts there, bool.

        Raises:
            ValueError: no structures, but means of some.
        """
        check_structures(f"{self!r}.segments", structures, self.dim, "of a mean mu, `maximize(mu)` has a segmentation")
        cells = (self.cells(structures) > 0).flatten(-2)
        starts = cells.any(-1)
        place, first = _place_and_first(starts)
        cell = cells.to(torch.int64).argmax(-1).gather(-1, first)
        return torch.where(place - first <= cell // self.labels, cell % self.labels, -1), starts

    def structures(
        self, labels: Tensor, starts: Tensor, lengths: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """The segmentations of these labels: the inverse of `segments`, for targets.

        Args:
            labels: [*B, L] ints, of each position; -1 beyond the end.
            starts: [*B, L] bool, whether a segment starts there; the first position always does.
            lengths: of the sequences, as `mask` takes them; what is beyond does not count.
            dtype: of the result, by default torch's.

        Returns:
            [*B, D].

        Raises:
            ValueError: labels or starts of another shape, a label that does not exist or that changes within a segment, or a
                segment that is too wide.
        """
        name = f"{self!r}.structures"
        labels = checked_numbers(name, labels, self.length, self.labels - 1, lengths)
        if not isinstance(starts, Tensor) or starts.shape != labels.shape or starts.dtype != torch.bool:
            got = f"{list(starts.shape)} {starts.dtype}" if isinstance(starts, Tensor) else type(starts).__name__
            raise ValueError(f"{name} takes starts {list(labels.shape)} bool, not {got}")
        there = labels >= 0
        place, first = _place_and_first(starts & there)
        starts = there & (place == first)
        if not cannot_branch(labels):
            differs = there & (labels != labels.gather(-1, first))
            refuse(name, labels, differs, "the segment that it is in has another label where it starts")
            too_wide = there & (place - first >= self.width)
            refuse(name, labels, too_wide, f"the segment that it is in has more than {self.width} positions")
        ends = there & torch.cat([starts[..., 1:] | ~there[..., 1:], torch.ones_like(there[..., :1])], -1)
        cell = ((first * self.width + place - first) * self.labels + labels).clamp(0, self.dim - 1)
        structures = torch.zeros(*labels.shape[:-1], self.dim, dtype=dtype or torch.get_default_dtype(), device=labels.device)
        return structures.scatter_add(-1, cell, ends.to(structures))

    def mask(self, scores: Tensor, lengths: Tensor) -> Tensor:
        """The scores [*B, D] of shorter sequences: `-inf` for what goes beyond.

        Args:
            lengths: [*B] ints; or a mask [*B, L] bool, true where there is a position, which padding follows.

        Raises:
            ValueError: a length below 1 or above L; a mask with padding in between.
        """
        check_dimension(scores, self)
        lengths = checked_lengths(lengths, self.length, repr(self), scores)
        start = torch.arange(self.length, device=scores.device)[:, None, None]
        width = torch.arange(1, self.width + 1, device=scores.device)[:, None]
        beyond = (start + width > lengths[..., None, None, None]).expand(*lengths.shape, self.length, self.width, self.labels)
        return torch.where(beyond.flatten(-3), -torch.inf, scores)

    def gates(self, scores: Tensor) -> Tensor:
        """The sequence ends before the first position that no allowed segment covers."""
        # Segments that do not fit cover nothing, whatever they score.
        start, width = torch.arange(self.length, device=scores.device), torch.arange(1, self.width + 1, device=scores.device)
        end = start[:, None] + width
        begun = ((end <= self.length) & ~self.cells(scores).amax(-1).isneginf()).to(torch.int32)  # [B, L, W]
        over = begun.new_zeros(len(scores), self.length + self.width + 1).index_add(1, end.flatten(), begun.flatten(1))
        bare = (begun.sum(-1) - over[:, : self.length]).cumsum(-1) == 0  # [B, L]
        ended = torch.cat([bare[:, 1:], torch.ones_like(bare[:, :1])], -1)
        last = ended & (bare.cumsum(-1) == 0)
        return torch.where(last & (ended.cumsum(-1) == 1), 0.0, -torch.inf).to(scores)

    def row_oracle(self, scores: Tensor) -> tuple[Any, ...]:
        """For compiled solvers: see `row_kernels.row_oracle`."""
        return self.graph.row_oracle(scores, self.gates(scores))

    def halfspaces(self) -> Halfspaces:
        """A unit of flow along the positions."""
        flow = torch.zeros(self.length, self.length, self.width, self.labels, dtype=torch.float64)
        unused = []
        for start in range(self.length):
            for w in range(1, self.width + 1):
                if start + w > self.length:
                    unused.append((start, w - 1))
                    continue
                flow[start, start, w - 1] += 1
                if start + w < self.length:
                    flow[start + w, start, w - 1] -= 1
        none = torch.zeros(len(unused) * self.labels, *flow.shape[1:], dtype=torch.float64)
        for number, (start, w) in enumerate(unused):
            for k in range(self.labels):
                none[number * self.labels + k, start, w, k] = 1
        a_eq = torch.cat([flow, none]).flatten(1)
        b_eq = torch.zeros(len(a_eq), dtype=torch.float64)
        b_eq[0] = 1
        return Halfspaces(-torch.eye(self.dim, dtype=torch.float64), torch.zeros(self.dim, dtype=torch.float64), a_eq, b_eq)


def _place_and_first(starts: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of positions [L], and the first one in the segment of each [*B, L]; one starts at 0 in any case."""
    place = torch.arange(starts.shape[-1], device=starts.device)
    return place, torch.where(starts, place, 0).cummax(-1).values
