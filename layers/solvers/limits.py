"""The numbers that decide in a method, the same in all its implementations."""

from typing import NamedTuple

# Iterations (compiled: answers of the oracle) between looks at the batch from Python: to stop, to drop converged rows, to grow
# the buffers.
POLL = 8
# A weight that the step would leave below this (in magnitude) is zero: noise of the linear solve, not a direction.
WEIGHT_NOISE = 1e-14
# Atoms that end with less mass than this fraction of the tolerance are dropped. With many fractional coordinates the last
# atoms correct the mean's last digits, and each is a decoder call. What is lost is their part of the derivative, of which
# only a fraction is there in any case (see `ActiveSet`).
WEIGHT_PRUNE = 0.1
# A new atom this close to the affine hull of the others (squared, relative) is in it: rounding of a sum of D products.
PIVOT_NOISE = 1e-12
# A pivot this small may be no more than the errors of the factorisation, which grow with its condition: it is computed again,
# from the distance itself. An atom that is taken for independent and is not makes all that follows worthless.
PIVOT_IN_DOUBT = 1e-4
# Weights are optimal on their atoms once the slopes agree to this (at scale 1): far below any gap that still counts.
SETTLED = 1e-12
# Weights of a sorted decomposition below this are rounding of a difference of two sorted coordinates that are equal on paper.
SORTED_PRUNE = 1e-12
# The gap of a closed form is zero if it is below this and the rounding noise of its terms.
CLOSED = 1e-10
# A decomposition has the mean that it is of, up to this, of means of size 1: lightest atoms that were left out are below it.
DECOMPOSED = 1e-8
# Steps to the multiplier of a budget: each is that of Newton, or half of the bracket; ten would do.
MULTIPLIER_STEPS = 200
# Steps without progress after which a row's factorisation is computed afresh. A sound one needs one to settle.
STALE = 3


class Limits(NamedTuple):
    """What a kernel is given of them, and the tolerance of the gap (at scale 1)."""

    tol: float
    weight_noise: float = WEIGHT_NOISE
    pivot_noise: float = PIVOT_NOISE
    pivot_in_doubt: float = PIVOT_IN_DOUBT
    settled: float = SETTLED
