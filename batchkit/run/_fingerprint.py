"""A fingerprint of a run: digests of its functions, its data, and where it starts.

A function is known by its jaxpr for one position, with the values of the data that it
closes over. Neither its name nor its place in memory counts, and nothing of the layout,
so that a run may go on with another batcher, or after a restart.

The jaxpr of an unchanged function is another one in another version of JAX: primitives
get other names and other parameters. And what a script computes before the run, such as
where chains start, may be rounded otherwise. So a digest is compared only between equal
versions, and beside it a `Part` has what can be compared between any two: a setting as
JSON has it, and of arrays a *sketch*, sums over few of their numbers that two arrays
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


# Sums in one sketch. One number of 10^6 in float32 that is another one still shows.
_SUMS: Final = 4096
_CHUNK: Final = 2**20
_GOLDEN: Final = (math.sqrt(5) - 1) / 2


@final
class Sketch(NamedTuple):
    """Summary of arrays that may differ by rounding, for a comparison.

    - `exact`: a digest of the structure, shapes, dtypes, integers and booleans, and of
      where numbers are not finite.
    - `sums`: weighted sums over floating-point numbers.
    - `rounding`: by how much each sum may differ.
    """

    exact: str
    sums: Float[np.ndarray, " sums"]
    rounding: Float[np.ndarray, " sums"]


@final
class Part(NamedTuple):
    """One part of what a run is known by.

    - `digest`: equal for equal parts, if the versions are equal.
    - `words`: a setting, or settings by their names, as JSON has them; None for others.
    - `sketch`: computes the sketch of arrays; None for others.
    - `is_function`: whether only values tell between versions that it is the same.
    """

    digest: str
    words: Any = None
    sketch: Callable[[], Sketch] | None = None
    is_function: bool = False


def digests(parts: Mapping[str, Part]) -> dict[str, str]:
    """The digest of each part, by name."""
    return {name: part.digest for name, part in parts.items()}


def of_function(fun: Callable[..., Any], *args: Any, words: Any = None) -> Part:
    """The fingerprint of a function for arguments of some shapes.

    **Arguments:**

    - `fun`: the function.
    - `args`: the arguments, or their shapes.
    - `words`: what tells between versions that it is the same; by default its values.
    """
    jaxpr = jax.make_jaxpr(fun)(*shapes_of(args))
    return Part(digest(jaxpr, values=True), words, is_function=words is None)


def of_arrays(tree: PyTree, words: Any = None) -> Part:
    """The fingerprint of a pytree of arrays: structure, shapes, dtypes and values."""
    leaves, treedef = jax.tree.flatten(tree)
    found = hashlib.sha256(str(treedef).encode())
    for leaf in leaves:
        impl, array = _bits(leaf)
        found.update(f"{impl}{array.dtype}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return Part(found.hexdigest(), words, lambda: sketch_of(tree))


def of_words(*words: Any, shown: Any = None) -> Part:
    """The fingerprint of values that are told by their `repr`.

    **Arguments:**

    - `words`: the values.
    - `shown`: the same as messages show it; by default the first of `words`.
    """
    found = hashlib.sha256(repr(words).encode())
    return Part(found.hexdigest(), words[0] if shown is None else shown)


def sketch_of(tree: PyTree) -> Sketch:
    """The sketch of a pytree of arrays."""
    leaves, treedef = jax.tree.flatten(tree)
    exact = hashlib.sha256(str(treedef).encode())
    room = max(1, _SUMS // max(1, len(leaves)))
    sums, rounding = [np.zeros(0)], [np.zeros(0)]
    for leaf in leaves:
        impl, array = _bits(leaf)
        exact.update(f"{impl}{array.dtype}{array.shape}".encode())
        if not jnp.issubdtype(array.dtype, jnp.inexact):
            exact.update(np.ascontiguousarray(array).tobytes())
            continue
        tolerance = relative_rounding(array.dtype)
        found, scale, special = _sums(np.ravel(array), room)
        exact.update(special)
        sums.append(found)
        rounding.append(tolerance * scale)
    return Sketch(exact.hexdigest(), np.concatenate(sums), np.concatenate(rounding))


def relative_rounding(dtype: Any) -> float:
    """By how much two values of a dtype may differ, relative to their size.

    The square root of the spacing of the dtype at one: half of its digits.
    """
    return math.sqrt(float(jnp.finfo(dtype).eps))


def rounding_of_function(fun: Callable[..., Any], *args: Any) -> float:
    """Relative rounding of a function: that of the least precise dtype it computes."""
    jaxpr = jax.make_jaxpr(fun)(*shapes_of(args))
    found = [out.aval for eqn in equations(jaxpr.jaxpr) for out in eqn.outvars]
    found += jaxpr.out_avals
    dtypes = [x.dtype for x in found if hasattr(x, "dtype")]
    inexact = [x for x in dtypes if jnp.issubdtype(x, jnp.inexact)]
    return max(map(relative_rounding, inexact), default=0.0)


def _bits(leaf: Any) -> tuple[str, np.ndarray]:
    """The array of a leaf, and of keys the name of their generator."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return "", np.asarray(leaf)
    return str(jax.random.key_impl(leaf)), np.asarray(jax.random.key_data(leaf))


def _sums(flat: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray, bytes]:
    """Weighted sums, those of absolute values, and a digest of non-finite entries.

    Every number has a weight of its own, so that numbers that change places show.
    """
    if jnp.issubdtype(flat.dtype, jnp.complexfloating):
        flat = np.stack([np.real(flat), np.imag(flat)], axis=1).ravel()
    count = min(flat.size, room)
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
