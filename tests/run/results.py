"""Results of the three kinds of run, made by hand."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import batchkit as bk
from batchkit.nested import DeadPoints
from batchkit.run import Provenance, Seconds
from batchkit.shards import ShardTry

from ..nested.perfect import peak, result, sample


class Lens(NamedTuple):
    """A position that is a class, whose fields are not in order."""

    shear: Any
    mass: Any


def nested(make: Callable[[Any], Any] | None = None, **changes: Any) -> bk.NestedRun:
    """A nested run, whose positions are `make` of the volumes of its points."""
    dead = sample(peak(), 0, 40, num_delete=4)
    if make is not None:
        logs = dead.loglikelihood, dead.loglikelihood_birth, dead.logprior
        dead = DeadPoints(make(dead.positions["u"]), *logs)
    return result(dead, **changes)


SHAPE = (4, 60)
NORMAL = np.random.default_rng(0).normal(size=SHAPE)


def chains(make: Callable[[Any], Any] = lambda x: x, **changes: Any) -> bk.ChainRun:
    """Chains, whose draws are `make` of normal numbers."""
    return bk.ChainRun(make(NORMAL), **changes)


def full_chains() -> bk.ChainRun:
    """Chains of a sampler that reports everything."""
    rng = np.random.default_rng(1)
    depth = rng.integers(0, 5, SHAPE)
    return bk.ChainRun(
        {"a": rng.normal(size=(*SHAPE, 2)), "b": [NORMAL.astype(np.float32)]},
        logdensity=rng.normal(size=SHAPE).astype(np.float32),
        diverging=rng.integers(0, 3, SHAPE),
        acceptance_rate=rng.uniform(size=SHAPE),
        num_integration_steps=2**depth,
        tree_depth=depth,
        energy=np.cumsum(rng.normal(size=SHAPE), axis=1),
        step_size=rng.uniform(size=4),
        inverse_mass_matrix=rng.uniform(size=(4, 3, 3)),
        max_tree_depth=4,
        seconds=Seconds(1.0, 2.0, 3.0),
    )


def shards(make: Callable[[Any], Any] = lambda x: x, **changes: Any) -> bk.ShardRun:
    """Three shards, whose draws are `make` of arrays of shape `(4, 60)`."""
    first = ShardTry(0, 0.8, 0.2, False, False, "wild", Seconds(3.0, 0.5, 1.0))
    second = ShardTry(1, 0.85, 0.0, True, True, "", Seconds(1.0, 0.5, 2.0))
    draws = np.random.default_rng(0).normal(size=(3, *SHAPE))
    runs = [bk.ChainRun(make(x)) for x in draws]
    runs[1] = bk.ChainRun(
        make(draws[1]),
        diverging=(np.arange(240).reshape(SHAPE) % 80 == 9).astype(int),
        step_size=np.array([0.1, 0.2, 0.4, 0.3]),
        max_tree_depth=4,
        seconds=Seconds(1.0, 0.5, 2.0),
        provenance=(Provenance(0, {"jax": "0.0.1"}),),
    )
    tries = (), (first, second), (first, second)
    return bk.ShardRun(runs, tries=tries, **changes)


def checked_shards() -> bk.ShardRun:
    """Shards that were moved and checked by gradients, one of which is left out."""
    gradients = lambda used: lambda p: {"a": -2 * (p["a"] - 0.3)}
    return shards(
        lambda x: {"a": np.stack([x, x[..., ::-1]], -1)},
        gradients_fn=gradients,
        failed={1: "3 tries failed"},
    )


# From a function of arrays to a result.
MAKERS: dict[str, Callable[..., Any]] = {
    "nested": nested,
    "chains": chains,
    "shards": shards,
}


def samples_of(run: Any) -> Any:
    return run.dead.positions if isinstance(run, bk.NestedRun) else run.samples


def contents(value: Any) -> Any:
    """All attributes, also of the records inside; keys as their words."""
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return [contents(x) for x in value]
    if isinstance(value, jax.Array):
        return jax.random.key_data(value), str(jax.random.key_impl(value))
    if not hasattr(value, "__dict__"):
        return value
    # What is computed when it is first read is not compared.
    names = vars(value).keys() - {"_volumes", "num_live"}
    return {name: contents(getattr(value, name)) for name in names}
