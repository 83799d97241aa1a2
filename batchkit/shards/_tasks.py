"""The chains of shards as programs: look at the starts, warm up, sample.

Every pair of a shard and a chain is one task of the batcher. The density of a task is
that of its shard: `logprior / shards + loglikelihood of its rows`, so that the product
over shards is the posterior.

Where the batcher spreads tasks over devices, each task is given its own rows, and a
device holds those of its tasks alone. Elsewhere there is one copy of the data, and a
task looks its rows up inside of the density: lanes of `Continuous` then carry the
number of a shard from one pause to the next, and not its rows.

    chain      = fold_in(fold_in(rng_key, try), index of the task)
    warm-up    = fold_in(chain, 1)
    transition = fold_in(fold_in(chain, 2), number of the transition)
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..batchers import AbstractBatcher, Sharded, expensive
from ..chains._programs import ChainState, Draw, draw_one
from ..chains._sampler import Sampler, sampler_of_api
from ..run._program import Program
from ._rows import sum_over_rows, table_of_parts, take


_WARM: Final = 1
_SAMPLE: Final = 2


@final
class Task(NamedTuple):
    """One chain of one shard."""

    index: Any  # shard * chains + chain, whatever else runs with it
    place: Any  # of the shard among those that run
    is_full: Any  # whether the shard has as many rows as the largest
    target: Any  # the acceptance rate to tune for
    position: PyTree


@final
class Model(NamedTuple):
    """What is sampled, and how."""

    algorithm: Any
    logprior_fn: Callable[[PyTree], Any]
    loglikelihood_fn: Callable[[PyTree, PyTree], Any]
    num_warmup: int
    num_samples: int
    settings: dict[str, Any]


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
        self._data = data
        self._table = order[table_of_parts(len(order), num_shards)]

    def size(self, shard: int) -> int:
        """The number of rows of one shard."""
        return self.full + (shard < self.longer)

    def rows(self, shards: list[int]) -> PyTree:
        """The rows of some shards, arrays of shape `(shards, rows, ...)`."""
        return take(self._data, self._table[shards])


@final
class ShardChains:
    """The programs for the chains of some shards."""

    def __init__(
        self, model: Model, shards: Shards, which: list[int], batcher: AbstractBatcher
    ) -> None:
        """**Arguments:**

        - `model`: what is sampled, and how.
        - `shards`: the rows of all.
        - `which`: the indices of those that run.
        - `batcher`: how chains are laid out.
        """
        self._model = model
        self._shards = shards
        self._which = which
        self._is_spread = isinstance(batcher, Sharded)
        self._rows = shards.rows(which)
        axes = (None, 0, 0 if self._is_spread else None)
        self._start = Program(batcher(self._start_one, axes))
        self._warm = Program(batcher(self._warm_one, axes))
        self._sample = Program(batcher(self._sample_one, (*axes, 0)))
        self._gradient = Program(batcher(self._gradient_one, axes))

    def tasks(self, positions: PyTree, targets: list[float]) -> Task:
        """All tasks.

        **Arguments:**

        - `positions`: where they start, arrays of shape `(shards, chains, ...)`.
        - `targets`: the acceptance rate that each shard is tuned for.
        """
        chains = jax.tree.leaves(positions)[0].shape[1]
        which = np.repeat(np.array(self._which), chains)
        index = which * chains + np.tile(np.arange(chains), len(self._which))
        return Task(
            index.astype(np.uint32),
            np.repeat(np.arange(len(self._which), dtype=np.int32), chains),
            which < self._shards.longer,
            np.repeat(np.array(targets, np.float32), chains),
            jax.tree.map(lambda x: np.reshape(x, (-1, *x.shape[2:])), positions),
        )

    def start(self, key: Any, tasks: Task) -> Any:
        """The log-density and its gradient where each task starts."""
        return self._start(key, tasks, self._rows_of(tasks))

    def run(self, key: Any, tasks: Task) -> tuple[Any, Draw]:
        """What the warm-up found for each task, and its draws, on the host.

        Draws are arrays of shape `(tasks, draws, ...)`.
        """
        rows = self._rows_of(tasks)
        chains = self._warm(key, tasks, rows)
        draws = self._sample(key, tasks, rows, chains)
        return jax.tree.map(np.asarray, (chains.tuned, draws))

    def mean_gradients(self, positions: PyTree) -> list[Any]:
        """The gradients of the log-densities of shards, as means over positions.

        A list of arrays of shape `(shards, ...)`, in the order of the leaves.
        """
        count = len(self._which)
        nowhere = np.zeros((count, 1), np.float32)
        tasks = self.tasks(nowhere, [0.0] * count)
        return jax.tree.leaves(self._gradient(positions, tasks, self._rows_of(tasks)))

    @property
    def seconds(self) -> tuple[float, float, float]:
        """How long it took to compile, to warm up and to sample."""
        programs = (self._start, self._warm, self._sample)
        compiling = sum(program.compile_seconds for program in programs)
        return compiling, self._warm.seconds, self._sample.seconds

    def _rows_of(self, tasks: Task) -> PyTree:
        if not self._is_spread:
            return self._rows
        return jax.tree.map(lambda x: x[tasks.place], self._rows)

    def _logdensity_of(self, task: Task, rows: PyTree) -> Callable[[PyTree], Any]:
        model, shards = self._model, self._shards

        def logdensity(position: PyTree) -> Any:
            mine = rows
            if not self._is_spread:
                mine = jax.tree.map(lambda x: x[task.place], rows)
            loglikelihood = sum_over_rows(
                model.loglikelihood_fn,
                position,
                mine,
                # With no remainder the last row is there in all.
                shards.full,
                task.is_full,
            )
            return model.logprior_fn(position) / shards.count + loglikelihood

        return logdensity

    def _sampler_of(self, task: Task, rows: PyTree) -> Sampler:
        model = self._model
        return sampler_of_api(
            model.algorithm,
            self._logdensity_of(task, rows),
            model.num_warmup,
            task.target,
            model.settings,
        )

    def _start_one(self, key: Any, task: Task, rows: PyTree) -> Any:
        return jax.value_and_grad(self._logdensity_of(task, rows))(task.position)

    def _gradient_one(self, positions: PyTree, task: Task, rows: PyTree) -> PyTree:
        slope = jax.grad(expensive(self._logdensity_of(task, rows)))

        def add(total: PyTree, position: PyTree) -> tuple[PyTree, None]:
            return jax.tree.map(jnp.add, total, slope(position)), None

        # One after the other: all at once would hold the rows as often.
        zero = jax.tree.map(lambda x: jnp.zeros_like(x[0]), positions)
        total, _ = jax.lax.scan(add, zero, positions)
        count = jax.tree.leaves(positions)[0].shape[0]
        return jax.tree.map(lambda x: x / count, total)

    def _warm_one(self, key: Any, task: Task, rows: PyTree) -> ChainState:
        warm = self._sampler_of(task, rows).warm
        assert warm is not None
        return ChainState(*warm(_key(key, task, _WARM), task.position))

    def _sample_one(
        self, key: Any, task: Task, rows: PyTree, chain: ChainState
    ) -> Draw:
        key = _key(key, task, _SAMPLE)
        step = self._sampler_of(task, rows).bind(chain.tuned)

        def draw(state: Any, number: Any) -> tuple[Any, Draw]:
            return draw_one(step, key, state, number, 1)

        numbers = jnp.arange(self._model.num_samples, dtype=jnp.uint32)
        return jax.lax.scan(draw, chain.states, numbers)[1]


def _key(rng_key: Any, task: Task, what: int) -> Any:
    return jax.random.fold_in(jax.random.fold_in(rng_key, task.index), what)
