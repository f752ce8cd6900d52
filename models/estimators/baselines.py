"""What a score-function estimator subtracts from the cost: baselines, which change its variance and not its mean.

A baseline of an example may depend on anything but the structure whose term it is subtracted from.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...oracles.checks import check_count
from .recomputation import recomputing


class BaselineValue(NamedTuple):
    """What a baseline returns.

    Attributes:
        value: broadcastable to [S, B], without gradient: what is subtracted from the costs.
        loss: [B], the baseline's own training loss, of which the estimator takes the gradient.
    """

    value: Tensor
    loss: Tensor


class Baseline(nn.Module, ABC):
    """An estimate of the cost that a score-function estimator subtracts.

    Attributes:
        samples: S, how many structures of each example get a term of the gradient.
        critics: how many more are drawn, independently, for the baseline alone.
    """

    samples: int = 1
    critics: int = 0

    @abstractmethod
    def forward(self, costs: Tensor, critics: Tensor, context: Tensor | None) -> BaselineValue:
        """Values for costs [S, B] and critics' costs [critics, B], both without gradient, in the units of the cost."""


def check_baseline(baseline: object, owner: str) -> Baseline:
    """A baseline, or a ValueError unless it is one."""
    if not isinstance(baseline, Baseline):
        raise ValueError(f"{owner} needs a Baseline, e.g. RunningMean(), not {baseline!r}")
    return baseline


class RunningMean(Baseline):
    """The cumulative mean of the training batches' mean costs before this one; 0 at the first.

    Not an exponential average: each past batch counts the same, as in the published code of Correia et al. 2020 (their
    text says "moving average"). Updated after use and in training mode only. Saved as a buffer. One cost evaluation per
    example. Where training is distributed, each process averages its own costs; DDP then hands the first one's to all.

    A forward pass that `torch.utils.checkpoint` repeats is counted once, and its own costs are no part of what it is given.
    Batches whose mean is not finite are left out. The mean is kept in float32 at least, whatever the dtype of the module.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros((), dtype=torch.float32))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.mean: Tensor
        self.count: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RunningMean":
        before = self.mean
        super()._apply(fn, recurse)
        if self.mean.dtype in (torch.float16, torch.bfloat16):  # where steps of one in a thousand are rounded away
            self.mean = before.to(self.mean.device)
        return self

    def forward(self, costs: Tensor, critics: Tensor, context: Tensor | None) -> BaselineValue:
        used = self.mean.clone().to(costs)  # a copy: the update below must not reach it
        if self.training and costs.numel():
            own = costs.detach().mean().to(self.mean)
            if recomputing():
                before = (self.mean * self.count - own) / (self.count - 1).clamp(min=1)
                used = torch.where(own.isfinite(), before, self.mean).to(costs)
            else:
                sound = own.isfinite()  # one overflow, which mixed precision skips, would stay for good
                self.count += sound
                self.mean += torch.where(sound, (own - self.mean) / self.count.clamp(min=1), 0)
        return BaselineValue(used, torch.zeros_like(costs[0]))


class SelfCritic(Baseline):
    """The cost of another, independent sample of the same example: SFE+ (Rennie et al. 2017, with a sample for the argmax).

    The other sample's cost has no gradient, so the cost's parameters get the gradient of the expected cost. Two cost
    evaluations per example; `LeaveOneOut(2)` makes better use of the same two.
    """

    critics = 1

    def forward(self, costs: Tensor, critics: Tensor, context: Tensor | None) -> BaselineValue:
        return BaselineValue(critics[0], torch.zeros_like(costs[0]))


class LeaveOneOut(Baseline):
    """For each of S samples the mean cost of the S - 1 others: RLOO (Kool et al. 2019). S cost evaluations per example.

    Args:
        samples: S, at least 2.
    """

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.samples = check_count("LeaveOneOut: samples", samples, 2)

    def forward(self, costs: Tensor, critics: Tensor, context: Tensor | None) -> BaselineValue:
        return BaselineValue((costs.sum(0) - costs) / (self.samples - 1), torch.zeros_like(costs[0]))


class Learned(Baseline):
    """A network of the example, b(x), trained to predict the cost by squared error: NVIL (Mnih and Gregor 2014).

    An MLP in-512-512-512-1 with ReLU on `context` flattened; its loss (cost - b(x))^2 is added to the estimator's
    surrogate with weight 1, so it shares the model's optimiser and learning rate. One cost evaluation per example.

    NVIL subtracts a running mean c of the costs, too: `centre`, with which the value is c + b(x) and the loss
    (cost - c - b(x))^2. The published code of Correia et al. 2020 does without, and b(x) starts at 0 whatever the costs are:
    until it has learned their size, the gradient of the scores is noise of that size. The third reduction of NVIL, to divide
    by the standard deviation of what is left where that is above 1, is not here.

    Args:
        in_features: entries of one example's context; None leaves it to the model, by `build`.
        hidden: width of the three hidden layers.
        centre: the running mean; None is the published setting.

    Raises:
        ValueError: called without context, before `build`, or with context of another size.
    """

    def __init__(self, in_features: int | None = None, hidden: int = 512, centre: RunningMean | None = None) -> None:
        super().__init__()
        self.hidden = check_count("Learned: hidden", hidden, 1)
        if not isinstance(centre, RunningMean | None):
            raise ValueError(f"Learned: centre must be a RunningMean() or None, not {centre!r}")
        self.centre = centre
        self.in_features: int | None = None
        self.network = nn.Sequential()
        if in_features is not None:
            self.build(in_features)

    def build(self, in_features: int) -> None:
        """Create the network for contexts of `in_features` entries; nothing if it exists. Before the optimiser is made."""
        if self.in_features is not None:
            return
        self.in_features = check_count("Learned: in_features", in_features, 1)
        sizes = [self.in_features, self.hidden, self.hidden, self.hidden]
        for size, following in pairwise(sizes):
            self.network.extend([nn.Linear(size, following), nn.ReLU()])
        self.network.append(nn.Linear(self.hidden, 1))

    def forward(self, costs: Tensor, critics: Tensor, context: Tensor | None) -> BaselineValue:
        if context is None:
            raise ValueError(
                "the baseline Learned needs the context that scores were computed from: call the estimator with context=inputs"
            )
        if self.in_features is None:
            raise ValueError("the baseline Learned has no network yet: give it in_features, or call build(in_features)")
        inputs = context.flatten(1)
        if inputs.shape != (costs.shape[1], self.in_features):
            raise ValueError(
                f"the baseline Learned needs {self.in_features} context entries for each of {costs.shape[1]} examples, "
                f"but context has shape {list(context.shape)}"
            )
        predicted = self.network(inputs.to(next(self.network.parameters()).dtype)).squeeze(-1).to(costs)  # [B]
        if self.centre is not None:
            predicted = self.centre(costs, critics, context).value + predicted
        return BaselineValue(predicted.detach(), (costs - predicted).square().mean(0))
