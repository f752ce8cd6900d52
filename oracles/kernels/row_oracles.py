"""The oracles that a compiled solver asks, one row at a time: each a named tuple, of a type that says which kernel answers.

`oracles.row_kernels.row_oracle` has that of a polytope. Importing this module needs Numba.
"""

from ...kernels.choice import choose_by_type
from ...kernels.vectors import COUNTED, Array
from . import bit_rows, chain_rows, derivation_rows, edmonds_rows, knapsack_rows, projective_rows, spanning_rows
from .bit_rows import BitVectors
from .chain_rows import Chain
from .derivation_rows import Derivation
from .edmonds_rows import RootedTree
from .knapsack_rows import Fitting
from .projective_rows import NestedTree
from .spanning_rows import FreeTree

RowOracle = BitVectors | Chain | Derivation | RootedTree | Fitting | NestedTree | FreeTree

MODULES = {
    BitVectors: bit_rows,
    Chain: chain_rows,
    Derivation: derivation_rows,
    RootedTree: edmonds_rows,
    Fitting: knapsack_rows,
    NestedTree: projective_rows,
    FreeTree: spanning_rows,
}


def best_of_row(row: int, oracle: RowOracle, scores: Array, work: Array, structure: Array) -> None:
    """Into `structure`, in bits [W]: the best one for the scores [1, D] float64 of one row of a batch, as `maximize` has it.

    To be called in what Numba compiles; that calls the function of the same name in the module of the oracle's type, which may
    allocate. `work` [1, D] is room for anything.
    """


choose_by_type(best_of_row, "oracle", MODULES, alone={"error_model": "numpy", **COUNTED})
