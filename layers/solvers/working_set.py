"""Working sets of atoms, one a row, with the factorisation that Newton steps on their weights need."""

import torch
from torch import Tensor


class WorkingSet:
    """B sets of at most S atoms, updated in place one atom at a time.

    Attributes:
        atoms: [B, S, D]; slots that are not `on` hold anything.
        on: [B, S] bool, the slots in use.
        inverse: [B, S, S], H = (A'A + 11')^-1 on the slots in use, 0 elsewhere.
    """

    def __init__(self, first: Tensor, slots: int) -> None:
        batch, dim = first.shape
        self.atoms = first.new_zeros(batch, slots, dim)
        self.atoms[:, 0] = first
        self.on = torch.zeros(batch, slots, dtype=torch.bool, device=first.device)
        self.on[:, 0] = True
        self.inverse = first.new_zeros(batch, slots, slots)
        self.inverse[:, 0, 0] = 1 / (1 + first.square().sum(-1))

    def products(self, *vectors: Tensor) -> tuple[Tensor, ...]:
        """<a_s, x> for every slot in use, 0 elsewhere: vectors [B, D] -> [B, S] each, in one pass over the atoms."""
        stacked = torch.bmm(self.atoms, torch.stack(vectors, -1))
        return (stacked * self.on[..., None]).unbind(-1)

    def mean(self, weights: Tensor) -> Tensor:
        """sum_s p_s a_s: [B, S] -> [B, D]; weights are 0 where a slot is not in use."""
        return torch.bmm(weights[:, None], self.atoms)[:, 0]

    def free_slot(self) -> Tensor:
        """The first slot not in use, [B]."""
        return (~self.on).to(torch.int8).argmax(-1)

    def put(self, slot: Tensor, atom: Tensor, used: Tensor) -> None:
        """Writes atom [B, D] into the free slot [B], which is then in use where `used` [B] says so."""
        index = slot[:, None]
        self.atoms.scatter_(1, index[..., None].expand(-1, 1, atom.shape[1]), atom[:, None])
        self.on.scatter_(1, index, used[:, None])

    def bordering(self, products: Tensor, atom: Tensor, slot: Tensor, least: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What adding an atom does to H: y [B, S] and the pivot [B] with H + y y' the new inverse.

        The pivot is the squared distance of the (bordered) atom to the span of the others; 0 means that the atom is an
        affine combination of them. It is computed as that, as exact as the combination, squared: from products it would have
        the errors of the factorisation, and 0 might look like 1e-11.

        Args:
            products: [B, S] <a_s, new atom> on the slots in use.
            atom: [B, D] the new atom.
            slot: [B] where it goes.
            least: [B] the pivot is taken to be at least this.
        """
        solved = self.combination(products)
        pivot = (atom - self.mean(solved)).square().sum(-1) + (1 - solved.sum(-1)).square()
        if least is not None:
            pivot = torch.maximum(pivot, least)
        solved.scatter_(-1, slot[:, None], -1)
        return solved / pivot.clamp(min=torch.finfo(pivot.dtype).tiny).sqrt()[:, None], pivot

    def combination(self, products: Tensor) -> Tensor:
        """The y for which sum_s y_s (a_s, 1) is nearest to a bordered atom, [B, S]; `products` as in `bordering`."""
        gram = (products + 1) * self.on
        return torch.bmm(self.inverse, gram[..., None])[..., 0] * self.on

    def removal(self, slot: Tensor) -> Tensor:
        """y [B, S] with H - y y' the inverse without the atom in `slot` [B]."""
        column = self.inverse.gather(-1, slot[:, None, None].expand(-1, self.inverse.shape[1], 1))[..., 0]
        pivot = column.gather(-1, slot[:, None])
        return column / pivot.clamp(min=torch.finfo(pivot.dtype).tiny).sqrt()

    def update(self, change: Tensor, sign: Tensor) -> None:
        """H <- H + sign y y', with y [B, S] and sign [B] one of -1, 0, 1."""
        self.inverse.baddbmm_((change * sign[:, None])[..., None], change[:, None])

    def step(self, deviation: Tensor) -> Tensor:
        """The change of weights with A'A dp + lambda 1 = deviation and sum dp = 0: [B, S] -> [B, S]."""
        ones = self.on.to(deviation)
        solved = torch.bmm(self.inverse, torch.stack([deviation, ones], -1))
        along, level = (solved * ones[..., None]).unbind(-1)
        return along - (along.sum(-1) / level.sum(-1))[:, None] * level

    def reserve(self, atoms: int, at_a_time: int = 1) -> None:
        """Makes room for so many atoms in every row; the number of slots becomes a multiple of `at_a_time`."""
        extra = max(0, -(-atoms // at_a_time) * at_a_time - self.on.shape[1])
        if extra:
            self.atoms = torch.nn.functional.pad(self.atoms, (0, 0, 0, extra))
            self.on = torch.nn.functional.pad(self.on, (0, extra))
            self.inverse = torch.nn.functional.pad(self.inverse, (0, extra, 0, extra))

    def rebuild(self, rows: Tensor) -> None:
        """Computes H of some rows [n] afresh, by a Cholesky factorisation."""
        on = self.on[rows].to(self.atoms)
        atoms = self.atoms[rows] * on[..., None]
        gram = atoms @ atoms.mT + on[:, :, None] * on[:, None] + torch.diag_embed(1 - on)
        factor, info = torch.linalg.cholesky_ex(gram)
        fresh = torch.cholesky_inverse(factor) * on[:, :, None] * on[:, None]
        sound = (info == 0) & fresh.isfinite().all(-1).all(-1)
        self.inverse[rows] = torch.where(sound[:, None, None], fresh, self.inverse[rows])

    def select(self, rows: Tensor) -> "WorkingSet":
        """The working sets of some rows."""
        chosen = object.__new__(WorkingSet)
        chosen.atoms, chosen.on, chosen.inverse = self.atoms[rows], self.on[rows], self.inverse[rows]
        return chosen
