"""Dynamic programs as directed acyclic hypergraphs: best and k best derivations, for a whole batch.

A dynamic program computes a value for each node from the values of others. Each way to do that is an edge: a head, its tails
(none, one or two nodes), and the coordinates of the structure that it switches on. A derivation of the goal chooses one edge
for each node that it needs, and a structure is what its derivation switches on. Viterbi, Eisner, k-best and sums (see `inside`)
are then one recursion over the nodes in different semirings (Goodman 1999; Huang and Chiang 2005), in which all nodes of a
level, that is, of the same longest distance from the leaves, are computed together.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...kernels import compiled, in_threads, readable
from ..checks import check_count, check_rows
from ..placement import lasting, placed
from .hyperedges import Edge, needed_for

if TYPE_CHECKING:
    from ..kernels.derivation_rows import Derivation, Edges

TAILS = 2
# The kernel takes as long for an edge as to pass over so many numbers.
PASSES = 8


@dataclass(frozen=True)
class Level:
    """Nodes that are computed together, n of them with at most e edges each.

    Attributes:
        nodes: slice of the nodes, numbered by level.
        edges: [n, e] numbers of their edges; E, an edge that is never taken, where there are fewer.
        tails: [n, e, 2] nodes; N, a node that always has value one, where there are fewer.
        two_tails: whether any edge has two.
    """

    nodes: slice
    edges: Tensor
    tails: Tensor
    two_tails: bool


class Hypergraph:
    """A directed acyclic hypergraph whose derivations of the goal are structures in {0, 1}^D.

    Different derivations must have different structures, and none may use a node twice.

    Args:
        dim: D.
        edges: in any order; of tied derivations the one whose edges come first is best.
        goal: the node to derive.

    Raises:
        ValueError: there is no derivation, or a node is needed to derive itself.
    """

    @lasting
    def __init__(self, dim: int, edges: Sequence[Edge], goal: int) -> None:
        edges, level_of = needed_for(edges, goal)
        names = sorted(level_of, key=lambda node: (level_of[node], node))
        number = {name: place for place, name in enumerate(names)}
        self.dim, self.count, self.goal = dim, len(names), number[goal]
        incoming: dict[int, list[int]] = {}
        for place, edge in enumerate(edges):
            incoming.setdefault(number[edge.head], []).append(place)
        widest = max(len(edge.coordinates) for edge in edges)
        # One more row for the edge that is never taken; coordinate D is no coordinate.
        self.coordinates = torch.full((len(edges) + 1, max(widest, 1)), dim)
        for place, edge in enumerate(edges):
            self.coordinates[place, : len(edge.coordinates)] = torch.tensor(edge.coordinates, dtype=torch.int64)
        gates = max((edge.gate for edge in edges if edge.gate is not None), default=-1) + 1
        self.gates = torch.tensor([gates if edge.gate is None else edge.gate for edge in edges] + [gates + 1])
        self.gate_count = gates
        self.levels: list[Level] = []
        for depth in range(max(level_of.values()) + 1):
            here = [place for place, name in enumerate(names) if level_of[name] == depth]
            width = max(len(incoming[node]) for node in here)
            edge_table = torch.full((len(here), width), len(edges))
            tail_table = torch.full((len(here), width, TAILS), self.count)
            for line, node in enumerate(here):
                for column, place in enumerate(incoming[node]):
                    edge_table[line, column] = place
                    tail_table[line, column, : len(edges[place].tails)] = torch.tensor(
                        [number[tail] for tail in edges[place].tails], dtype=torch.int64
                    )
            self.levels.append(
                Level(slice(here[0], here[-1] + 1), edge_table, tail_table, bool((tail_table[..., 1] < self.count).any()))
            )
        self._moved: dict[torch.device, Hypergraph] = {torch.device("cpu"): self}

    def on(self, device: torch.device) -> "Hypergraph":
        """The same with its tables on a device."""
        if device not in self._moved:
            other = object.__new__(Hypergraph)
            other.__dict__ |= self.__dict__
            other.coordinates, other.gates = placed(self.coordinates, device), placed(self.gates, device)
            other.levels = [
                replace(level, edges=placed(level.edges, device), tails=placed(level.tails, device)) for level in self.levels
            ]
            self._moved[device] = other
        return self._moved[device]

    def weights(self, scores: Tensor, gates: Tensor | None = None) -> Tensor:
        """The weight of every edge, [E + 1, B]: the sum of its coordinates' scores [B, D] and of its gate's [B, G], if any.

        Here and below the batch comes last: what is looked up are then whole rows of memory.
        """
        padded = torch.cat([scores.T, scores.new_zeros(1, scores.shape[0])])
        total = padded[self.coordinates[:, 0]]
        for column in self.coordinates.T[1:]:
            total = total + padded[column]
        opened = scores.new_zeros(self.gate_count + 2, scores.shape[0])
        if gates is not None:
            opened[: self.gate_count] = gates.T
        opened[-1] = -torch.inf  # of the edge that is never taken
        return total + opened[self.gates]

    def best(self, scores: Tensor, gates: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The structures of highest weight and their weights, -inf if there is none: [B, D], [B], for what `weights` takes.

        A row without a structure answers with what is forbidden, by which solvers know it. Where a score is NaN, so is the
        weight, and the structure is any.

        O(E) time a row, by a kernel on the CPU with Numba installed, or two steps a level for the whole batch.
        """
        check_rows(scores, self.dim)
        if scores.dtype in (torch.float16, torch.bfloat16):  # in which sums are too coarse to tell which is the best
            structures, totals = self.best(scores.double(), None if gates is None else gates.double())
            return structures.to(scores.dtype), totals.to(scores.dtype)
        kernel = compiled("..kernels.derivation_rows", __package__, "best", scores.device)
        if kernel is not None and scores.dtype in (torch.float32, torch.float64) and readable(scores):
            return self._in_rows(kernel, scores.detach(), gates, (), scores.dtype)
        weights = self.weights(scores, gates)
        chart = weights.new_zeros(self.count + 1, weights.shape[1])  # the last is the node of value one
        choices = []
        for level in self.levels:
            values, choice = self.values(weights, chart, level).max(1)
            chart[level.nodes] = values
            choices.append(choice.T[:, None])
        structures, totals = self.structures(choices, weights)[:, 0], chart[self.goal]
        return torch.where(totals[:, None].isneginf(), scores.isneginf().to(scores), structures), totals

    def _in_rows(
        self, kernel: Callable[..., None], scores: Tensor, gates: Tensor | None, several: tuple[int, ...], dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """By the kernel: structures [B, *several, D] in a dtype, and their totals [B, *several]."""
        batch, dim = scores.shape
        structures, totals = scores.new_empty(batch, *several, dim, dtype=dtype), scores.new_empty(batch, *several)
        opened = scores.new_zeros(batch, self.gate_count) if gates is None else gates.detach()
        given, shut, out, sums = (tensor.numpy() for tensor in (scores.contiguous(), opened.contiguous(), structures, totals))

        def run(part: slice) -> None:
            kernel(given[part], shut[part], self.edges, self.goal, out[part], sums[part])

        in_threads(run, batch, batch * len(self.edges.gates) * PASSES * math.prod(several))
        return structures, totals

    @cached_property
    def edges(self) -> "Edges":
        """What kernels read, made when it is first asked for."""
        from ..kernels.derivation_rows import Edges

        kept = [level.edges < len(self.coordinates) - 1 for level in self.levels]
        edges = torch.cat([level.edges[used] for level, used in zip(self.levels, kept, strict=True)])
        tails = torch.cat([level.tails[used] for level, used in zip(self.levels, kept, strict=True)])
        counts = torch.cat([torch.zeros(1, dtype=torch.int64), *(used.sum(1) for used in kept)])
        narrow = (tensor.to(torch.uint32).numpy() for tensor in (tails, self.coordinates[edges], self.gates[edges]))
        return Edges(counts.cumsum(0).to(torch.uint64).numpy(), *narrow)

    def row_oracle(self, scores: Tensor, gates: Tensor | None) -> "Derivation":
        """`best` as compiled solvers ask it, for derivations that are 0/1: see `row_kernels.row_oracle`."""
        from ..kernels.derivation_rows import Derivation

        opened = scores.new_zeros(scores.shape[0], self.gate_count) if gates is None else gates.contiguous()
        return Derivation(opened.numpy(), self.edges, self.goal)

    def kbest(
        self, scores: Tensor, k: int, gates: Tensor | None = None, dtype: torch.dtype = torch.float64
    ) -> tuple[Tensor, Tensor]:
        """The k structures of highest weight, best first, and their weights, -inf beyond their number: [B, k, D], [B, k].

        Structures are of the dtype that is asked for: of long ones, to write them takes most of the time.

        Each node keeps its k best derivations (Huang and Chiang 2005, Algorithm 1). O(E k log^2 k) time. A kernel, on the CPU
        with Numba installed, finds no more of them than the goal needs: O(E + N k) for few of them, O(E k + N k^2) at worst.
        """
        check_rows(scores, self.dim)
        check_count("topk: k", k, 1)
        kernel = compiled("..kernels.kbest_rows", __package__, "kbest", scores.device)
        if kernel is not None and scores.dtype == torch.float64 and readable(scores):
            written = dtype if dtype in (torch.float32, torch.float64) else torch.float32
            structures, totals = self._in_rows(kernel, scores.detach(), gates, (k,), written)
            return structures.to(dtype), totals
        weights = self.weights(scores, gates)
        device, batch = weights.device, weights.shape[1]
        # The i-th best of one tail with the j-th best of the other is beaten by all i j - 1 pairs before it.
        both = torch.tensor([(i, j) for i in range(k) for j in range(k // (i + 1))], device=device).T
        alone = torch.stack([torch.arange(k, device=device), torch.zeros(k, dtype=torch.int64, device=device)])
        chart = weights.new_full((self.count + 1, k, batch), -torch.inf)
        chart[-1, 0] = 0
        taken: list[Tensor] = []
        for level in self.levels:
            # The node of value one has a first best and no other.
            pairs = both if level.two_tails else alone
            left, right = (chart[level.tails[..., side]][:, :, pairs[side]] for side in range(TAILS))
            values = (weights[level.edges][:, :, None] + left + right).flatten(1, 2)  # [n, e pairs, B]
            values, order = (found[:, :k] for found in values.sort(dim=1, descending=True, stable=True))
            chart[level.nodes, : values.shape[1]] = values
            column, pair = order // pairs.shape[1], order % pairs.shape[1]
            taken.append(torch.stack([column, pairs[0][pair], pairs[1][pair]], -1).permute(2, 0, 1, 3))  # [B, n, k', 3]
        totals = chart[self.goal].T
        structures = weights.new_zeros(batch, k, self.dim + 1)
        # Which derivation of each node is used, -1 for none.
        rank = torch.full((batch, k, self.count + 1), -1, device=device)
        rank[..., self.goal] = torch.where(totals > -torch.inf, torch.arange(k, device=device), -1)
        for level, choice in zip(reversed(self.levels), reversed(taken), strict=True):
            here = rank[..., level.nodes]  # [B, k, n]
            index = here.clamp(min=0, max=choice.shape[2] - 1).transpose(1, 2)[..., None].expand(-1, -1, -1, 3)
            column, one, two = choice.gather(2, index).transpose(1, 2).unbind(-1)  # [B, k, n] each
            self._switch_on(structures, level, column, here >= 0)
            tails = level.tails[torch.arange(column.shape[-1], device=device), column]  # [B, k, n, 2]
            ranks = torch.where((here >= 0)[..., None], torch.stack([one, two], -1), -1)
            rank.scatter_reduce_(-1, tails.flatten(-2), ranks.flatten(-2), "amax")
        return structures[..., : self.dim].to(dtype), totals

    def values(self, weights: Tensor, chart: Tensor, level: Level, first: int = 0) -> Tensor:
        """The value of every edge of a level, [n, e, B]; in `chart` [N', B] node i is at i + first, modulo N + 1."""
        values = weights[level.edges]
        for side in range(TAILS if level.two_tails else 1):
            values = values + chart[(level.tails[..., side] + first) % (self.count + 1)]
        return values

    def count_derivations(self) -> int:
        """How many structures there are, gates open."""
        counts = [0] * self.count + [1]
        for level in self.levels:
            for line, node in enumerate(range(level.nodes.start, level.nodes.stop)):
                for edge, tails in zip(level.edges[line].tolist(), level.tails[line].tolist(), strict=True):
                    if edge + 1 < len(self.coordinates):
                        counts[node] += counts[tails[0]] * counts[tails[1]]
        return counts[self.goal]

    def structures(self, choices: list[Tensor], weights: Tensor) -> Tensor:
        """The structures [B, S, D] of derivations given by the column [B, S, n] taken at each node, level by level."""
        blank = torch.zeros_like(choices[0][..., :1])  # of choices, so that under `vmap` it takes batched values
        structures = blank.to(weights.dtype).repeat(1, 1, self.dim + 1)
        active = blank.bool().repeat(1, 1, self.count + 1)
        active[..., self.goal] = True
        for level, column in zip(reversed(self.levels), reversed(choices), strict=True):
            used = active[..., level.nodes]
            self._switch_on(structures, level, column, used)
            tails = level.tails[torch.arange(column.shape[-1], device=column.device), column]
            # Nodes that are not used point to the node of value one.
            tails = torch.where(used[..., None], tails, self.count).flatten(-2)
            active.scatter_(-1, tails, True)
        return structures[..., : self.dim]

    def _switch_on(self, structures: Tensor, level: Level, column: Tensor, used: Tensor) -> None:
        """Add the coordinates of the edges taken, by column [B, S, n], to structures [B, S, D + 1]."""
        edges = level.edges[torch.arange(column.shape[-1], device=column.device), column]
        switched = torch.where(used[..., None], self.coordinates[edges], self.dim).flatten(-2)
        structures.scatter_add_(-1, switched, torch.ones_like(switched, dtype=structures.dtype))
