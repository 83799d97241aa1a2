"""The chains of shards, each of which samples the density of its shard.

Every pair of a shard and a chain is one task of the batcher. The density of a task is
that of its shard: `logprior / shards + loglikelihood of its rows`, so that the product
over shards is the posterior.

Where the batcher spreads tasks over devices, each task is given its own rows, and a
device holds those of its tasks alone. Elsewhere there is one copy of the data, and a
task looks its rows up inside of the density: lanes of `Continuous` then carry the
number of a shard from one pause to the next, and not its rows.

The chains are programs as `run_chains` has them, with `fold_in(rng_key, try)` for the
key of the run, and `shard * chains + chain` for the index of the chain, whatever else
runs with it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, final

import jax
import numpy as np
from jaxtyping import PyTree

from ..batchers import AbstractBatcher, Sharded, expensive
from ..chains._chain_programs import Chains, Samplers
from ..chains._sampler import Sampler, sampler_of_api
from ..run._kept import Kept
from ..run._program import Program
from ..run._trees import to_host
from ._rows import apart, check_logprior, sum_over_rows, table_of_parts, take


@final
class Task(NamedTuple):
    """What one chain of one shard is told, besides the rows."""

    place: Any  # of the shard among those that run
    is_full: Any  # whether the shard has as many rows as the largest
    target: Any  # the acceptance rate to tune for


@final
class Model(NamedTuple):
    """Model, sampler and settings of all shards, with their compiled programs."""

    api: Any
    logprior_fn: Callable[[PyTree], Any]
    loglikelihood_fn: Callable[[PyTree, PyTree], Any]
    num_warmup: int
    num_samples: int
    settings: dict[str, Any]
    kept: Kept

    def sampler(self, logdensity: Callable[[PyTree], Any], target: Any) -> Sampler:
        """What a chain with some density does."""
        return sampler_of_api(self.api, logdensity, target, self.settings, "run_shards")


@final
class Shards:
    """The rows of all shards, on the host."""

    def __init__(self, data: PyTree, order: np.ndarray, num_shards: int) -> None:
        """**Arguments:**

        - `data`: arrays of shape `(rows, ...)`.
        - `order`: the order of rows in which shards are contiguous.
        - `num_shards`: the number of shards.
        """
        self.count = num_shards
        self.full, self.longer = divmod(len(order), num_shards)
        self.data = data
        self._table = order[table_of_parts(len(order), num_shards)]

    def size(self, shard: int) -> int:
        """The number of rows of one shard."""
        return self.full + (shard < self.longer)

    def rows(self, shards: list[int]) -> PyTree:
        """The rows of some shards, arrays of shape `(shards, rows, ...)`."""
        return take(self.data, self._table[shards])


@final
class ShardTasks:
    """The chains of some shards, and what each of them has."""

    def __init__(
        self,
        model: Model,
        shards: Shards,
        which: list[int],
        chains: int,
        batcher: AbstractBatcher,
        targets: list[float] | None = None,
    ) -> None:
        """**Arguments:**

        - `model`: what is sampled, and how.
        - `shards`: the rows of all.
        - `which`: the indices of those that run.
        - `chains`: how many chains each of them has.
        - `batcher`: how chains are laid out.
        - `targets`: the acceptance rate that each shard is tuned for; None where
            nothing is tuned.
        """
        self._model = model
        self._shards = shards
        self._batcher = batcher
        self._is_spread = isinstance(batcher, Sharded)
        shard = np.repeat(np.array(which), chains)
        place = np.repeat(np.arange(len(which), dtype=np.int32), chains)
        tuned_for = np.array(targets or [0.0] * len(which), np.float32)
        self._index = (shard * chains + np.tile(np.arange(chains), len(which))).astype(
            np.uint32
        )
        task = Task(place, shard < shards.longer, np.repeat(tuned_for, chains))
        rows = apart(shards.rows(which), shards.full)
        if self._is_spread:
            self._own, self._shared = (task, take(rows, place)), None
        else:
            self._own, self._shared = (task, None), rows

    def chains(self, rng_key: Any, positions: PyTree, block: int | None) -> Chains:
        """The programs.

        **Arguments:**

        - `rng_key`: the key of the try.
        - `positions`: where tasks start, arrays of shape `(shards, chains, ...)`.
        - `block`: see `Chains`.
        """

        def sampler_of(own: PyTree, shared: PyTree) -> Sampler:
            return self._model.sampler(self._logdensity(own, shared), own[0].target)

        starts = jax.tree.map(lambda x: np.reshape(x, (-1, *x.shape[2:])), positions)
        samplers = Samplers(sampler_of, self._index, self._own, self._shared)
        kept = self._model.kept
        return Chains(samplers, rng_key, starts, self._batcher, 1, block, kept)

    def gradients(self) -> Callable[[PyTree], Any]:
        """A function to the gradients of the log-densities of all tasks.

        From arrays of shape `(positions, ...)` to arrays of shape
        `(tasks, positions, ...)`, on the host.
        """

        def of_one(positions: PyTree, own: PyTree, shared: PyTree) -> PyTree:
            # One after the other: all at once would hold the rows as often.
            return jax.lax.map(
                jax.grad(expensive(self._logdensity(own, shared))), positions
            )

        means = self._batcher(of_one, (None, 0, None))
        program = Program(means, self._model.kept, "mean gradients")
        known: tuple[Any, ...] = self._own, self._shared

        def gradients(positions: PyTree) -> Any:
            nonlocal known
            placed = program.placed(positions, *known)
            known = placed[1:]
            return to_host(program(*placed))

        return gradients

    def _logdensity(self, own: PyTree, shared: PyTree) -> Callable[[PyTree], Any]:
        model, shards = self._model, self._shards
        task, rows = own

        def logdensity(position: PyTree) -> Any:
            mine = rows
            if not self._is_spread:
                mine = jax.tree.map(lambda x: x[task.place], shared)
            logprior = model.logprior_fn(position)
            check_logprior(logprior)
            loglikelihood = sum_over_rows(
                model.loglikelihood_fn, position, mine[0], mine[1], task.is_full
            )
            return logprior / shards.count + loglikelihood

        return logdensity
