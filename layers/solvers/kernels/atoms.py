"""What the compiled active set method does with the atoms of a row: bits, or vectors, as the type of their state says.

Here is what each function means; how it is done stands in `bit_atoms`, `seen_bits` and `real_atoms`, of which the one that is
needed becomes a part of what calls it when that is compiled. S are the slots of a row.
"""

from ....kernels.choice import choose_by_type
from ....kernels.vectors import Array
from . import bit_atoms, real_atoms, seen_bits
from .bit_atoms import Bits, BitScratch, BitStructures
from .real_atoms import Reals, RealScratch, RealStructures
from .seen_bits import SeenBits, SeenScratch

State = Bits | SeenBits | Reals
Scratch = BitScratch | SeenScratch | RealScratch
Structures = BitStructures | RealStructures


def few_change(state: State) -> bool:  # pyright: ignore
    """Whether few coordinates may change from one gradient of a row to the next: a constant, for compiled code to be short."""


def places(row: int, state: State) -> int:  # pyright: ignore
    """If so, how many they are."""


def coordinate(row: int, place: int, state: State) -> int:  # pyright: ignore
    """Which one is at a place."""


def gradient(row: int, anew: bool, origin: Array, state: State, out: Array) -> None:
    """Into out [D]: the gradient of the objective at the mean of a row; if not `anew`, only where it may have changed."""


def take(row: int, vertex: Array, origin: Array, state: State, scratch: Scratch) -> None:
    """Takes an oracle's answer [D] into `scratch.answer`: bits of where it is not the origin, or the answer itself."""


def relate(row: int, origin: Array, state: State, scratch: Scratch) -> tuple[float, float, float]:  # pyright: ignore
    """Relates the answer to the origin and the mean.

    Returns what the answer gains at the mean; the part of it where coordinates are not regularised, as far as `put` is to be
    told; and the size of the terms in such products.
    """


def see_mean(row: int, state: State, scratch: Scratch) -> None:
    """What `relate` leaves in scratch for `slopes`."""


def slopes(row: int, on: Array, state: State, scratch: Scratch, out: Array) -> None:
    """Into out [S]: <a_s, t - A p> of the slots in use, with what they gain where they are not regularised; 0 for others."""


def compare(row: int, on: Array, state: State, scratch: Scratch, out: Array) -> float:  # pyright: ignore
    """Into out [S] the inner products of what was found with the slots in use; returns that with itself."""


def distance(row: int, weights: Array, state: State, scratch: Scratch) -> float:  # pyright: ignore
    """The squared distance of what was found to the atoms' combination with these weights [S]."""


def put(row: int, slot: int, gain: float, state: State, scratch: Scratch) -> None:
    """Puts the answer in a slot."""


def move(row: int, weights: Array, state: State, scratch: Scratch) -> None:
    """Goes to the mean under the weights [S]."""


def square_unit(row: int, state: State) -> float:  # pyright: ignore
    """The square of what atoms are measured in."""


def write(
    row: int,
    on: Array,
    weights: Array,
    place: int,
    origin: Array,
    state: State,
    scratch: Scratch,
    mean: Array,
    into: Structures,
) -> None:
    """The structures of the slots in use, from `place` on, and into mean [D] theirs under the weights [S]."""


KINDS = {Bits: bit_atoms, SeenBits: seen_bits, Reals: real_atoms}


for _function in (
    few_change,
    places,
    coordinate,
    gradient,
    take,
    relate,
    see_mean,
    slopes,
    compare,
    distance,
    put,
    move,
    square_unit,
    write,
):
    choose_by_type(_function, "state", KINDS)
