"""Settings of the tests of `Auto` and `plan`."""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import pytest

import batchkit as bk
from batchkit.auto import _auto, _lane_memory, _layout_plan, _task_seconds
from batchkit.auto._task_seconds import Rates


SAMPLER = """
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp


class State(NamedTuple):
    positions: Any
    loglikelihood: Any


class Algorithm(NamedTuple):
    init: Callable[..., Any]
    step: Callable[..., Any]


def sampler(loglikelihood_fn, num_delete, climb=False):
    '''Replaces the worst points, and evaluates all points a second time.'''

    def init(positions):
        return State(positions, jax.vmap(loglikelihood_fn)(positions))

    def move(x):
        if not climb:
            return x + 1.0
        return jax.lax.while_loop(
            lambda x: loglikelihood_fn(x) < -0.5, lambda x: x / 2, x
        )

    def step(rng_key, state):
        worst = state.positions[jnp.argsort(state.loglikelihood)[:num_delete]]
        moved = jax.vmap(lambda x: (move(x), loglikelihood_fn(x)))(worst)
        shift = jax.random.normal(rng_key, (2,))
        again = jax.vmap(lambda x: loglikelihood_fn(x + shift))(state.positions)
        history = jnp.tile(state.positions, (50, 1))
        return State(state.positions, again), (moved, history)

    return Algorithm(init, step)
"""


def set_cores(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    """Fix the speeds of the device, so that every machine chooses the same layout."""
    device = Rates(1e10, 2.5e8, 1e11, 2e10, kernel=5e-7, cores=cores)
    monkeypatch.setattr(_task_seconds, "rates", lambda: device)
    monkeypatch.setattr(_auto, "_CHOICES", type(_auto._CHOICES)())


@pytest.fixture(autouse=True)
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the device so many cores that memory limits the tasks at once, not time."""
    set_cores(monkeypatch, 1_000)


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch, many_cores: None) -> None:
    """Give the device two cores instead."""
    set_cores(monkeypatch, 2)


@pytest.fixture
def sampler(
    make_package: Callable[..., ModuleType], monkeypatch: pytest.MonkeyPatch
) -> Any:
    """The API of the small sampler, which `plan` rebuilds."""
    rebuild = functools.partial(bk.rebuild_sampler, packages=("toy",))
    monkeypatch.setattr(_layout_plan, "rebuild_sampler", rebuild)
    return make_package(init=SAMPLER).sampler


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A CPU that passes for a described device of 1 GB."""
    for module in (_layout_plan, _lane_memory):
        monkeypatch.setattr(module, "is_described", lambda device: True)
    monkeypatch.setattr(_lane_memory, "memory_of_device", lambda device: 10**9)
    return jax.devices()[1]
