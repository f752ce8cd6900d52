"""Cross-checks of polytopes and operators against references that share no code with them. Start with `verify`."""

from .estimator_check import model_check
from .harness import parametrize_with_checks, verify
from .report import Comparison, Report, Result, VerificationError

__all__ = [
    "Comparison",
    "Report",
    "Result",
    "VerificationError",
    "model_check",
    "parametrize_with_checks",
    "verify",
]
