"""Polytopes whose structures are the derivations of a dynamic program."""

import math

import torch
from torch import Tensor

from ..base import MAX_ENUMERATED, Polytope
from ..checks import cannot_branch, check_dimension, check_finite, check_sample_shape, check_width
from ..gibbs import check_some_allowed
from . import compiled_sums
from .hypergraph import Hypergraph
from .inside import Inside


class Derivations(Polytope):
    """conv{a_z : z a derivation}, for polytopes that are given as a hypergraph: see `hypergraph.Hypergraph`.

    `maximize`, `topk`, `gibbs` and `vertices` are those of the hypergraph. A subclass passes the graph, and overrides `gates`
    where the problem's size depends on which scores are `-inf`.

    Of tied structures the one whose edges come first in the graph is returned.
    """

    takes_forbidden = True

    def __init__(self, graph: Hypergraph) -> None:
        self.graph = graph
        self.dim = graph.dim

    def gates(self, scores: Tensor) -> Tensor | None:
        """Weights of the graph's gates, [B, G], from scores [B, D]: 0 where open, -inf where shut. None if it has none."""
        return None

    def maximize(self, scores: Tensor) -> Tensor:
        """The best derivation; O(edges) a row."""
        return self.graph.on(scores.device).best(scores, self.gates(scores))[0]

    def topk(self, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k best derivations; O(edges k log^2 k) a row; by a kernel on the CPU hardly more than for the best."""
        precise = scores.double()
        structures, totals = self.graph.on(scores.device).kbest(precise, k, self.gates(precise), scores.dtype)
        return structures, totals > -torch.inf

    def gibbs(self, scores: Tensor) -> "DerivationGibbs":
        """p(z) proportional to exp <a_z, t>, by the inside recursion; O(edges) a row."""
        check_dimension(scores, self)
        return DerivationGibbs(self, scores)

    def vertices(self) -> Tensor:
        """All structures, in the order of the graph's edges.

        Raises:
            ValueError: there are more than `MAX_ENUMERATED`.
        """
        count = self.graph.count_derivations() if self.graph.gate_count == 0 else self._count_ungated()
        if count > MAX_ENUMERATED:
            raise ValueError(f"{self!r} has {count} structures, too many to enumerate (limit {MAX_ENUMERATED})")
        return self.topk(torch.zeros(1, self.dim, dtype=torch.float64), count)[0][0]

    def _count_ungated(self) -> int:
        zeros = torch.zeros(1, self.dim, dtype=torch.float64)
        total = Inside.of(self.graph, self.graph.weights(zeros, self.gates(zeros))).log_total
        return round(math.exp(float(total))) if float(total) < 40 else 1 << 57


class DerivationGibbs:
    """The exponential family over derivations; see `gibbs` for what its methods promise."""

    def __init__(self, polytope: Derivations, scores: Tensor) -> None:
        check_finite(scores)
        self.polytope, self.dtype, self.batch_shape = polytope, scores.dtype, scores.shape[:-1]
        # A copy: what is asked for later is of the scores as they are now.
        precise = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores.clone()
        # A view made without gradient of a tensor that has one has neither.
        kept = precise if torch.is_grad_enabled() else precise.detach()
        self.scores = kept.reshape(math.prod(self.batch_shape), polytope.dim)
        self._graph, self._gates = polytope.graph.on(scores.device), polytope.gates(self.scores.detach())
        self._inside: Inside | None = None
        total = compiled_sums.log_total(*self._given)
        if total is None:
            self._inside = self._plainly(self.scores)
            total = self._inside.log_total
        self.log_total = total
        check_some_allowed(total.detach().reshape(self.batch_shape))

    @property
    def _given(self) -> tuple[Hypergraph, Tensor, Tensor | None]:
        return self._graph, self.scores, self._gates

    def _plainly(self, scores: Tensor) -> Inside:
        """The sums for scores [B, D] in tensor operations."""
        return Inside.of(self._graph, self._graph.weights(scores, self._gates))

    @property
    def inside(self) -> Inside:
        """What entropies and samples need, made when it is first asked for, with gradient if the scores have one."""
        if self._inside is None:
            with torch.inference_mode(False), torch.enable_grad():
                self._inside = self._plainly(self.scores)
        return self._inside

    def sample(self, sample_shape: tuple[int, ...] = (), generator: torch.Generator | None = None) -> Tensor:
        """[*sample_shape, *B, D], from the goal of the graph down."""
        count = check_sample_shape(sample_shape)
        drawn = compiled_sums.sample(*self._given, count, generator)
        if drawn is None:
            drawn = self.inside.sample(count, generator)
        return drawn.reshape(*sample_shape, *self.batch_shape, self.polytope.dim).to(self.dtype)

    def log_prob(self, structures: Tensor) -> Tensor:
        """<a_z, t> - log Z, nats; `-inf` off the set."""
        check_width(structures, self.polytope.dim)
        shape = torch.broadcast_shapes(structures.shape[:-1], self.batch_shape)
        dim, forbidden = self.polytope.dim, self.scores.detach().isneginf()
        some = cannot_branch(forbidden) or bool(forbidden.any())
        allowed = (torch.where(forbidden, 0, self.scores) if some else self.scores).reshape(*self.batch_shape, dim)
        logs = (structures.to(allowed) * allowed).sum(-1) - self.log_total.reshape(self.batch_shape)
        asked = structures.detach().expand(*shape, -1).reshape(math.prod(shape), dim)
        asked = asked if asked.dtype == torch.float64 else asked.float()  # exact: sums of so few ones
        # <v, 2 z - 1> is at most |z|, and |z| for v = z alone.
        wanted = (2 * asked).sub_(1)
        if some:
            wanted = torch.where(forbidden.reshape(allowed.shape).expand(*shape, -1).reshape(asked.shape), -torch.inf, wanted)
        member = (self.polytope.maximize(wanted) == asked).all(-1).reshape(shape)
        return torch.where(member, logs, -torch.inf).to(self.dtype)

    def entropy(self) -> Tensor:
        """By the chain rule along the derivation, nats."""
        found = compiled_sums.entropy(*self._given)
        return (self.inside.entropy() if found is None else found).reshape(self.batch_shape).to(self.dtype)

    def marginals(self) -> Tensor:
        """The mean structure E[a_z] = d log Z / dt, [*B, D]; differentiable. Not under `vmap`, in forward mode, or compiled."""
        follow = torch.is_grad_enabled() and self.scores.requires_grad
        with torch.inference_mode(False), torch.enable_grad():
            scores = self.scores if follow else self.scores.detach().clone().requires_grad_()
            total = compiled_sums.log_total(self._graph, scores, self._gates)
            if total is None:
                total = self._plainly(scores).log_total
            (mean,) = torch.autograd.grad(total.sum(), scores, create_graph=follow)
        return mean.reshape(*self.batch_shape, self.polytope.dim).to(self.dtype)
