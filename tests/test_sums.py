"""Sums in vectors, against exact ones, for whole vectors and what is left beside them."""

import importlib
import inspect
import math
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sparsemarg.kernels import sums

SIZES = [0, 1, 7, 8, 9, 31, 32, 33, 40, 100]


@pytest.mark.parametrize("size", SIZES)
def test_sums_of_all_there_is(size: int) -> None:
    generator = np.random.default_rng(size)
    left, right = generator.normal(size=(2, size + 3))
    left[size:] = np.nan
    assert sums.dot(left, right, size) == pytest.approx(math.fsum(left[:size] * right[:size]), rel=1e-12, abs=1e-14)
    assert sums.add_up(left[:size]) == pytest.approx(math.fsum(left[:size]), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("least", [-np.inf, -0.3, 0.0, 5.0])
def test_sums_of_what_is_above(size: int, least: float) -> None:
    values = np.random.default_rng(size).normal(size=size + 3)
    values[size:] = 9.0
    some = values[:size][values[:size] > least]
    total, count = sums.add_up_above(values, size, least)
    assert total == pytest.approx(math.fsum(some), rel=1e-12, abs=1e-14)
    assert count == len(some)
    assert sums.add_up_above(np.full(9, 0.5), 9, 0.5) == (0.0, 0)


def test_no_function_that_others_contain_may_reorder_sums() -> None:
    """Only what Python alone calls has `fastmath`, what is inlined as Numba's own code, and what has maxima and no sums."""
    packages = [importlib.import_module(f"sparsemarg.{part}") for part in ("kernels", "oracles", "layers", "models")]
    names = [found.name for each in packages for found in pkgutil.walk_packages(each.__path__, f"{each.__name__}.")]
    modules = [importlib.import_module(name) for name in names if ".kernels." in name and "triton" not in name]
    functions = [given for module in modules for given in vars(module).values() if callable(given)]
    assert len(functions) > 300
    of_maxima, shared = {"_largest", "_largest_among"}, set()
    for function in functions:
        plain = getattr(function, "py_func", function)
        if not inspect.isfunction(plain):
            continue
        for name in set(plain.__code__.co_names) & set(plain.__globals__):
            options = getattr(plain.__globals__[name], "targetoptions", {})
            if options.get("fastmath") and options.get("inline") != "always":
                shared.add(name)
    assert shared == of_maxima


SOLVED = """
import hashlib, torch
from sparsemarg.layers.functional import sparsemap
from sparsemarg.oracles import Arborescence

scores = torch.randn(64, 900, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
print(hashlib.md5(sparsemap(scores, Arborescence(30)).probs.numpy()).hexdigest())
"""


@pytest.mark.slow
def test_the_same_bits_whether_compiled_here_or_found_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several copies of a compiled function that are in a process any may be called: see `sums`."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    compiling, found = (subprocess.run([sys.executable, "-c", SOLVED], capture_output=True, check=True) for _ in range(2))
    assert compiling.stdout == found.stdout
    assert len(found.stdout) > 32
