"""What is shipped, and what importing it brings in."""

import builtins
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ["kernels", "oracles", "layers", "models", "experiments", "verification"]


def nested_packages() -> list[str]:
    found = {path.parent.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("__init__.py")}
    return sorted("sparsemarg." + ".".join(path.parts) for path in found)


def test_every_package_is_listed() -> None:
    """A nested package that is not listed works in an editable install and is missing from the wheel."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(listed) == nested_packages()


@pytest.mark.slow
def test_the_wheel_holds_everything(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    shipped = set(zipfile.ZipFile(wheel).namelist())
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml") or path.name == "py.typed":
                assert f"sparsemarg/{path.relative_to(ROOT)}" in shipped
    assert not [name for name in shipped if name.startswith("sparsemarg/tests")]
    for package in nested_packages():
        assert package.replace(".", "/") + "/py.typed" in shipped


@pytest.mark.parametrize(
    "module", ["sparsemarg.oracles", "sparsemarg.layers", "sparsemarg.layers.functional", "sparsemarg.models"]
)
def test_the_core_imports_neither_cvxpy_nor_lightning(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{'cvxpy', 'cvxpylayers', 'lightning', 'torchvision'}} & set(sys.modules)))"
    seen = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert seen == []


def test_imports_go_one_way() -> None:
    order = ["kernels", "oracles", "layers", "models", "experiments"]
    for place, folder in enumerate(order):
        for path in (ROOT / folder).rglob("*.py"):
            for later in [*order[place + 1 :], "verification"]:
                # The command line may reach verification, inside a function.
                lines = [line for line in path.read_text().splitlines() if line.startswith(("from .", "import ."))]
                assert not [line for line in lines if f".{later} " in line or f".{later}." in line], f"{path} imports {later}"


@pytest.mark.parametrize(
    "package",
    [
        "layers",
        "layers.functional",
        "layers.solvers",
        "oracles",
        "models",
        "models.estimators",
        "models.likelihood",
        "verification",
    ],
)
def test_all_names_of_a_package_are_no_modules_and_leave_python_alone(package: str) -> None:
    """As `from sparsemarg.layers import *` once brought the module `sparsemap` in place of the function."""
    names: dict[str, object] = {}
    exec(f"from sparsemarg.{package} import *", names)
    del names["__builtins__"]
    assert names
    assert not [name for name, value in names.items() if isinstance(value, ModuleType) or hasattr(builtins, name)]
