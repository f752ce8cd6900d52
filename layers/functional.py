"""The operators as functions."""

from .losses import sparsemap_loss, sparsemax_loss
from .lp_sparsemap import lp_sparsemap
from .marginals import sparsemap_marginals
from .oracle_losses import perturbed_loss, regret, spo_plus_loss, structured_hinge_loss
from .refit import refit
from .sparsemap import sparsemap
from .sparsemax import sparsemax
from .topk_sparsemax import topk_sparsemax

__all__ = [
    "lp_sparsemap",
    "perturbed_loss",
    "refit",
    "regret",
    "sparsemap",
    "sparsemap_loss",
    "sparsemap_marginals",
    "sparsemax",
    "sparsemax_loss",
    "spo_plus_loss",
    "structured_hinge_loss",
    "topk_sparsemax",
]
