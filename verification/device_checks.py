"""The check that a polytope will work on a GPU, where there is none."""

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..oracles import Polytope, SupportsDecomposition, SupportsGibbs, SupportsProjection, SupportsTopk
from .broken import Broken, broken, first_line
from .check import Check, Skip
from .enumeration import Array
from .ledger import Ledger
from .pretended_device import THERE, PretendedDevice
from .score_kinds import Sample
from .subject import Subject

# What is exact on one device is exact on another; closed forms may sum in another order.
_CLOSE = 1e-10


@dataclass(frozen=True)
class AnotherDevice(Check):
    """Methods that are given tensors of another device work there, and return there what they return on the CPU."""

    @property
    def name(self) -> str:
        return "on another device"

    def run(self, subject: Subject, sample: Sample, ledger: Ledger) -> None:
        if subject.device.type != "cpu":
            raise Skip(f"all other checks ran on {subject.device} itself")
        with PretendedDevice() as device:
            elsewhere = Subject(_copy(subject.polytope), THERE, subject.dtype)
            try:
                self._compare(subject, elsewhere, sample, ledger)
                scores = elsewhere.to_tensor(sample.scores)
                device.waits.clear()
                elsewhere.polytope.maximize(scores)  # `call` reads values to see whether scores were changed
            except Broken as error:
                hint = "tensors of its own follow by `.to(scores)` or `sparsemarg.oracles.placed`"
                message = f"{error.message} (on a device that is pretended, and calls itself {THERE}; {hint})"
                raise Broken(error.method, message) from error
        if device.waits.total():
            causes = ", ".join(f"{count} times for {name}" for name, count in sorted((+device.waits).items()))
            ledger.note(
                f"on a GPU the host would wait for it in each call of maximize, {causes}: keep constants there by "
                f"`sparsemarg.oracles.placed`, and read no values"
            )

    def _compare(self, subject: Subject, elsewhere: Subject, sample: Sample, ledger: Ledger) -> None:
        scores = sample.scores.numpy()
        found = elsewhere.best(scores)
        ledger.require("maximize", (found == subject.best(scores)).all(-1), "maximize returned another structure there")
        rows = sample.few(2)
        some = scores[rows]
        if subject.has(SupportsTopk):
            same = np.ones(len(rows), dtype=bool)
            listed = [of.pair("topk", of.call("topk", given, 3), given) for of, given in _both(subject, elsewhere, some)]
            for here, there in zip(*(_numpy(*pair) for pair in listed), strict=True):
                same &= here.shape == there.shape and (here == there).reshape(len(rows), -1).all(-1)
            ledger.require("topk", same, "topk returned other structures there", rows)
        if subject.has(SupportsProjection):
            means = [
                of.tensor("project", of.call("project", given), tuple(given.shape), given).cpu().numpy()
                for of, given in _both(subject, elsewhere, some)
            ]
            ledger.compare("project", np.abs(means[0] - means[1]).max(-1), _CLOSE, "project", rows)
            if subject.has(SupportsDecomposition):
                given = elsewhere.to_tensor(means[0])
                atoms, probs = _numpy(*elsewhere.pair("decompose", elsewhere.call("decompose", given), given))
                combined = np.einsum("bs,bsd->bd", probs, atoms)
                ledger.compare("decompose", np.abs(combined - means[0]).max(-1), _CLOSE, "the mean of decompose", rows)
        rows = [row for row in rows if np.abs(scores[row]).max() <= 1e3]  # of larger ones a logarithm has few digits
        if subject.has(SupportsGibbs) and rows:
            told = []
            for of, given in _both(subject, elsewhere, scores[rows]):
                gibbs, best = of.call("gibbs", given), of.to_tensor(found[rows])
                try:
                    told.append(torch.stack([gibbs.log_prob(best), gibbs.entropy()]).detach().cpu().numpy())
                except Exception as error:
                    what = f"returned a distribution that raised {first_line(error)}"
                    raise broken(subject.name, "gibbs", what) from error
            ledger.compare("gibbs", np.abs(told[0] - told[1]).max(0), _CLOSE, "gibbs", rows)


def _copy(polytope: Polytope) -> Polytope:
    """One of its own if there can be: what a polytope keeps for a device that does not last should not last either."""
    try:
        return deepcopy(polytope)
    except Exception:  # whatever a user's class, or what it holds, raises
        return polytope


def _both(subject: Subject, elsewhere: Subject, scores: Array) -> list[tuple[Subject, Tensor]]:
    return [(of, of.to_tensor(scores)) for of in (subject, elsewhere)]


def _numpy(*tensors: Tensor) -> list[Array]:
    return [tensor.cpu().numpy() for tensor in tensors]
