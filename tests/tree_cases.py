"""Sizes of sentences, and all of their dependency trees."""

from functools import cache

from cases import dependency_trees
from sparsemarg.oracles import Arborescence
from torch import Tensor

SIZES = [(1, False), (1, True), (2, True), (3, False), (4, False), (4, True), (5, False)]


@cache
def case(words: int, single_root: bool) -> tuple[Arborescence, Tensor]:
    structures = dependency_trees(words, projective=False, single_root=single_root)
    return Arborescence(words, single_root=single_root), structures


def is_tree(polytope: Arborescence, structure: Tensor) -> bool:
    heads = [0, *polytope.heads(structure).tolist()]
    for word in range(1, polytope.words + 1):
        steps = 0
        while word != 0 and steps <= polytope.words:
            word, steps = heads[word], steps + 1
        if word != 0:
            return False
    return int(structure.sum()) == polytope.words and (not polytope.single_root or heads[1:].count(0) == 1)
