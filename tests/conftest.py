"""One thread a test process: on tensors this small a second thread costs more than it brings, and tests run in parallel.

Threads of several processes that share a core wait for one another, spinning: some tests then take five times as long.
"""

import os

import pytest
import torch
from sparsemarg.kernels.stale import FOLDERS, forget_stale

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start
if os.environ.get("TRITON_INTERPRET") == "1":
    import interpreter
    import races

    interpreter.prepare_language_once()
    interpreter.spread_truth_as_truth()
    races.forbid_races()
    torch.use_deterministic_algorithms(True)  # memory that is made empty holds NaN
forget_stale(FOLDERS)  # some tests import compiled modules by themselves
# What these modules assert is shown with its values when it fails, as in tests themselves.
pytest.register_assert_rewrite(
    "cases", "devices", "estimator_cases", "factor_graphs", "experiment_cases", "mutation_cases", "structures", "triton_checks"
)
