"""Non-projective dependency trees of a sentence, by Chu-Liu and Edmonds."""

from typing import Any

import torch
from torch import Tensor

from ..base import MAX_ENUMERATED, Halfspaces, Polytope
from ..checks import cannot_branch, check_dimension
from ..kbest import check_moderate, partition
from ..placement import lasting
from ..row_kernels import best_in_rows
from .dependency_arcs import OverArcs
from .dependency_gibbs import DependencyGibbs
from .edmonds import best_arborescence

# Subsets of words each give a halfspace: 2^10 of them in 100 dimensions are 1 MB.
_MOST_WORDS = 10
# Scores that are lower than all others, taken together, by so much leave these half of their digits.
_FAR = 2.0**20


class Arborescence(OverArcs, Polytope):
    """Dependency trees over n words whose arcs may cross: arborescences from the root (McDonald et al. 2005).

    The same coordinates as `ProjectiveTree`, so that one can stand in for the other: `arcs`, a `DependencyArcs`; `scores` makes
    them from a matrix, `heads` reads a structure.

    Shorter sentences in the same batch: the first word that no arc may reach, all of them scoring `-inf`, ends the sentence;
    `mask` sets those scores.

    Args:
        words: n.
        single_root: whether exactly one word hangs on the root; any number otherwise.

    >>> trees = Arborescence(3)
    >>> scores = torch.tensor([[0.0, 1, 0, 0], [0, 0, 2, 0], [0, 3, 0, 0], [0, 0, 4, 0]])  # by (head, word), the root first
    >>> trees.heads(trees.maximize(trees.scores(scores)[None]))
    tensor([[2, 3, 0]])
    """

    takes_forbidden = True

    @lasting
    def __init__(self, words: int, *, single_root: bool = False) -> None:
        super().__init__(words, single_root=single_root)
        self.dim = self.words * self.words

    def maximize(self, scores: Tensor) -> Tensor:
        """The best tree, in O(n^2); that is a round of contractions in tensor operations, of at most n. Ties: see `edmonds`."""
        return self._best(scores, self.arcs.present(scores))

    def row_oracle(self, scores: Tensor) -> tuple[Any, ...] | None:
        """For compiled solvers: see `row_kernels.row_oracle`; None where `maximize` has more to do than to ask the kernel."""
        if self.single_root and self._far(scores)[0].any():
            return None
        from ..kernels.edmonds_rows import RootedTree

        return RootedTree(self.arcs.present(scores).contiguous().numpy(), self.single_root)

    def topk(self, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k best trees: k rounds of at most n maximisations a row."""
        check_moderate(scores, k)
        present = self.arcs.present(scores)

        def maximize(forced: Tensor, sentence: Tensor) -> Tensor:
            return self._best(forced, present[sentence])

        vertices, valid = partition(maximize, scores, k, antichain=True)
        return vertices, valid & present[:, :1]

    def gibbs(self, scores: Tensor) -> DependencyGibbs:
        """p(z) proportional to exp <a_z, t>, by the matrix-tree theorem; O(n^3) a row."""
        check_dimension(scores, self)
        return DependencyGibbs(self.arcs, scores, single_root=self.single_root)

    def halfspaces(self) -> Halfspaces:
        """One arc into each word, and at least one into each set of words (Edmonds 1967): 2^n rows, for n up to 10.

        Raises:
            ValueError: n is larger.
        """
        if self.words > _MOST_WORDS:
            raise ValueError(f"{self!r} has 2^{self.words} halfspaces, too many to list (limit n = {_MOST_WORDS})")
        sets = (torch.arange(1, 1 << self.words)[:, None] >> torch.arange(self.words)) & 1  # [2^n - 1, n]
        sets = torch.nn.functional.pad(sets, (1, 0))
        entering = (1 - sets[:, self.arcs.heads]) * sets[:, self.arcs.modifiers]
        several = entering[sets.sum(-1) > 1].double()
        single = entering[sets.sum(-1) == 1].double()
        identity = torch.eye(self.dim, dtype=torch.float64)
        if self.single_root:
            single = torch.cat([single, (self.arcs.heads == 0).double()[None]])
        b_ub = torch.cat([torch.zeros(self.dim), -torch.ones(len(several))]).double()
        return Halfspaces(torch.cat([-identity, -several]), b_ub, single, torch.ones(len(single), dtype=torch.float64))

    def vertices(self) -> Tensor:
        """All trees, (n + 1)^(n - 1) of them (single root: n^(n - 1)), for n up to 6.

        Raises:
            ValueError: n is larger, so that there are more than `MAX_ENUMERATED` choices of heads.
        """
        choices = (self.words + 1) ** self.words
        if choices > MAX_ENUMERATED:
            raise ValueError(f"{self!r} has up to {choices} structures, too many to enumerate (limit {MAX_ENUMERATED})")
        place = (self.words + 1) ** torch.arange(self.words)
        heads = torch.arange(choices)[:, None] // place % (self.words + 1)
        above = torch.nn.functional.pad(heads, (1, 0))
        for _ in range(self.words.bit_length()):
            above = above.gather(1, above)
        trees = (above == 0).all(-1)
        if self.single_root:
            trees &= (heads == 0).sum(-1) == 1
        return self.arcs.structures(heads[trees])

    def _best(self, scores: Tensor, present: Tensor) -> Tensor:
        """The best trees over the words that are present [B, n].

        With a single root, arcs from it are second choice to all others, were these masked by scores of -1e30. So rows with
        such scores are tried without these arcs first, which is right where the tree then found beats all that have one.
        """
        if not self.single_root:
            return self._solve(scores, present)
        far, least = self._far(scores)
        if not cannot_branch(scores) and not far.any():
            return self._solve(scores, present)
        near = scores.masked_fill(far, -torch.inf)
        found = self._solve(near, present)
        possible = ((found == 0) | (near > -torch.inf)).all(-1)
        total = torch.where(found != 0, near, 0).double().sum(-1)
        return torch.where((possible & (total > least))[:, None], found, self._solve(scores, present))

    def _far(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Arcs that score so low that others would lose their digits beside them, [B, D] bool, and what every tree with one
        of them is worth at most [B]."""
        finite = scores.detach().double()
        highest = finite.unflatten(-1, (self.words, self.words)).amax(-1)
        most = torch.where(highest > -torch.inf, highest, 0).abs().sum(-1)
        far = (finite < -_FAR * (1 + most)[:, None]) & (finite > -torch.inf)
        return far, torch.where(far, finite, -torch.inf).amax(-1) + most

    def _solve(self, scores: Tensor, present: Tensor) -> Tensor:
        """The same where no score is far below all others."""
        in_rows = best_in_rows("edmonds_rows", self, scores, (present,), (self.single_root,), passes=32)
        if in_rows is not None:
            return in_rows
        matrix = self.arcs.matrix(scores.detach().double())
        nodes = torch.cat([torch.ones_like(present[:, :1]), present], 1)
        heads, found = best_arborescence(matrix, nodes, single_root=self.single_root)
        structures = self.arcs.structures(heads[:, 1:]).to(scores)
        # A row without a structure answers with what is forbidden, by which solvers know it.
        return torch.where((found & present[:, 0])[:, None], structures, scores.isneginf().to(scores))
