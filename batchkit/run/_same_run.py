"""The fingerprint of a run, and its comparison with that of a checkpoint.

A function is identified by its jaxpr for one position, with the values of the data that
it closes over. Neither its name nor its address counts, and nothing of the layout, so
that a run may go on with another batcher, or after a restart.

The jaxpr of an unchanged function is another one in another version of JAX: primitives
get other names and other parameters. And what a script computes before the run, such as
where chains start, may be rounded otherwise. So a digest is compared only between equal
versions, and beside it a `Part` has what can be compared between any two: a setting as
JSON has it, and of arrays a *sketch*, some sums over their numbers that two arrays
share if they differ by rounding alone. A function has neither: it is compared by the
values that a checkpoint holds of it anyway.

Between equal versions all digests must be equal. Otherwise parts whose digests differ
are compared in these ways, and functions by their values: a checkpoint has positions
with the values that the run has computed there, so the functions of now are evaluated
at a few of them. A part that agrees to rounding is the same, and the run goes on; its
provenance has the versions.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from .._util._jaxprs import digest, equations
from ._checkpoint import CheckpointError
from ._packages import (
    Provenance,
    changed_versions,
    provenance_as_saved,
    provenance_from,
    versions,
    versions_in_words,
)
from ._processes import log, run_in_first_process
from ._program import shapes_of
from ._store import Saved


# Sums in one sketch. They show a change of one number of 10^6 in float32.
_SUMS: Final = 4096
_CHUNK: Final = 2**20
_GOLDEN: Final = (math.sqrt(5) - 1) / 2
_OTHER: Final = (
    "To go on with it give what it was started with; to replace it use `fresh=True`; "
    "to keep it choose another path."
)


@final
class Sketch(NamedTuple):
    """Summary of arrays that may differ by rounding, for a comparison."""

    # A digest of structure, shapes, dtypes, integers, booleans and special numbers.
    exact: str
    sums: Float[np.ndarray, " sums"]  # weighted, over floating-point numbers
    rounding: Float[np.ndarray, " sums"]  # the difference that each sum may have


@final
class Part(NamedTuple):
    """One part of the fingerprint of a run."""

    digest: str  # equal for equal parts, if the versions are equal
    words: Any = None  # of a setting, or settings by their names, as JSON has them
    sketch: Callable[[], Sketch] | None = None  # of arrays
    is_function: bool = False  # only values show between versions that it is the same


def digests(parts: Mapping[str, Part]) -> dict[str, str]:
    return {name: part.digest for name, part in parts.items()}


def of_function(fun: Callable[..., Any], *args: Any, words: Any = None) -> Part:
    """Make the fingerprint of a function; `words`, or its values, identify it."""
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
    """Make the fingerprint of values by their `repr`; messages show `shown`."""
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


@final
class Values(NamedTuple):
    """Values of a function at some positions, from a checkpoint and computed now."""

    parts: tuple[str, ...]  # of the fingerprint, of which the function consists
    before: np.ndarray  # of shape `(positions, ...)`, as `now`
    now: np.ndarray
    scale: Any  # what rounding is relative to, which broadcasts to them
    rounding: float  # the difference that is tolerated

    @staticmethod
    def of_logdensity(
        parts: tuple[str, ...], before: Any, now: Any, rounding: float
    ) -> "Values":
        """Make the values of log-densities, whose rounding below one is absolute."""
        before, now = np.asarray(before, np.float64), np.asarray(now, np.float64)
        scale = np.maximum(1.0, np.maximum(np.abs(before), np.abs(now)))
        return Values(parts, before, now, scale, rounding)


# From a checkpoint and the names of parts, the values of as many of them as it has. It
# is called whenever versions differ, and raises if it holds another kind of state.
Compare = Callable[[Saved, Sequence[str]], Sequence[Values]]


@final
class SameRun:
    """Fingerprint of a run, with the versions that computed it."""

    def __init__(
        self,
        parts: Mapping[str, Part],
        compare: Compare | None = None,
        start_of: Callable[[Mapping[str, Any]], int] = lambda header: 0,
    ) -> None:
        """Identify a run by its parts, by their names in words.

        Without `compare` no function is compared between versions. `start_of` returns
        the step or draw from which a run goes on, from the header of a checkpoint.
        """
        self._parts = dict(parts)
        self._compare = compare
        self._start_of = start_of
        self._versions = versions()
        self._before: tuple[Provenance, ...] = ()
        self._next: Provenance | None = None
        # Those of the first checkpoint stay, so that rounding does not add up.
        self._sketches: dict[str, Sketch] = {}

    @property
    def provenance(self) -> tuple[Provenance, ...]:
        """The versions that the run was computed with so far, in their order."""
        return self._before or (Provenance(0, self._versions),)

    def begin(self) -> None:
        """Note that from here on this process computes, with its versions."""
        if self._next is not None:
            self._before, self._next = (*self._before, self._next), None

    def check(self, saved: Saved) -> None:
        """Raise `CheckpointError` if a checkpoint is of another run."""
        header = saved.header
        try:
            written = header.get("provenance") or [[0, dict(header["versions"])]]
            self._before = provenance_from({"provenance": written})
            for name, exact in header.get("sketches", {}).items():
                sums = np.asarray(saved.arrays.get(f"sketches/{name}", np.zeros(0)))
                self._sketches[name] = Sketch(str(exact), sums, np.zeros(0))
            start = self._start_of(header)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{saved.path!r} does not tell what it was computed with ({error!r}).",
                "Choose another path, or start over with `fresh=True`.",
            ) from error
        last = self._before[-1].versions
        saved_digests, own = header.get("identity", {}), digests(self._parts)
        names = dict.fromkeys([*own, *saved_digests])
        differ = [x for x in names if saved_digests.get(x) != own.get(x)]
        changed = changed_versions(last, self._versions)
        if not changed:
            if differ:
                details = self._changed_settings(saved)
                raise CheckpointError(_another(saved.path, differ, details), _OTHER)
            return
        before = versions_in_words(last, changed)
        after = versions_in_words(self._versions, changed)
        different, unknown, details = self._between_versions(saved, differ, before)
        between = f"It was written with {before}; this is {after}."
        if different:
            details = [*self._changed_settings(saved), *details]
            raise CheckpointError(
                f"{_another(saved.path, different, details)} {between}", _OTHER
            )
        if unknown:
            raise CheckpointError(
                f"{saved.path!r} has nothing that tells between versions whether its "
                f"{' and '.join(unknown)} is what was given here. {between}",
                f"Go on with it with {before}, or start over with `fresh=True`.",
            )
        self._next = Provenance(start, self._versions)
        log.warning(
            "%s was written with %s, and this is %s. It is of this run; what follows "
            "agrees with a run of one version to rounding, not to the bit.",
            saved.path,
            before,
            after,
        )

    def to_save(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return header entries and arrays of the fingerprint and the versions."""
        for name, part in self._parts.items():
            if part.sketch is not None and name not in self._sketches:
                self._sketches[name] = part.sketch()
        sketches = self._sketches.items()
        words = {name: x.words for name, x in self._parts.items() if not x.is_function}
        header = {
            "identity": digests(self._parts),
            "words": _as_json(words),
            "sketches": {name: x.exact for name, x in sketches},
            "versions": self._versions,
            "provenance": provenance_as_saved(self.provenance),
        }
        return header, {
            f"sketches/{name}": x.sums for name, x in sketches if x.sums.size
        }

    def _between_versions(
        self, saved: Saved, differ: Sequence[str], before: str
    ) -> tuple[list[str], list[str], list[str]]:
        """Return the parts that differ, those that cannot be compared, and details."""
        different: list[str] = []
        functions: list[str] = []
        unknown: list[str] = []
        details: list[str] = []
        words = saved.header.get("words")
        for name in differ:
            part = self._parts.get(name)
            if part is None or name not in saved.header.get("identity", {}):
                different.append(name)
            elif part.is_function:
                functions.append(name)
            elif words is None:  # An older batchkit kept digests alone.
                unknown.append(name)
            elif part.sketch is None:
                if words.get(name) != _as_json(part.words):
                    different.append(name)
            elif not _agree(self._sketches.get(name), part.sketch()):
                different.append(name)
        values: Sequence[Values] = ()
        if self._compare is not None:
            try:
                values = self._compare(saved, functions)
            except (LookupError, TypeError, ValueError) as error:
                raise CheckpointError(
                    f"{saved.path!r} was written with {before}, and cannot be compared "
                    f"with what was given here: {error}.",
                    f"Go on with it with {before}, or start over with `fresh=True`.",
                ) from error
        compared = {name for each in values for name in each.parts}
        unknown += [name for name in functions if name not in compared]
        for each in values:
            if difference := _difference(each):
                different.append(" or ".join(each.parts))
                details.append(difference)
        # Devices of other processes may round otherwise; all must do the same.
        found = run_in_first_process(
            lambda: [list(dict.fromkeys(different)), unknown, details]
        )
        return found[0], found[1], found[2]

    def _changed_settings(self, saved: Saved) -> list[str]:
        changes: list[str] = []
        words = saved.header.get("words", {})
        for name, part in self._parts.items():
            if name not in words:
                continue
            old, new = words[name], _as_json(part.words)
            if not (isinstance(old, dict) and isinstance(new, dict)):
                old, new = {name: old}, {name: new}
            for key in dict.fromkeys([*old, *new]):
                if old.get(key) != new.get(key):
                    was = f"was {old[key]!r}" if key in old else "was not given"
                    now = f"is {new[key]!r}" if key in new else "is not given"
                    changes.append(f"`{key}` {was}, {now}")
        return changes


