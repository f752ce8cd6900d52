"""The Triton kernels without a GPU: interpreted, and compiled. `test_gpu` runs them for real."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are not interpreted where they can run")
def test_interpreted_kernels() -> None:
    """See `triton_checks`."""
    checks = Path(__file__).with_name("triton_checks.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", str(checks)]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TRITON_INTERPRET": "1"})
    assert run.returncode == 0, run.stdout


def test_kernels_compile_for_a_device() -> None:
    """Down to machine code for an H100, which needs no device: types, shapes and shared memory are sound."""
    code = (
        "import triton.language as tl\n"
        "from triton import compile\n"
        "from triton.backends.compiler import GPUTarget\n"
        "from triton.compiler import ASTSource\n"
        "from sparsemarg.layers.kernels import triton_simplex as simplex\n"
        "from sparsemarg.layers.solvers import triton_active_set as active_set\n"
        "from sparsemarg.models.kernels import triton_pixels as pixels\n"
        "def check(kernel, pointers, integers, constants):\n"
        "    signature = pointers | dict.fromkeys(integers, 'i32') | dict.fromkeys(constants, 'constexpr')\n"
        "    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)\n"
        "    assert len(compile(source, target=GPUTarget('cuda', 90, 32)).asm['cubin'])\n"
        "for kind, wide in (('*fp32', tl.float32), ('*fp64', tl.float64)):\n"
        "    for kernel, block in ((simplex._project, 256), (simplex._project_long, 8192)):\n"
        "        check(kernel, {'scores': kind, 'probs': kind}, ['count'], {'WIDE': wide, 'BLOCK': block})\n"
        "    for kernel, block in ((simplex._pull_back, 256), (simplex._pull_back_long, 8192)):\n"
        "        names = ('probs', 'gradient', 'result')\n"
        "        check(kernel, dict.fromkeys(names, kind), ['count'], {'WIDE': wide, 'BLOCK': block})\n"
        "names = ('features', 'weight', 'bias', 'costs', 'by_features', 'by_head')\n"
        "pointers = dict.fromkeys(names, '*fp32') | {'images': '*i64'}\n"
        "for wanted in (True, False):\n"
        "    constants = {'WANTED': wanted, 'PIXELS': 16, 'RANK': 16, 'LEVELS': 256}\n"
        "    check(pixels._pixel_costs, pointers, ['pixels', 'share', 'rank', 'levels'], constants)\n"
        "pointers = dict.fromkeys(active_set._solve.arg_names[:6], '*fp64')\n"
        "pointers |= {'atoms': '*i8', 'inverse': '*fp64', 'weights_out': '*fp64', 'gap_out': '*fp64'}\n"
        "pointers |= {'iterations_out': '*i64', 'converged_out': '*i8'}\n"
        "for kind in range(4):\n"
        "    constants = {'KIND': kind, 'STALE': 4, 'DIMENSIONS': 128, 'SLOTS': 128, 'CHUNK': 16}\n"
        "    check(active_set._solve, pointers, ['dim', 'budget', 'limit'], constants)\n"
        "print('compiled')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.stdout.strip() == "compiled", run.stderr
