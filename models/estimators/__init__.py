"""Estimators of an expected cost over latent structures, one interface for all."""

from .base import Cost as Cost
from .base import Estimate as Estimate
from .base import Estimator as Estimator
from .baselines import Baseline as Baseline
from .baselines import BaselineValue as BaselineValue
from .baselines import Learned as Learned
from .baselines import LeaveOneOut as LeaveOneOut
from .baselines import RunningMean as RunningMean
from .baselines import SelfCritic as SelfCritic
from .dense import DenseMarginalize as DenseMarginalize
from .disarm import DisARM as DisARM
from .drawn_cost import DrawnCost as DrawnCost
from .drawn_cost import RandomCost as RandomCost
from .gumbel_softmax import GumbelSoftmax as GumbelSoftmax
from .imle import IMLE as IMLE
from .marginalize import Marginalize as Marginalize
from .reinmax import ReinMax as ReinMax
from .score_function import ScoreFunction as ScoreFunction
from .sum_and_sample import SumAndSample as SumAndSample
from .temperature import AnnealedTemperature as AnnealedTemperature
from .temperature import ConstantTemperature as ConstantTemperature
from .temperature import Temperature as Temperature
