"""`run_chains`: Markov chains laid out by a batcher."""

import functools
import os
from collections.abc import Callable
from typing import Any, Final

import jax
from jaxtyping import PyTree

from .._util._checks import check_number, check_type
from ..batchers import AbstractBatcher, Vmap
from ..hosts import explains_loss
from ..run._arguments import (
    check_acceptance,
    check_batcher,
    check_not_traced,
    checked_starts,
    noting_position,
    refusing_algorithms,
    refusing_mixed_dtypes,
    row_of,
)
from ..run._checkpoint import Checkpoint
from ..run._names import count_numbers, setting_as_json
from ..run._processes import (
    check_same_arguments,
    gather_to_host,
    is_multiprocess,
    log,
)
from ..run._program import program_cache
from ..run._resumable import Reporter, complete
from ..run._same_run import Part, digests, of_function, rounding_of_function
from ..run._saving import Saver, check_run
from ._chain_identity import about, identity_of, stand_in_for, values_of
from ._chain_loop import ResumableChains, chain_run, check_logdensity, check_states
from ._chain_programs import Chains, all_alike, layout_of
from ._chain_run import ChainRun
from ._sampler import Sampler, sampler_of_api, sampler_without_warmup


_CALL: Final = "blackjax.nuts, logdensity_fn, rng_key, positions"
_ORDER: Final = f"The order is run_chains({_CALL})."


