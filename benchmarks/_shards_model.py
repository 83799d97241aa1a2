"""Regressions of counts on data that ship with statsmodels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def randhie() -> dict[str, np.ndarray]:
    """Visits to a doctor in the RAND health insurance experiment: 20,190 rows."""
    from statsmodels.datasets import randhie

    table: Any = randhie.load_pandas()
    return _standardised(table.exog.to_numpy(float), table.endog.to_numpy(float))


def fair() -> dict[str, np.ndarray]:
    """Affairs, as told in a survey of 1974: 6,366 rows; any at all, or none."""
    from statsmodels.datasets import fair

    table: Any = fair.load_pandas()
    return _standardised(
        table.exog.to_numpy(float), (table.endog.to_numpy(float) > 0).astype(float)
    )


def _standardised(x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    x = (x - np.mean(x, axis=0)) / np.std(x, axis=0)
    return {"x": np.column_stack([np.ones(len(x)), x]), "y": y}


def logprior_fn(params: Any) -> jax.Array:
    parts = [jnp.sum(x**2) for x in jax.tree.leaves(params)]
    return -0.5 * jnp.sum(jnp.stack(parts)) / 100


def poisson(params: Any, rows: Any) -> jax.Array:
    rate = rows["x"] @ params["slopes"]
    return jnp.sum(rows["y"] * rate - jnp.exp(rate))


def negative_binomial(params: Any, rows: Any) -> jax.Array:
    """With the variance `mean + mean^2 / shape`."""
    rate, log_shape = rows["x"] @ params["slopes"], params["log_shape"]
    shape, y = jnp.exp(log_shape), rows["y"]
    terms = (
        jax.lax.lgamma(y + shape)
        - jax.lax.lgamma(shape)
        + shape * log_shape
        + y * rate
        - (y + shape) * jnp.logaddexp(rate, log_shape)
    )
    return jnp.sum(terms)


def logistic(params: Any, rows: Any) -> jax.Array:
    rate = rows["x"] @ params["slopes"]
    return jnp.sum(rows["y"] * rate - jnp.logaddexp(0.0, rate))


def starts(data: Any, chains: int, with_shape: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {"slopes": 0.1 * rng.normal(size=(chains, data["x"].shape[1]))}
    if with_shape:
        made["log_shape"] = 0.1 * rng.normal(size=chains)
    return made
