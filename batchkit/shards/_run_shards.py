"""`run_shards`: one posterior from shards of the data, each with chains of its own."""

import contextlib
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import jax
import numpy as np
from jaxtyping import PyTree

from ..batchers import AbstractBatcher, Vmap
from ..chains._blocks import keeps_places
from ..run._arguments import check_count
from ..run._checkpoint import Checkpoint
from ..run._environment import Provenance
from ..run._extras import delayed
from ..run._fingerprint import digests
from ..run._kept import kept_for
from ..run._processes import check_same, explaining_loss, on_host, several
from ..run._progress import Reporter, check_progress
from ..run._saving import Saver, check_fresh, checkpoint_from
from ._arguments import (
    chains_of,
    check_ending,
    check_lengths,
    check_settings,
    check_shards,
    check_strata,
    plan_for,
    starts_of,
)
from ._combine import way_to_combine
from ._failure import ShardFailure
from ._identity import about, identity_of, start_of, values_of
from ._plan import SamplingPlan
from ._rounds import Rounds
from ._rows import check_functions, count_rows
from ._shard_run import ShardRun
from ._split import generator, order_of_rows
from ._starts import check_additive
from ._stats import stats_of
from ._tasks import Model, Shards
from ._tries import Known, failed


_VMAP: Final = Vmap()
# What is random besides the chains, whose keys are folded with the number of a try.
_SPLIT: Final = 2**31
_STARTS: Final = 2**31 + 1
_COMBINE: Final = 2**31 + 2


