"""Vectors of 64 bytes, for kernels that are written in LLVM's own terms: Numba has no type for vectors.

Compilers find vectors in loops over long arrays. Where all of an operation is to stay in registers, or a byte is a mask of
eight, they do not; there `Lanes` builds the instructions. A processor with shorter vectors does each in several. Sums are taken
in the order in which they are written: see `sums`.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils

LANES = 8  # float64 in a vector

INDEX, SHORT = ir.IntType(64), ir.IntType(32)
SINGLE, DOUBLE = ir.FloatType(), ir.DoubleType()
# An entry's bytes, how many are in a vector, and what LLVM's functions call that vector.
FORMATS = {SINGLE: (4, 2 * LANES, f"v{2 * LANES}f32"), DOUBLE: (8, LANES, f"v{LANES}f64")}


class Lanes:
    """What an intrinsic of Numba's needs, beside its builder, to compute with vectors.

    Args:
        context: of Numba, as an intrinsic gets it.
        builder: of LLVM, likewise.
        kind: of the entries, `DOUBLE` or `SINGLE`.

    Attributes:
        count: how many entries a vector has: 8 or 16.
        vector, integers: the types of a vector, and of one of as many int32.
        zeros, undefined: vectors.
    """

    def __init__(self, context: Any, builder: Any, kind: Any = DOUBLE) -> None:
        self.context, self.builder, self.kind = context, builder, kind
        self.bytes, self.count, self.name = FORMATS[kind]
        self.vector, self.integers = (ir.VectorType(entry, self.count) for entry in (kind, SHORT))
        self.zeros, self.undefined = self.constant(0.0), ir.Constant(self.vector, ir.Undefined)

    def constant(self, number: float) -> Any:
        """This number in every lane."""
        return ir.Constant(self.vector, [number] * self.count)

    def array(self, kind: Any, value: Any) -> Any:
        """An argument that is an array: it has `data`, `shape` and `strides`."""
        return self.context.make_array(kind)(self.context, self.builder, value)

    def shape(self, array: Any, axis: int) -> Any:
        """The size of one axis."""
        return self.builder.extract_value(array.shape, axis)

    def stride(self, array: Any) -> Any:
        """How many entries the rows of a matrix are apart."""
        return self.builder.udiv(self.builder.extract_value(array.strides, 0), INDEX(self.bytes))

    def rows(self, array: Any, count: int) -> list[Any]:
        """Where each of the first rows of a matrix begins: as `data` of an array."""
        stride = self.stride(array)
        return [self.builder.gep(array.data, [self.builder.mul(stride, INDEX(row))]) for row in range(count)]

    def place(self, block: Any, offset: int = 0) -> Any:
        """Where block of so many entries as a vector has begins, and `offset` on."""
        start = self.builder.mul(block, INDEX(self.count))
        return self.builder.add(start, INDEX(offset)) if offset else start

    def blocks(self, array: Any, axis: int) -> Any:
        """How many vectors an axis is long."""
        return self.builder.udiv(self.shape(array, axis), INDEX(self.count))

    def load(self, data: Any, place: Any) -> Any:
        """The vector from a place on."""
        return self.builder.load(self._pointer(data, place), align=self.bytes)

    def store(self, vector: Any, data: Any, place: Any) -> None:
        """Writes a vector from a place on."""
        self.builder.store(vector, self._pointer(data, place), align=self.bytes)

    def _pointer(self, data: Any, place: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(data, [place]), self.vector.as_pointer())

    def store_entry(self, number: Any, data: Any, place: int) -> None:
        """Writes one number."""
        self.builder.store(number, self.builder.gep(data, [INDEX(place)]))

    def mask(self, bits: Any, place: Any) -> Any:
        """As many bits as a vector has entries, as a mask: the one at a place among such."""
        whole = ir.IntType(self.count)
        word = self.builder.load(self.builder.gep(self.builder.bitcast(bits, whole.as_pointer()), [place]))
        return self.builder.bitcast(word, ir.VectorType(ir.IntType(1), self.count))

    def load_repeated(self, data: Any, place: Any) -> Any:
        """The number at a place, in every lane."""
        place = INDEX(place) if isinstance(place, int) else place
        return self.repeat(self.builder.load(self.builder.gep(data, [place])))

    def repeat(self, number: Any) -> Any:
        """A number in every lane."""
        one, first = self.builder.insert_element(self.undefined, number, SHORT(0)), ir.Constant(self.integers, [0] * self.count)
        return self.builder.shuffle_vector(one, self.undefined, first)

    def variables(self, count: int, start: Any = None) -> list[Any]:
        """So many variables that hold a vector, `start` (zeros) each time that this is passed."""
        start = self.zeros if start is None else start
        made = [cgutils.alloca_once(self.builder, self.vector) for _ in range(count)]
        for variable in made:
            self.builder.store(start, variable)
        return made

    def update(self, variable: Any, vector: Any) -> None:
        """Adds a vector to a variable."""
        self.builder.store(self.builder.fadd(self.builder.load(variable), vector), variable)

    def added(self, variables: list[Any]) -> Any:
        """The sum of the vectors in some variables, a power of two of them: each two, and each two of those."""
        whole = [self.builder.load(variable) for variable in variables]
        while len(whole) > 1:
            whole = [self.builder.fadd(one, other) for one, other in zip(whole[::2], whole[1::2], strict=True)]
        return whole[0]

    def add_product(self, left: Any, right: Any, to: Any) -> Any:
        """left * right + to, rounded once where the processor can do so."""
        function = self._function("llvm.fmuladd", self.vector, [self.vector] * 3)
        return self.builder.call(function, [left, right, to])

    def maximum(self, left: Any, right: Any) -> Any:
        """The larger of each two; anything where one is NaN."""
        function = self._function("llvm.maxnum", self.vector, [self.vector] * 2)
        return self.builder.call(function, [left, right], fastmath=("nnan", "nsz"))

    def largest(self, vector: Any) -> Any:
        """The largest entry."""
        return self.builder.call(
            self._function("llvm.vector.reduce.fmax", self.kind, [self.vector]), [vector], fastmath=("nnan", "nsz")
        )

    def total(self, vector: Any) -> Any:
        """The sum of the entries: both halves are added, and both halves of that."""
        width = self.count
        while width > 1:
            width //= 2
            turned = ir.Constant(self.integers, [(lane + width) % self.count for lane in range(self.count)])
            vector = self.builder.fadd(vector, self.builder.shuffle_vector(vector, self.undefined, turned))
        return self.builder.extract_element(vector, SHORT(0))

    def totals(self, vectors: list[Any]) -> Any:
        """The sums of the entries of each of `count` vectors, as a vector: two vectors become one until one is left."""
        while len(vectors) > 1:
            width = self.count // len(vectors)  # of what are partial sums of as many vectors side by side, over and over
            even = [lane - lane % (2 * width) + lane % width + (lane // width % 2) * self.count for lane in range(self.count)]
            lower, upper = (ir.Constant(self.integers, [lane + more for lane in even]) for more in (0, width))
            vectors = [
                self.builder.fadd(
                    self.builder.shuffle_vector(one, other, lower), self.builder.shuffle_vector(one, other, upper)
                )
                for one, other in zip(vectors[::2], vectors[1::2], strict=True)
            ]
        return vectors[0]

    def _function(self, name: str, result: Any, given: list[Any]) -> Any:
        return cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(result, given), f"{name}.{self.name}")
