"""The abstract result of a run: its table, its summary, and its file.

A kind of result defines the lines of its table, its summary, the values of its file,
and how to make the result from these values. All else is here once.
"""

import abc
import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, Self, TypeVar

import jax
import numpy as np
from jaxtyping import PyTree

from .._util._table import html_table, table
from ._diagnostic import Diagnostic
from ._environment import (
    Provenance,
    provenance_as_saved,
    provenance_from,
    provenance_rows,
)
from ._file import understood
from ._over_draws import Transform
from ._result_file import AGAIN, Arrays, Header, read_result, write_result
from ._summary import QUANTILES, AbstractSummary
from ._trees import shaped_like


AnySummary = TypeVar("AnySummary", bound=AbstractSummary)


class AbstractResult(abc.ABC, Generic[AnySummary]):
    """The result of a run, which prints as a table and goes to a file and back."""

    warnings: tuple[Diagnostic, ...]
    provenance: tuple[Provenance, ...]

    _title: ClassVar[str]
    # The values of a file that have the structure of positions.
    _positions: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def _values(self) -> dict[str, Any]:
        """Return what a file holds, by name, but for the provenance."""

    @classmethod
    @abc.abstractmethod
    def _from_values(cls, values: dict[str, Any]) -> Self:
        """Make the result from values of a file, or raise an error."""

    @staticmethod
    @abc.abstractmethod
    def _read_checkpoint(header: Header, arrays: Arrays) -> dict[str, Any] | None:
        """Return the values of a checkpoint; None if it is not one of such a run."""

    @abc.abstractmethod
    def _rows(self) -> list[tuple[str, str]]:
        """Return the lines of the printed table, before provenance and warnings."""

    @abc.abstractmethod
    def _summary(self, quantiles: Sequence[float], transform: Transform) -> AnySummary:
        """Return the table of `summary`."""

    def summary(
        self,
        *,
        quantiles: Sequence[float] = QUANTILES,
        transform: Callable[[PyTree], PyTree] | None = None,
    ) -> AnySummary:
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

        A `Summary` of a nested run, a `ChainSummary` of chains and of shards. It prints
        as a table and has `to_dataframe` and `to_latex`.

        **Raises:**

        `TypeError` or `ValueError` if `quantiles` are no numbers between 0 and 1;
        `TypeError` if `transform` does not return real numbers.
        """
        return self._summary(quantiles, transform)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the run to a file, from which `load` makes it again, bit for bit.

        It is an HDF5 file without pickles, which any reader of HDF5 can read: the
        arrays are in `arrays`, such as `arrays/samples/mass` of chains and shards, and
        `arrays/positions/mass` and `arrays/weights` of a nested run; the rest is JSON
        in `header`. Another result at that path is replaced whole or not at all; any
        other file stays.

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
        provenance = provenance_as_saved(self.provenance)
        values = {**self._values(), "provenance": provenance}
        write_result(path, type(self).__name__, values)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, like: PyTree | None = None) -> Self:
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
        path = os.fspath(path)
        values = read_result(path, cls.__name__, cls._read_checkpoint)
        with understood(path, AGAIN):
            values["provenance"] = provenance_from(values)
            for name in cls._positions:
                leaves = jax.tree.leaves(values[name])
                if not leaves or any(type(x) is not np.ndarray for x in leaves):
                    raise ValueError(f"its {name} are no arrays")
        # A mistake in `like` is not one in the file.
        if like is not None:
            for name in cls._positions:
                values[name] = shaped_like(f"{cls.__name__}.load", like, values[name])
        with understood(path, AGAIN):
            return cls._from_values(values)

    def __repr__(self) -> str:
        return table((self._title, ""), self._all_rows())

    def _repr_html_(self) -> str:
        return html_table((self._title, ""), self._all_rows())

    def _all_rows(self) -> list[tuple[str, str]]:
        warnings = (("warning", str(warning)) for warning in self.warnings)
        return [*self._rows(), *provenance_rows(self.provenance), *warnings]
