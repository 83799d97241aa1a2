"""`run_chains`: Markov chains laid out by a batcher."""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, Final, overload

import jax
from jaxtyping import PyTree

from .._util._checks import check_number, check_type
from .._util._formats import format_type, format_value
from ..batchers import AbstractBatcher, Vmap
from ..run._arguments import (
    check_acceptance,
    check_batcher,
    check_not_traced,
    checked_starts,
    noting_position,
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
from ..run._same_run import digests, rounding_of_function
from ..run._saving import Saver, check_run
from ._chain_identity import (
    ALGORITHM,
    Plan,
    about,
    identity_of,
    layout_of,
    names_of,
    stand_in_for,
    values_of,
)
from ._chain_loop import ResumableChains, check_logdensity, check_states
from ._chain_programs import Chains, all_alike
from ._chain_run import ChainRun
from ._sampler import is_algorithm, is_api, sampler_of_algorithm, sampler_of_api


_VMAP: Final = Vmap()
_WARMUP: Final = 1000
_ACCEPTANCE: Final = 0.8
# What a count of at least 1 would be for, in messages that refuse a smaller one.
_REMEDIES: Final = {
    "num_warmup": "To sample without a warm-up pass an algorithm: "
    "`run_chains(blackjax.nuts(logdensity_fn, ...), rng_key, positions)`.",
    "thin": "1 keeps every draw.",
}


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
    """Run Markov chains, each of them a task of a batcher.

    With an API of blackjax and a log-density, each chain finds its own step size and
    mass matrix by Stan's warm-up in windows (`blackjax.window_adaptation`), and then
    samples with them. An algorithm has its log-density and its parameters inside, and
    samples at once.

    `Vmap()` runs all chains at once, in step: where one chain of NUTS doubles its
    trajectory, all wait. Under `Continuous(lanes)` none waits: chains pause at the
    log-density (in an algorithm, mark it with `batchkit.expensive`). `Chunked(size)`
    bounds the memory, and `Sharded(mesh)` spreads chains over devices. The keys of a
    chain come from `rng_key` and its index, so every layout gives the same chains to
    rounding; chains amplify rounding, so in float32 they may differ after some hundreds
    of draws by as much as two chains do.

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
    - `logdensity_fn`: with an API, a function from one position to a scalar. Arrays of
        a pytree, such as an Equinox module or the result of
        [`sharded_logdensity`][batchkit.sharded_logdensity], are operands of the
        programs and stay where they are; arrays that a function closes over are
        constants.
    - `algorithm`: in place of an API and `logdensity_fn`, an object with `init` and
        `step`, such as `blackjax.nuts(logdensity_fn, ...)`.
    - `rng_key`: a key of JAX.
    - `positions`: the starts, a pytree of arrays of shape `(chains, ...)`. Four chains
        or more, far from each other, show best whether they agree.
    - `num_warmup`: the number of transitions of the warm-up, at least 1; 1,000 by
        default. Their draws are not kept.
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
        between 0 and 1; 0.8 by default. Closer to 1, steps are smaller.
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
        `divergence_threshold`.

    **Returns:**

    A `ChainRun`: the draws, on the host, the statistics that the sampler reports, R-hat
    and effective sample sizes, and warnings.

    **Raises:**

    Before anything is compiled: `TypeError` or `ValueError` for wrong arguments, for an
    API that this warm-up is not for, and for a log-density that is no scalar. Before
    the warm-up: `StartError` if the log-density or its gradient is not finite where a
    chain starts. `CheckpointError` if the file is of another run, is damaged, or cannot
    be written. `KeyboardInterrupt` after Ctrl-C, with a checkpoint once the run is
    saved.
    """
    logdensity_fn, rng_key, positions, settings = _by_name(sampler, args, settings)
    check_not_traced("run_chains", rng_key, positions)
    if logdensity_fn is None:
        asked = {"num_warmup": num_warmup, "target_acceptance": target_acceptance}
        asked = {name: x for name, x in asked.items() if x is not None}
        for name, value in {**asked, **settings}.items():
            raise TypeError(
                f"run_chains({name}={format_value(value)}): an algorithm has its "
                "parameters already, and there is no warm-up that could use "
                f"{name}. Leave it out, or pass the API with the log-density: "
                "`run_chains(blackjax.nuts, logdensity_fn, rng_key, positions)`."
            )
    target = _ACCEPTANCE if target_acceptance is None else target_acceptance
    check_acceptance("run_chains", target)
    target = float(target)
    counts = {
        "num_warmup": _WARMUP if num_warmup is None else num_warmup,
        "num_samples": num_samples,
        "thin": thin,
        "block": 1 if block is None else block,
    }
    for name, count in counts.items():
        check_number("run_chains", name, count, remedy=_REMEDIES.get(name, ""))
    check_batcher("run_chains", batcher)
    place = check_run("run_chains", rng_key, checkpoint, fresh, progress)
    rng_key, positions = gather_to_host((rng_key, positions))
    floats_only = logdensity_fn is not None  # an algorithm may take integers
    starts = checked_starts("run_chains", positions, floats_only=floats_only)
    if logdensity_fn is None:
        plan = Plan(sampler_of_algorithm(sampler), None, {"thin": thin}, {})
    else:
        # It refuses wrong settings before the log-density is traced.
        chain = sampler_of_api(sampler, logdensity_fn, target, settings)
        assert chain.with_logdensity is not None
        dtype = check_logdensity(logdensity_fn, starts)
        all_settings = {
            "num_warmup": counts["num_warmup"],
            "target_acceptance": target,
            "thin": thin,
            **settings,
        }
        stand_in = chain.with_logdensity(stand_in_for(dtype))
        plan = Plan(chain, stand_in, all_settings, names_of(sampler, settings))
    num_chains = len(jax.tree.leaves(starts)[0])
    samplers = all_alike(plan.sampler, num_chains)
    # The number of transitions is no part of a program.
    parts = {name: x for name, x in plan.settings.items() if name != "num_warmup"}
    kept = program_cache("run_chains", sampler, logdensity_fn, batcher, parts)
    with noting_position("run_chains", "its log-density", row_of(starts)):
        chains = Chains(samplers, rng_key, starts, batcher, thin, block, kept)
    identity = {}
    if place is not None or is_multiprocess():
        identity = identity_of(plan, rng_key, starts, chains.tuned_shapes)
    check_same_arguments(
        "run_chains",
        digests(identity),
        batcher=batcher,
        num_samples=num_samples,
        block=block,
        checkpoint=place is not None,
        fresh=fresh,
    )
    layout = layout_of(chains)
    log.info(
        "run_chains: %d chains of %s, %d draws of each; %s; %s",
        num_chains,
        count_numbers(starts),
        num_samples,
        ", ".join(f"{k}={setting_as_json(x)}" for k, x in plan.settings.items()),
        "; ".join(layout),
    )
    row = jax.tree.map(lambda x: x[0], starts)
    compare = values_of(
        chains,
        starts,
        (ALGORITHM if plan.stand_in is None else "log-density",),
        lambda: rounding_of_function(plan.sampler.init, rng_key, row),
    )
    depth = plan.sampler.max_tree_depth
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
            plan.settings.get("num_warmup", 0),
            num_samples,
            needs_host=saver.is_on or reporter.shows,
            check_states=functools.partial(check_states, "run_chains(positions=...)"),
            about={**about(plan.settings, starts), "max_tree_depth": depth},
        )
        complete(run, saver.resume(), saver, reporter)
    draws, tuned, seconds = run.made
    result = ChainRun(
        draws.position,
        logdensity=draws.logdensity,
        diverging=draws.diverging,
        acceptance_rate=draws.acceptance,
        num_integration_steps=draws.num_integration_steps,
        tree_depth=draws.tree_depth,
        energy=draws.energy,
        step_size=tuned and tuned.step_size,
        inverse_mass_matrix=tuned and tuned.inverse_mass_matrix,
        max_tree_depth=depth,
        seconds=seconds,
        provenance=saver.provenance,
    )
    for warning in result.warnings:
        log.warning("run_chains: %s", warning)
    return result


