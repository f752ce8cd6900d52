"""Games drawn from images of concepts: which images are seen, in which order, and which is meant."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import UsageError


class GameBatch(NamedTuple):
    """Games to play.

    Attributes:
        target: [B, features] float: what the sender sees.
        images: [B, images, features] float: what the receiver sees.
        position: [B] int64: where the target is among them.
    """

    target: Tensor
    images: Tensor
    position: Tensor


@dataclass(frozen=True)
class ConceptImages:
    """Images by their features.

    Attributes:
        features: [N, features] float.
        concepts: [N] int64, what each shows: an index into `names`.
        names: of the concepts.
    """

    features: Tensor
    concepts: Tensor
    names: tuple[str, ...]

    def __getitem__(self, index: Tensor) -> "ConceptImages":
        return ConceptImages(self.features[index], self.concepts[index], self.names)

    def hold_out(self, fraction: float, generator: torch.Generator) -> "tuple[ConceptImages, ConceptImages]":
        """Split at random into (kept, held out): of each concept's n images round(fraction n), at least one on both sides.

        Raises:
            UsageError: a concept has one image.
        """
        order = torch.randperm(len(self.concepts), generator=generator)
        order = order[self.concepts[order].argsort(stable=True)]  # by concept, random within it
        ids, counts = self.concepts[order].unique_consecutive(return_counts=True)
        if (counts < 2).any():
            lonely = [self.names[i] for i in ids[counts < 2].tolist()]
            raise UsageError(
                f"every concept needs at least 2 training images, one of them to validate on, but {_listed(lonely)} has one: "
                "give more images of it, or leave the concept out"
            )
        held = (fraction * counts).round().clamp(min=1).minimum(counts - 1).long()
        rank = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        out = rank < held.repeat_interleave(counts)
        return self[order[~out]], self[order[out]]


class Games:
    """Draws games from a set of images: distinct concepts, one image of each; the first is the target.

    Concepts are uniform without replacement, an image is uniform among its concept's, the receiver's order is uniform
    (Lazaridou et al. 2017; Correia et al. 2020, section 5.2). O(count concepts) for `count` games, no loop over them.

    Args:
        pool: to draw from.
        images: in a game.
        split: its name, for messages.

    Raises:
        UsageError: fewer concepts than images in a game.
    """

    def __init__(self, pool: ConceptImages, images: int, split: str) -> None:
        order = pool.concepts.argsort(stable=True)
        counts = pool.concepts[order].unique_consecutive(return_counts=True)[1]
        if not 2 <= images <= len(counts):
            raise UsageError(
                f"a game of {images} images shows as many distinct concepts, and at least 2, but the {split} images have "
                f"{len(counts)} concepts: set data.init_args.images between 2 and that"
            )
        self._features = pool.features
        self._order = order
        self._counts = counts
        self._starts = counts.cumsum(0) - counts
        self._images = images

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Rows of the images of `count` games, the target first, and the receiver's order of them: [count, 2, images]."""
        uniform = torch.rand(count, len(self._counts), generator=generator, dtype=torch.float64)
        concepts = uniform.topk(self._images).indices
        within = torch.rand(count, self._images, generator=generator, dtype=torch.float64) * self._counts[concepts]
        rows = self._order[self._starts[concepts] + within.long()]
        shuffle = torch.rand(count, self._images, generator=generator, dtype=torch.float64).argsort(-1)
        return torch.stack([rows, shuffle], 1)

    def batch(self, drawn: Tensor) -> GameBatch:
        """The features of games drawn."""
        rows, shuffle = drawn.unbind(1)
        return GameBatch(
            target=self._features[rows[:, 0]],
            images=self._features[rows.gather(1, shuffle)],
            position=(shuffle == 0).long().argmax(1),
        )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" (and {len(names) - 5} more)" if len(names) > 5 else "")
