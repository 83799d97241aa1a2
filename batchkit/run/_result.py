"""The abstract result of a run: its table, its summary, its file, and its ArviZ form.

A kind of result defines the lines of its table, its summary, the values of its file,
and how to make the result from these values. All else is here once.

The file is that of a checkpoint, see `_file.py`. Its header has the kind of the result,
the format, and the versions that wrote it. `values` in the header is the structure of
all values, see `_trees.py`; their arrays are in the groups of `arrays`.

ArviZ 1.0 works on the `DataTree` of xarray. Before, it had an `InferenceData` of its
own, and its functions do not take a `DataTree`. Both have the same groups, found by the
same names, so a result becomes whichever the installed ArviZ works on.
"""

import abc
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NamedTuple, TypeVar, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._util._formats import html_table, table
from ._checkpoint import CheckpointError
from ._file import read_file, understood, write_file
from ._names import leaves
from ._over_draws import Transform
from ._packages import (
    Provenance,
    extra,
    provenance_as_saved,
    provenance_from,
    provenance_rows,
    versions,
)
from ._summary import QUANTILES, Summary
from ._trees import record_from, shaped_like, tree_from_json, tree_to_json


FORMAT: Final = 1

# For errors: the remedy that needs no file.
AGAIN: Final = "make the run again"
# `kind` in the headers of a result and of a checkpoint that is read as one, by class.
_KINDS: Final = {
    "NestedRun": ("result of a nested run", "nested run"),
    "ChainRun": ("result of chains", "run of chains"),
    "ShardRun": ("result of shards", None),
}

Header = dict[str, Any]
Arrays = dict[str, Any]
# `typing.Self` has no meaning to a checker of types that sees one function at a time.
_AnyResult = TypeVar("_AnyResult", bound="AbstractResult")


@final
class Seconds(NamedTuple):
    """How long a run took: to compile, to warm up, to sample, and to be diagnosed.

    `diagnostics` is the time for R-hat, the effective sample sizes and the warnings of
    chains. What a run has not is 0, such as the warm-up of a nested run.

    ```python
    import batchkit as bk
    from batchkit.run import Seconds

    assert sum(Seconds(compile=1.5, warmup=2.0, sampling=20.0)) == 23.5
    ```
    """

    compile: float = 0.0
    warmup: float = 0.0
    sampling: float = 0.0
    diagnostics: float = 0.0


@final
@dataclass(frozen=True)
class Diagnostic:
    """A reason to doubt the result of a run, and what to do about it.

    - `name`: the quantity that was checked.
    - `value`: its value.
    - `threshold`: the last value without a warning.
    - `message`: what it means and what to do.

    ```python
    import batchkit as bk
    from batchkit.run import Diagnostic

    found = Diagnostic("R-hat", 1.2, 1.01, "the chains disagree. Run them longer.")
    assert found.value > found.threshold
    assert str(found) == "R-hat: the chains disagree. Run them longer."
    ```
    """

    name: str
    value: float
    threshold: float
    message: str

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


def diagnostics_as_saved(warnings: Iterable[Diagnostic]) -> list[list[Any]]:
    """Return warnings as lists of their fields, the form in result files."""
    return [[x.name, float(x.value), float(x.threshold), x.message] for x in warnings]


def datatree(
    groups: Mapping[str, tuple[tuple[str, ...], PyTree]], seconds: float, caller: str
) -> Any:
    """Return an `xarray.DataTree`, or an `arviz.InferenceData` before ArviZ 1.0.

    `groups` has the names of the first axes and a pytree of arrays for each group,
    `seconds` is the time for sampling, and `caller` the public function, for messages.
    """
    found = {name: _variables(*group, caller) for name, group in groups.items()}
    arviz = extra("arviz", "arviz", caller)
    xarray = extra("xarray", "arviz", caller)
    attrs = {
        "inference_library": "batchkit",
        "inference_library_version": versions()["batchkit"],
        "sampling_time": seconds,
    }
    datasets = {
        name: xarray.Dataset(
            group,
            coords={
                dim: np.arange(size)
                for dims, array in group.values()
                for dim, size in zip(dims, array.shape, strict=True)
            },
            attrs=attrs,
        )
        for name, group in found.items()
    }
    # ArviZ 1.0 warns about the old name in its `__getattr__`, so this looks in `vars`.
    kind = vars(arviz).get("InferenceData", xarray.DataTree)
    if kind is not xarray.DataTree:
        return kind(attrs=attrs, **datasets)
    tree = xarray.DataTree.from_dict(datasets)
    tree.attrs.update(attrs)
    return tree


