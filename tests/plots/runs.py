"""Synthetic runs for figures."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

import batchkit as bk
from batchkit.nested import DeadPoints

from ..nested.perfect import peak, result, sample


@functools.cache
def nested(make: Callable[[np.ndarray], Any], **how: Any) -> bk.NestedRun:
    """A run whose positions are `make` of points in a ball of six dimensions."""
    dead = sample(peak(6, 0.1), 1, 100, num_delete=10, **how)
    direction = np.random.default_rng(0).normal(size=(len(dead), 6))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    points = direction * dead.positions["u"][:, None] ** (1 / 6)
    return result(
        DeadPoints(
            make(points), dead.loglikelihood, dead.loglikelihood_birth, dead.logprior
        )
    )


@functools.cache
def chains(make: Callable[[np.ndarray], Any], count: int = 4) -> bk.ChainRun:
    """Chains whose draws are `make` of six normal numbers."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(count, 300, 6))
    diverging = (rng.uniform(size=(count, 300)) < 0.02).astype(int)
    return bk.ChainRun(make(x), diverging=diverging)


def two(x: np.ndarray) -> Any:
    return {"mass": x[..., 0], "slope": np.exp(x[..., 1] / 3)}


def six(x: np.ndarray) -> Any:
    lens = {"einstein_radius": 1.2 + x[..., 0], "shear": 1e-4 * x[..., 1:3]}
    return {"lens": lens, "source": {"flux": 3e6 * (2 + x[..., 3]), "at": x[..., 4:]}}


def odd(x: np.ndarray) -> Any:
    """Constant, boolean, integer, narrow and half-precision parameters."""
    return {
        "constant": 0 * x[..., 0] + 7,
        "zero": 0 * x[..., 0],
        "flag": x[..., 0] > 0,
        "whole": np.round(10 * x[..., 1]).astype(np.int8),
        "narrow": 2459000.5 + 1e-3 * x[..., 2],
        "half": x[..., 3].astype(np.float16),
    }
