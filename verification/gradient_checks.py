"""Checks of derivatives: of the mean and of expectations, against KKT, cvxpylayers and central differences.

They are compared where the derivative exists: see `kkt.margin`. Rows that are too near to a kink are left out and counted.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..layers.functional import sparsemap_marginals
from ..layers.solvers import Solver
from ..oracles import SupportsProjection, supports
from . import differences, kkt
from .broken import Broken, first_line
from .check import Check, Skip, need
from .cvxpy_references import Unavailable
from .enumeration import Array
from .layer_checks import CVXPY, LARGEST, SolverCheck, can_solve
from .ledger import Ledger
from .score_kinds import Sample
from .subject import Subject

# A weight or a gap below this is too near to a kink. Differences then take steps of some 1e-4, over which the solvers' 1e-12
# becomes 1e-8, far below their tolerance.
MARGIN = 1e-3
# How many rows are compared.
ROWS = 4
# Beyond these sizes cvxpylayers is asked for 4 vector-Jacobian products, not for the whole Jacobian: each is a dense solve.
ALL_DIRECTIONS = 16
ALL_STRUCTURES = 128
KKT = {torch.float64: 1e-6, torch.float32: 1e-4}
DIFFERENCES = {torch.float64: 1e-5, torch.float32: 1e-2}
# Where kinks cannot be told from a list of structures: a step of differences, and how far from linear the mean is over it if
# there is no kink in between. The mean is good for 1e-11 or so, and a kink moves it by up to the step.
STEP, BEND = 1e-5, 1e-10


@dataclass(frozen=True)
class Smooth:
    """Rows of the pool at which the mean is differentiable.

    Attributes:
        rows: their numbers.
        margins: of each.
        redraws: how many rows were looked at and left out.
    """

    rows: list[int]
    margins: list[kkt.Margin]
    redraws: int


def smooth_rows(subject: Subject, pool: Array) -> Smooth:
    """The first ROWS rows whose margin is at least MARGIN; needs the list of structures."""
    return subject.remember(("smooth", pool.tobytes()), lambda: _smooth_rows(subject, pool))


def _smooth_rows(subject: Subject, pool: Array) -> Smooth:
    table = subject.structures().table
    assert table is not None
    rows, margins, looked = [], [], 0
    for row in range(len(pool)):
        if len(rows) == ROWS:
            break
        if np.abs(pool[row]).max() > LARGEST:
            continue
        looked += 1
        truth, known = subject.truth(pool[row : row + 1])
        margin = kkt.margin(table, pool[row], truth[0], subject.regularized) if known[0] else None
        if margin is not None and margin.is_at_least(MARGIN):
            rows.append(row)
            margins.append(margin)
    return Smooth(rows, margins, looked - len(rows))


class PooledCheck(SolverCheck):
    """A solver's check at rows of the pool."""

    def source(self, sample: Sample) -> Tensor:
        """The pool."""
        return sample.pool


class MeanJacobian(PooledCheck):
    """d mu / d t through the layer is the projector on the directions of the face that holds the mean."""

    title = "mean: Jacobian"

    def run(self, subject: Subject, sample: Sample, ledger: Ledger) -> None:
        can_solve(subject, self.solver)
        pool = sample.pool.numpy()
        table = subject.structures().table
        if table is None:
            self._without_structures(subject, pool, ledger)
            return
        smooth = _some(smooth_rows(subject, pool), ledger)
        scores = pool[smooth.rows]
        found = _jacobian(subject, scores, self.solver)
        compare_with_faces(ledger, found, table, smooth, subject, subject.dtype, "the Jacobian of the mean")
        errors = []
        for place, margin in enumerate(smooth.margins):
            step = differences.step_for(margin.reach)
            numeric = differences.jacobian(lambda rows: _mean(subject, rows, self.solver), scores[place], step)
            errors.append(np.abs(numeric - found[place]).max())
        if subject.dtype == torch.float64:
            tolerance = DIFFERENCES[subject.dtype]
            ledger.compare("central differences", errors, tolerance, "the Jacobian of the mean", smooth.rows)

    def _without_structures(self, subject: Subject, pool: Array, ledger: Ledger) -> None:
        """With the oracle alone: the projector on the support's directions, and differences where the support stays."""
        chosen = _by_support(subject, pool, self.solver, ledger)
        ledger.note(f"the margin is that of the support found, not of all structures: {subject.structures().source}")
        for row, atoms, _, step in chosen:
            found = _jacobian(subject, pool[row : row + 1], self.solver)[0]
            errors = [np.abs(found - kkt.face_projector(atoms, subject.regularized)).max()]
            ledger.compare("KKT on the support", errors, KKT[subject.dtype], "the Jacobian of the mean", [row])
            if subject.dtype == torch.float64:
                numeric = differences.jacobian(lambda rows: _mean(subject, rows, self.solver), pool[row], step)
                errors = [np.abs(numeric - found).max()]
                ledger.compare("central differences", errors, DIFFERENCES[subject.dtype], "the Jacobian of the mean", [row])


