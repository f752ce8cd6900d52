"""Gibbs distributions over non-projective dependency trees."""

import torch
from torch import Tensor

from .dependency_arcs import DependencyArcs
from .elimination import floor_of
from .matrix_tree import MatrixTreeGibbs, lowered


class DependencyGibbs(MatrixTreeGibbs):
    """p(z) proportional to exp <a_z, t> over `Arborescence`.

    Words before the first that no arc may reach make up the sentence.
    """

    def __init__(self, arcs: DependencyArcs, scores: Tensor, *, single_root: bool) -> None:
        self.arcs = arcs
        super().__init__(scores, single_root=single_root)

    def _present(self, scores: Tensor) -> Tensor:
        return self.arcs.present(scores)

    def _relative(self, scores: Tensor) -> Tensor:
        # Each word's by itself: a word has one head.
        return lowered(scores.unflatten(-1, (self.arcs.words, self.arcs.words))).flatten(-2)

    def _weights(self, scores: Tensor) -> Tensor:
        matrix = self.arcs.matrix(torch.where(scores.isneginf(), floor_of(scores), scores))[..., 1:]
        own = torch.eye(self.arcs.words + 1, dtype=torch.bool, device=scores.device)[:, 1:]
        return torch.where(own, floor_of(scores), matrix)

    def _surprise(self, scores: Tensor) -> Tensor:
        return scores.new_zeros(len(scores), self.arcs.words + 1, self.arcs.words)

    def _structures(self, heads: Tensor, generator: torch.Generator | None) -> Tensor:
        return self.arcs.structures(heads, self.dtype)

    def _are_trees(self, structures: Tensor, present: Tensor) -> Tensor:
        heads = self.arcs.heads_of(structures)
        sound = (structures == self.arcs.structures(heads).to(structures)).all(-1) & ((heads >= 0) == present).all(-1)
        parent = torch.nn.functional.pad(heads.clamp(min=0), (1, 0))
        for _ in range(self.arcs.words.bit_length()):
            parent = parent.gather(-1, parent)
        sound = sound & (parent == 0).all(-1)
        return sound & ((heads == 0).sum(-1) == 1) if self.single_root else sound
