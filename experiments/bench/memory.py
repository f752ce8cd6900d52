"""The peak memory of a bit-vector training step, each way in a process of its own: `python -m ...bench.memory NAME`."""

import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

WAYS = ("ours", "plain torch")


def peak_megabytes() -> dict[str, float]:
    """What one step with SparseMAP at the start of training adds to a process's peak memory, MB, by way."""
    found = {}
    for way in WAYS:
        done = subprocess.run([sys.executable, "-m", __name__, way], capture_output=True, text=True, check=True)
        found[way] = float(done.stdout.split()[-1])
    return found


def _measure(way: str) -> float:
    from .training import bit_vector_vae, in_plain_torch

    torch.set_num_threads(1)
    vae, images = bit_vector_vae("SparseMAP", torch.device("cpu"), certain=False)

    def step(rows: Tensor) -> None:
        vae(rows).loss.backward()

    stepped = in_plain_torch(step) if way == "plain torch" else step
    stepped(images[:1])  # what is loaded or compiled at the first call is not the step's
    # Imports and compilation have a peak of their own, higher than a frugal step's: forget it.
    Path("/proc/self/clear_refs").write_text("5")
    before = _kilobytes("VmRSS")
    stepped(images)
    return (_kilobytes("VmHWM") - before) / 1024


def _kilobytes(name: str) -> int:
    """An entry of the process's status: VmRSS, its memory, or VmHWM, the peak of it since it was last reset. Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    print(_measure(sys.argv[1]))
