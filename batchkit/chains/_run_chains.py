"""`run_chains`: Markov chains laid out by a batcher."""

import logging
import os
from collections.abc import Callable
from typing import Any, Final, overload

import jax
from jaxtyping import PyTree

from ..batchers import AbstractBatcher, Vmap
from ..run._arguments import (
    check_acceptance,
    check_batcher,
    check_not_traced,
    noting_position,
    row_of,
)
from ..run._checkpoint import Checkpoint
from ..run._environment import Provenance
from ..run._fingerprint import digests, rounding_of_function
from ..run._kept import kept_for
from ..run._keys import check_key
from ..run._processes import check_same, on_host, several, speaker
from ..run._progress import Reporter, check_progress
from ..run._resumable import complete
from ..run._saving import Saver, check_fresh, checkpoint_from
from ._arguments import (
    check_count,
    given,
    refuse_warmup,
    starts_from,
)
from ._between_versions import ALGORITHM, values_of
from ._chain_loop import Made, ResumableChains
from ._chain_run import ChainRun
from ._plan import about, identity_of, plan_of_algorithm, plan_of_api, say_what_is_run
from ._programs import Chains, all_alike
from ._starts import check_positions


_log: Final = logging.getLogger("batchkit")

_VMAP: Final = Vmap()
_WARMUP: Final = 1000
_ACCEPTANCE: Final = 0.8


@overload
def run_chains(
    api: Callable[..., Any],
    /,
    logdensity_fn: Callable[[PyTree], Any],
    rng_key: Any,
    positions: PyTree,
    *,
    num_warmup: int = _WARMUP,
    num_samples: int = 1000,
    batcher: AbstractBatcher = _VMAP,
    thin: int = 1,
    checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    fresh: bool = False,
    progress: bool | Callable[[Any], object] = True,
    target_acceptance: float = _ACCEPTANCE,
    block: int | None = None,
    **settings: Any,
) -> ChainRun: ...


@overload
def run_chains(
    algorithm: Any,
    /,
    rng_key: Any,
    positions: PyTree,
    *,
    num_samples: int = 1000,
    batcher: AbstractBatcher = _VMAP,
    thin: int = 1,
    checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    fresh: bool = False,
    progress: bool | Callable[[Any], object] = True,
    block: int | None = None,
) -> ChainRun: ...


