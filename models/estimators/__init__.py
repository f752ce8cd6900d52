"""Estimators of an expected cost over latent structures, one interface for all."""

from .base import Cost as Cost
from .base import Estimate as Estimate
from .base import Estimator as Estimator
from .marginalize import Marginalize as Marginalize
