"""Sequences of states with transitions: the linear-chain conditional random field's structures."""

from typing import Any

import torch
from torch import Tensor

from ..base import Halfspaces
from ..checks import broadcasts, check_count, check_dimension, checked_lengths
from ..placement import lasting
from ..row_kernels import best_in_rows
from ..written import check_structures, checked_numbers
from .derivations import Derivations
from .hyperedges import Edge
from .hypergraph import Hypergraph


class LinearChain(Derivations):
    """Sequences s_1 ... s_L of S states, as indicators of each state and of each pair of neighbouring states.

    Coordinates: unary u[t, s] = [s_t = s] for t < L, then transitions v[t, s, s'] = [s_t = s, s_{t+1} = s'] for t < L - 1, both
    in row-major order: D = L S + (L - 1) S^2. `scores` and `parts` convert; `tags` reads a structure, `structures` writes one.

    Shorter sequences in the same batch: a position whose S states all score `-inf` ends the chain, and all coordinates from
    there on are 0. `mask` sets those scores. Such a row gives what the shorter chain alone gives.

    Args:
        length: L.
        states: S.
        regularize_transitions: whether SparseMAP's l2 term applies to the transitions too, as the paper's eq. 4 has it. False
            is the usual choice for graphical models (Niculae et al. 2018): transitions then only take scores, and a chain
            whose transitions all score 0 has the mean of its positions' sparsemaxes.

    >>> chain = LinearChain(3, 2)
    >>> structure = chain.maximize(chain.scores(torch.tensor([[[0.0, 1], [0, 1], [2, 0]]]), torch.zeros(1, 2, 2, 2)))
    >>> chain.tags(structure)
    tensor([[1, 1, 0]])
    """

    @lasting
    def __init__(self, length: int, states: int, *, regularize_transitions: bool = True) -> None:
        self.length = check_count("LinearChain: length", length, 1)
        self.states = check_count("LinearChain: states", states, 1)
        unary = length * states
        node = torch.arange(unary).reshape(length, states).tolist()
        pair = (unary + torch.arange((length - 1) * states**2)).reshape(length - 1, states, states).tolist()
        edges = [Edge(node[0][s], (), (node[0][s],)) for s in range(states)]
        for t in range(1, length):
            for s in range(states):
                for before in range(states):
                    edges.append(Edge(node[t][s], (node[t - 1][before],), (node[t][s], pair[t - 1][before][s])))
        goal = unary
        # The gate of t is open where the chain ends after t.
        edges += [Edge(goal, (node[t][s],), (), t) for t in reversed(range(length)) for s in range(states)]
        super().__init__(Hypergraph(unary + (length - 1) * states**2, edges, goal))
        self.regularized = None if regularize_transitions else slice(0, unary)

    def __repr__(self) -> str:
        partly = "" if self.regularized is None else ", regularize_transitions=False"
        return f"LinearChain(length={self.length}, states={self.states}{partly})"

    def maximize(self, scores: Tensor) -> Tensor:
        """The best sequence; O(L S^2) a row. Ties: as in the graph."""
        found = best_in_rows("chain_rows", self, scores, (), (self.length, self.states), passes=2)
        return super().maximize(scores) if found is None else found

    def row_oracle(self, scores: Tensor) -> tuple[Any, ...]:
        """For compiled solvers: see `row_kernels.row_oracle`."""
        from ..kernels.chain_rows import Chain

        return Chain(self.length, self.states)

    def scores(self, unary: Tensor, transitions: Tensor) -> Tensor:
        """[*B, L, S] and [*B, L - 1, S, S] (or what broadcasts to it) -> [*B, D].

        Raises:
            ValueError: scores of another shape.
        """
        shape = (*unary.shape[:-2], self.length - 1, self.states, self.states)
        if unary.shape[-2:] != (self.length, self.states) or not broadcasts(transitions.shape, shape):
            raise ValueError(
                f"{self!r}.scores takes unary scores [*B, {self.length}, {self.states}] and transitions {list(shape)}, or what "
                f"broadcasts to it, not {list(unary.shape)} and {list(transitions.shape)}"
            )
        return torch.cat([unary.flatten(-2), transitions.expand(shape).flatten(-3)], -1)

    def parts(self, structures: Tensor) -> tuple[Tensor, Tensor]:
        """[*B, D] -> unary [*B, L, S] and transitions [*B, L - 1, S, S]."""
        unary, pairs = structures.split([self.length * self.states, self.dim - self.length * self.states], -1)
        shape = (self.length - 1, self.states, self.states)
        return unary.unflatten(-1, (self.length, self.states)), pairs.reshape(*structures.shape[:-1], *shape)

    def tags(self, structures: Tensor) -> Tensor:
        """[*B, D] -> [*B, L] int64: the state at each position; -1 beyond the end of a shorter chain.

        Raises:
            ValueError: no structures, but means of some.
        """
        check_structures(f"{self!r}.tags", structures, self.dim, "of a mean mu, `maximize(mu)` has a sequence")
        unary = self.parts(structures)[0].byte()  # bool has no argmax
        return torch.where(unary.amax(-1) > 0, unary.argmax(-1), -1)

    def structures(self, tags: Tensor, lengths: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """The sequences of these states, with their transitions: the inverse of `tags`, for targets.

        Args:
            tags: [*B, L] ints, -1 beyond the end.
            lengths: of the chains, as `mask` takes them; tags beyond do not count.
            dtype: of the result, by default torch's.

        Returns:
            [*B, D].

        Raises:
            ValueError: tags of another shape, or such a state does not exist.
        """
        tags = checked_numbers(f"{self!r}.structures", tags, self.length, self.states - 1, lengths)
        unary = (tags[..., None] == torch.arange(self.states, device=tags.device)).to(dtype or torch.get_default_dtype())
        return self.scores(unary, unary[..., :-1, :, None] * unary[..., 1:, None, :])

    def mask(self, scores: Tensor, lengths: Tensor) -> Tensor:
        """The scores [*B, D] of shorter chains: `-inf` beyond each.

        Args:
            lengths: [*B] ints; or a mask [*B, L] bool, true where there is a position, which padding follows.

        Raises:
            ValueError: a length below 1 or above L; a mask with padding in between.
        """
        check_dimension(scores, self)
        lengths = checked_lengths(lengths, self.length, repr(self), scores)
        position = torch.arange(self.length, device=scores.device)
        beyond = (position >= lengths[..., None])[..., None].expand(*lengths.shape, self.length, self.states)
        pairs = beyond[..., 1:, :, None].expand(*lengths.shape, self.length - 1, self.states, self.states)
        return torch.where(torch.cat([beyond.flatten(-2), pairs.flatten(-3)], -1), -torch.inf, scores)

    def gates(self, scores: Tensor) -> Tensor:
        """The chain ends before its first position without an allowed state."""
        blocked = self.parts(scores)[0].amax(-1).isneginf()  # [B, L]
        ended = torch.cat([blocked[:, 1:], torch.ones_like(blocked[:, :1])], -1)
        last = ended & (blocked.cumsum(-1) == 0)
        return torch.where(last & (ended.cumsum(-1) == 1), 0.0, -torch.inf).to(scores)

    def halfspaces(self) -> Halfspaces:
        """A unit of flow through the trellis: transitions into and out of a state sum to its unary."""
        count = self.length * self.states
        identity = torch.eye(self.dim, dtype=torch.float64)
        unary, pairs = self.parts(identity.T)  # [D, L, S]: which coordinate is where
        into = pairs.sum(-2).permute(1, 2, 0).flatten(0, 1)  # [(L - 1) S, D]
        out = pairs.sum(-1).permute(1, 2, 0).flatten(0, 1)
        single = unary.permute(1, 2, 0)  # [L, S, D]
        rows = [single[0].sum(0, keepdim=True), into - single[1:].flatten(0, 1), out - single[:-1].flatten(0, 1)]
        a_eq = torch.cat(rows)
        b_eq = torch.zeros(len(a_eq), dtype=torch.float64)
        b_eq[0] = 1
        bounded = identity[count:] if self.length > 1 else identity
        return Halfspaces(-bounded, torch.zeros(len(bounded), dtype=torch.float64), a_eq, b_eq)
