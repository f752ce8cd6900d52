"""The coordinates of spanning trees: edges, of which several may join the same two nodes."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..placement import lasting, placed


class Bonds:
    """The pairs of nodes that edges join: of P pairs, the m edges at most of each.

    Args:
        edges: the nodes that each joins.
        nodes: V.
    """

    @lasting
    def __init__(self, edges: Sequence[tuple[int, int]], nodes: int) -> None:
        self.ends, self.nodes = torch.tensor(edges), nodes  # [D, 2]
        low, high = self.ends.amin(-1), self.ends.amax(-1)
        pairs, of_edge = torch.unique(low * nodes + high, return_inverse=True)
        members: list[list[int]] = [[] for _ in range(len(pairs))]
        for edge, pair in enumerate(of_edge.tolist()):
            members[pair].append(edge)
        width = max(map(len, members))
        self.edges = torch.tensor([own + [len(edges)] * (width - len(own)) for own in members])  # [P, m], D for none
        self.between = torch.full((nodes, nodes), len(pairs))  # [V, V] the pair, P for none
        one, other = pairs // nodes, pairs % nodes
        self.between[one, other] = self.between[other, one] = torch.arange(len(pairs))

    def scores(self, scores: Tensor) -> Tensor:
        """[R, D] -> those of the edges of each pair, [R, P, m], `-inf` for none."""
        return pad(scores, (0, 1), value=-torch.inf)[:, placed(self.edges, scores.device)]

    def present(self, scores: Tensor) -> Tensor:
        """Nodes that have an edge which is there, [B, D] -> [B, V] bool."""
        allowed = scores.detach() > -torch.inf
        ends = placed(self.ends, scores.device)
        count = torch.zeros(len(scores), self.nodes, dtype=torch.int64, device=scores.device)
        for side in range(2):
            count = count.index_add(1, ends[:, side], allowed.to(torch.int64))
        return count > 0