@refusing_algorithms(f"{_CALL}, num_warmup=0, step_size=..., inverse_mass_matrix=...")
@explains_loss
def run_chains(
    api: Callable[..., Any],
    logdensity_fn: Callable[[PyTree], Any],
    rng_key: Any,
    positions: PyTree,
    *,
    num_warmup: int = 1000,
    num_samples: int = 1000,
    batcher: AbstractBatcher = Vmap(),
    thin: int = 1,
    checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    fresh: bool = False,
    progress: bool | Callable[[Any], object] = True,
    target_acceptance: float = 0.8,
    block: int | None = None,
    **settings: Any,
) -> ChainRun:
    """Run Markov chains, each of them a task of a batcher.

    Each chain finds its own step size and mass matrix by Stan's warm-up in windows
    (`blackjax.window_adaptation`), and then samples with them. With `num_warmup=0` the
    sampler has the parameters that are passed by name, and samples at once.

    `Vmap()` runs all chains at once, in step: where one chain of NUTS doubles its
    trajectory, all wait. Under `Continuous(lanes)` none waits: chains pause at the
    log-density. `Chunked(size)` bounds the memory, and `Sharded(mesh)` spreads chains
    over devices. The keys of a chain come from `rng_key` and its index, so every layout
    gives the same chains to rounding; chains amplify rounding, so in float32 they may
    differ after some hundreds of draws by as much as two chains do.

    With a checkpoint, a run that is killed at any moment and called again with the same
    arguments ends with the bits of one that was never killed. It is saved between
    blocks of transitions, in the warm-up too. Several processes (`jax.distributed`)
    call it together with the same arguments, and each gets the whole result; the first
    one writes the checkpoint, shows progress and logs.

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

    # A sampler that needs no warm-up, or whose parameters are known.
    run = bk.run_chains(
        blackjax.additive_step_random_walk,
        logdensity,
        jax.random.key(2),
        starts,
        num_warmup=0,
        num_samples=100,
        thin=5,
        progress=False,
        random_step=lambda key, x: jax.tree.map(
            lambda y: jax.random.normal(key, y.shape), x
        ),
    )
    assert run.divergences is None
    ```

    **Arguments:**

    - `api`: such as `blackjax.nuts`, or the same rebuilt. For a warm-up its kernel must
        take `step_size` and `inverse_mass_matrix`; with `num_warmup=0` it may be any
        function from a log-density, and settings by name, to something with `init` and
        `step`, whose states have a `position`.
    - `logdensity_fn`: a function from one position to a scalar. Arrays of a pytree,
        such as an Equinox module or the result of
        [`sharded_logdensity`][batchkit.sharded_logdensity], are operands of the
        programs and stay where they are; arrays that a function closes over are
        constants.
    - `rng_key`: a key of JAX.
    - `positions`: the starts, a pytree of arrays of shape `(chains, ...)`. Four chains
        or more, far from each other, show best whether they agree.
    - `num_warmup`: the number of transitions of the warm-up; 1,000 by default, 0 for
        none. Their draws are not kept.
    - `num_samples`: the number of draws of each chain, at least 1; 1,000 by default.
    - `batcher`: how the chains are laid out; `Vmap()` by default.
    - `thin`: the number of transitions for each draw, of which the last is kept; 1 by
        default. Divergences and integration steps of all of them are counted.
    - `checkpoint`: a path, or a `Checkpoint`, from which the run resumes if the file
        exists; by default it is not saved. A finished run returns at once, or makes the
        missing draws if `num_samples` is larger now. With another batcher it resumes
        to rounding.
    - `fresh`: whether to start over where there is a file; False by default. The old
        one is kept as the previous generation, until the second save.
    - `progress`: whether to show a bar in terminals and notebooks, and lines in the log
        of `batchkit` elsewhere; True by default. A function is called after every block
        with a `batchkit.chains.ChainProgress` instead.
    - `target_acceptance`: the acceptance rate that the warm-up tunes the step size for,
        between 0 and 1; 0.8 by default. Closer to 1, steps are smaller. Without a
        warm-up it has no effect.
    - `block`: the most draws of a chain between two moments at which draws move to the
        host, progress is shown, and the run can be saved. By default blocks take at
        most about half a second and 64 MB; where they end changes no bit. Under
        `Continuous` and `Auto` blocks are 128 draws, whatever they take, since lanes
        wait for each other at the end of a block, and which lane takes a chain then may
        show in the last bit. There, smaller blocks save more often, and larger ones
        keep lanes busier.
    - `**settings`: other arguments of the warm-up (`is_mass_matrix_diagonal`,
        `initial_inverse_mass_matrix`, `imm_shrinkage_to_previous`,
        `initial_step_size`), and of the sampler: `num_integration_steps`, which
        `blackjax.hmc` needs; `max_num_doublings`, `integrator`,
        `divergence_threshold`. With `num_warmup=0`, all arguments of the API but the
        log-density, such as `step_size` and `inverse_mass_matrix`.

    **Returns:**

    A `ChainRun`: the draws, on the host, the statistics that the sampler reports, R-hat
    and effective sample sizes, and warnings.

    **Raises:**

    Before anything is compiled: `TypeError` or `ValueError` for wrong arguments, for an
    algorithm that is built already, for an API that this warm-up is not for, and for a
    log-density that is no scalar. Before the first transition: `StartError` if the
    log-density or its gradient is not finite where a chain starts. `CheckpointError` if
    the file is of another run, is damaged, or cannot be written. `KeyboardInterrupt`
    after Ctrl-C, with a checkpoint once the run is saved.
    """
    check_not_traced("run_chains", rng_key, positions)
    rule = "an API such as blackjax.nuts"
    check_type(callable(api), "run_chains", "api", api, rule, _ORDER)
    rule, fun = "a function from one position to a scalar", logdensity_fn
    check_type(callable(fun), "run_chains", "logdensity_fn", fun, rule, _ORDER)
    check_acceptance("run_chains", target_acceptance)
    target = float(target_acceptance)
    check_number("run_chains", "num_warmup", num_warmup, above=-1)
    check_number("run_chains", "num_samples", num_samples)
    check_number("run_chains", "thin", thin, remedy="1 keeps every draw.")
    if block is not None:
        check_number("run_chains", "block", block)
    check_batcher("run_chains", batcher)
    place = check_run("run_chains", rng_key, checkpoint, fresh, progress)
    rng_key, positions = gather_to_host((rng_key, positions))
    tunes = num_warmup > 0
    # The warm-up takes gradients or small steps; other samplers may move on integers.
    starts = checked_starts("run_chains", positions, floats_only=tunes)
    num_chains, row = len(jax.tree.leaves(starts)[0]), row_of(starts)

    def sampler_of(logdensity_fn: Callable[[PyTree], Any]) -> Sampler:
        if tunes:
            return sampler_of_api(api, logdensity_fn, target, settings)
        return sampler_without_warmup(api, logdensity_fn, settings)

    # It refuses wrong settings before the log-density is traced.
    sampler = sampler_of(logdensity_fn)
    dtype = check_logdensity(logdensity_fn, starts)
    acceptance = {"target_acceptance": target} if tunes else {}
    all_settings = {**acceptance, "thin": thin, **settings}
    # The number of transitions is no part of a program.
    kept = program_cache("run_chains", api, logdensity_fn, batcher, tunes, all_settings)
    all_settings = {"num_warmup": num_warmup, **all_settings}
    functions = {"logdensity_fn": logdensity_fn}
    with (
        refusing_mixed_dtypes("run_chains", functions, starts),
        noting_position("run_chains", "its log-density", row),
    ):
        samplers = all_alike(sampler_of, logdensity_fn, num_chains)
        chains = Chains(samplers, rng_key, starts, batcher, thin, block, kept)
    identity: dict[str, Part] = {}
    if place is not None or is_multiprocess():
        identity = {
            "log-density": of_function(logdensity_fn, row),
            **identity_of(
                sampler_of(stand_in_for(dtype)),
                api,
                all_settings,
                rng_key,
                starts,
                chains.tuned_shapes,
            ),
        }
    check_same_arguments(
        "run_chains",
        digests(identity),
        batcher=batcher,
        num_samples=num_samples,
        block=block,
        checkpoint=place is not None,
        fresh=fresh,
    )
    layout = layout_of(batcher, block)
    log.info(
        "run_chains: %d chains of %s, %d draws of each; %s; %s",
        num_chains,
        count_numbers(starts),
        num_samples,
        ", ".join(f"{k}={setting_as_json(x)}" for k, x in all_settings.items()),
        "; ".join(layout),
    )
    compare = values_of(
        chains,
        ("log-density",),
        lambda: rounding_of_function(sampler.init, rng_key, row),
    )
    depth = sampler.max_tree_depth
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
        run = ResumableChains(
            chains,
            num_warmup,
            num_samples,
            needs_host=saver.is_on or reporter.shows,
            check_states=functools.partial(check_states, "run_chains(positions=...)"),
            about={**about(all_settings, starts), "max_tree_depth": depth},
        )
        complete(run, saver.resume(), saver, reporter)
    result = chain_run(run.made, depth, saver.provenance)
    for warning in result.warnings:
        log.warning("run_chains: %s", warning)
    return result
