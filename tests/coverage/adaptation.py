"""Cases for warmups."""

from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import optax
from blackjax.adaptation import base as adaptation_base

from .cases import LANES, Case, Program, logdensity, position, positions


STEPS = 3
_HMC = {"num_integration_steps": 2}


def _arrays(tree: Any) -> list[Any]:
    """What a warmup returns, without the functions in it."""
    return [x for x in jax.tree.leaves(tree) if hasattr(x, "dtype")]


def _run(warmup: Any, start: Any, *args: Any, steps: int = STEPS) -> Program:
    def fun(key: jax.Array, start: Any) -> Any:
        results, info = warmup.run(key, start, *args, steps)
        return _arrays((results.state, results.parameters, vars_of(info)))

    return fun, (jax.random.key(0), start)


def vars_of(info: Any) -> Any:
    """An info, or what an object that wraps one holds."""
    return info if isinstance(info, tuple) else vars(info)


def _window(**settings: Any) -> Any:
    def program(api: Any) -> Program:
        warmup = api(blackjax.hmc, logdensity, **_HMC, **settings)
        return _run(warmup, position(), steps=30)

    return program


def _staged(api: Any) -> Program:
    # Several chains are for metric="auto" only.
    warmup = api(
        blackjax.hmc, logdensity, "auto", n_chains=LANES, max_grad_budget=300, **_HMC
    )
    return _run(warmup, positions(), steps=10)


def _meads(**settings: Any) -> Any:
    def program(api: Any) -> Program:
        # Folds of five chains; five folds are lanes of a vmap of their own.
        warmup = api(logdensity, num_chains=25, num_folds=5, **settings)
        return _run(warmup, positions(25))

    return program


def _chees(**settings: Any) -> Any:
    def program(api: Any) -> Program:
        warmup = api(logdensity, LANES, **settings)
        return _run(warmup, positions(), 0.2, optax.adam(0.05))

    return program


def _pathfinder(**settings: Any) -> Any:
    def program(api: Any) -> Program:
        warmup = api(
            blackjax.hmc, logdensity, num_samples_per_path=5, **_HMC, **settings
        )
        return _run(warmup, position())

    return program


def _mclmc(api: Any) -> Program:
    kernel = blackjax.mclmc.build_kernel()

    def fun(key: jax.Array, start: Any) -> Any:
        state = blackjax.mclmc.init(start, logdensity, key)
        return api(
            kernel,
            num_steps=LANES,
            state=state,
            rng_key=key,
            logdensity_fn=logdensity,
            frac_tune1=0.6,
            frac_tune2=0.6,
            frac_tune3=1.0,
        )

    return fun, (jax.random.key(0), position())


def _adjusted_mclmc(api: Any) -> Program:
    kernel = blackjax.adjusted_mclmc_dynamic.build_kernel(
        integration_steps_fn=lambda key, steps: jnp.ceil(
            jax.random.uniform(key) * steps
        )
    )

    def fun(key: jax.Array, start: Any) -> Any:
        state = blackjax.adjusted_mclmc_dynamic.init(start, logdensity, key)
        return api(
            kernel,
            logdensity,
            num_steps=LANES,
            state=state,
            rng_key=key,
            target=0.8,
            frac_tune1=0.6,
            frac_tune2=0.6,
            frac_tune3=1.0,
        )

    return fun, (jax.random.key(0), position())


def _low_rank(api: Any) -> Program:
    def fun(key: jax.Array, start: Any) -> Any:
        results = api(
            logdensity,
            start,
            key,
            k=1,
            pilot_num_warmup=40,
            pilot_num_samples=50,
            lrd_num_steps=40,
            num_chains=5,
            inner_kernel="adjusted_mclmc",
            adjusted_num_steps=20,
        )
        return _arrays(results)

    return fun, (jax.random.key(0), position())


CASES = (
    Case("window_adaptation", _window(), 30, 0.0),
    Case(
        "window_adaptation",
        _window(
            adaptation_info_fn=adaptation_base.get_filter_adapt_info_fn(
                {"position"}, {"is_divergent"}, {"step_size"}
            ),
            is_mass_matrix_diagonal=False,
        ),
        30,
        0.0,
        variant="dense, filtered",
    ),
    Case("window_adaptation_low_rank", _window(max_rank=2), 30, 0.0),
    Case("staged_adaptation", _window(), 30, 0.0),
    # Its schedule is read by NumPy.
    Case(
        "staged_adaptation",
        _staged,
        10,
        1e-12,
        variant="chains",
        eager=True,
    ),
    Case("meads_adaptation", _meads(), STEPS, 1e-13),
    Case("meads_adaptation", _meads(low_rank_rank=1), STEPS, 1e-13, "low_rank"),
    Case("chees_adaptation", _chees(), STEPS, 1e-13),
    Case(
        "chees_adaptation",
        _chees(mass_matrix_estimation="diagonal"),
        STEPS,
        1e-13,
        variant="metric",
    ),
    Case("pathfinder_adaptation", _pathfinder(), STEPS, 1e-11),
    Case(
        "pathfinder_adaptation",
        _pathfinder(num_chains=5, n_paths=1),
        STEPS,
        1e-11,
        variant="chains",
    ),
    Case(
        "pathfinder_adaptation",
        _pathfinder(num_chains=5, n_paths=7),
        STEPS,
        1e-11,
        variant="paths",
    ),
    Case(
        "pathfinder_adaptation",
        _pathfinder(n_paths=5, imm_estimator="psis_empirical", psis_imm_n_samples=20),
        STEPS,
        1e-11,
        variant="empirical",
    ),
    Case("mclmc_lrd_warmup", _low_rank, 40, 1e-11, eager=True),
    Case("mclmc_find_L_and_step_size", _mclmc, LANES, 1e-13),
    Case(
        "adjusted_mclmc_find_L_and_step_size",
        _adjusted_mclmc,
        LANES,
        1e-13,
    ),
)