def run_shards(
    logprior_fn: Callable[[PyTree], Any],
    loglikelihood_fn: Callable[[PyTree, PyTree], Any],
    data: PyTree,
    rng_key: Any,
    positions: PyTree = None,
    *,
    num_shards: int,
    prior_sample_fn: Callable[[Any], PyTree] | None = None,
    api: Any = None,
    batcher: AbstractBatcher = _VMAP,
    num_chains: int | None = None,
    num_warmup: int | None = None,
    num_samples: int | None = None,
    plan: SamplingPlan | None = None,
    combine: str = "consensus",
    strata: Any = None,
    target_acceptance: float = 0.8,
    max_tries: int = 3,
    on_failure: str = "raise",
    refine: bool = True,
    checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    fresh: bool = False,
    progress: bool | Callable[[Any], object] = True,
    block: int | None = None,
    profile: str | Path | None = None,
    **settings: Any,
) -> ShardRun:
    """Samples the posterior of each shard of the data, and combines the draws.

    The posterior is the product of those of the shards, each with the prior to the
    power `1 / num_shards`. Chains of different shards know nothing of each other: every
    pair of a shard and a chain is a task of the batcher. What comes out is an
    approximation; where the data fit on all devices together, use
    [`sharded_logdensity`][batchkit.sharded_logdensity], which is exact.

    Hierarchical models are a limit: where the rows of a group lie in several shards,
    parameters of groups are far from Gaussian in each, and the combined draws may be
    off by several standard deviations. Whether means and widths are right is checked by
    the gradient of all data, see [`GradientCheck`][batchkit.shards.GradientCheck]. No
    check sees a mode that no chain has visited.

    A shard whose draws are not finite, or of whose transitions more than 5 % diverged
    (10 % after the first try), runs again, without the others, with other random
    numbers; after divergences its acceptance rate is tuned for 0.05 more, up to 0.95.
    Several processes (`jax.distributed`) call it together with the same arguments, and
    each gets the whole result; the first one has the checkpoint, shows progress and
    logs.

    ```python
    import jax
    import jax.numpy as jnp
    import numpy as np
    import batchkit as bk

    x = np.random.default_rng(0).normal(3.0, 1.0, 2001)
    run = bk.run_shards(
        lambda mean: -0.5 * mean**2 / 100,
        lambda mean, rows: -0.5 * jnp.sum((rows - mean) ** 2),
        x,
        jax.random.key(0),
        jnp.array([2.0, 2.5, 3.5, 4.0]),
        num_shards=4,
        batcher=bk.Chunked(8),
    )
    print(run.report())
    row = run.summary()["x"]
    assert abs(row["mean"] - np.mean(x)) < 0.3 * 2001**-0.5
    assert abs(row["std"] / 2001**-0.5 - 1) < 0.15
    ```

    **Arguments:**

    - `logprior_fn`: a function from parameters to a scalar.
    - `loglikelihood_fn`: a function of parameters and rows to a scalar. `rows` is
        shaped like the data, with any number of rows; the result is a sum over them.
    - `data`: a pytree of arrays of shape `(rows, ...)`, of NumPy or JAX.
    - `rng_key`: a key of JAX.
    - `positions`: where the chains of every shard start, a pytree of arrays of shape
        `(chains, ...)`; None by default.
    - `num_shards`: into how many parts the rows are split, at least 1. Their sizes
        differ by one at most.
    - `prior_sample_fn`: in place of `positions` a function from a key to one position,
        from which every chain starts elsewhere, so that several modes are found; None
        by default.
    - `api`: an API that Stan's warm-up is for; `blackjax.nuts` by default.
    - `batcher`: how the chains of all shards are laid out; all at once by default.
        `Chunked` and `Continuous` look rows up in one copy of the data, and hold those
        of as many shards as there are lanes besides. `Sharded` gives each device the
        rows of its tasks alone, once for each chain.
    - `num_chains`: chains of each shard; those of the plan, or 4, by default.
    - `num_warmup`, `num_samples`: the transitions of the warm-up and the draws of each
        chain; by default those of
        `SamplingPlan.from_shard(rows of the largest shard, parameters)`.
    - `plan`: a [`SamplingPlan`][batchkit.SamplingPlan] in place of both, and of
        `num_chains`; None by default.
    - `combine`: `"consensus"`, the default, `"robust"` or `"kde"`: see
        [`combine_shards`][batchkit.combine_shards].
    - `strata`: a label for each row; every shard gets its part of each stratum. None,
        the default, splits at random.
    - `target_acceptance`: the acceptance rate that the warm-up tunes the step size for,
        between 0 and 1; 0.8 by default.
    - `max_tries`: how often a shard runs at most; 3 by default.
    - `on_failure`: what happens if no try of a shard succeeds: `"raise"`, the default,
        or `"drop"`, which goes on without its rows.
    - `refine`: whether the combined draws are moved, all by the same, to where the mean
        gradient of the log-density of all rows over them is zero, as it is over draws
        of the posterior; True by default. It corrects the mean, which combining alone
        puts a good part of a standard deviation off, more with more shards. It takes
        200 gradients of all rows a step, mostly two to four steps; False takes 400 in
        all, by which means and widths are checked.
    - `checkpoint`: a path, or a `Checkpoint`, where the run is saved now and then, and
        from where it goes on if the file exists: with the shards that succeeded, and in
        the middle of the chains of those that were running. A finished run combines its
        draws again, with `combine`, `refine` and `on_failure` as they are now; with a
        larger `max_tries`, shards that failed run again. By default it is not saved.
    - `fresh`: whether to start over where there is a file; False by default. The old
        one is kept as the previous generation, until the second save.
    - `progress`: whether to show a bar in terminals and notebooks, and lines in the log
        of `batchkit` elsewhere; True by default. A function is called after every block
        of draws with a `batchkit.shards.ShardProgress` instead.
    - `block`: the most draws of a chain that are made at a time, as in
        [`run_chains`][batchkit.run_chains].
    - `profile`: a directory for a trace of `jax.profiler`; none by default.
    - `**settings`: what else the warm-up and the sampler take, as in
        [`run_chains`][batchkit.run_chains].

    **Returns:**

    A `ShardRun`: the combined draws, those of each shard, statistics and tries of each
    shard, warnings, and a report.

    **Raises:**

    Before anything is compiled: `TypeError` or `ValueError` for arguments that cannot
    be right, `StartError` for positions that are not finite. Before the warm-up:
    `StartError` if a log-density, or its gradient, is not finite where a chain starts.
    `ShardFailure` if no try of a shard succeeds, unless shards may be dropped, and if
    all fail. `CheckpointError` if the file is of another run, is damaged, or cannot be
    written. `KeyboardInterrupt` after Ctrl-C, with a checkpoint once the run is saved.
    """
    check_functions(
        "run_shards", logprior_fn=logprior_fn, loglikelihood_fn=loglikelihood_fn
    )
    rows = count_rows("run_shards", data)
    count = check_shards(num_shards, rows)
    if api is None:
        api = delayed("blackjax").nuts
    check_settings(api, batcher, rng_key, target_acceptance, on_failure)
    check_strata(strata, rows)
    check_count("run_shards", "max_tries", max_tries)
    check_ending(refine, profile)
    way_to_combine(combine)
    chains = chains_of(num_chains, plan)
    asked = check_lengths(plan, num_warmup=num_warmup, num_samples=num_samples)
    if block is not None:
        check_count("run_shards", "block", block)
    check_fresh(fresh, "run_shards")
    check_progress(progress, "run_shards")
    place = checkpoint_from(checkpoint, "run_shards")
    rng_key, data, positions = on_host((rng_key, data, positions))
    fold = jax.random.fold_in
    starts = starts_of(
        positions, prior_sample_fn, fold(rng_key, _STARTS), count, chains
    )
    order = order_of_rows(rows, count, strata, generator(fold(rng_key, _SPLIT)))
    shards = Shards(data, order, count)
    if plan is None:
        params = sum(x[0, 0].size for x in jax.tree.leaves(starts))
        plan = plan_for(shards.size(0), params, chains, asked)
    functions = api, logprior_fn, loglikelihood_fn
    kept = kept_for("run_shards", functions, batcher, count, plan.num_warmup, settings)
    model = Model(*functions, plan.num_warmup, plan.num_samples, settings, kept)
    # Refuse settings that the sampler does not take, before anything is traced.
    model.sampler(logprior_fn, 0.8)
    some = jax.tree.map(lambda x: x[0, : shards.full], shards.rows([0]))
    check_additive(loglikelihood_fn, jax.tree.map(lambda x: x[0, 0], starts), some)
    rounds = Rounds(model, shards, batcher, starts, rng_key, target_acceptance, block)
    identity = {}
    if place is not None or several():
        identity = identity_of(rounds, order)
    check_same(
        "run_shards",
        digests(identity),
        batcher=batcher,
        block=block,
        max_tries=max_tries,
        combine=combine,
        on_failure=on_failure,
        refine=refine,
        checkpoint=place is not None,
        fresh=fresh,
    )
    layout = [f"{batcher!r}, {len(jax.devices())} devices"]
    if block is not None and not keeps_places(batcher):
        layout.append(f"blocks of {block} draws")
    key = fold(rng_key, _COMBINE)

    with contextlib.nullcontext() if profile is None else _trace(profile):
        saver = Saver(
            place,
            "run of shards",
            identity,
            compare=values_of(rounds),
            start_of=functools.partial(start_of, rounds),
            layout=layout,
            fresh=fresh,
        )
        with saver, Reporter(progress, "shards", " draws") as reporter:
            known = rounds.run(max_tries, saver, reporter, about(rounds))
        # All is saved, so that from here on Ctrl-C acts at once.
        with explaining_loss("run_shards", saver.path):
            return _result(
                known,
                rounds,
                plan,
                key,
                combine,
                on_failure,
                refine,
                saver.provenance,
            )


