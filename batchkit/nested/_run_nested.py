"""`run_nested`: from live points to a result, and the fingerprint of a run."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree, UInt32

from .._util._checks import check_number
from ..batchers import AbstractBatcher
from ..hosts import explains_loss
from ..rebuild import AbstractPolicy
from ..run._arguments import (
    check_not_traced,
    refusing_algorithms,
    refusing_mixed_dtypes,
    row_of,
)
from ..run._checkpoint import Checkpoint
from ..run._names import count_numbers, qualified_name, setting_as_json
from ..run._processes import check_same_arguments, gather_to_host, is_multiprocess, log
from ..run._program import program_cache
from ..run._resumable import Reporter, complete
from ..run._same_run import (
    Compare,
    Part,
    Values,
    digests,
    evenly_spaced_indices,
    of_arrays,
    of_function,
    of_words,
    rounding_of_function,
)
from ..run._saving import Saver, check_run
from ..run._store import Saved
from ..run._trees import to_host, tree_from_arrays
from ._dead import Points, concatenated, points_of
from ._nested_arguments import (
    built,
    check_api,
    check_counts,
    check_functions,
    check_options,
    live_points,
)
from ._nested_loop import ResumableNested
from ._nested_programs import NestedPrograms
from ._nested_run import NestedRun
from ._stop import AbstractStop, RemainingEvidence


# The names of the functions in fingerprints and messages.
_NAMES: Final = {"logprior_fn": "prior", "loglikelihood_fn": "likelihood"}


@refusing_algorithms(
    "blackjax.nss, logprior_fn, loglikelihood_fn, rng_key, positions, "
    "num_inner_steps=..., num_delete=..."
)
@explains_loss
def run_nested(
    api: Any,
    logprior_fn: Callable[[Any], Any],
    loglikelihood_fn: Callable[[Any], Any],
    rng_key: Key[Array, ""] | UInt32[Array, " words"],
    positions: PyTree,
    *,
    batcher: AbstractBatcher
    | AbstractPolicy
    | Mapping[str, AbstractBatcher]
    | None = None,
    stop: AbstractStop = RemainingEvidence(1e-3),
    checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    on_invalid: Literal["raise", "reject"] = "raise",
    fresh: bool = False,
    progress: bool | Callable[[Any], object] = True,
    **settings: Any,
) -> NestedRun:
    """Run a nested sampler from live points to evidence and posterior.

    The loop runs on the device, and the rule to stop is evaluated after every step. The
    key of step `n` is `fold_in(rng_key, n)`, `init` is always jitted, and neither the
    clock nor checkpoints change a bit: killed at any moment and called again with the
    same arguments, a run with a checkpoint ends with the bits of one that was never
    killed. Several processes (`jax.distributed`) call it together with the same
    arguments, and each gets the whole result; the first one has the checkpoint, shows
    progress and logs.

    ```python
    import blackjax
    import jax
    import jax.numpy as jnp
    import batchkit as bk

    def logprior(x):  # uniform between -5 and 5
        return jnp.where(jnp.all(jnp.abs(x) < 5), -2 * jnp.log(10.0), -jnp.inf)

    def loglikelihood(x):
        return -0.5 * jnp.sum(x**2) - jnp.log(2 * jnp.pi)

    key, prior_key = jax.random.split(jax.random.key(0))
    positions = jax.random.uniform(prior_key, (100, 2), minval=-5.0, maxval=5.0)
    run = bk.run_nested(
        blackjax.nss,
        logprior,
        loglikelihood,
        key,
        positions,
        batcher=bk.Continuous(8),
        num_inner_steps=5,
        num_delete=20,
        progress=False,
    )
    exact = -2 * jnp.log(10.0)
    assert abs(run.log_evidence - exact) < 4 * run.log_evidence_err
    ```

    **Arguments:**

    - `api`: a nested sampler such as `blackjax.nss`, rebuilt or not: a function of
        `logprior_fn`, `loglikelihood_fn` and settings, by name, to something with
        `init` and `step` whose states and infos are those of `blackjax.ns`.
    - `logprior_fn`: a function from one position to the log-density of the prior, a
        scalar.
    - `loglikelihood_fn`: a function from one position to the log-likelihood, a scalar.
    - `rng_key`: a key of JAX.
    - `positions`: the first live points, draws from the prior: a pytree of arrays of
        shape `(live points, ...)`. The names of a dict appear in tables and messages.
    - `batcher`: the layout of points: a batcher, a policy or a mapping, with which
        `api` is rebuilt, see [`rebuild_sampler`][batchkit.rebuild_sampler]. By default
        `api` is used as it is, rebuilt before or not.
    - `stop`: the rule to stop; `RemainingEvidence(1e-3)` by default. Rules combine with
        `|` and `&`. A run also ends when no likelihood is above those of its live
        points.
    - `checkpoint`: a path, or a `Checkpoint`, where the run is saved regularly and from
        which it resumes if the file exists. A finished run returns at once, unless
        `stop` is stricter now. By default it is not saved.
    - `on_invalid`: what to do if a likelihood is NaN or plus infinity and the prior
        is not zero. `"raise"`, the default, ends the run with the positions on the
        exception. `"reject"` replaces such likelihoods by minus infinity: the result is
        that of a likelihood of zero there.
    - `fresh`: whether to start over if the file exists; False by default. The old file
        is kept as the previous generation, until the second save.
    - `progress`: whether to show a bar in terminals and notebooks, and lines in the log
        of `batchkit` elsewhere; True by default. A function is called about twice a
        second with a `batchkit.nested.NestedStatus` instead.
    - `**settings`: the other arguments of `api`: `num_inner_steps`, which
        `blackjax.nss` needs; `num_delete`, `max_steps`, `max_shrinkage`.

    **Returns:**

    The result.

    **Raises:**

    `TypeError` and `ValueError` for arguments that cannot be right: an algorithm that
    is built already; settings that the sampler does not take; too few positions;
    functions that return no scalar. `batchkit.StartError`, a `ValueError`, for
    positions that are not finite or not in the prior. `InvalidLikelihoodError` if a
    likelihood is NaN or plus infinity. `CheckpointError` if the file is of another run,
    is damaged, or cannot be written. `KeyboardInterrupt` after Ctrl-C, once the run is
    saved.
    """
    check_not_traced("run_nested", rng_key, positions)
    check_api(api, settings)
    check_options(stop, on_invalid)
    place = check_run("run_nested", rng_key, checkpoint, fresh, progress)
    rng_key, positions = gather_to_host((rng_key, positions))
    live = live_points(positions)
    functions = {"logprior_fn": logprior_fn, "loglikelihood_fn": loglikelihood_fn}
    kept = program_cache("run_nested", api, functions, batcher, settings, on_invalid)
    check_functions(functions, live, kept)
    shown = {name: setting_as_json(settings[name]) for name in sorted(settings)}
    identity: dict[str, Part] = {}
    if place is not None or is_multiprocess():
        identity = identity_of(api, functions, settings, rng_key, live)
    # Before a step is traced, where the processes of `Sharded` wait for each other.
    check_same_arguments(
        "run_nested",
        digests(identity),
        settings=shown,
        batcher=batcher,
        stop=stop,
        on_invalid=on_invalid,
        checkpoint=place is not None,
        fresh=fresh,
    )
    num_delete = settings.get("num_delete")
    if isinstance(num_delete, int):  # before a step is traced, which would fail
        check_number("run_nested", "num_delete", num_delete)
        check_counts(live, num_delete)
    algorithm = built(api, functions, settings, batcher, on_invalid == "reject")
    with refusing_mixed_dtypes("run_nested", functions, live):
        programs = NestedPrograms(algorithm, rng_key, live, kept)
    check_counts(live, programs.num_delete)
    log.info(
        "run_nested: %d live points of %s, %d replaced in a step; %s; %s",
        programs.num_live,
        count_numbers(live),
        programs.num_delete,
        ", ".join(f"{name}={x}" for name, x in shown.items()) or "no settings",
        "; ".join(programs.layout),
    )
    # `num_delete` may be the sampler's default, which only the traced step shows.
    counts = {"live points": programs.num_live, "num_delete": programs.num_delete}
    words = of_words(shown, *counts.values(), shown={**shown, **counts})
    with Saver(
        place,
        "nested run",
        {**identity, "settings": words},
        compare=comparison_of(functions, programs),
        start_of=lambda header: header["step"],
        layout=programs.layout,
        fresh=fresh,
    ) as saver:
        run = ResumableNested(programs, rng_key, live, stop, shown, saver.is_on)
        saved = saver.resume()
        with Reporter(progress, "nested sampling", " steps") as reporter:
            has_advanced, seconds = complete(run, saved, saver, reporter)
        try:
            return run.result(seconds, saver.provenance)
        finally:
            # Also without a result: it can be computed again, the run cannot.
            if has_advanced and saver.is_on:
                saver.save(*run.checkpoint())


def identity_of(
    api: Any,
    functions: Mapping[str, Callable[..., Any]],
    settings: Mapping[str, Any],
    rng_key: Any,
    positions: PyTree,
) -> dict[str, Part]:
    """Return the fingerprint of a run, by parts, but for settings that are values."""
    row = row_of(positions)
    return {
        **{_NAMES[name]: of_function(fun, row) for name, fun in functions.items()},
        "sampler": of_words(qualified_name(getattr(api, "differentiable", api))),
        **{name: of_arrays(x) for name, x in settings.items() if hasattr(x, "dtype")},
        "first live points": of_arrays(positions),
        "key": of_arrays(rng_key),
    }


def comparison_of(
    functions: Mapping[str, Callable[..., Any]], programs: NestedPrograms
) -> Compare:
    """Return the comparison of functions at a few points of a checkpoint."""

    def compare(saved: Saved, parts: Sequence[str]) -> list[Values]:
        state = tree_from_arrays("state", saved.arrays, programs.state_shapes)
        shapes = programs.dead_shapes(int(state.status.step))
        dead = tree_from_arrays("dead", saved.arrays, shapes)
        points = _some_points(dead, points_of(state.sampler))
        before = {"prior": points.logprior, "likelihood": points.loglikelihood}
        found: list[Values] = []
        for argument, function in functions.items():
            if (name := _NAMES[argument]) in parts:
                now = _at(function, points.positions)
                if name == "likelihood":  # rejected likelihoods were saved as zero
                    is_invalid = np.isnan(now) | np.isposinf(now)
                    now = np.where(is_invalid, -np.inf, now)
                rounding = rounding_of_function(function, row_of(points.positions))
                found.append(Values.of_logdensity((name,), before[name], now, rounding))
        return found

    return compare


def _some_points(dead: Points, live: Points) -> Points:
    """Select a few points, of zero likelihood only if all are."""
    points: Points = concatenated([jax.tree.map(np.asarray, x) for x in (dead, live)])
    finite = np.flatnonzero(np.isfinite(points.loglikelihood))
    rows = finite if finite.size else np.arange(len(points.loglikelihood))
    return jax.tree.map(lambda x: x[rows[evenly_spaced_indices(len(rows))]], points)


def _at(function: Callable[..., Any], positions: PyTree) -> np.ndarray:
    """Evaluate at one position after the other: each may need much memory."""
    jitted = jax.jit(function)
    leaves, treedef = jax.tree.flatten(positions)
    rows = (jax.tree.unflatten(treedef, row) for row in zip(*leaves, strict=True))
    return np.array([to_host(jitted(row)) for row in rows])