def _by_name(
    sampler: Any, args: tuple[Any, ...], by_name: Mapping[str, Any]
) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Return the log-density (None with an algorithm), key, positions and settings."""
    names = ["logdensity_fn", "rng_key", "positions"]
    if is_api(sampler):
        what = "an API, with its log-density"
    elif is_algorithm(sampler):
        names, what = names[1:], "an algorithm, which has its log-density in it"
    else:
        raise TypeError(
            f"run_chains({format_value(sampler)}, ...): the first argument must be an "
            "API such as blackjax.nuts, or an algorithm with `init` and `step` such as "
            f"blackjax.nuts(logdensity_fn, ...); got {format_type(sampler)}."
        )
    settings = dict(by_name)
    arguments = dict(zip(names, args, strict=False))
    for name in names[len(args) :]:
        if name in settings:
            arguments[name] = settings.pop(name)
    if len(args) > len(names) or len(arguments) < len(names):
        raise TypeError(
            f"run_chains: after {what}, come {', '.join(names)}; got {len(args)} "
            f"arguments and {', '.join(settings) or 'none'} by name."
        )
    logdensity_fn = arguments.get("logdensity_fn")
    if is_api(sampler):
        rule, fun = "a function from one position to a scalar", logdensity_fn
        check_type(callable(fun), "run_chains", "logdensity_fn", fun, rule)
    return logdensity_fn, arguments["rng_key"], arguments["positions"], settings
