"""`run_shards`: one posterior from shards of the data, and the fingerprint of a run."""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, Final, final

import jax
import numpy as np
from jaxtyping import PyTree

from .._util._checks import check_number
from ..batchers import AbstractBatcher, Vmap
from ..chains._chain_identity import (
    about as about_chains,
    identity_of as identity_of_chains,
    stand_in_for,
    values_of as values_of_chains,
)
from ..chains._chain_loop import chain_run
from ..chains._chain_programs import layout_of
from ..chains._sampler import Tuned
from ..hosts import explains_loss
from ..run._arguments import check_acceptance, check_batcher, check_not_traced
from ..run._checkpoint import Checkpoint
from ..run._packages import delayed
from ..run._processes import (
    check_same_arguments,
    gather_to_host,
    is_multiprocess,
)
from ..run._program import program_cache
from ..run._resumable import Reporter
from ..run._same_run import (
    Part,
    Values,
    digests,
    of_arrays,
    of_function,
    rounding_of_function,
)
from ..run._saving import Saver, check_run
from ..run._store import Saved
from ._combine import way_to_combine
from ._rounds import Results, ShardedModel, draw_at, run_rounds, tries_in
from ._shard_arguments import (
    check_additive,
    check_lengths,
    check_options,
    check_split,
    plan_for,
    starts_of,
)
from ._shard_run import ShardRun
from ._shard_tries import SamplingPlan, is_accepted
from ._sharded_logdensity import (
    check_functions,
    count_rows,
    generator,
    order_of_rows,
    take_rows,
)


# Folded into the key of the run; chains fold it with the number of a try.
_SPLIT: Final = 2**31
_STARTS: Final = 2**31 + 1
_COMBINE: Final = 2**31 + 2


@final
class ShardFailure(RuntimeError):
    """No try of some shards has made draws that can be used.

    ```python
    import batchkit as bk

    error = bk.ShardFailure("shard 3 failed", [3])
    assert error.shards == (3,)
    ```
    """

    def __init__(self, message: str, shards: Sequence[int]) -> None:
        """**Arguments:**

        - `message`: what happened and what to do; a text.
        - `shards`: the indices of the shards.
        """
        # Both are arguments of the exception, so that it can be pickled.
        super().__init__(message, tuple(shards))
        self.shards = tuple(shards)

    def __str__(self) -> str:
        return str(self.args[0])


