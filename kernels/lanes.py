"""Eight float64 at a time, for kernels that are written in LLVM's own terms: Numba has no type for vectors.

Compilers find vectors in loops over long arrays. Where all of an operation stays in registers, or a byte is a mask of eight,
they do not; there `Lanes` builds the instructions. A processor with shorter vectors does each in several.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils

LANES = 8

INDEX, SHORT, DOUBLE = ir.IntType(64), ir.IntType(32), ir.DoubleType()
OCTET = ir.IntType(LANES)
VECTOR, MASK = ir.VectorType(DOUBLE, LANES), ir.VectorType(ir.IntType(1), LANES)
UNDEFINED, ZEROS = ir.Constant(VECTOR, ir.Undefined), ir.Constant(VECTOR, [0.0] * LANES)
FIRST = ir.Constant(ir.VectorType(SHORT, LANES), [0] * LANES)

# Sums may be reordered, and products added without rounding them first.
FAST = ("reassoc", "contract", "nsz")


class Lanes:
    """What an intrinsic of Numba's needs, beside its builder, to compute with vectors of eight.

    Args:
        context: of Numba, as an intrinsic gets it.
        builder: of LLVM, likewise.
    """

    def __init__(self, context: Any, builder: Any) -> None:
        self.context, self.builder = context, builder

    def array(self, kind: Any, value: Any) -> Any:
        """An argument that is an array: it has `data`, `shape` and `strides`."""
        return self.context.make_array(kind)(self.context, self.builder, value)

    def shape(self, array: Any, axis: int) -> Any:
        """The size of one axis."""
        return self.builder.extract_value(array.shape, axis)

    def stride(self, array: Any) -> Any:
        """How many entries of 64 bits the rows of a matrix are apart."""
        return self.builder.udiv(self.builder.extract_value(array.strides, 0), INDEX(8))

    def place(self, block: Any, offset: int = 0) -> Any:
        """8 block + offset."""
        start = self.builder.mul(block, INDEX(LANES))
        return self.builder.add(start, INDEX(offset)) if offset else start

    def load(self, data: Any, place: Any) -> Any:
        """The eight from a place on."""
        return self.builder.load(self._pointer(data, place), align=8)

    def store(self, vector: Any, data: Any, place: Any) -> None:
        """Writes eight from a place on."""
        self.builder.store(vector, self._pointer(data, place), align=8)

    def _pointer(self, data: Any, place: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(data, [place]), VECTOR.as_pointer())

    def mask(self, octets: Any, place: Any) -> Any:
        """The byte at a place, as a mask."""
        octets = self.builder.bitcast(octets, OCTET.as_pointer())
        return self.builder.bitcast(self.builder.load(self.builder.gep(octets, [place])), MASK)

    def load_repeated(self, data: Any, place: Any) -> Any:
        """The number at a place, eight times."""
        return self.repeat(self.builder.load(self.builder.gep(data, [place])))

    def repeat(self, number: Any) -> Any:
        """A number, eight times."""
        return self.builder.shuffle_vector(self.builder.insert_element(UNDEFINED, number, SHORT(0)), UNDEFINED, FIRST)

    def variables(self, count: int) -> list[Any]:
        """So many variables that hold a vector, zeros to begin with."""
        return [cgutils.alloca_once_value(self.builder, ZEROS) for _ in range(count)]

    def add_product(self, left: Any, right: Any, to: Any) -> Any:
        """left * right + to."""
        return self.builder.fadd(self.builder.fmul(left, right, flags=FAST), to, flags=FAST)

    def total(self, vector: Any) -> Any:
        """The sum of the eight."""
        kind, name = ir.FunctionType(DOUBLE, [DOUBLE, VECTOR]), f"llvm.vector.reduce.fadd.v{LANES}f64"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, [DOUBLE(0.0), vector], fastmath=FAST)