def run_chains(
    sampler: Any,
    /,
    *args: Any,
    num_warmup: int | None = None,
    num_samples: int = 1000,
    batcher: AbstractBatcher = _VMAP,
    thin: int = 1,
    checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    fresh: bool = False,
    progress: bool | Callable[[Any], object] = True,
    target_acceptance: float | None = None,
    block: int | None = None,
    **settings: Any,
) -> ChainRun:
    """Runs Markov chains, each of them a task of a batcher.

    With an API of blackjax and a log-density, each chain first finds a step size and a
    mass matrix of its own, by Stan's warm-up in windows (`blackjax.window_adaptation`),
    and then samples with them. With an algorithm, which has its log-density and its
    parameters in it, chains sample at once.

    The batcher lays the chains out. `Vmap()` runs all at once, in step: where one chain
    of NUTS doubles its trajectory, all wait. Under `Continuous(lanes)` none waits: the
    log-density is where chains pause. (In an algorithm, mark it yourself with
    `batchkit.expensive`.) `Chunked(size)` bounds the memory, and `Sharded(mesh)`
    spreads chains over devices. The keys of a chain come from `rng_key` and its index,
    so every layout gives the same chains to rounding; chains amplify rounding, so in
    float32 they may differ after some hundreds of draws by as much as two chains do.

    With a checkpoint, a run that is killed at any moment and called again with the same
    arguments ends with the bits of one that was never killed. It is saved between
    blocks of transitions, in the warm-up too. Several processes (`jax.distributed`)
    call it together with the same arguments, and each gets the whole result; the first
    one has the checkpoint, shows progress and logs.

    ```python
    import blackjax
    import jax
    import jax.numpy as jnp
    import batchkit as bk

    def logdensity(x):
        return -0.5 * (x["mean"] ** 2 + jnp.sum((x["rest"] - x["mean"]) ** 2))

    starts = {
        "mean": jax.random.normal(jax.random.key(0), (4,)),
        "rest": jax.random.normal(jax.random.key(1), (4, 2)),
    }
    run = bk.run_chains(
        blackjax.nuts,
        logdensity,
        jax.random.key(2),
        starts,
        num_warmup=300,
        num_samples=500,
        batcher=bk.Continuous(2),
        progress=False,
    )
    assert run.samples["rest"].shape == (4, 500, 2)
    print(run)
    print(run.summary())

    # An algorithm that needs no warm-up, or has had one.
    walk = blackjax.additive_step_random_walk(
        logdensity,
        lambda key, x: jax.tree.map(lambda y: jax.random.normal(key, y.shape), x),
    )
    key = jax.random.key(2)
    run = bk.run_chains(walk, key, starts, num_samples=100, thin=5, progress=False)
    assert run.divergences is None
    ```

    **Arguments:**

    - `api`: such as `blackjax.nuts`, or the same rebuilt. Its kernel takes `step_size`
        and `inverse_mass_matrix`.
    - `logdensity_fn`: a function from one position to a scalar; given with an API.
        Arrays of one that is a pytree, such as an Equinox module or what
        [`sharded_logdensity`][batchkit.sharded_logdensity] returns, are operands of the
        programs and stay where they are; those that a function closes over are
        constants.
    - `algorithm`: in place of an API and `logdensity_fn`, what has `init` and `step`,
        such as `blackjax.nuts(logdensity_fn, ...)`.
    - `rng_key`: a key of JAX.
    - `positions`: where the chains start, a pytree of arrays of shape `(chains, ...)`.
        Four chains or more, far from each other, show best whether they agree.
    - `num_warmup`: the number of transitions of the warm-up, at least 1; 1,000 by
        default. Their draws are not kept.
    - `num_samples`: the number of draws of each chain, at least 1; 1,000 by default.
    - `batcher`: how the chains are laid out. By default all at once.
    - `thin`: the number of transitions for each draw, of which the last is kept; 1 by
        default. Divergences and integration steps of all of them are counted.
    - `checkpoint`: a path, or a `Checkpoint`, where the run is saved now and then, and
        from where it goes on if the file exists. A finished run returns at once, or
        makes the draws that are missing if `num_samples` is larger now. Another batcher
        may go on with it, to rounding. By default it is not saved.
    - `fresh`: whether to start over where there is a file; False by default. The old
        one is kept as the previous generation, until the second save.
    - `progress`: whether to show a bar in terminals and notebooks, and lines in the log
        of `batchkit` elsewhere; True by default. A function is called after every block
        with a `batchkit.chains.ChainProgress` instead.
    - `target_acceptance`: the acceptance rate that the warm-up tunes the step size for,
        between 0 and 1; 0.8 by default. Closer to 1, steps are smaller.
    - `block`: the most draws of a chain that are made before they are moved to the
        host, before progress is told, and before the run can be saved. By default
        blocks take about half a second and 64 MB, at most; it changes no bit where they
        end. Under `Continuous` and `Auto` blocks are 128 draws, whatever they take,
        since at the end of a block lanes wait for each other, and which lane takes a
        chain then may show in the last bit. There, fewer draws in a block save more
        often, and more keep lanes busier.
    - `**settings`: what else the warm-up takes (`is_mass_matrix_diagonal`,
        `initial_inverse_mass_matrix`, `imm_shrinkage_to_previous`,
        `initial_step_size`), and the sampler: `num_integration_steps`, which
        `blackjax.hmc` needs; `max_num_doublings`, `integrator`,
        `divergence_threshold`.

    **Returns:**

    A `ChainRun`: the draws, on the host, what the sampler told of them, R-hat and
    effective sample sizes, and warnings.

    **Raises:**

    Before anything is compiled: `TypeError` or `ValueError` for arguments that cannot
    be right, for an API that this warm-up is not for, and for a log-density that is no
    scalar. Before the warm-up: `StartError` if the log-density or its gradient is not
    finite where a chain starts. `CheckpointError` if the file is of another run, is
    damaged, or cannot be written. `KeyboardInterrupt` after Ctrl-C, with a checkpoint
    once the run is saved.
    """
    call = given(sampler, args, settings)
    check_not_traced("run_chains", call.rng_key, call.positions)
    warmup = {"num_warmup": num_warmup, "target_acceptance": target_acceptance}
    asked = {name: value for name, value in warmup.items() if value is not None}
    if call.logdensity_fn is None:
        refuse_warmup({**asked, **call.settings})
    check_count("num_samples", num_samples)
    check_count("thin", thin)
    if block is not None:
        check_count("block", block)
    check_batcher("run_chains", batcher)
    check_fresh(fresh, "run_chains")
    check_progress(progress, "run_chains")
    check_key(call.rng_key, "run_chains")
    place = checkpoint_from(checkpoint, "run_chains")
    rng_key, positions = on_host((call.rng_key, call.positions))
    starts = starts_from(positions)
    check_positions(starts)
    if call.logdensity_fn is None:
        plan = plan_of_algorithm(sampler, thin)
    else:
        plan = plan_of_api(
            sampler,
            call.logdensity_fn,
            starts,
            check_count("num_warmup", asked.get("num_warmup", _WARMUP)),
            check_acceptance("run_chains", asked.get("target_acceptance", _ACCEPTANCE)),
            thin,
            call.settings,
        )
    samplers = all_alike(plan.sampler, len(jax.tree.leaves(starts)[0]))
    known = {name: x for name, x in plan.settings.items() if name != "num_warmup"}
    kept = kept_for("run_chains", sampler, call.logdensity_fn, batcher, known)
    with noting_position("run_chains", "its log-density", row_of(starts)):
        chains = Chains(samplers, rng_key, starts, batcher, thin, block, kept)
    identity = {}
    if place is not None or several():
        identity = identity_of(plan, rng_key, starts, chains.tuned_shapes)
    check_same(
        "run_chains",
        digests(identity),
        batcher=batcher,
        num_samples=num_samples,
        block=block,
        checkpoint=place is not None,
        fresh=fresh,
    )
    layout = say_what_is_run(plan, chains, starts, num_samples)
    known = ALGORITHM if plan.stand_in is None else "log-density"
    row = jax.tree.map(lambda x: x[0], starts)
    compare = values_of(
        chains,
        starts,
        (known,),
        lambda: rounding_of_function(plan.sampler.init, rng_key, row),
    )
    with (
        Saver(
            place,
            "run of chains",
            identity,
            compare=compare,
            start_of=lambda header: header["at"],
            layout=layout,
            fresh=fresh,
        ) as saver,
        Reporter(progress, "chains", " draws") as reporter,
    ):
        depth = plan.sampler.max_tree_depth
        told = {**about(plan.settings, starts), "max_tree_depth": depth}
        warmup = plan.settings.get("num_warmup", 0)
        run = ResumableChains(
            chains,
            warmup,
            num_samples,
            needs_host=saver.is_on or reporter.shows,
            about=told,
        )
        complete(run, saver.resume(), saver, reporter)
    return _result(run.made, plan.sampler.max_tree_depth, saver.provenance)


def _result(
    made: Made, max_tree_depth: int | None, provenance: tuple[Provenance, ...]
) -> ChainRun:
    draws, tuned = made.draws, made.tuned
    run = ChainRun(
        draws.position,
        logdensity=draws.logdensity,
        diverging=draws.diverging,
        acceptance_rate=draws.acceptance,
        num_integration_steps=draws.num_integration_steps,
        tree_depth=draws.tree_depth,
        energy=draws.energy,
        step_size=None if tuned is None else tuned.step_size,
        inverse_mass_matrix=None if tuned is None else tuned.inverse_mass_matrix,
        max_tree_depth=max_tree_depth,
        seconds=made.seconds,
        provenance=provenance,
    )
    for warning in run.warnings:
        speaker(_log).warning("run_chains: %s", warning)
    return run
