"""Cases for nested sampling."""

from collections.abc import Callable
from typing import Any

import blackjax
import jax

from .cases import Case, Program, chain, loglikelihood, logprior, positions


# Eleven live points and five replacements: chunks of three and two devices divide
# neither.
LIVE = 11
REPLACED = 5


def _sampler(steps: int, of: Callable[[Any], Any] = lambda x: x) -> Any:
    def program(api: Any) -> Program:
        algorithm = of(api)(
            logprior_fn=logprior,
            loglikelihood_fn=loglikelihood,
            num_inner_steps=2,
            num_delete=REPLACED,
        )
        return chain(algorithm, positions(LIVE), steps)

    return program


def _covariance(api: Any) -> Program:
    algorithm = api(
        logprior_fn=logprior,
        loglikelihood_fn=loglikelihood,
        num_inner_steps=2,
        num_delete=REPLACED,
        inner_kernel_params=blackjax.ns.nss.live_covariance,  # pyright: ignore
    )
    return chain(algorithm, positions(LIVE), 2)


def _uniform_prior(api: Any) -> Program:
    def fun(key: jax.Array) -> Any:
        particles, density = api.utils.uniform_prior(
            key, LIVE, {"x": (0.0, 1.0), "y": (-1.0, 3.0)}
        )
        return particles, density(particles)

    return fun, (jax.random.key(0),)


CASES = (
    Case("nss", _sampler(3), steps=3, tolerance=1e-13),
    Case("nss", _covariance, 2, 1e-13, "covariance"),
    Case("nsswig", _sampler(3), steps=3, tolerance=1e-13),
    Case("ns_family", _sampler(3, lambda x: x[0]), 3, 1e-13),
    Case("ns", _uniform_prior, steps=1, tolerance=1e-13, variant="uniform_prior"),
)
