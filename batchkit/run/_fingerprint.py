"""A fingerprint of a run: digests of its functions, its data, and where it starts.

A function is identified by its jaxpr for one position, with the values of the data that
it closes over. Neither its name nor its address counts, and nothing of the layout, so
that a run may go on with another batcher, or after a restart.

The jaxpr of an unchanged function is another one in another version of JAX: primitives
get other names and other parameters. And what a script computes before the run, such as
where chains start, may be rounded otherwise. So a digest is compared only between equal
versions, and beside it a `Part` has what can be compared between any two: a setting as
JSON has it, and of arrays a *sketch*, some sums over their numbers that two arrays
share if they differ by rounding alone. A function has neither: it is compared by the
values that a checkpoint holds of it anyway; see `_same_run.py`.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from .._util._digest import digest
from .._util._jaxprs import equations
from ._program import shapes_of


# Sums in one sketch. They show a change of one number of 10^6 in float32.
_SUMS: Final = 4096
_CHUNK: Final = 2**20
_GOLDEN: Final = (math.sqrt(5) - 1) / 2


@final
class Sketch(NamedTuple):
    """Summary of arrays that may differ by rounding, for a comparison.

    - `exact`: a digest of the structure, shapes, dtypes, integers and booleans, and of
      where numbers are not finite.
    - `sums`: weighted sums over floating-point numbers.
    - `rounding`: the difference that each sum may have.
    """

    exact: str
    sums: Float[np.ndarray, " sums"]
    rounding: Float[np.ndarray, " sums"]


@final
class Part(NamedTuple):
    """One part of the fingerprint of a run.

    - `digest`: equal for equal parts, if the versions are equal.
    - `words`: a setting, or settings by their names, as JSON has them; None for others.
    - `sketch`: computes the sketch of arrays; None for others.
    - `is_function`: True if only values show between versions that it is the same.
    """

    digest: str
    words: Any = None
    sketch: Callable[[], Sketch] | None = None
    is_function: bool = False


def digests(parts: Mapping[str, Part]) -> dict[str, str]:
    return {name: part.digest for name, part in parts.items()}


def of_function(fun: Callable[..., Any], *args: Any, words: Any = None) -> Part:
    """Make the fingerprint of a function for arguments of some shapes.

    `words` identify the function between versions; without them its values do.
    """
    jaxpr = jax.make_jaxpr(fun)(*shapes_of(args))
    return Part(digest(jaxpr, values=True), words, is_function=words is None)


def of_arrays(tree: PyTree, words: Any = None) -> Part:
    """Make the fingerprint of arrays: structure, shapes, dtypes and values."""
    leaves, treedef = jax.tree.flatten(tree)
    hasher = hashlib.sha256(str(treedef).encode())
    for leaf in leaves:
        label, array = _label_and_numbers(leaf)
        hasher.update(label)
        hasher.update(np.ascontiguousarray(array).tobytes())
    return Part(hasher.hexdigest(), words, lambda: sketch_of(tree))


def of_words(*words: Any, shown: Any = None) -> Part:
    """Make the fingerprint of values by their `repr`.

    Messages show `shown`, by default the first value.
    """
    hasher = hashlib.sha256(repr(words).encode())
    return Part(hasher.hexdigest(), words[0] if shown is None else shown)


def sketch_of(tree: PyTree) -> Sketch:
    leaves, treedef = jax.tree.flatten(tree)
    exact = hashlib.sha256(str(treedef).encode())
    sums_per_leaf = max(1, _SUMS // max(1, len(leaves)))
    sums, rounding = [np.zeros(0)], [np.zeros(0)]
    for leaf in leaves:
        label, array = _label_and_numbers(leaf)
        exact.update(label)
        if jnp.issubdtype(array.dtype, jnp.inexact):
            total, scale, special = _sums(np.ravel(array), sums_per_leaf)
            exact.update(special)
            sums.append(total)
            rounding.append(_relative_rounding(array.dtype) * scale)
        else:
            exact.update(np.ascontiguousarray(array).tobytes())
    return Sketch(exact.hexdigest(), np.concatenate(sums), np.concatenate(rounding))


def rounding_of_function(fun: Callable[..., Any], *args: Any) -> float:
    """Return the relative rounding of the least precise dtype that a function uses."""
    jaxpr = jax.make_jaxpr(fun)(*shapes_of(args))
    avals = [out.aval for eqn in equations(jaxpr.jaxpr) for out in eqn.outvars]
    dtypes = [x.dtype for x in (*avals, *jaxpr.out_avals) if hasattr(x, "dtype")]
    inexact = [x for x in dtypes if jnp.issubdtype(x, jnp.inexact)]
    return max(map(_relative_rounding, inexact), default=0.0)


def _relative_rounding(dtype: Any) -> float:
    # The square root of the spacing of the dtype at one: half of its digits.
    return math.sqrt(float(jnp.finfo(dtype).eps))


def _label_and_numbers(leaf: Any) -> tuple[bytes, np.ndarray]:
    """Return dtype and shape of a leaf, for keys their generator, and its numbers."""
    impl = ""
    if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        impl = str(jax.random.key_impl(leaf))
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    return f"{impl}{array.dtype}{array.shape}".encode(), array


def _sums(flat: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, bytes]:
    """Return weighted sums, those of absolute values, and a digest of other numbers.

    Every number has a weight of its own, so that numbers that change places show.
    """
    if jnp.issubdtype(flat.dtype, jnp.complexfloating):
        flat = np.stack([np.real(flat), np.imag(flat)], axis=1).ravel()
    count = min(flat.size, most)
    if count == 0:
        return np.zeros(0), np.zeros(0), b""
    sums, scale, special = np.zeros(count), np.zeros(count), hashlib.sha256()
    step = max(1, _CHUNK // count) * count
    for start in range(0, flat.size, step):
        x = flat[start : start + step].astype(np.float64)
        kinds = np.select([np.isnan(x), np.isposinf(x), np.isneginf(x)], [1, 2, 3], 0)
        special.update(kinds.astype(np.uint8).tobytes())
        weights = 1 + (np.arange(start, start + x.size) * _GOLDEN) % 1
        x = np.where(kinds == 0, x, 0) * weights
        x = np.pad(x, (0, -x.size % count)).reshape(-1, count)
        sums += np.sum(x, axis=0)
        scale += np.sum(np.abs(x), axis=0)
    return sums, scale, special.digest()
