"""What is kept of each example until a summary is logged."""

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, distributed, promote_types

from ..models.estimators import Estimate

PERCENTS = (10, 25, 50, 75, 90)


@dataclass(frozen=True)
class Records:
    """Numbers of N examples.

    Attributes:
        values: [N] each, detached, by name.
        support: [N]: how many structures had mass, or were drawn.
        modes: [N, D] bool: the most probable structures.
        evaluations: how many (example, structure) pairs the cost was evaluated on.
    """

    values: dict[str, Tensor]
    support: Tensor
    modes: Tensor
    evaluations: int

    @classmethod
    def of(cls, values: dict[str, Tensor], estimate: Estimate) -> "Records":
        return cls(values, estimate.support, estimate.mode > 0.5, estimate.evaluations)

    @classmethod
    def join(cls, records: "list[Records]") -> "Records":
        return cls(
            {name: torch.cat([r.values[name] for r in records]) for name in records[0].values},
            torch.cat([r.support for r in records]),
            torch.cat([r.modes for r in records]),
            sum(r.evaluations for r in records),
        )

    def __len__(self) -> int:
        return self.support.shape[0]

    def cpu(self) -> "Records":
        values = {name: value.cpu() for name, value in self.values.items()}
        return Records(values, self.support.cpu(), self.modes.cpu(), self.evaluations)

    def summarize(self) -> dict[str, Tensor]:
        """Average the values, in float32 at least; describe supports (means and percentiles); count distinct structures."""
        support = self.support.float()
        percentiles = support.quantile(support.new_tensor(PERCENTS) / 100)
        return {
            **{name: value.mean(dtype=promote_types(value.dtype, torch.float32)) for name, value in self.values.items()},
            "support_mean": support.mean(),
            **{f"support_q{percent}": value for percent, value in zip(PERCENTS, percentiles, strict=True)},
            "decoder_calls": support.new_tensor(self.evaluations / len(self)),
            "distinct_codes": support.new_tensor(self.modes.unique(dim=0).shape[0]),
        }


class Joinable(Protocol):
    """Numbers of some examples that can be put together with those of others."""

    @classmethod
    def join(cls, records: Any) -> Any: ...

    def cpu(self) -> Any: ...


Part = TypeVar("Part", bound=Joinable)


def gather(part: Part, processes: int) -> Part:
    """Join the parts of all processes, in every one of them."""
    if processes == 1:
        return part
    everyone: list[Part | None] = [None] * processes
    distributed.all_gather_object(everyone, part.cpu())
    return type(part).join([other for other in everyone if other is not None])
