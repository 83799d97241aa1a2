"""Problems whose evidence is known, with the prior that it is for."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp

import batchkit as bk

from ..helpers import unchecked


class Known(NamedTuple):
    """A likelihood, the sides of the box over which the prior is uniform, and log Z."""

    loglikelihood: Callable[[Any], Any]
    dim: int
    low: float
    high: float
    log_evidence: float

    def logprior(self, x: Any) -> Any:
        inside = jnp.all((x > self.low) & (x < self.high))
        return jnp.where(inside, -self.dim * math.log(self.high - self.low), -jnp.inf)

    def arguments(
        self,
        num_delete: int,
        batcher: Any = None,
        num_inner_steps: int | None = None,
        api: Any = blackjax.nss,
    ) -> dict[str, Any]:
        """Arguments of `run_nested`, besides a key and positions."""
        return {
            "api": api,
            "logprior_fn": self.logprior,
            "loglikelihood_fn": self.loglikelihood,
            "batcher": batcher,
            "num_inner_steps": num_inner_steps or max(5, 2 * self.dim),
            "num_delete": num_delete,
        }

    def algorithm(self, *args: Any, **kwargs: Any) -> Any:
        """The algorithm of `arguments`."""
        arguments = self.arguments(*args, **kwargs)
        api, batcher = arguments.pop("api"), arguments.pop("batcher")
        if batcher is not None:
            api = bk.rebuild_sampler(api, batcher=batcher)
        return api(**arguments)

    def positions(self, num_live: int, seed: int = 0) -> jax.Array:
        return jax.random.uniform(
            jax.random.key(1000 + seed),
            (num_live, self.dim),
            minval=self.low,
            maxval=self.high,
        )

    def run(
        self,
        num_live: int = 100,
        num_delete: int = 20,
        seed: int = 0,
        batcher: Any = None,
        num_inner_steps: int | None = None,
        api: Any = blackjax.nss,
        **options: Any,
    ) -> bk.NestedRun:
        # The layout is seen as a profiler sees it, to which every check is a call.
        with unchecked():
            return bk.run_nested(
                **self.arguments(num_delete, batcher, num_inner_steps, api),
                rng_key=jax.random.key(seed),
                positions=self.positions(num_live, seed),
                **{"progress": False, **options},
            )


def gaussian(dim: int, correlation: float = 0.0) -> Known:
    """Of unit variances, with equal correlations, far inside of the prior."""
    covariance = correlation * jnp.ones((dim, dim)) + (1 - correlation) * jnp.eye(dim)
    precision = jnp.linalg.inv(covariance)
    norm = -0.5 * (
        dim * math.log(2 * math.pi) + float(jnp.linalg.slogdet(covariance)[1])
    )
    return Known(
        lambda x: -0.5 * x @ precision @ x + norm, dim, -5, 5, -dim * math.log(10.0)
    )


def eggbox() -> Known:
    """Feroz, Hobson and Bridges 2009 (arXiv:0809.3437)."""
    return Known(
        lambda x: (2 + jnp.cos(x[0] / 2) * jnp.cos(x[1] / 2)) ** 5,
        2,
        0.0,
        10 * math.pi,
        235.856,
    )


def shells(dim: int) -> Known:
    """Two shells of radius 2 and width 0.1 (ibid., table 2)."""
    radius, width = 2.0, 0.1
    exact = {2: -1.746, 5: -5.674, 10: -14.590}[dim]

    def shell(x: Any, center: float) -> Any:
        distance = jnp.sqrt((x[0] - center) ** 2 + jnp.sum(x[1:] ** 2))
        norm = -0.5 * math.log(2 * math.pi * width**2)
        return norm - 0.5 * ((distance - radius) / width) ** 2

    return Known(
        lambda x: jnp.logaddexp(shell(x, 3.5), shell(x, -3.5)), dim, -6, 6, exact
    )


def rosenbrock() -> Known:
    """`exp(-(1 - x)^2 - 100 (y - x^2)^2)`."""
    return Known(
        lambda x: -((1 - x[0]) ** 2) - 100 * (x[1] - x[0] ** 2) ** 2, 2, -5, 5, -5.804
    )


def half() -> Known:
    """A Gaussian, cut off: half of the prior has a likelihood of zero."""
    whole = gaussian(2)
    return whole._replace(
        loglikelihood=lambda x: jnp.where(x[0] > 0, whole.loglikelihood(x), -jnp.inf),
        log_evidence=whole.log_evidence - math.log(2),
    )


def bottom() -> Known:
    """A Gaussian whose log-likelihood is nowhere below -8: most of the prior ties.

    Inside of the circle `r^2 < R^2 = 2 (8 - log 2 pi)` the Gaussian integrates to
    `1 - exp(-R^2 / 2)`, the rest of the box is at the floor.
    """
    whole, floor = gaussian(2), -8.0
    square = 2 * (-floor - math.log(2 * math.pi))
    inside = 1 - math.exp(-square / 2)
    outside = (100 - math.pi * square) * math.exp(floor)
    return whole._replace(
        loglikelihood=lambda x: jnp.maximum(whole.loglikelihood(x), floor),
        log_evidence=math.log((inside + outside) / 100),
    )


def spike_and_slab() -> Known:
    """A wide Gaussian, and in it a narrow one with nearly all of the evidence.

    The integrals over the box are products of error functions.
    """
    dim, scales = 5, (1.0, 0.1)
    logs = [math.log(0.1), math.log(0.9)]

    def part(x: Any, scale: float, log_weight: float) -> Any:
        norm = -dim * math.log(scale * math.sqrt(2 * math.pi))
        return log_weight + norm - 0.5 * jnp.sum((x / scale) ** 2)

    inside = [math.erf(5 / (s * math.sqrt(2))) ** dim for s in scales]
    total = sum(math.exp(w) * m for w, m in zip(logs, inside, strict=True))
    return Known(
        lambda x: jnp.logaddexp(
            part(x, scales[0], logs[0]), part(x, scales[1], logs[1])
        ),
        dim,
        -5,
        5,
        math.log(total) - dim * math.log(10.0),
    )
