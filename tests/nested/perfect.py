"""Nested sampling as it should be: every new point a true draw above its contour.

Let `u` be the volume of the prior whose likelihood is above that of a point. Then `u`
is uniform, a likelihood is a function that falls with `u`, the evidence is its integral
from 0 to 1, and a draw above a contour is a draw below the volume of that contour.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import special

import batchkit as bk
from batchkit.nested import DeadPoints


class Problem(NamedTuple):
    """`log L(u)`, the volume above a contour, and the exact evidence."""

    log_likelihood: Callable[[np.ndarray], np.ndarray]
    volume_above: Callable[[float], float]
    log_evidence: float


def peak(dim: int = 5, scale: float = 0.1) -> Problem:
    """`L = exp(-r / scale)` in the unit ball, where `u = r^dim`.

    `Z = dim int_0^1 r^(dim - 1) exp(-r / scale) dr`, an incomplete gamma function.
    """
    return Problem(
        lambda u: -(u ** (1 / dim)) / scale,
        lambda contour: min(1.0, (-contour * scale) ** dim),
        float(
            np.log(special.gammainc(dim, 1 / scale))
            + special.gammaln(dim + 1)
            + dim * np.log(scale)
        ),
    )


def plateau(level: float, share: float = 0.6) -> Problem:
    """`L = exp(level)` over the outer `share` of the prior, `exp(3 (1 - u))` inside."""
    inner = 1 - share

    def log_likelihood(u: np.ndarray) -> np.ndarray:
        return np.where(u < inner, 3 * (1 - u), level)

    def volume_above(contour: float) -> float:
        return float(np.clip(1 - contour / 3, 0.0, inner))

    inside = (np.exp(3) - np.exp(3 * share)) / 3
    return Problem(
        log_likelihood, volume_above, float(np.log(inside + share * np.exp(level)))
    )


def steps(
    heights: Sequence[float] = (0.0, 2.0, 3.0), volumes: Sequence[float] = (0.7, 0.3)
) -> Problem:
    """Nothing but plateaus: `volumes[i]` is the volume above `exp(heights[i])`."""
    above = np.array([*volumes, 0.0])
    logl = np.array(heights)

    def log_likelihood(u: np.ndarray) -> np.ndarray:
        return logl[np.sum(u[..., None] < above[:-1], axis=-1)]

    def volume_above(contour: float) -> float:
        return float(above[np.searchsorted(logl, contour)] if contour > -1e300 else 1.0)

    shares = -np.diff([1.0, *above])
    return Problem(
        log_likelihood, volume_above, float(np.log(np.sum(shares * np.exp(logl))))
    )


def sample(
    problem: Problem,
    seed: int,
    num_live: int = 50,
    num_delete: int = 1,
    remaining: float = 1e-3,
    biased: float = 1.0,
) -> DeadPoints:
    """A run that deletes the `num_delete` lowest points and draws above the highest.

    It ends when the live points hold the share `remaining` of the evidence, or when
    nothing is above them. With `biased` below 1, new points come from the inner part of
    the volume they should come from: a chain that does not reach the contour.
    """
    rng = np.random.default_rng(seed)
    u = rng.uniform(size=num_live)
    birth = np.full(num_live, -np.inf)
    dead = []
    log_volume, log_z = 0.0, -np.inf
    while True:
        logl = problem.log_likelihood(u)
        live = np.logaddexp.reduce(logl) - np.log(num_live) + log_volume
        if live - np.logaddexp(log_z, live) < np.log(remaining):
            break
        order = np.argsort(logl, kind="stable")
        lowest = order[:num_delete]
        contour = logl[lowest].max()
        above = problem.volume_above(contour)
        if above == 0.0:
            break
        dead.append((u[lowest], birth[lowest]))
        # What stops a run may be rough: it says nothing of the volume of plateaus.
        width = np.log(-np.expm1(-num_delete / num_live)) + log_volume
        share = np.logaddexp.reduce(logl[lowest]) - np.log(num_delete)
        log_z = np.logaddexp(log_z, share + width)
        log_volume -= num_delete / num_live
        u, birth = u.copy(), birth.copy()
        u[lowest] = rng.uniform(size=num_delete) * above * biased
        # A birth above zero likelihood is the lowest number.
        birth[lowest] = max(contour, np.finfo(float).min)
    us, births = zip(*dead, (u, birth), strict=True)
    points = np.concatenate(us)
    return DeadPoints(
        {"u": points},
        problem.log_likelihood(points),
        np.concatenate(births),
        np.zeros_like(points),
    )


def result(dead: DeadPoints, seed: int = 0, **changes: Any) -> bk.NestedRun:
    """The points as a result, with as much said about the run as is needed."""
    arguments: dict[str, Any] = {
        "num_steps": len(dead) - dead.num_prior,
        "num_evaluations": len(dead),
        "stop_reason": "the live points hold little of the evidence",
        "key": jax.random.key(seed),
        **changes,
    }
    return bk.NestedRun(dead, **arguments)
