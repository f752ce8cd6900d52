"""Where a check writes what it compared: errors row by row, and which rows failed."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from .report import Comparison


class Ledger:
    """Collects the comparisons of one run of one check.

    Attributes:
        failures: (row, message) of the rows that failed; row -1 is no row in particular.
        redraws: how many rows were left out as not differentiable.
        notes: what could not be compared, and which method to write for it.
    """

    def __init__(self) -> None:
        self.failures: list[tuple[int, str]] = []
        self.redraws = 0
        self.notes: list[str] = []
        self._errors: dict[str, tuple[list[np.ndarray], float]] = {}

    def compare(
        self,
        reference: str,
        errors: ArrayLike,
        tolerance: float,
        what: str,
        rows: Sequence[int] | None = None,
        example: Callable[[int], str] | None = None,
    ) -> None:
        """Absolute errors [n], one a row, that must be at most the tolerance; NaN fails.

        Args:
            reference: what they are errors against.
            errors: [n]; negative is 0.
            tolerance: the largest that passes.
            what: the quantity, for the message.
            rows: the number of each row among the scores; 0..n-1 by default.
            example: what to add to the message about the error at a place.
        """
        values = np.maximum(np.atleast_1d(np.asarray(errors, dtype=np.float64)), 0)
        if values.size == 0:
            return
        self._errors.setdefault(reference, ([], tolerance))[0].append(values)
        for place in np.flatnonzero(~(values <= tolerance)):
            row = int(place) if rows is None else int(rows[int(place)])
            more = "" if example is None else f": {example(int(place))}"
            message = f"{what} differs from {reference} by {values[place]:.2e} (tolerance {tolerance:.0e}){more}"
            self.failures.append((row, message))

    def require(self, reference: str, holds: ArrayLike, what: str, rows: Sequence[int] | None = None) -> None:
        """Statements [n], one a row, that must be true; `what` is the message where one is not."""
        truth = np.atleast_1d(np.asarray(holds, dtype=bool))
        if truth.size == 0:
            return
        self._errors.setdefault(reference, ([], 0.0))[0].append((~truth).astype(np.float64))
        for place in np.flatnonzero(~truth):
            self.failures.append((int(place) if rows is None else int(rows[int(place)]), what))

    def note(self, text: str) -> None:
        """Records once what could not be compared."""
        if text not in self.notes:
            self.notes.append(text)

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Worst and median error against every reference."""
        joined = {reference: (np.concatenate(parts), tolerance) for reference, (parts, tolerance) in self._errors.items()}
        return tuple(
            Comparison(reference, float(errors.max()), float(np.median(errors)), tolerance, len(errors))
            for reference, (errors, tolerance) in joined.items()
        )
