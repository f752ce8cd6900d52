"""The operators as functions."""

from .losses import sparsemap_loss as sparsemap_loss
from .losses import sparsemax_loss as sparsemax_loss
from .lp_sparsemap import lp_sparsemap as lp_sparsemap
from .refit import refit as refit
from .sparsemap import sparsemap as sparsemap
from .sparsemap import sparsemap_marginals as sparsemap_marginals
from .sparsemax import sparsemax as sparsemax
from .topk_sparsemax import topk_sparsemax as topk_sparsemax
