"""What is timed: a case, and what came out of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .timing import Times

Candidates = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Case:
    """One operation of one size, by us and by others.

    Attributes:
        suite: which table it belongs to.
        operation: what is timed.
        sizes: B, D and so on, by name.
        build: makes the candidates; the first is ours. Called when the case is run, not before.
        recorded: milliseconds that others took on another machine, with the name of what was timed.
        quick: whether `--quick` runs it.
        describe: numbers that say more than time, such as iterations and support; called once.
    """

    suite: str
    operation: str
    sizes: Mapping[str, float]
    build: Callable[[], Candidates]
    recorded: tuple[str, float] | None = None
    quick: bool = False
    describe: Callable[[], dict[str, float]] = field(default=dict)


@dataclass(frozen=True)
class Outcome:
    """The times of a case's candidates.

    Attributes:
        case: which.
        times: by candidate, ours first.
        details: what `describe` said.
        yardstick: the times of `timing.yardstick` in the same rounds.
    """

    case: Case
    times: dict[str, Times]
    details: dict[str, float]
    yardstick: Times

    @property
    def ours(self) -> Times:
        return next(iter(self.times.values()))

    def ratios(self) -> dict[str, float]:
        """How many times as long as ours the others' median is, in this run, and what was recorded elsewhere."""
        others = {name: times.median / self.ours.median for name, times in list(self.times.items())[1:]}
        if self.case.recorded is not None:
            name, milliseconds = self.case.recorded
            others[f"{name} (recorded)"] = milliseconds / 1e3 / self.ours.median
        return others