def compare_with_faces(
    ledger: Ledger, found: Array, table: Array, smooth: Smooth, subject: Subject, dtype: torch.dtype, what: str
) -> None:
    """Jacobians [n, D, D] against the projectors of the faces."""
    errors = [
        np.abs(jacobian - kkt.face_projector(table[margin.face], subject.regularized)).max()
        for jacobian, margin in zip(found, smooth.margins, strict=True)
    ]
    ledger.compare("KKT on the face", errors, KKT[dtype], what, smooth.rows)


class JacobianByCvxpylayers(PooledCheck):
    """The mean and its Jacobian against cvxpylayers over the vertices and over the halfspaces."""

    title = "mean: Jacobian by cvxpylayers"

    def run(self, subject: Subject, sample: Sample, ledger: Ledger) -> None:
        can_solve(subject, self.solver)
        table = subject.structures().table
        if table is None:
            raise Skip(f"kinks cannot be told apart: {subject.structures().source}")
        pool = sample.pool.numpy()
        smooth = _some(smooth_rows(subject, pool), ledger)
        scores = pool[smooth.rows]
        found, mean = _jacobian(subject, scores, self.solver), _mean(subject, scores, self.solver)
        directions = _directions(subject.dim, len(table))
        for over in subject.representations():
            try:
                means, products = subject.remember(
                    ("by cvxpylayers", over, scores.tobytes()),
                    lambda over=over: subject.differentiable_program(over).mean_and_vjps(scores, directions),
                )
            except Unavailable as error:
                ledger.note(str(error))
                continue
            errors = np.abs(mean - means).max(-1)
            ledger.compare(f"cvxpylayers over {over}, mean", errors, CVXPY[subject.dtype], "the mean", smooth.rows)
            errors = np.abs(directions @ found - products).max((-2, -1))
            tolerance = max(1e-5, KKT[subject.dtype])
            ledger.compare(f"cvxpylayers over {over}", errors, tolerance, "the Jacobian of the mean", smooth.rows)


class ExpectationGradient(PooledCheck):
    """d E[f] / d t and d H / d t for a nonlinear f, on the support that the solver found (eq. 13 and 17)."""

    title = "expectation: gradient"

    def run(self, subject: Subject, sample: Sample, ledger: Ledger) -> None:
        can_solve(subject, self.solver)
        pool = sample.pool.numpy()
        chosen = _by_support(subject, pool, self.solver, ledger)
        moved = 0
        for row, atoms, probs, step in chosen:
            values = _cost(atoms)
            derivative = kkt.weights_jacobian(atoms, subject.regularized)
            value, entropy = _gradients(subject, pool[row : row + 1], self.solver)
            tolerance = KKT[subject.dtype]
            expected = derivative.T @ values
            ledger.compare("KKT on the support", [np.abs(value - expected).max()], tolerance, "d E[f] / d t", [row])
            errors = [np.abs(entropy + derivative.T @ (np.log(probs) + 1)).max()]
            # The entropy's slope log p is as large as 1 / p is sensitive: 1e-3 is the margin.
            ledger.compare("KKT on the support, entropy", errors, tolerance / MARGIN * 1e-2, "d H / d t", [row])
            if subject.dtype != torch.float64:
                continue
            if self._support_stays(subject, pool[row], atoms, step):
                numeric = differences.jacobian(
                    lambda rows: _expectations(subject, rows, self.solver)[:, None], pool[row], step
                )[0]
                errors = [np.abs(numeric - value).max()]
                ledger.compare("central differences", errors, DIFFERENCES[subject.dtype], "d E[f] / d t", [row])
            else:
                moved += 1
        if moved:
            ledger.note(f"the solver chose another support of the same mean nearby on {moved} rows: no differences there")

    def _support_stays(self, subject: Subject, scores: Array, atoms: Array, step: float) -> bool:
        moves = step * np.eye(len(scores))
        found = subject.solved(np.concatenate([scores + moves, scores - moves]), self.solver)
        around, probs = (part.double().cpu().numpy() for part in found.padded())
        kept = {tuple(atom) for atom in atoms.tolist()}
        return all({tuple(atom) for atom in row[on > 0].tolist()} == kept for row, on in zip(around, probs, strict=True))


