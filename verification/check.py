"""What a check is."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from .ledger import Ledger
from .score_kinds import Sample
from .subject import Subject


class Skip(Exception):
    """A check cannot run; the text says what to write or install."""


@dataclass(frozen=True)
class Check(ABC):
    """One statement about a polytope, tried on many scores. Its name is its identity: pytest id, `skip`, `only`."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Unique among the checks of a polytope."""

    @abstractmethod
    def run(self, subject: Subject, sample: Sample, ledger: Ledger) -> None:
        """Compares, and writes errors to the ledger.

        Raises:
            Skip: the polytope lacks what the check needs.
            Broken: a method does not keep its contract.
        """

    def source(self, sample: Sample) -> Tensor:
        """The scores [N, D] that the ledger's row numbers count."""
        return sample.scores


def need(subject: Subject, capability: type) -> None:
    """Raises Skip, naming the methods to write, if the polytope lacks the capability."""
    if not subject.has(capability):
        methods = [name for name in vars(capability) if not name.startswith("_")]
        absent = [name for name in methods if not callable(getattr(subject.polytope, name, None))]
        raise Skip(f"write {subject.name}.{' and '.join(absent)} (sparsemarg.oracles.{capability.__name__})")
