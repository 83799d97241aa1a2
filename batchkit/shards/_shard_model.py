"""The model of a run of shards, and the programs of their chains.

Every pair of a shard and a chain is one task of the batcher. The density of a task is
that of its shard: `logprior / shards + loglikelihood of its rows`, so that the product
over shards is the posterior.

Where the batcher spreads tasks over devices, each task is passed its own rows, and a
device holds those of its tasks alone. Elsewhere there is one copy of the data, and a
task looks its rows up inside the density: lanes of `Continuous` then carry the index of
a shard from one pause to the next, and not its rows.

The programs are those of `run_chains`, with `fold_in(rng_key, try)` as the key of the
run, and `shard * chains + chain` as the index of the chain, whichever shards run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import jax
import numpy as np
from jaxtyping import Int, PyTree

from ..batchers import AbstractBatcher, Sharded, expensive
from ..chains._chain_programs import Chains, Samplers
from ..chains._sampler import Sampler, sampler_of_api
from ..run._program import Program, ProgramCache
from ..run._trees import to_host
from ._row_split import check_logprior, split_table, sum_over_rows, take_rows
from ._sampling_plan import SamplingPlan
from ._shard_stats import ShardTry, next_target


@final
class Task(NamedTuple):
    """The operands of one chain of one shard."""

    place: Any  # of the shard among those that run
    is_full: Any  # whether the shard has as many rows as the largest
    target: Any  # the acceptance rate to tune for
    rows: PyTree  # None where all tasks look up one copy of the data


@final
@dataclass(frozen=True)
class ShardedModel:
    """Model, data, starts and settings of all shards.

    - `order`: the order of rows in which shards are contiguous.
    - `starts`: of all chains, arrays of shape `(shards, chains, ...)`.
    - `target`: the acceptance rate to tune for in the first try.
    - `block`: the most draws of a chain in one call, or None.
    - `kept`: the executables of earlier runs of the same functions.
    """

    api: Any
    logprior_fn: Callable[[PyTree], Any]
    loglikelihood_fn: Callable[[PyTree, PyTree], Any]
    settings: dict[str, Any]
    data: PyTree
    order: Int[np.ndarray, " rows"]
    num_shards: int
    starts: PyTree
    plan: SamplingPlan
    rng_key: Any
    target: float
    batcher: AbstractBatcher
    block: int | None
    kept: ProgramCache

    def size(self, shard: int) -> int:
        """Return the number of rows of one shard; the first ones may have one more."""
        full, longer = divmod(len(self.order), self.num_shards)
        return full + (shard < longer)

    def rows(self, shards: list[int]) -> PyTree:
        """Return the rows of shards, as arrays of shape `(shards, rows, ...)`.

        They come in two parts: the rows that all shards have, and the last one that
        only some have, or None.
        """
        tables = split_table(len(self.order), self.num_shards)
        return tuple(
            None if x is None else take_rows(self.data, self.order[x[shards]])
            for x in tables
        )

    @property
    def flat_starts(self) -> PyTree:
        """The starts of all tasks, arrays of shape `(tasks, ...)`."""
        return _flattened(self.starts)

    def sampler(self, logdensity: Callable[[PyTree], Any], target: Any) -> Sampler:
        return sampler_of_api(self.api, logdensity, target, self.settings, "run_shards")

    def chains(self, shards: list[int], tries: Sequence[Sequence[ShardTry]]) -> Chains:
        """Return the programs for the next try of some shards, of all those before."""
        num_chains = self.plan.num_chains
        targets = [next_target(tries[shard], self.target) for shard in shards]
        tasks, shared = self._tasks(shards, num_chains, targets)
        index = np.arange(num_chains) + num_chains * np.array(shards)[:, None]

        def sampler_of(task: Task, shared: PyTree) -> Sampler:
            return self.sampler(self._logdensity(task, shared), task.target)

        return Chains(
            Samplers(sampler_of, index.ravel().astype(np.uint32), tasks, shared),
            jax.random.fold_in(self.rng_key, len(tries[shards[0]])),
            _flattened(jax.tree.map(lambda x: x[shards], self.starts)),
            self.batcher,
            1,
            self.block,
            self.kept,
        )

    def gradients(self, shards: tuple[int, ...]) -> Callable[[PyTree], PyTree]:
        """Return a function to the gradients of the log-density of the rows of shards.

        It maps arrays of shape `(positions, ...)` to arrays of the same shapes.
        """
        tasks, shared = self._tasks(list(shards), 1, [0.0] * len(shards))

        def of_one(positions: PyTree, task: Task, shared: PyTree) -> PyTree:
            # One after the other: all at once would hold the rows as often.
            return jax.lax.map(
                jax.grad(expensive(self._logdensity(task, shared))), positions
            )

        mapped = self.batcher(of_one, (None, 0, None))
        program = Program(mapped, self.kept, "mean gradients")
        operands: tuple[Any, ...] = tasks, shared

        def gradients(positions: PyTree) -> PyTree:
            nonlocal operands
            # The data move to the devices once, in the first call.
            placed = program.placed(positions, *operands)
            operands = placed[1:]
            of_shards = to_host(program(*placed))
            return jax.tree.map(
                lambda x: np.sum(x, axis=0, dtype=np.float64), of_shards
            )

        return gradients

    def _tasks(
        self, shards: list[int], chains: int, targets: list[float]
    ) -> tuple[Task, PyTree]:
        """Return the operands of all tasks, and those that they share."""
        place = np.repeat(np.arange(len(shards), dtype=np.int32), chains)
        longer = len(self.order) % self.num_shards
        is_full = np.array(shards)[place] < longer
        rows, shared = None, self.rows(shards)
        if self._is_spread:
            rows, shared = jax.tree.map(lambda x: x[place], shared), None
        return Task(place, is_full, np.array(targets, np.float32)[place], rows), shared

    @property
    def _is_spread(self) -> bool:
        return isinstance(self.batcher, Sharded)

    def _logdensity(self, task: Task, shared: PyTree) -> Callable[[PyTree], Any]:
        def logdensity(position: PyTree) -> Any:
            if self._is_spread:
                rows, last = task.rows
            else:
                rows, last = jax.tree.map(lambda x: x[task.place], shared)
            logprior = self.logprior_fn(position)
            check_logprior(logprior)
            loglikelihood = sum_over_rows(
                self.loglikelihood_fn, position, rows, last, task.is_full
            )
            return logprior / self.num_shards + loglikelihood

        return logdensity


def _flattened(starts: PyTree) -> PyTree:
    return jax.tree.map(lambda x: np.reshape(x, (-1, *x.shape[2:])), starts)
