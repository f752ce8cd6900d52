"""The peak memory of a bit-vector training step, each way in a process of its own: `python -m ...bench.memory NAME`."""

import subprocess
import sys

import torch

WAYS = ("ours", "plain torch")


def peak_megabytes() -> dict[str, float]:
    """What one step with SparseMAP at the start of training adds to a process's peak memory, MB, by way."""
    found = {}
    for way in WAYS:
        done = subprocess.run([sys.executable, "-m", __name__, way], capture_output=True, text=True, check=True)
        found[way] = float(done.stdout.split()[-1])
    return found


def _measure(way: str) -> float:
    import resource

    from ...models import vae as module
    from ...models.objective import plain
    from .training import bit_vector_vae

    torch.set_num_threads(1)
    if way == "plain torch":
        module.pixel_cross_entropy = lambda features, head, images, **_: plain(features, head.weight, head.bias, images.long())
    vae, images = bit_vector_vae("SparseMAP", torch.device("cpu"), certain=False)
    vae(images[:1]).loss.backward()  # what is loaded or compiled at the first call is not the step's
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    vae(images).loss.backward()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024  # kilobytes on Linux


if __name__ == "__main__":
    print(_measure(sys.argv[1]))
