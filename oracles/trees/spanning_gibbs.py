"""Gibbs distributions over the spanning trees of a graph."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..placement import placed
from .bonds import Bonds
from .elimination import floor_of, log_sum
from .entropy import expected_surprise
from .heaviest_forest import heaviest_forest
from .matrix_tree import MatrixTreeGibbs, lowered


class SpanningTreeGibbs(MatrixTreeGibbs):
    """p(z) proportional to exp <a_z, t> over `SpanningTree`.

    Nodes are the words, and edges arcs both ways. The first node that is present hangs on a root, and no other does, so that
    the edges of a tree are directed in one way only.
    """

    def __init__(self, bonds: Bonds, scores: Tensor) -> None:
        self.bonds = bonds
        super().__init__(scores, single_root=False)

    def _present(self, scores: Tensor) -> Tensor:
        return self.bonds.present(scores)

    def _relative(self, scores: Tensor) -> Tensor:
        return lowered(scores)  # all trees have as many edges

    def _weights(self, scores: Tensor) -> Tensor:
        peak, rest = log_sum(self._of_edges(scores), -1)
        table = self._by_nodes(peak + rest, floor_of(scores))
        root = torch.full_like(table[:, 0], floor_of(scores)).masked_fill(self.present & (self.present.cumsum(-1) == 1), 0)
        return torch.cat([root[:, None], table], 1)

    def _surprise(self, scores: Tensor) -> Tensor:
        shares = self._of_edges(scores).log_softmax(-1)
        return pad(self._by_nodes(expected_surprise(torch.zeros_like(shares), shares, -1), 0), (0, 0, 1, 0))

    def _of_edges(self, scores: Tensor) -> Tensor:
        """Logarithms of the weights of each pair's edges, [R, D] -> [R, P, m]."""
        each = self.bonds.scores(scores)
        return torch.where(each.isneginf(), floor_of(scores), each)

    def _by_nodes(self, pairs: Tensor, none: float) -> Tensor:
        """What is given by pair, [R, P] -> [R, V, V]."""
        return pad(pairs, (0, 1), value=none)[:, placed(self.bonds.between, pairs.device)]

    def _structures(self, heads: Tensor, generator: torch.Generator | None) -> Tensor:
        # The pair of each node and its head; P for the node at the root, and for those that are not present.
        between, edges = (placed(table, heads.device) for table in (self.bonds.between, self.bonds.edges))
        node = torch.arange(self.bonds.nodes, device=heads.device)
        pair = torch.where(heads > 0, between[node, (heads - 1).clamp(min=0)], len(edges))
        which = torch.zeros_like(pair)
        if edges.shape[1] > 1:  # of those between the same two nodes
            row = torch.arange(len(self.scores), device=heads.device).repeat(len(heads) // max(1, len(self.scores)))
            cumulative = pad(self._of_edges(self.scores).double().softmax(-1).cumsum(-1), (0, 0, 0, 1), value=1.0)
            cumulative = cumulative[row[:, None], pair]  # [c R, V, m]
            uniform = torch.rand(*pair.shape, 1, dtype=torch.float64, device=heads.device, generator=generator)
            which = (cumulative <= uniform * cumulative[..., -1:]).sum(-1).clamp(max=edges.shape[1] - 1)
        edge = pad(edges, (0, 0, 0, 1), value=self.scores.shape[-1])[pair, which]
        drawn = torch.zeros(len(heads), self.scores.shape[-1] + 1, dtype=self.dtype, device=heads.device)
        return drawn.scatter(-1, edge, 1)[:, :-1]

    def _are_trees(self, structures: Tensor, present: Tensor) -> Tensor:
        flat = structures.reshape(-1, structures.shape[-1])
        order = flat.sort(dim=-1, descending=True).indices
        ends = placed(self.bonds.ends, flat.device)
        forest = heaviest_forest(torch.where(flat == 1, 0, -torch.inf), order, ends, self.bonds.nodes)
        number = forest.sum(-1).reshape(structures.shape[:-1])
        return (forest == flat).all(-1).reshape(structures.shape[:-1]) & (number == present.sum(-1) - 1)
