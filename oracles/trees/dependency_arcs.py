"""The coordinates of dependency trees."""

from types import EllipsisType
from typing import Any, cast

import torch
from torch import Tensor

from ..checks import cannot_branch, check_count, check_dimension, checked_lengths
from ..placement import lasting, placed
from ..written import check_structures, checked_numbers, refuse


class DependencyArcs:
    """Coordinates of dependency trees over n words: one for each arc from a head to another word, in row-major order of
    (word m = 1..n, head h = 0..n without m), where 0 is the root: D = n^2.

    Args:
        words: n.
    """

    @lasting
    def __init__(self, words: int) -> None:
        self.words = words
        heads = torch.arange(words + 1).expand(words, -1)
        modifiers = torch.arange(1, words + 1)[:, None].expand(-1, words + 1)
        different = heads != modifiers
        self.heads, self.modifiers = heads[different], modifiers[different]
        self.number = {(h, m): i for i, (h, m) in enumerate(zip(self.heads.tolist(), self.modifiers.tolist(), strict=True))}

    def of(self, matrix: Tensor) -> Tensor:
        """[*B, n + 1, n + 1] by (head, word) -> [*B, D]; the root's column and the diagonal are left out."""
        size = self.words + 1
        if matrix.shape[-2:] != (size, size):
            raise ValueError(
                f"scores of trees over {self.words} words are [*B, {size}, {size}] by (head, word), with the root as number 0, "
                f"not {list(matrix.shape)}"
            )
        return matrix[self._places(matrix.device)]

    def matrix(self, structures: Tensor) -> Tensor:
        """[*B, D] -> [*B, n + 1, n + 1] by (head, word), 0 where there is no coordinate."""
        shape = (*structures.shape[:-1], self.words + 1, self.words + 1)
        matrix = structures.new_zeros(shape)
        matrix[self._places(matrix.device)] = structures
        return matrix

    def heads_of(self, structures: Tensor) -> Tensor:
        """[*B, D] -> [*B, n] int64: each word's head, 0 for the root; -1 for words that have none."""
        chosen = self.matrix(structures)[..., 1:] > 0.5  # [*B, head, word]
        return torch.where(chosen.any(-2), chosen.to(torch.int64).argmax(-2), -1)

    def structures(self, heads: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """[*B, n] heads, -1 (or no other word's number) for none -> [*B, D], the inverse of `heads_of`."""
        words = torch.arange(1, self.words + 1, device=heads.device)
        place = (words - 1) * self.words + heads - (heads > words).to(heads)
        there = (heads >= 0) & (heads <= self.words) & (heads != words)
        place = torch.where(there, place, self.words**2)
        structures = torch.zeros(*heads.shape[:-1], self.words**2 + 1, dtype=dtype, device=heads.device)
        return structures.scatter(-1, place, 1)[..., : self.words**2]

    def mask(self, scores: Tensor, lengths: Tensor, name: str) -> Tensor:
        """`OverArcs.mask`."""
        lengths = checked_lengths(lengths, self.words, name, scores)
        _, head, modifier = self._places(scores.device)
        last = torch.maximum(head, modifier)
        return torch.where(last > lengths[..., None], -torch.inf, scores)

    def present(self, scores: Tensor) -> Tensor:
        """Words 1..n before the first that no arc may reach, [B, n] bool: the others are padding."""
        blocked = scores.detach().unflatten(-1, (self.words, self.words)).amax(-1).isneginf()
        return blocked.cumsum(-1) == 0

    def _places(self, device: torch.device) -> tuple[EllipsisType, Tensor, Tensor]:
        """Of each coordinate, as an index into matrices by (head, word)."""
        return ..., placed(self.heads, device), placed(self.modifiers, device)


class OverArcs:
    """What polytopes of dependency trees share: their coordinates are the arcs of a sentence of n words.

    Args:
        words: n.
        single_root: whether exactly one word hangs on the root; any number otherwise.

    Attributes:
        projective: whether arcs may not cross.
    """

    projective = False

    def __init__(self, words: int, *, single_root: bool) -> None:
        self.words = check_count(f"{type(self).__name__}: words", words, 1)
        self.single_root = single_root
        self.arcs = DependencyArcs(self.words)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(words={self.words}{', single_root=True' if self.single_root else ''})"

    def scores(self, matrix: Tensor) -> Tensor:
        """[*B, n + 1, n + 1] by (head, word) -> [*B, D]."""
        return self.arcs.of(matrix)

    def heads(self, structures: Tensor) -> Tensor:
        """[*B, D] -> [*B, n] int64: each word's head, 0 for the root; -1 beyond the sentence.

        Raises:
            ValueError: no structures, but means of some.
        """
        check_structures(
            f"{self!r}.heads", structures, self.words**2, "of a mean mu, `maximize(mu)` has the tree of most expected arcs"
        )
        return self.arcs.heads_of(structures)

    def structures(self, heads: Tensor, lengths: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """The trees in which words 1..n have these heads: the inverse of `heads`, for targets.

        Args:
            heads: [*B, n] ints, 0 for the root, -1 for words beyond the sentence.
            lengths: of the sentences, as `mask` takes them; what heads say of words beyond does not count.
            dtype: of the result, by default torch's.

        Returns:
            [*B, D].

        Raises:
            ValueError: heads of another shape; a head that is no word of the sentence or the word itself; no tree; more than
                one word at the root (`single_root`), or arcs that cross, where the polytope has no such trees.
        """
        name = f"{self!r}.structures"
        heads = checked_numbers(name, heads, self.words, self.words, lengths)
        if not cannot_branch(heads):
            self._check_heads(name, heads)
        return self.arcs.structures(heads, dtype or torch.get_default_dtype())

    def _check_heads(self, name: str, heads: Tensor) -> None:
        word = torch.arange(1, self.words + 1, device=heads.device)
        there = heads >= 0
        refuse(name, heads, heads > there.sum(-1, keepdim=True), "the sentence has no such word")
        refuse(name, heads, heads == word, "that is the word itself")
        above = torch.cat([torch.zeros_like(heads[..., :1]), heads.clamp(min=0)], -1)
        for _ in range(self.words.bit_length()):  # from twice as far up each time
            above = above.gather(-1, above)
        refuse(name, heads, above[..., 1:] > 0, "following heads from this word never ends at the root")
        at_root = heads == 0
        refuse(name, heads, at_root & (at_root.cumsum(-1) > 1) & self.single_root, "another word is at the root already")
        if self.projective:
            first, last = torch.minimum(heads, word), torch.maximum(heads, word)
            inside = (first[..., None] < first[..., None, :]) & (first[..., None, :] < last[..., None])
            crossing = inside & (last[..., None] < last[..., None, :]) & there[..., None] & there[..., None, :]
            refuse(name, heads, crossing.any(-1), "its arc crosses another, and the polytope has projective trees only")

    def mask(self, scores: Tensor, lengths: Tensor) -> Tensor:
        """The scores [*B, D] of shorter sentences: `-inf` for arcs to and from what is beyond.

        Args:
            lengths: [*B] ints; or a mask [*B, n] bool, true where there is a word, which padding follows.

        Raises:
            ValueError: a length below 1 or above n; a mask with padding in between; scores of another shape: see `scores`.
        """
        check_dimension(scores, cast(Any, self))  # it is a polytope, too
        return self.arcs.mask(scores, lengths, repr(self))
