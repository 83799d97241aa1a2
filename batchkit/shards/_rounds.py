"""Rounds: all shards without accepted draws run together, until each has them.

Every pair of a shard and a chain is one task of the batcher. The density of a task is
that of its shard: `logprior / shards + loglikelihood of its rows`, so that the product
over shards is the posterior.

Where the batcher spreads tasks over devices, each task is passed its own rows, and a
device holds those of its tasks alone. Elsewhere there is one copy of the data, and a
task looks its rows up inside the density: lanes of `Continuous` then carry the index of
a shard from one pause to the next, and not its rows.

The programs are those of `run_chains`, with `fold_in(rng_key, try)` as the key of the
run, and `shard * chains + chain` as the index of the chain, whichever shards run.

The chains of a round are saved as those of `run_chains` are, with the results of the
rounds before beside them. So a run that was killed resumes in the middle of a round,
and one that has ended resumes at the end of its last round.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import jax
import numpy as np
from jaxtyping import Int, PyTree

from ..batchers import AbstractBatcher, Sharded, expensive
from ..chains._chain_loop import CompletedChains, ResumableChains, check_states
from ..chains._chain_programs import Chains, Draw, Samplers, layout_of
from ..chains._sampler import Sampler, Tuned, sampler_of_api
from ..run._checkpoint import CheckpointError
from ..run._file import understood
from ..run._processes import log, run_in_first_process
from ..run._program import Program, ProgramCache
from ..run._resumable import Reporter, complete
from ..run._saving import Saver
from ..run._store import Saved
from ..run._trees import named_arrays, to_host, tree_from_arrays, typed
from ._shard_tries import (
    SamplingPlan,
    ShardTry,
    is_accepted,
    judge_draws,
    next_target,
    tries_as_json,
    tries_from_json,
)
from ._sharded_logdensity import check_logprior, split_table, sum_over_rows, take_rows


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
    """Model, data, starts and settings of all shards."""

    api: Any
    logprior_fn: Callable[[PyTree], Any]
    loglikelihood_fn: Callable[[PyTree, PyTree], Any]
    settings: dict[str, Any]
    data: PyTree
    order: Int[np.ndarray, " rows"]  # in which shards are contiguous
    num_shards: int
    starts: PyTree  # of all chains, of shape `(shards, chains, ...)`
    plan: SamplingPlan
    rng_key: Any
    target: float  # the acceptance rate to tune for in the first try
    batcher: AbstractBatcher
    block: int | None  # the most draws of a chain in one call
    kept: ProgramCache  # of earlier runs of the same functions

    def size(self, shard: int) -> int:
        """Return the number of rows of one shard; the first ones may have one more."""
        full, longer = divmod(len(self.order), self.num_shards)
        return full + (shard < longer)

    def rows(self, shards: list[int]) -> PyTree:
        """Return the rows of shards, in the two parts of `split_table`."""
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
        """Return a function from positions to gradients of the density of shards."""
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


@final
class Results(NamedTuple):
    """All tries of each shard, and the results of the last one; None before the first.

    The arrays are of shape `(shards, chains, ...)` and `(shards, chains, draws, ...)`.
    """

    tries: list[list[ShardTry]]
    arrays: tuple[Tuned, Draw] | None

    def of_shards(self) -> Iterator[CompletedChains]:
        """Return the chains of the last try of each shard."""
        for shard, tries in enumerate(self.tries):
            tuned, draws = jax.tree.map(lambda x, i=shard: x[i], self.arrays)
            yield CompletedChains(draws, tuned, tries[-1].seconds)


def run_rounds(
    model: ShardedModel,
    max_tries: int,
    saver: Saver,
    reporter: Reporter,
    about: Mapping[str, Any],
) -> Results:
    """Run rounds until all shards have accepted draws, or no tries are left."""
    saved = saver.resume()
    results = Results([[] for _ in range(model.num_shards)], None)
    if saved is not None:
        with understood(saved.path):
            tries = tries_in(saved.header, model.num_shards)
        results = Results(tries, None)
        first = saved.header["running"][0]
        if max_tries <= (number := len(tries[first])):
            raise CheckpointError(
                f"{saved.path!r} was saved in try {number + 1} of shard {first}, and "
                f"max_tries={max_tries} asks for fewer.",
                f"Pass max_tries={number + 1} or more, or start over with "
                "`fresh=True`.",
            )
    while shards := [
        shard
        for shard, tries in enumerate(results.tries)
        if len(tries) < max_tries and not is_accepted(tries)
    ]:
        chains = model.chains(shards, results.tries)
        # A shard whose draws are accepted never runs again, so all have as many tries.
        number = len(results.tries[shards[0]])
        plan, layout = model.plan, "; ".join(layout_of(model.batcher, model.block))
        if number > 0:
            log.warning(
                "run_shards: try %d of shards %s, whose draws cannot be used; %s",
                number + 1,
                ", ".join(map(str, shards)),
                layout,
            )
        else:
            log.info(
                f"run_shards: {model.num_shards} shards of {model.size(0)} rows, "
                f"{plan.num_chains} chains of each; {plan.num_warmup} transitions of "
                f"warm-up and {plan.num_samples} draws; {layout}"
            )
        if saved is not None and number > 0:
            results = Results(results.tries, _saved_arrays(model, saved, chains))
        header = {**_header(results.tries), "running": shards}
        saver.keep(header, named_arrays("known", results.arrays))
        made = _run_round(model, number, shards, chains, saved, saver, reporter, about)
        results = _after_round(model, results, shards, made)
        saved = None
    return results


def _run_round(
    model: ShardedModel,
    number: int,
    shards: list[int],
    chains: Chains,
    saved: Saved | None,
    saver: Saver,
    reporter: Reporter,
    about: Mapping[str, Any],
) -> CompletedChains:
    def note(position: PyTree) -> str:
        is_prior = not np.isfinite(float(model.logprior_fn(position)))
        which = "prior" if is_prior else "likelihood of the rows of the shard"
        return f", where the {which} is not finite"

    run = ResumableChains(
        chains,
        model.plan.num_warmup,
        model.plan.num_samples,
        needs_host=saver.is_on or reporter.shows,
        caller="run_shards",
        check_states=functools.partial(
            check_states, "run_shards", shards=shards, note=note
        ),
        shards=shards,
        try_=number,
        about=about,
    )
    complete(run, saved, saver, reporter)
    return run.made


def _after_round(
    model: ShardedModel, before: Results, shards: list[int], made: CompletedChains
) -> Results:
    count = len(shards)
    arrays = jax.tree.map(
        lambda x: x.reshape(count, -1, *x.shape[1:]), (made.tuned, made.draws)
    )
    tries = [list(x) for x in before.tries]
    for place, shard in enumerate(shards):
        number, target = len(tries[shard]), next_target(tries[shard], model.target)
        draws = jax.tree.map(lambda x, place=place: x[place], arrays[1])
        tries[shard].append(judge_draws(number, target, draws, made.seconds))
    # Where each process computes everything, their devices may round in their own
    # ways, and must still run the same shards next.
    header = run_in_first_process(lambda: _header(tries))
    tries = list(map(tries_from_json, header["shards"]))
    if before.arrays is None:
        return Results(tries, arrays)

    def put(old: np.ndarray, new: np.ndarray) -> np.ndarray:
        old = old.copy()  # an array from a device is read-only
        old[shards] = new
        return old

    return Results(tries, jax.tree.map(put, before.arrays, arrays))


def tries_in(header: Mapping[str, Any], num_shards: int) -> list[list[ShardTry]]:
    """Return the tries in the header of a checkpoint, or raise if it is damaged."""
    shards, running = (typed(header, name, list) for name in ("shards", "running"))
    tries = list(map(tries_from_json, shards))
    if len(tries) != num_shards or len({len(tries[i]) for i in running}) != 1:
        raise ValueError(f"its shards are {shards!r}, of which {running!r} run")
    return tries


def draw_at(header: Mapping[str, Any], num_samples: int) -> int:
    """Return the draw that a checkpoint continues from, counted through all tries."""
    number = len(header["shards"][header["running"][0]])
    return number * num_samples + header["at"]


def _header(tries: Sequence[Sequence[ShardTry]]) -> dict[str, Any]:
    return {"shards": list(map(tries_as_json, tries))}


def _saved_arrays(model: ShardedModel, saved: Saved, chains: Chains) -> Any:
    """Return the results of earlier rounds in a checkpoint."""
    first = model.num_shards, model.plan.num_chains

    def of_all(x: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*first, *shape), x.dtype)

    tuned = jax.tree.map(lambda x: of_all(x, *x.shape), chains.tuned_shapes)
    draws = jax.tree.map(
        lambda x: of_all(x, model.plan.num_samples, *x.shape[1:]), chains.draw_shapes
    )
    with understood(saved.path):
        return tree_from_arrays("known", saved.arrays, (tuned, draws))