@explains_loss
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
    batcher: AbstractBatcher = Vmap(),
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
    **settings: Any,
) -> ShardRun:
    """Sample the posterior of each shard of the data, and combine the draws.

    The posterior is the product of those of the shards, each with the prior to the
    power `1 / num_shards`. Chains of different shards are independent: every pair of a
    shard and a chain is a task of the batcher. The result is an approximation; where
    the data fit on all devices together, use
    [`sharded_logdensity`][batchkit.sharded_logdensity], which is exact.

    Hierarchical models are a limit: where the rows of a group lie in several shards,
    parameters of groups are far from Gaussian in each, and the combined draws may be
    off by several standard deviations. Means and widths are checked by the gradient of
    all data, see [`GradientCheck`][batchkit.shards.GradientCheck]. No check sees a mode
    that no chain has visited.

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
    print(run)
    row = run.summary()["x"]
    assert abs(row["mean"] - np.mean(x)) < 0.3 * 2001**-0.5
    assert abs(row["std"] / 2001**-0.5 - 1) < 0.15
    ```

    **Arguments:**

    - `logprior_fn`: a function from parameters to a scalar.
    - `loglikelihood_fn`: a function of parameters and rows to a scalar, a sum over
        rows. `rows` is shaped like the data, with any number of rows.
    - `data`: a pytree of arrays of shape `(rows, ...)`, of NumPy or JAX.
    - `rng_key`: a key of JAX.
    - `positions`: where the chains of every shard start, a pytree of arrays of shape
        `(chains, ...)`; None by default.
    - `num_shards`: the number of parts that the rows are split into, at least 1. Their
        sizes differ by one at most.
    - `prior_sample_fn`: in place of `positions` a function from a key to one position,
        so that every chain starts elsewhere, and several modes are found; None by
        default.
    - `api`: an API for Stan's warm-up; `blackjax.nuts` by default.
    - `batcher`: how the chains of all shards are laid out; all at once by default.
        `Chunked` and `Continuous` look rows up in one copy of the data, and hold those
        of as many shards as there are lanes besides. `Sharded` gives each device only
        the rows of its tasks, once for each chain.
    - `num_chains`: chains of each shard; those of the plan, or 4, by default.
    - `num_warmup`, `num_samples`: the transitions of the warm-up and the draws of each
        chain; by default those of
        `SamplingPlan.from_shard(rows of the largest shard, parameters)`.
    - `plan`: a [`SamplingPlan`][batchkit.SamplingPlan] in place of these three; None by
        default.
    - `combine`: `"consensus"`, the default, `"robust"` or `"kde"`: see
        [`combine_shards`][batchkit.combine_shards].
    - `strata`: a label for each row, all numbers or all words; every shard gets its
        part of each stratum. None, the default, splits at random.
    - `target_acceptance`: the acceptance rate that the warm-up tunes the step size for,
        between 0 and 1; 0.8 by default.
    - `max_tries`: how often a shard runs at most; 3 by default.
    - `on_failure`: what happens if no try of a shard succeeds: `"raise"`, the default,
        or `"drop"`, which goes on without its rows.
    - `refine`: whether all combined draws are shifted to where the mean gradient of the
        log-density of all rows over them is zero, as it is over draws of the posterior;
        True by default. It corrects the mean, which combining alone puts a good part of
        a standard deviation off, more with more shards. It takes 200 gradients of all
        rows a step, mostly two to four steps; False takes 400 in all, for the check.
    - `checkpoint`: a path, or a `Checkpoint`, where the run is saved now and then, and
        resumed from if the file exists: with the shards that succeeded, and in the
        middle of the chains of those that were running. A finished run combines its
        draws again, with `combine`, `refine` and `on_failure` as they are now; with a
        larger `max_tries`, shards that failed run again. By default it is not saved.
    - `fresh`: whether to start over where there is a file; False by default. The old
        one is kept as the previous generation, until the second save.
    - `progress`: whether to show a bar in terminals and notebooks, and lines in the log
        of `batchkit` elsewhere; True by default. A function is called after every block
        of draws with a `batchkit.chains.ChainProgress` instead.
    - `block`: the most draws of a chain that are made at a time, as in
        [`run_chains`][batchkit.run_chains].
    - `**settings`: what else the warm-up and the sampler take, as in
        [`run_chains`][batchkit.run_chains].

    **Returns:**

    A `ShardRun`: the combined draws, a `ChainRun` of each shard, its tries, a verdict
    and warnings.

    **Raises:**

    Before anything is compiled: `TypeError` or `ValueError` for arguments that cannot
    be right, `StartError` for positions that are not finite. Before the warm-up:
    `StartError` if a log-density, or its gradient, is not finite where a chain starts.
    `ShardFailure` if no try of a shard succeeds, unless shards may be dropped, and if
    all fail. `CheckpointError` if the file is of another run, is damaged, or cannot be
    written. `KeyboardInterrupt` after Ctrl-C, with a checkpoint once the run is saved.
    """
    check_not_traced("run_shards", rng_key, positions, data)
    check_functions(
        "run_shards", logprior_fn=logprior_fn, loglikelihood_fn=loglikelihood_fn
    )
    rows = count_rows("run_shards", data)
    check_split(num_shards, strata, rows)
    if api is None:
        api = delayed("blackjax").nuts
    check_options(api, on_failure, refine)
    check_batcher("run_shards", batcher)
    check_acceptance("run_shards", target_acceptance)
    check_number("run_shards", "max_tries", max_tries)
    if block is not None:
        check_number("run_shards", "block", block)
    way_to_combine(combine)
    lengths = {"num_warmup": num_warmup, "num_samples": num_samples}
    chains = check_lengths(plan, num_chains, lengths)
    path = check_run("run_shards", rng_key, checkpoint, fresh, progress)
    rng_key, data, positions = gather_to_host((rng_key, data, positions))
    fold = jax.random.fold_in
    starts = starts_of(
        positions, prior_sample_fn, fold(rng_key, _STARTS), num_shards, chains
    )
    one = jax.tree.map(lambda x: x[0, 0], starts)
    if plan is None:
        num_params = sum(x.size for x in jax.tree.leaves(one))
        plan = plan_for(-(-rows // num_shards), num_params, chains, lengths)
    functions = api, logprior_fn, loglikelihood_fn
    kept = program_cache(
        "run_shards", functions, batcher, num_shards, plan.num_warmup, settings
    )
    rng = generator(fold(rng_key, _SPLIT))
    model = ShardedModel(
        *functions,
        settings,
        data=data,
        order=order_of_rows(rows, num_shards, strata, rng),
        num_shards=num_shards,
        starts=starts,
        plan=plan,
        rng_key=rng_key,
        target=target_acceptance,
        batcher=batcher,
        block=block,
        kept=kept,
    )
    # Refuse settings that the sampler does not take, before anything is traced.
    sampler = model.sampler(logprior_fn, 0.8)
    if rows >= 2 * num_shards:  # no likelihood is called with two rows otherwise
        check_additive(loglikelihood_fn, one, take_rows(data, model.order[:2]))
    identity = identity_of(model) if path is not None or is_multiprocess() else {}
    check_same_arguments(
        "run_shards",
        digests(identity),
        batcher=batcher,
        block=block,
        max_tries=max_tries,
        combine=combine,
        on_failure=on_failure,
        refine=refine,
        checkpoint=path is not None,
        fresh=fresh,
    )
    saver = Saver(
        path,
        "run of shards",
        identity,
        compare=functools.partial(compare_values, model),
        start_of=functools.partial(draw_at, num_samples=plan.num_samples),
        layout=layout_of(batcher, block),
        fresh=fresh,
    )
    with saver, Reporter(progress, "shards", " draws") as reporter:
        results = run_rounds(model, max_tries, saver, reporter, about(model))
    # All is saved, so that from here on Ctrl-C acts at once.
    failed = _failed(results, may_drop=on_failure == "drop")
    depth = sampler.max_tree_depth
    return ShardRun(
        [chain_run(made, depth) for made in results.of_shards()],
        tries=results.tries,
        rng_key=fold(rng_key, _COMBINE),
        combine=combine,
        failed=failed,
        gradients_fn=model.gradients,
        refine=refine,
        provenance=saver.provenance,
    )


def _failed(results: Results, may_drop: bool) -> dict[int, str]:
    """Return why shards have failed; raise `ShardFailure` if none may be dropped."""
    failed = {
        shard: f"{len(tries)} {'try' if len(tries) == 1 else 'tries'} failed, the last "
        f"because {tries[-1].reason}"
        for shard, tries in enumerate(results.tries)
        if not is_accepted(tries)
    }
    count = len(results.tries)
    if failed and not (may_drop and len(failed) < count):
        reasons = "; ".join(f"shard {shard}: {why}" for shard, why in failed.items())
        drop = " To go on without them pass on_failure='drop'."
        raise ShardFailure(
            f"run_shards: {len(failed)} of {count} shards have failed ({reasons}). "
            "Raise target_acceptance, use fewer shards, or choose other parameters "
            f"for the same model.{drop if len(failed) < count else ''}",
            list(failed),
        )
    return failed


def identity_of(model: ShardedModel) -> dict[str, Part]:
    """Return the fingerprint of the run, by parts; see `batchkit.run._same_run`."""
    position, rows = _examples(model)
    value = jax.eval_shape(model.loglikelihood_fn, position, rows)
    stand_in = model.sampler(stand_in_for(value.dtype), model.target)
    assert stand_in.warmup is not None
    tuned = Tuned(*jax.eval_shape(stand_in.warmup.init, position)[:2])
    settings, starts = _settings(model), model.flat_starts
    return {
        "prior": of_function(model.logprior_fn, position),
        "likelihood": of_function(model.loglikelihood_fn, position, rows),
        "data": of_arrays(model.data),
        "split into shards": of_arrays((model.order, np.int64(model.num_shards))),
        **identity_of_chains(
            stand_in, model.api, settings, model.rng_key, starts, tuned
        ),
    }


def compare_values(
    model: ShardedModel, saved: Saved, changed: Sequence[str]
) -> list[Values]:
    """Compare a checkpoint of other versions by the log-densities at its states."""
    tries = tries_in(saved.header, model.num_shards)
    compare = values_of_chains(
        model.chains(saved.header["running"], tries),
        ("prior", "likelihood"),
        lambda: rounding_of_function(model.loglikelihood_fn, *_examples(model)),
    )
    return list(compare(saved, changed))


def about(model: ShardedModel) -> dict[str, Any]:
    """Return the description of the run that a checkpoint has for its readers."""
    described = about_chains(_settings(model), model.flat_starts)
    return {**described, "arrays": "of shape (shards * chains, draws, ...)"}


def _examples(model: ShardedModel) -> tuple[Any, Any]:
    """Return one position, and the rows of the largest shard."""
    position = jax.tree.map(lambda x: x[0, 0], model.starts)
    return position, take_rows(model.data, model.order[: model.size(0)])


def _settings(model: ShardedModel) -> dict[str, Any]:
    return {
        "num_warmup": model.plan.num_warmup,
        "num_samples": model.plan.num_samples,
        "target_acceptance": model.target,
        **model.settings,
    }
