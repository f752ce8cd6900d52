"""Cross-checks of polytopes and operators against references that share no code with them. Start with `verify`."""

from .estimator_check import model_check as model_check
from .harness import parametrize_with_checks as parametrize_with_checks
from .harness import verify as verify
from .report import Comparison as Comparison
from .report import Report as Report
from .report import Result as Result
from .report import VerificationError as VerificationError