def evenly_spaced_indices(count: int, most: int = 8) -> np.ndarray:
    """Return a few of so many indices, evenly spaced from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))


_PLURAL: Final = ("settings", "positions", "first live points")


def _another(path: str, differ: Sequence[str], details: Sequence[str]) -> str:
    verb = "differ" if len(differ) > 1 or differ[0] in _PLURAL else "differs"
    more = f": {'; '.join(details)}." if details else "."
    return (
        f"{path!r} holds another run: its {', '.join(differ)} {verb} from what was "
        f"given here{more}"
    )


def _agree(old: Sketch | None, new: Sketch) -> bool:
    return (
        old is not None
        and old.exact == new.exact
        and old.sums.shape == new.sums.shape
        and bool(np.all(np.abs(old.sums - new.sums) <= new.rounding))
    )


def _difference(values: Values) -> str:
    """Describe where values differ by more than rounding; empty if nowhere."""
    before, now = (np.asarray(x, np.float64) for x in (values.before, values.now))
    with np.errstate(invalid="ignore"):
        close = np.abs(before - now) <= values.rounding * values.scale
    # An infinity is close to everything, and differs from itself by NaN.
    close &= np.isfinite(before) & np.isfinite(now)
    close |= (before == now) | (np.isnan(before) & np.isnan(now))
    if np.all(close):
        return ""
    by_position = np.all(close.reshape(len(close), -1), axis=1)
    first = tuple(np.argwhere(~close)[0])
    return (
        f"at {np.sum(~by_position)} of {len(close)} positions in the file its value is "
        f"another one, by more than {values.rounding:.1g} of it: "
        f"{before[first]:.7g} in the file, {now[first]:.7g} now"
    )


def _as_json(value: Any) -> Any:
    """Convert a value to the form in which a checkpoint returns it."""
    if isinstance(value, Mapping):
        return {str(key): _as_json(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(x) for x in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return json.loads(json.dumps(value))
