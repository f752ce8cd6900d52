"""Estimates of log p(x) of a model with a bit vector and a uniform prior: p(x) = sum_z 2^-D p(x | z), z in {0, 1}^D."""

from .importance import mixture_importance as mixture_importance
from .posterior import posterior_and_prior as posterior_and_prior
from .posterior import posterior_importance as posterior_importance
from .weights import LogLikelihood as LogLikelihood
from .weights import LogMarginal as LogMarginal
