"""What a case is, and the small target that most cases share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


# Lanes that neither chunks of three nor two devices divide.
LANES = 7

Fun = Callable[..., Any]
Program = tuple[Fun, tuple[Any, ...]]


@dataclass(frozen=True)
class Case:
    """A small problem for one public name of blackjax.

    `program` takes what stands under that name, the original or rebuilt, and returns a
    function and its arguments. The function runs `steps` steps and returns arrays.
    Layouts that split the tasks give the floats to `tolerance`, relative and absolute.
    An `eager` function reads values back to Python, so it cannot be jitted as a whole.
    """

    name: str
    program: Callable[[Any], Program]
    steps: int
    tolerance: float
    variant: str = ""
    eager: bool = False

    def __str__(self) -> str:
        return f"{self.name}[{self.variant}]" if self.variant else self.name


def logprior(position: dict[str, jax.Array]) -> jax.Array:
    return -0.5 * (jnp.sum(position["x"] ** 2) + position["y"] ** 2)


def loglikelihood(position: dict[str, jax.Array]) -> jax.Array:
    x, y = position["x"], position["y"]
    return -((x[1] - 0.5 * x[0] + 0.3) ** 2) - 2.0 * (y - 0.3 * x[1] ** 2) ** 2


def logdensity(position: dict[str, jax.Array]) -> jax.Array:
    """A correlated density over a dictionary of a vector and a scalar."""
    return logprior(position) + loglikelihood(position)


DIM = 3


def positions(lanes: int = LANES, seed: int = 0) -> dict[str, jax.Array]:
    """Draws from the prior, one for each lane."""
    draws = jax.random.normal(jax.random.key(seed), (lanes, DIM))
    return {"x": draws[:, :2], "y": draws[:, 2]}


def position(seed: int = 0) -> dict[str, jax.Array]:
    return jax.tree.map(lambda x: x[0], positions(1, seed))


def chain(algorithm: Any, start: Any, steps: int, seed: int = 1) -> Program:
    """`init` and some steps, of which states, infos and keys are returned."""

    def fun(key: jax.Array, start: Any) -> Any:
        key, init_key = jax.random.split(key)
        state = algorithm.init(start, init_key)
        return walk(algorithm.step, key, state, steps)

    return fun, (jax.random.key(seed), start)


def walk(step: Fun, key: jax.Array, state: Any, steps: int) -> Any:
    """The states, infos and keys of some steps after `state`."""
    keys = jax.random.split(key, steps)

    def body(state: Any, key: jax.Array) -> Any:
        state, info = step(key, state)
        return state, (state, info)

    return state, jax.lax.scan(body, state, keys), keys
