"""Compiled functions do not outlive what they were compiled from."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sparsemarg.kernels.stale import FOLDERS, forget_stale

MODULES = {
    "solver.py": "from .parts.sums import total\nfrom . import limits\n",
    "limits.py": "LIMIT = 3\n",
    "other.py": "from .solver import total\n",
    "parts/sums.py": "import math\nfrom ..signs import SIGN\n",
    "signs.py": "SIGN = 1\n",
}
COMPILED = ["solver", "other", "parts/sums"]
COMPILE = """
import sys
from pathlib import Path
from sparsemarg.kernels.stale import forget_stale

folder = Path(sys.argv[1])
forget_stale([folder / "compiled"])
sys.path.insert(0, str(folder))
from compiled.doubled import doubled
print(doubled(1), sum(doubled.stats.cache_hits.values()))
"""


def make(folder: Path) -> dict[str, Path]:
    """A package with an index of each compiled module, written after everything else."""
    for name, text in MODULES.items():
        write(folder / name, text, time=100)
    indices = {}
    for name in COMPILED:
        module = folder / f"{name}.py"
        indices[name] = module.parent / "__pycache__" / f"{module.stem}.run-12.py311.nbi"
        write(indices[name], "", time=200)
    return indices


def write(path: Path, text: str, time: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (time, time))


def test_what_is_newer_than_its_sources_stays(tmp_path: Path) -> None:
    indices = make(tmp_path)
    assert forget_stale([tmp_path]) == []
    assert all(index.exists() for index in indices.values())


def test_a_change_is_followed_to_all_that_import_it(tmp_path: Path) -> None:
    for changed, stale in {
        "limits.py": {"solver", "other"},
        "signs.py": {"solver", "other", "parts/sums"},
        "other.py": {"other"},
    }.items():
        indices = make(tmp_path)
        write(tmp_path / changed, MODULES[changed], time=300)
        assert set(forget_stale([tmp_path])) == {indices[name] for name in stale}
        assert {name for name, index in indices.items() if not index.exists()} == stale


def test_a_module_that_is_gone_leaves_nothing(tmp_path: Path) -> None:
    indices = make(tmp_path)
    (tmp_path / "other.py").unlink()
    write(tmp_path / "another.py", "", time=300)
    assert forget_stale([tmp_path]) == [indices["other"]]


def test_another_process_may_delete_them_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    indices = make(tmp_path)
    write(tmp_path / "signs.py", MODULES["signs.py"], time=300)
    listed = list(tmp_path.rglob("__pycache__/*.nbi"))
    original = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: listed if pattern.endswith("nbi") else original(self, pattern))
    indices["other"].unlink()
    assert set(forget_stale([tmp_path])) == set(indices.values())
    assert not any(index.exists() for index in listed)


def test_a_function_runs_with_what_it_imports_now(tmp_path: Path) -> None:
    package = tmp_path / "compiled"
    source = """
import numba
from .factor import FACTOR

@numba.njit(cache=True)
def doubled(x):
    return FACTOR * x
"""
    write(package / "__init__.py", "", time=100)
    write(package / "doubled.py", source, time=100)
    write(package / "factor.py", "FACTOR = 2\n", time=100)

    def run() -> str:
        command = [sys.executable, "-c", COMPILE, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert [run(), run()] == ["2 0", "2 1"]  # the second run finds what the first compiled
    (package / "factor.py").write_text("FACTOR = 3\n")
    assert run() == "3 0"


def test_the_folders_of_compiled_code_are_there() -> None:
    assert all((folder / "__init__.py").exists() for folder in FOLDERS)