class GradientByCvxpylayers(PooledCheck):
    """d E[f] / d t against cvxpylayers on the support that the solver found."""

    title = "expectation: gradient by cvxpylayers"

    def run(self, subject: Subject, sample: Sample, ledger: Ledger) -> None:
        can_solve(subject, self.solver)
        pool = sample.pool.numpy()
        for row, atoms, _, _ in _by_support(subject, pool, self.solver, ledger):
            value, _ = _gradients(subject, pool[row : row + 1], self.solver)
            try:
                reference = subject.support_program(len(atoms)).gradient(atoms, pool[row], _cost(atoms))
            except Unavailable as error:
                raise Skip(str(error)) from error
            tolerance = max(1e-5, KKT[subject.dtype])
            ledger.compare("cvxpylayers on the support", [np.abs(value - reference).max()], tolerance, "d E[f] / d t", [row])


@dataclass(frozen=True)
class ProjectJacobian(Check):
    """The Jacobian of the closed form (`sparsemap_marginals`) is the projector of the face."""

    @property
    def name(self) -> str:
        return "project: Jacobian"

    def source(self, sample: Sample) -> Tensor:
        """The pool."""
        return sample.pool

    def run(self, subject: Subject, sample: Sample, ledger: Ledger) -> None:
        need(subject, SupportsProjection)
        if subject.regularized is not None:
            raise Skip("not all coordinates are regularised, so that SparseMAP is not the projection")
        table = subject.structures().table
        if table is None:
            raise Skip(f"kinks cannot be told apart: {subject.structures().source}")
        smooth = _some(smooth_rows(subject, sample.pool.numpy()), ledger)
        leaf = subject.to_tensor(sample.pool[smooth.rows]).requires_grad_()
        try:
            mean = sparsemap_marginals(leaf, subject.polytope)
            found = _rows_of_jacobian(mean, leaf)
        except Exception as error:
            raise Broken("project", f"the gradient of {subject.name}.project raised {first_line(error)}") from error
        compare_with_faces(ledger, found, table, smooth, subject, torch.float64, "the Jacobian of project")


@dataclass(frozen=True)
class MarginalsJacobian(Check):
    """The Jacobian of `sparsemap_marginals` without a closed form is the projector of the face, however many structures it has.

    Faces of more structures than can be listed are compared with central differences, where these see no kink: where the mean
    is linear over the step.
    """

    @property
    def name(self) -> str:
        return "marginals: Jacobian"

    def source(self, sample: Sample) -> Tensor:
        """The pool."""
        return sample.pool

    def run(self, subject: Subject, sample: Sample, ledger: Ledger) -> None:
        if supports(subject.polytope, SupportsProjection) and subject.regularized is None:
            raise Skip("the mean has a closed form, which `project: Jacobian` checks")
        pool = sample.pool.numpy()
        table = subject.structures().table
        smooth = None if table is None else smooth_rows(subject, pool)
        if table is not None and smooth is not None and smooth.rows:
            leaf = subject.to_tensor(sample.pool[smooth.rows]).requires_grad_()
            found = _rows_of_jacobian(sparsemap_marginals(leaf, subject.polytope), leaf)
            compare_with_faces(ledger, found, table, smooth, subject, torch.float64, "the Jacobian of the marginals")
        self._by_differences(subject, pool[np.abs(pool).max(-1) <= LARGEST], ledger)

    def _by_differences(self, subject: Subject, scores: Array, ledger: Ledger) -> None:
        """Along one direction a row, in float64. Smaller scores, too: their means are inside of larger faces."""
        rows = np.tile(np.arange(len(scores)), 2)
        scores = np.concatenate([scores, scores / 10])
        direction = np.random.default_rng(0).standard_normal(scores.shape)
        direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
        leaf = subject.to_tensor(scores).double().requires_grad_()
        mean = sparsemap_marginals(leaf, subject.polytope)
        # The Jacobian is symmetric, so that a vector-Jacobian product is one with a direction.
        (product,) = torch.autograd.grad(mean, leaf, subject.to_tensor(direction).double())
        ends = (scores + way * STEP * direction for way in (1, -1))
        ahead, behind = (sparsemap_marginals(subject.to_tensor(end).double(), subject.polytope) for end in ends)
        bend = (ahead - 2 * mean.detach() + behind).abs().amax(-1).cpu().numpy()
        errors = ((ahead - behind) / (2 * STEP) - product).abs().amax(-1).cpu().numpy()
        straight = bend <= BEND
        if not straight.all():
            ledger.note(f"a kink was near {(~straight).sum()} of {len(straight)} rows: no differences there")
        what, tolerance = "the Jacobian of the marginals", DIFFERENCES[torch.float64]
        ledger.compare("central differences", errors[straight], tolerance, what, rows[straight].tolist())


