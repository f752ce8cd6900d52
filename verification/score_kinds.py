"""The scores that `verify` draws: easy ones, and the ones that find mistakes."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Random scores of these standard deviations: many fractional coordinates, some, few.
SCALES = (0.3, 1.0, 3.0)
KINDS = (
    "random small",
    "random",
    "random large",
    "tied",
    "nearly tied",
    "integer",
    "zero",
    "at a vertex",
    "on a facet",
    "huge",
    "tiny",
)


# The user's own scores, and how many of them slow references look at.
GIVEN = "given"
GIVEN_ROWS = 16


@dataclass(frozen=True)
class Sample:
    """Scores to check with.

    Attributes:
        scores: [N, D] float64.
        kinds: the kind of each row.
        pool: [M, D] float64 random scores for derivatives, which are taken at the first few that are far from a kink.
    """

    scores: Tensor
    kinds: tuple[str, ...]
    pool: Tensor

    def few(self, count: int) -> list[int]:
        """The first `count` rows of every kind, for slow references."""
        seen: dict[str, int] = {}
        chosen = []
        for row, kind in enumerate(self.kinds):
            seen[kind] = seen.get(kind, 0) + 1
            if seen[kind] <= (GIVEN_ROWS if kind == GIVEN else count):
                chosen.append(row)
        return chosen


def draw(dim: int, structures: Tensor, batch: int, seed: int, dtype: torch.dtype = torch.float64, tiny: bool = True) -> Sample:
    """`batch` rows of every kind.

    Args:
        dim: D.
        structures: [V, D] float64, some structures; they place scores at vertices and on facets.
        batch: rows a kind.
        seed: of the random numbers.
        dtype: every score is a number of this precision.
        tiny: whether to draw that kind. Where not all coordinates are regularised it is a problem of two scales, on which
            Frank-Wolfe steps of 1e-8 do not arrive.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(batch, dim, generator=generator, dtype=torch.float64)

    def vertex() -> Tensor:
        return structures[torch.randint(len(structures), (batch,), generator=generator)]

    tied = torch.tensor([-0.5, 0.25, 0.37, 1.0], dtype=torch.float64)
    levels = tied[torch.randint(4, (batch, dim), generator=generator)]
    if batch:
        levels[0] = 0.37  # all tied, the case that follows rounding noise first
    rows = {
        "random small": SCALES[0] * normal(),
        "random": SCALES[1] * normal(),
        "random large": SCALES[2] * normal(),
        "tied": levels,
        # Differences far below float32's resolution and far above float64's: an oracle that rounds to float32 gets them wrong.
        "nearly tied": levels + 1e-9 * normal().round(),
        "integer": (2 * normal()).round(),
        "zero": torch.zeros(min(batch, 1), dim, dtype=torch.float64),
        "at a vertex": vertex(),
        "on a facet": (vertex() + vertex()) / 2,
        "huge": 1e8 * normal(),
        "tiny": 1e-8 * normal(),
    }
    pool = torch.cat([scale * torch.randn(20, dim, generator=generator, dtype=torch.float64) for scale in (1.0, 0.3, 3.0)])
    mixed = pool[torch.randperm(len(pool), generator=generator)]
    if not tiny:
        rows["tiny"] = rows["tiny"][:0]
    kinds = tuple(kind for kind in KINDS for _ in rows[kind])
    scores = torch.cat([rows[kind] for kind in KINDS])
    return Sample(scores.to(dtype).double(), kinds, mixed.to(dtype).double())


def given(scores: Tensor) -> Sample:
    """A sample of the user's own scores [N, D], which are also where derivatives are taken."""
    precise = scores.detach().double().cpu()
    return Sample(precise, (GIVEN,) * len(precise), precise)
