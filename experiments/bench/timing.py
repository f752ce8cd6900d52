"""Time several callables in turn, so that what else the machine does falls on all of them alike."""

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

SPUN_UP = 0.3  # seconds after which an idle GPU runs at its full clock


@dataclass(frozen=True)
class Times:
    """Seconds that one candidate took, in the order of the rounds.

    Attributes:
        seconds: one number a round.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.seconds) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high


def interleave(candidates: dict[str, Callable[[], object]], rounds: int, least_seconds: float = 0.0) -> dict[str, Times]:
    """Run every candidate to warm up, once or until a GPU's clock is up; then all in turn, such as A B C, C A B, B A C.

    Each round is in an order of its own, so that what one leaves in the caches falls on all of them alike.

    Args:
        candidates: what to time, by name.
        rounds: at least so many.
        least_seconds: go on until this much time has passed; for candidates of microseconds.
    """
    begin = time.perf_counter()
    while True:
        for candidate in candidates.values():
            candidate()
        _wait()
        if not torch.cuda.is_available() or time.perf_counter() - begin > SPUN_UP:
            break
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    order = random.Random(0)
    begin = time.perf_counter()
    while min(map(len, taken.values())) < rounds or time.perf_counter() - begin < least_seconds:
        for name in order.sample(list(candidates), len(candidates)):
            _wait()
            start = time.perf_counter()
            candidates[name]()
            _wait()
            taken[name].append(time.perf_counter() - start)
    return {name: Times(tuple(seconds)) for name, seconds in taken.items()}


def yardstick() -> None:
    """The same work wherever it is called, of about half a millisecond: Python's own, small calls of torch, and arithmetic."""
    values = torch.full((64, 64), 1 / 64, dtype=torch.float64)  # its own square
    for _ in range(20):
        values = values @ values
    sum(place * place for place in range(3000))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