def _trace(directory: str | Path) -> Any:
    return jax.profiler.trace(str(directory))


def _result(
    known: Known,
    rounds: Rounds,
    plan: SamplingPlan,
    rng_key: Any,
    combine: str,
    on_failure: str,
    refine: bool,
    provenance: tuple[Provenance, ...],
) -> ShardRun:
    shards, tries, bad = rounds.shards, known.header["shards"], failed(known)
    reasons = {
        shard: f"{_counted(len(tries[shard]))} failed, the last because "
        f"{tries[shard][-1]['reason']}"
        for shard in bad
    }
    if bad and (on_failure == "raise" or len(bad) == shards.count):
        told = "; ".join(f"shard {shard}: {why}" for shard, why in reasons.items())
        drop = " To go on without them pass on_failure='drop'."
        raise ShardFailure(
            f"run_shards: {len(bad)} of {shards.count} shards have failed ({told}). "
            "Raise target_acceptance, use fewer shards, or choose other parameters "
            f"for the same model.{drop if len(bad) < shards.count else ''}",
            bad,
        )
    stats = [
        stats_of(
            shard,
            shards.size(shard),
            plan,
            tries[shard],
            jax.tree.map(lambda x, shard=shard: np.asarray(x)[shard], known.arrays),
        )
        for shard in range(shards.count)
    ]
    samples = known.arrays[1].position
    return ShardRun(
        samples,
        stats,
        rng_key,
        combine,
        reasons,
        rounds.gradients,
        refine,
        provenance=provenance,
    )


def _counted(tries: int) -> str:
    return "1 try" if tries == 1 else f"{tries} tries"
