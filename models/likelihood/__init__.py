"""Estimates of log p(x) of a model with a bit vector and a uniform prior: p(x) = sum_z 2^-D p(x | z), z in {0, 1}^D."""

from .importance import mixture_importance
from .posterior import posterior_and_prior, posterior_importance
from .weights import LogLikelihood, LogMarginal

__all__ = [
    "LogLikelihood",
    "LogMarginal",
    "mixture_importance",
    "posterior_and_prior",
    "posterior_importance",
]
