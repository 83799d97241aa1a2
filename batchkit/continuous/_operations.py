"""Operations of a jaxpr: how many numbers it computes, for comparing costs.

An equation has one operation for each number that it computes or reduces; those of
products, sorts, factorisations and random bits are known from their algorithms. A loop
of known length counts as often as it turns, another loop as if it turned `TURNS` times,
and of the sides of a branch the costliest counts. XLA's own analysis counts every loop
once, and nothing for the factorisations that it leaves to a library.
"""

import math
from collections.abc import Callable
from typing import Any, Final

from .._util._jaxprs import inner_jaxprs
from ..batchers._call import size_of
from ..batchers._splitting import MOVES_DATA
from ._equations import Cond, Scan, WhileLoop, control_flow


CONTROL_FLOW: Final = {"cond", "scan", "while"}

# So that what a loop repeats outweighs what is done once.
TURNS: Final = 10

RANDOM_BITS: Final = {
    "random_bits",
    "random_fold_in",
    "random_seed",
    "random_split",
    "threefry2x32",
}
# Threefry makes 64 bits in 20 rounds of five operations.
_PER_BIT: Final = 100 / 64

# Multiples of the cube of the size (Golub and Van Loan 2013, Matrix Computations).
_FACTORISATIONS: Final = {
    "cholesky": 1 / 3,
    "eig": 25.0,
    "eigh": 9.0,
    "geqrf": 4 / 3,
    "householder_product": 4 / 3,
    "lu": 2 / 3,
    "qr": 4 / 3,
    "svd": 20.0,
}


def weighted_sum(
    jaxpr: Any,
    weight: Callable[[Any, float], float],
    of_sides: Callable[[Any, list[float]], float] = lambda _, sides: max(sides),
) -> float:
    """Sum a weight over the equations that an execution of a jaxpr evaluates."""
    # A weight is of an equation apart from the jaxprs that it holds, and of the bytes
    # that the innermost loop around it carries.

    def total(jaxpr: Any, around: float) -> float:
        return sum((of(eqn, around) for eqn in jaxpr.eqns), 0.0)

    def of(eqn: Any, around: float) -> float:
        match control_flow(eqn, eqn.invars):
            case Scan() as scan:
                inside = total(scan.body.jaxpr, float(sum(map(_bytes, scan.init))))
                return weight(eqn, around) + scan.length * inside
            case WhileLoop() as loop:
                carried = float(sum(map(_bytes, loop.init)))
                parts = (loop.cond.jaxpr, loop.body.jaxpr)
                inside = sum((total(jaxpr, carried) for jaxpr in parts), 0.0)
                return weight(eqn, around) + TURNS * inside
            case Cond() as cond:
                sides = [total(branch.jaxpr, around) for branch in cond.branches]
                return weight(eqn, around) + of_sides(eqn, sides)
            case None:
                inner = list(inner_jaxprs(eqn))
                if inner:
                    return sum((total(jaxpr, around) for jaxpr in inner), 0.0)
                return weight(eqn, around)

    return total(jaxpr, math.inf)


def count_operations(jaxpr: Any) -> float:
    """Count the operations of an open jaxpr."""
    return weighted_sum(jaxpr, lambda eqn, _: equation_operations(eqn))


def equation_operations(eqn: Any) -> float:
    """Return the operations of an equation, apart from the jaxprs that it holds."""
    name = eqn.primitive.name
    read = max((_size(x) for x in eqn.invars), default=0)
    made = max((_size(x) for x in eqn.outvars), default=0)
    if name in MOVES_DATA or name in CONTROL_FLOW:
        return 0.0
    if name == "dot_general":
        ((contracted, _), _) = eqn.params["dimension_numbers"]
        rows = eqn.invars[0].aval.shape
        return 2.0 * made * math.prod(rows[axis] for axis in contracted)
    if name == "conv_general_dilated":
        _, kernel = eqn.invars
        features = eqn.params["dimension_numbers"].rhs_spec[0]
        return 2 * made * _size(kernel) / kernel.aval.shape[features]
    if name == "sort":
        return read * math.log2(max(read, 2))
    if name == "triangular_solve":
        return float(made * eqn.invars[0].aval.shape[-1])
    if name in _FACTORISATIONS:
        return _FACTORISATIONS[name] * read * eqn.invars[0].aval.shape[-1]
    if name in RANDOM_BITS:
        return 8.0 * _PER_BIT * max(map(_bytes, eqn.outvars))
    return float(max(read, made))


def _size(atom: Any) -> int:
    return math.prod(getattr(atom.aval, "shape", ()))


def _bytes(atom: Any) -> int:
    return size_of(atom.aval)