def _directions(dim: int, count: int) -> Array:
    """Rows whose products with the Jacobian are compared, [K, D]: all coordinates, or some random ones if they are many."""
    if dim <= ALL_DIRECTIONS and count <= ALL_STRUCTURES:
        return np.eye(dim)
    return np.random.default_rng(0).standard_normal((4, dim)) / np.sqrt(dim)


def _some(smooth: Smooth, ledger: Ledger) -> Smooth:
    ledger.redraws += smooth.redraws
    if not smooth.rows:
        raise Skip(
            f"none of {smooth.redraws} scores is far enough from a kink (margin {MARGIN:g}); raise batch, or pass scores"
        )
    return smooth


def _by_support(subject: Subject, pool: Array, solver: Solver, ledger: Ledger) -> list[tuple[int, Array, Array, float]]:
    """(row, atoms [S, D], probs [S], step of a difference) where the weights of the support found are at least MARGIN."""
    if subject.structures().table is None:
        candidates = [(row, np.inf) for row in range(len(pool)) if np.abs(pool[row]).max() <= LARGEST]
    else:
        smooth = _some(smooth_rows(subject, pool), ledger)
        candidates = [(row, margin.reach) for row, margin in zip(smooth.rows, smooth.margins, strict=True)]
    chosen = []
    for row, reach in candidates:
        if len(chosen) == ROWS:
            break
        found = subject.solved(pool[row : row + 1], solver)
        atoms, probs = found.atoms.double().cpu().numpy(), found.probs.detach().double().cpu().numpy()
        if probs.min() < MARGIN:
            ledger.redraws += 1
            continue
        try:
            speed = np.linalg.norm(kkt.weights_jacobian(atoms, subject.regularized), axis=1).max()
        except np.linalg.LinAlgError:
            raise Broken("sparsemap", "the support's atoms are affinely dependent: eq. 13 has no unique solution") from None
        reach = min(reach, probs.min() / max(speed, 1e-12))
        chosen.append((row, atoms, probs, differences.step_for(min(reach, MARGIN))))
    if not chosen:
        raise Skip(f"no support has weights of at least {MARGIN:g}; raise batch, or pass scores")
    return chosen


def _cost(atoms: Array) -> Array:
    """A fixed f that is not linear, so that E[f] depends on the distribution and not just on its mean: [n, D] -> [n]."""
    place = np.arange(1, atoms.shape[1] + 1)
    return np.tanh(atoms @ np.sin(place)) + 0.5 * (atoms @ np.cos(2.0 * place)) ** 2


def _torch_cost(atoms: Tensor, row: Tensor) -> Tensor:
    return torch.from_numpy(_cost(atoms.double().cpu().numpy())).to(atoms)


def _mean(subject: Subject, scores: Array, solver: Solver) -> Array:
    return subject.solved(scores, solver).mean().double().cpu().numpy()


def _expectations(subject: Subject, scores: Array, solver: Solver) -> Array:
    return subject.solved(scores, solver).expectation(_torch_cost).double().cpu().numpy()


def _jacobian(subject: Subject, scores: Array, solver: Solver) -> Array:
    leaf = subject.to_tensor(scores).to(subject.dtype).requires_grad_()
    return _rows_of_jacobian(subject.sparsemap(leaf, solver).mean(), leaf)


def _rows_of_jacobian(mean: Tensor, leaf: Tensor) -> Array:
    """d mean_i / d leaf for every i: [n, D] -> [n, D, D]."""
    if not mean.requires_grad:
        raise Broken("sparsemap", "the mean carries no gradient to the scores")
    rows = [torch.autograd.grad(mean[:, i].sum(), leaf, retain_graph=True)[0] for i in range(mean.shape[1])]
    return torch.stack(rows, 1).double().cpu().numpy()


def _gradients(subject: Subject, scores: Array, solver: Solver) -> tuple[Array, Array]:
    """d E[f] / d t and d H / d t of one row, [D] and [D]."""
    leaf = subject.to_tensor(scores).to(subject.dtype).requires_grad_()
    found = subject.sparsemap(leaf, solver)
    parts = (found.expectation(_torch_cost), found.entropy())
    values = [torch.autograd.grad(part.sum(), leaf, retain_graph=True)[0][0] for part in parts]
    return values[0].double().cpu().numpy(), values[1].double().cpu().numpy()