def _variables(
    dims: tuple[str, ...], tree: PyTree, caller: str
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Return each array by name, with names of its axes: `dims` and `NAME_dim_0`."""
    found = {}
    for name, array in leaves(tree):
        name = name.replace("/", "_")
        if name in found or name in dims:
            other = "an axis" if name in dims else "another parameter"
            raise ValueError(
                f"{caller}: the parameter {name!r} has the name of {other}. Make a "
                "result whose positions have other names."
            )
        # Other packages do not read narrow types such as bfloat16.
        if array.dtype.isbuiltin == 2:
            is_float = jnp.issubdtype(array.dtype, jnp.floating)
            array = array.astype(np.float32 if is_float else np.int32)
        more = (f"{name}_dim_{i}" for i in range(array.ndim - len(dims)))
        found[name] = ((*dims, *more), array)
    return found


def _values_in(path: str, kind: str, header: Header, arrays: Arrays) -> dict[str, Any]:
    """Return the values of a result by name; raise if the file holds something else."""
    what = header.get("kind")
    if what != _KINDS[kind][0]:
        raise CheckpointError(*_other_kind(path, kind, what))
    if header["result_format"] > FORMAT:
        raise CheckpointError(
            f"{path!r} holds a result in format {header['result_format']}, and "
            f"this batchkit reads formats up to {FORMAT}.",
            f"Use the batchkit that wrote it, {header['versions']['batchkit']}, or "
            "a newer one.",
        )
    values = {
        str(name): tree_from_json(x, arrays) for name, x in header["values"].items()
    }
    if arrays:
        raise ValueError(f"it has an array {min(arrays)!r} that is of no value")
    return values


def _other_kind(path: str, kind: str, what: Any) -> tuple[str, str]:
    for name, kinds in _KINDS.items():
        if what is not None and what in kinds:
            return (
                f"{path!r} holds a {what}, and not a {kind}.",
                f"Load it with `{name}.load`.",
            )
    return (
        f"{path!r} is a checkpoint, from which a run goes on, and no result.",
        "Go on with the run by `checkpoint=`, and keep what it returns.",
    )


def _check_replaceable(path: str) -> None:
    remedy = "Choose another path, or move this file away."
    try:
        header, _ = read_file(path, AGAIN)
    except CheckpointError as error:
        raise CheckpointError(
            f"Cannot replace what is there: {error.reason}", remedy, error.damaged
        ) from error
    if header.get("kind") not in {kind for kind, _ in _KINDS.values()}:
        raise CheckpointError(
            f"Cannot replace {path!r}: it is a checkpoint, from which a run goes on.",
            remedy,
        )


def saved_names(header: Header, caller: str, *parts: str) -> dict[str, Any]:
    """Return the names of arrays in a checkpoint; raise if those of a part lack."""
    names = header.get("result")
    if names is None or None in [names[part] for part in parts]:
        raise ValueError(
            "it is a checkpoint without the names of parameters; call "
            f"{caller} with checkpoint= to have its result"
        )
    return names


class AbstractResult(abc.ABC):
    """The result of a run, which prints as a table and goes to a file and back."""

    warnings: tuple[Diagnostic, ...]
    provenance: tuple[Provenance, ...]

    _title: ClassVar[str]
    # The values of a file that have the structure of positions, and those that are
    # lists of the values of other results, which have such positions too.
    _positions: ClassVar[tuple[str, ...]]
    _inner: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def _values(self) -> dict[str, Any]:
        """Return what a file holds, by name, but for the provenance."""

    @classmethod
    @abc.abstractmethod
    def _from_values(cls: type[_AnyResult], values: dict[str, Any]) -> _AnyResult:
        """Make the result from values of a file, or raise an error."""

    @staticmethod
    @abc.abstractmethod
    def _read_checkpoint(header: Header, arrays: Arrays) -> dict[str, Any]:
        """Return the values of the checkpoint of such a run."""

    @abc.abstractmethod
    def _rows(self) -> list[tuple[str, str]]:
        """Return the lines of the printed table, before provenance and warnings."""

    @abc.abstractmethod
    def _summary(self, quantiles: Sequence[float], transform: Transform) -> Summary:
        """Return the table of `summary`."""

    def summary(
        self,
        *,
        quantiles: Sequence[float] = QUANTILES,
        transform: Callable[[PyTree], PyTree] | None = None,
    ) -> Summary:
        """Return a table of the parameters: mean, deviation and quantiles.

        Of chains and of shards, it also has R-hat and effective sample sizes.

        ```python
        import jax.numpy as jnp
        import numpy as np
        import batchkit as bk

        draws = np.random.default_rng(0).normal(size=(4, 1000))
        run = bk.ChainRun({"log_mass": draws})
        found = run.summary(
            quantiles=(0.16, 0.84), transform=lambda p: {"mass": jnp.exp(p["log_mass"])}
        )
        assert abs(found["mass"]["84 %"] - np.exp(0.994)) < 0.3
        ```

        **Arguments:**

        - `quantiles`: the ones to show, between 0 and 1; 0.05, 0.5 and 0.95 by default.
        - `transform`: a function from one position to what is shown in its place, such
            as the parameters whose logarithms were sampled. It is mapped over draws, or
            over the points of a nested run, in chunks. By default positions are shown
            as they are.

        **Returns:**

        A `batchkit.run.Summary`, which prints as a table and has `to_dataframe` and
        `to_latex`.

        **Raises:**

        `TypeError` or `ValueError` if `quantiles` are no numbers between 0 and 1;
        `TypeError` if `transform` does not return real numbers.
        """
        return self._summary(quantiles, transform)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the run to a file, from which `load` makes it again, bit for bit.

        It is an HDF5 file without pickles, which any reader of HDF5 can read: the
        arrays are in `arrays`, such as `arrays/samples/mass` of chains and shards (of
        each shard in `arrays/shards`), and `arrays/positions/mass` and `arrays/weights`
        of a nested run; the rest is JSON in `header`. Another result at that path is
        replaced whole or not at all; any other file stays.

        ```python
        import os
        import tempfile
        import numpy as np
        import batchkit as bk

        run = bk.ChainRun({"x": np.random.default_rng(0).normal(size=(4, 100))})
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "result.h5")
            run.save(path)
            again = bk.ChainRun.load(path)
        assert np.all(again.samples["x"] == run.samples["x"])
        ```

        **Arguments:**

        - `path`: the file, in a folder that exists.

        **Raises:**

        `CheckpointError` if the file cannot be written, or is no result of batchkit;
        `TypeError` if positions hold anything but numbers. Of settings that are neither
        numbers, text nor arrays, the text is saved.
        """
        values = self._all_values()
        path = os.fspath(path)
        if os.path.exists(path):
            _check_replaceable(path)
        arrays: Arrays = {}
        structure = {name: tree_to_json(name, x, arrays) for name, x in values.items()}
        header = {
            "kind": _KINDS[type(self).__name__][0],
            "result_format": FORMAT,
            "versions": versions(),
            "values": structure,
        }
        write_file(path, header, arrays)

    @classmethod
    def load(
        cls: type[_AnyResult],
        path: str | os.PathLike[str],
        *,
        like: PyTree | None = None,
    ) -> _AnyResult:
        """Read a run that `save` wrote, or the checkpoint of a nested run or of chains.

        A checkpoint of a run that has not ended gives the result so far. Of a nested
        run, this is the result of the points that had died and those that were alive;
        its `converged` is False and `warnings` is empty. Of chains, it has the draws
        that were saved. A checkpoint of `run_shards` is not read: to combine the draws
        of shards takes the user's functions. Call `run_shards` again, which returns the
        result of a finished run without sampling.

        **Arguments:**

        - `path`: the file.
        - `like`: a position with the structure to have; only the structure counts. By
            default dicts, lists and tuples are what they were, and in place of a class,
            such as a NamedTuple, there is a dict of its fields: a file holds no code.

        **Returns:**

        The run, with the bits and dtypes that it had. Warnings of chains are looked for
        anew; those of nested runs and of shards are read.

        **Raises:**

        `CheckpointError` if there is no file, if it is damaged, from elsewhere, of
        another kind, or in a newer format; `ValueError` if `like` has other names.
        """
        path, kind = os.fspath(path), cls.__name__
        header, arrays = read_file(path, AGAIN)
        what = header.get("kind")
        with understood(path, AGAIN):
            if what is not None and what == _KINDS[kind][1]:
                values = cls._read_checkpoint(header, arrays)
            else:
                values = _values_in(path, kind, header, arrays)
            results = [values]
            for name in cls._inner:
                results += record_from(values, name, list[dict])
            for each in results:
                each["provenance"] = provenance_from(each)
            positions = [(x, name) for x in results for name in cls._positions]
            for each, name in positions:
                leaves = jax.tree.leaves(each[name])
                if not leaves or any(type(x) is not np.ndarray for x in leaves):
                    raise ValueError(f"its {name} are no arrays")
        # A mistake in `like` is not one in the file.
        if like is not None:
            for each, name in positions:
                each[name] = shaped_like(f"{cls.__name__}.load", like, each[name])
        with understood(path, AGAIN):
            return cls._from_values(values)

    def _all_values(self) -> dict[str, Any]:
        provenance = provenance_as_saved(self.provenance)
        return {**self._values(), "provenance": provenance}

    def __repr__(self) -> str:
        return table((self._title, ""), self._all_rows())

    def _repr_html_(self) -> str:
        return html_table((self._title, ""), self._all_rows())

    def _all_rows(self) -> list[tuple[str, str]]:
        warnings = (("warning", str(warning)) for warning in self.warnings)
        return [*self._rows(), *provenance_rows(self.provenance), *warnings]
