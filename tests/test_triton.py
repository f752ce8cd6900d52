"""The Triton kernels without a GPU: interpreted, and compiled. `test_gpu` runs them for real."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from sparsemarg.kernels.rounding import EACH_ROUNDED

pytest.importorskip("triton")

H100 = ("cuda", 90, 32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are not interpreted where they can run")
@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("races_checks.py", ""),
        ("triton_checks.py", ""),
        ("triton_rows_checks.py", ""),
        ("triton_supports_checks.py", ""),
        ("test_gradients.py", "settled_in_the_forward or lie_in_memory or (transforms_that_begin and Budget)"),
    ],
)
def test_interpreted_kernels(name: str, chosen: str) -> None:
    """See there."""
    checks = Path(__file__).with_name(name)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", str(checks), "-k", chosen]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TRITON_INTERPRET": "1"})
    assert run.returncode == 0, run.stdout


def machine_code(kernel: Any, types: dict[str, str], given: dict[str, Any], even: bool = False) -> bytes:
    """For an H100, which needs no device. Types, shapes and shared memory are checked on the way.

    Of the types and of what a launch is given, names that the kernel lacks are left out, options apart. Pointers, and integers
    where the launch is `even`, are told to be multiples of 16, as those that torch gives are and most sizes: layouts, and with
    them what may fail, depend on it.
    """
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {name: given[name] for name in ("num_warps", "enable_fp_fusion") if name in given}
    constants, own = ({name: every[name] for name in kernel.arg_names if name in every} for every in (given, types))
    signature = own | dict.fromkeys(constants, "constexpr")
    kinds = ("*", "i32") if even else ("*",)
    whole = [place for place, name in enumerate(kernel.arg_names) if signature[name].startswith(kinds)]
    attributes = {(place,): [["tt.divisibility", 16]] for place in whole}
    source = ASTSource(kernel, signature, constants, attributes)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return compile(source, target=GPUTarget(*H100), options=options).asm["cubin"]


@pytest.mark.parametrize(("pointer", "wide"), [("*fp32", "float32"), ("*fp64", "float64")])
def test_sparsemax_compiles(pointer: str, wide: str) -> None:
    import triton.language as tl
    from sparsemarg.oracles.kernels import triton_simplex as simplex

    forward = {"scores": pointer, "probs": pointer, "count": "i32"}
    backward = {"probs": pointer, "gradient": pointer, "result": pointer, "count": "i32"}
    for count, project, pull_back in (
        (256, simplex._project, simplex._pull_back),
        (simplex.ON_CHIP, simplex._project, simplex._pull_back),
        (simplex.ON_CHIP + 1, simplex._project_long, simplex._pull_back_long),
    ):
        constants = {"WIDE": getattr(tl, wide)} | simplex._shape(count)
        assert machine_code(project, forward, constants)
        assert machine_code(pull_back, backward, constants)


@pytest.mark.parametrize("pointer", ["*fp32", "*fp64"])
def test_packed_sums_compile(pointer: str) -> None:
    from sparsemarg.layers.kernels import triton_packed as packed

    reals = dict.fromkeys(("probs", "atoms", "means", "values", "products", "found", "slopes"), pointer)
    every = reals | {"first": "*i64", "row": "*i64", "dim": "i32"}
    for kernel, constants in (
        (packed._combine, {}),
        (packed._compare, {"num_warps": 1}),
        (packed._entropies, {"LEAST": torch.finfo(torch.float64 if pointer == "*fp64" else torch.float32).tiny}),
    ):
        assert machine_code(kernel, every, constants | {"CHUNK": packed.CHUNK} | EACH_ROUNDED)


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("levels", [256, 1024])
def test_pixel_likelihood_compiles(levels: int, wanted: bool) -> None:
    from sparsemarg.models.kernels import triton_pixels as pixels

    types = dict.fromkeys(("features", "weight", "bias", "costs", "by_features", "by_head"), "*fp32")
    types |= {"images": "*i64"} | dict.fromkeys(("pixels", "share", "rank", "levels"), "i32")
    constants = {"WANTED": wanted, "PIXELS": pixels.PIXELS, "RANK": 16, "LEVELS": levels, "enable_fp_fusion": True}
    assert machine_code(pixels._pixel_costs, types, constants | {"num_warps": pixels.warps_for(levels)})


@pytest.mark.parametrize(
    ("dimensions", "slots", "kind"), [*((16, 32, kind) for kind in range(4)), (128, 128, 0), (128, 128, 3), (512, 128, 2)]
)
def test_active_set_compiles(dimensions: int, slots: int, kind: int) -> None:
    from sparsemarg.layers.solvers.kernels import triton_active_set as active_set

    reals = ("target", "origin", "grid", "tie_break", "scale", "constants", "inverse", "weights_out", "gap_out", "margin_out")
    types = dict.fromkeys(reals, "*fp64") | {"atoms": "*fp32", "converged_out": "*i8", "iterations_out": "*i64"}
    types |= dict.fromkeys(("dim", "budget", "limit"), "i32") | {"number_out": "*i64"}
    own = {"KIND": kind, "HOPELESS": active_set.HOPELESS, "NO_ANSWER": active_set.NO_ANSWER}
    for even in (False, True):
        assert machine_code(active_set._solve, types, active_set.shape_of(dimensions, slots) | own, even)


@pytest.mark.parametrize(("dimensions", "slots"), [(16, 16), (128, 128), (512, 128)])
def test_packed_supports_compile(dimensions: int, slots: int) -> None:
    from sparsemarg.layers.solvers.kernels import triton_supports as supports
    from sparsemarg.layers.solvers.kernels.triton_iteration import shape_of

    constants = shape_of(dimensions, slots)
    reals = ("sensitivity", "weights_of", "origin", "sensitivity_out", "probs", "gradient", "change", "result")
    types = dict.fromkeys(reals, "*fp64") | dict.fromkeys(("first", "block", "row_of"), "*i64") | {"dim": "i32", "slots": "i32"}
    for name, before in (
        ("_pack", {"atoms": "*fp32", "atoms_out": "*fp32"}),
        ("_pull", {"atoms": "*i8"}),
        ("_push", {"atoms": "*i8"}),
    ):
        for even in (False, True):
            assert machine_code(getattr(supports, name), types | before, constants, even)


@pytest.mark.parametrize(("dim", "slots"), [(1, 9), (40, 32), (128, 128), (1024, 256), (4096, 512)])
def test_iteration_beside_any_oracle_compiles(dim: int, slots: int) -> None:
    from sparsemarg.layers.solvers.kernels import triton_rows
    from sparsemarg.layers.solvers.kernels.triton_iteration import shape_of

    types = dict.fromkeys(triton_rows._advance.arg_names, "*fp64") | {"dim": "i32", "slots": "i32"}
    types |= dict.fromkeys(("on_of", "exact_of", "converged_of"), "*i8")
    types |= dict.fromkeys(("most", "dropping_of", "stalled_of", "iterations_of"), "*i64")
    assert machine_code(triton_rows._advance, types, shape_of(dim, slots))


@pytest.mark.parametrize("dim", [1, 40, 1024])
@pytest.mark.parametrize("name", ["triton_nested", "triton_chained"])
def test_sorted_decompositions_compile(name: str, dim: int) -> None:
    from sparsemarg.layers.solvers.kernels import triton_chained
    from sparsemarg.layers.solvers.kernels.triton_packing import NO_ANSWER, chunk_of_row, shape_of_row

    module = import_module(f"sparsemarg.layers.solvers.kernels.{name}")
    reals = ("scores", "constants", "size_of", "level", "level_of", "residual_of", "cuts", "gap_of", "margin_of", "probs")
    types = dict.fromkeys((*reals, "gradient", "change", "work", "result"), "*fp64") | {"atoms": "*fp32"}
    types |= dict.fromkeys(("slot_of", "place_of", "enters_of"), "*i32") | dict.fromkeys(("number", "first", "row_of"), "*i64")
    types |= dict.fromkeys(("is_cut", "first_of", "binding_of", "converged_of"), "*i8")
    types |= dict.fromkeys(("dim", "budget", "exactly"), "i32")
    numbers = {"NO_ANSWER": NO_ANSWER, "NEVER": triton_chained.NEVER, "MOST_STEPS": triton_chained.MULTIPLIER_STEPS}
    constants = shape_of_row(dim) | numbers | {"CHUNK": chunk_of_row(dim)}
    for kernel in (module._find, module._write, module._pull, module._push):
        for even in (False, True):
            assert machine_code(kernel, types, constants, even)


def test_ties_compile() -> None:
    from sparsemarg.layers.kernels import triton_ties

    types = dict.fromkeys(("residual", "grid", "tie_break", "out"), "*fp64") | {"exact": "*i8", "dim": "i32"}
    assert machine_code(triton_ties._broken, types, {"BLOCK": triton_ties.BLOCK, "num_warps": 2} | EACH_ROUNDED)


def test_triton_is_left_alone_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU, or no C compiler for what Triton compiles at its first launch."""
    from sparsemarg.kernels import dispatch

    where = (".kernels.triton_simplex", "sparsemarg.oracles", "project_rows", torch.device("cuda"))
    monkeypatch.setattr(dispatch, "_triton_runs", lambda: False)
    assert dispatch.in_triton(*where) is None
    monkeypatch.setattr(dispatch, "_triton_runs", lambda: True)
    assert dispatch.in_triton(*where) is not None
    monkeypatch.setenv("SPARSEMARG_KERNELS", "off")
    assert dispatch.in_triton(*where) is None
