"""Estimators of an expected cost over latent structures, one interface for all."""

from .base import Cost, Estimate, Estimator
from .baselines import Baseline, BaselineValue, Learned, LeaveOneOut, RunningMean, SelfCritic
from .dense import DenseMarginalize
from .disarm import DisARM
from .drawn_cost import DrawnCost, RandomCost
from .gumbel_softmax import GumbelSoftmax
from .imle import IMLE
from .marginalize import Marginalize
from .reinmax import ReinMax
from .score_function import ScoreFunction
from .sum_and_sample import SumAndSample
from .temperature import AnnealedTemperature, ConstantTemperature, Temperature

__all__ = [
    "IMLE",
    "AnnealedTemperature",
    "Baseline",
    "BaselineValue",
    "ConstantTemperature",
    "Cost",
    "DenseMarginalize",
    "DisARM",
    "DrawnCost",
    "Estimate",
    "Estimator",
    "GumbelSoftmax",
    "Learned",
    "LeaveOneOut",
    "Marginalize",
    "RandomCost",
    "ReinMax",
    "RunningMean",
    "ScoreFunction",
    "SelfCritic",
    "SumAndSample",
    "Temperature",
]
