"""`plan`: the programs of a sampler fit the budget as wholes, and no larger size does.

Compiling a step of `blackjax.nss` takes seconds. So most tests plan a small sampler
with two sites in its step; planning takes the same path for both.
"""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.auto import _auto, _layout_plan
from batchkit.auto._lane_count import JointCalls


# The profiler of `plan` is called for every function; checking types in each of these
# calls takes longer than all else.
pytestmark = pytest.mark.usefixtures("no_type_checks")

DATA = np.linspace(0.0, 1.0, 1_200, dtype=np.float32)
POSITIONS = jax.random.normal(jax.random.key(0), (40, 2))
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


@pytest.fixture
def sampler(
    make_package: Callable[..., ModuleType], monkeypatch: pytest.MonkeyPatch
) -> Any:
    """The API of the small sampler, which `plan` rebuilds."""
    rebuild = functools.partial(bk.rebuild_sampler, packages=("toy",))
    monkeypatch.setattr(_layout_plan, "rebuild_sampler", rebuild)
    return make_package(init=SAMPLER).sampler


@pytest.fixture
def only_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No function counts as expensive, so that `Continuous` is never chosen."""
    monkeypatch.setattr(_auto, "MIN_OPERATIONS", 10**12)
    monkeypatch.setattr(_auto, "_CHOICES", type(_auto._CHOICES)())


def loglikelihood(x: jax.Array) -> jax.Array:
    """Needs memory for all of its data: XLA cannot fuse away a sort."""
    return -jnp.sum(jnp.sort(DATA * x[0])[:10]) - jnp.sum(x**2)


SETTINGS: dict[str, Any] = {"loglikelihood_fn": loglikelihood, "num_delete": 20}
NSS: dict[str, Any] = {
    **SETTINGS,
    "logprior_fn": lambda x: -0.5 * jnp.sum(x**2),
    "num_inner_steps": 1,
}


def total(api: Any, settings: dict[str, Any], policy: bk.ByPhase, phase: str) -> int:
    """The bytes of one program of a rebuilt sampler, compiled as a user would."""
    packages = ("blackjax", "toy")
    algorithm = bk.rebuild_sampler(api, batcher=policy, packages=packages)(**settings)
    if phase == "init":
        return bk.memory(algorithm.init, POSITIONS).total
    state = jax.eval_shape(algorithm.init, POSITIONS)
    return bk.memory(algorithm.step, jax.eval_shape(jax.random.key, 0), state).total


def assert_fits(api: Any, settings: dict[str, Any], plan: Any, phase: str) -> None:
    """Assert that a program fits, and with one more task at once does not."""
    batcher = getattr(plan, phase)
    measured = getattr(plan, f"{phase}_memory").total
    assert measured == total(api, settings, plan.batcher, phase) <= plan.budget
    if isinstance(batcher, bk.Chunked):
        larger = bk.ByPhase(**{phase: bk.Chunked(batcher.size + 1)})
        assert total(api, settings, larger, phase) > plan.budget


@pytest.mark.usefixtures("only_memory")
@pytest.mark.parametrize("budget", ["60 kB", "90 kB"])
def test_both_programs_fit_and_no_larger_size_does(budget: str, sampler: Any) -> None:
    plan = bk.plan(sampler, budget, POSITIONS, **SETTINGS)
    assert isinstance(plan.init, bk.Chunked)
    assert isinstance(plan.step, bk.Chunked)
    for phase in ("init", "step"):
        assert_fits(sampler, SETTINGS, plan, phase)


@pytest.mark.slow
@pytest.mark.usefixtures("only_memory")
@pytest.mark.parametrize("budget", ["60 kB", "150 kB"])
def test_programs_of_nss_fit_and_no_larger_size_does(budget: str) -> None:
    plan = bk.plan(blackjax.nss, budget, POSITIONS, **NSS)
    assert isinstance(plan.init, bk.Chunked)
    assert isinstance(plan.step, bk.Chunked | bk.Vmap)
    for phase in ("init", "step"):
        assert_fits(blackjax.nss, NSS, plan, phase)


@pytest.mark.usefixtures("only_memory")
def test_vmap_is_chosen_if_all_fits_and_nothing_runs(sampler: Any) -> None:
    ran: list[int] = []

    def observed(x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda: ran.append(1))
        return loglikelihood(x)

    shapes = jax.ShapeDtypeStruct(POSITIONS.shape, POSITIONS.dtype)
    settings = {**SETTINGS, "loglikelihood_fn": observed}
    plan = bk.plan(sampler, "1 GiB", shapes, **settings)
    jax.effects_barrier()
    assert ran == []
    assert plan.batcher == bk.ByPhase(init=bk.Vmap(), step=bk.Vmap())
    assert plan.budget == 1024**3
    lines = repr(plan).splitlines()
    assert lines[0].split() == ["phase", "batcher", "memory", "budget"]
    assert lines[1].split()[:2] == ["init", "Vmap()"]
    assert "<table" in plan._repr_html_()


@pytest.mark.usefixtures("two_cores")
def test_step_gets_continuous_for_expensive_loops(sampler: Any) -> None:
    grid = np.linspace(0.0, 1.0, 40_000, dtype=np.float32)

    def expensive(x: jax.Array) -> jax.Array:
        return -jnp.sum(x**2) + 1e-30 * jnp.sum(jnp.sin(grid * x[0]))

    settings = {"loglikelihood_fn": expensive, "num_delete": 20, "climb": True}
    plan = bk.plan(sampler, "3 MB", POSITIONS, **settings)
    assert plan.step == bk.Continuous(4)
    assert plan.step_memory.total <= 3_000_000
    assert not isinstance(plan.init, bk.Continuous)


@pytest.mark.usefixtures("two_cores")
def test_lanes_may_be_measured(sampler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(self: JointCalls, lanes: list[int], budget: int) -> dict[int, float]:
        return {each: 1.0 + (each != 4) for each in lanes}

    monkeypatch.setattr(JointCalls, "measured_shares", measured)
    grid = np.linspace(0.0, 1.0, 40_000, dtype=np.float32)

    def expensive(x: jax.Array) -> jax.Array:
        return -jnp.sum(x**2) + 1e-30 * jnp.sum(jnp.sin(grid * x[0]))

    settings = {"loglikelihood_fn": expensive, "num_delete": 20, "climb": True}
    plan = bk.plan(sampler, "1 GB", POSITIONS, measure=True, **settings)
    assert plan.step == bk.Continuous(4)


@pytest.mark.slow
@pytest.mark.usefixtures("two_cores")
def test_step_of_nss_gets_continuous() -> None:
    grid = np.linspace(0.0, 1.0, 40_000, dtype=np.float32)

    def expensive(x: jax.Array) -> jax.Array:
        return -jnp.sum(x**2) + 1e-30 * jnp.sum(jnp.sin(grid * x[0]))

    settings = {**NSS, "loglikelihood_fn": expensive, "num_inner_steps": 2}
    plan = bk.plan(blackjax.nss, "3 MB", POSITIONS, **settings)
    assert plan.step == bk.Continuous(4)
    assert plan.step_memory.total <= 3_000_000


def test_budget_below_one_lane_is_an_error(sampler: Any) -> None:
    with pytest.raises(bk.BudgetError, match=r"plan\(init\): one lane needs") as info:
        bk.plan(sampler, "3 kB", POSITIONS, **SETTINGS)
    assert "float32[1,1200]" in str(info.value)


def test_sampler_without_sites_gets_vmap() -> None:
    plan = bk.plan(
        blackjax.hmc,
        "1 MB",
        jnp.zeros(3),
        logdensity_fn=lambda x: -jnp.sum(x**2),
        step_size=0.1,
        inverse_mass_matrix=jnp.ones(3),
        num_integration_steps=3,
    )
    assert plan.batcher == bk.ByPhase(init=bk.Vmap(), step=bk.Vmap())


def test_default_budget_is_that_of_auto(
    sampler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_layout_plan, "budget_or_free", lambda budget, _: 10**9)
    assert bk.plan(sampler, None, POSITIONS, **SETTINGS).budget == 10**9


@pytest.mark.parametrize(
    ("api", "budget", "error", "words"),
    [
        (blackjax.nss, "many", ValueError, r"plan\(budget='many'\)"),
        (blackjax.nss, 1.5, TypeError, r"plan\(budget=1.5\)"),
        (blackjax.window_adaptation, "1 MB", TypeError, "`init` and `step`"),
    ],
)
def test_invalid_arguments_are_refused(
    api: Any, budget: Any, error: type[Exception], words: str
) -> None:
    settings = {"algorithm": blackjax.nuts, "logdensity_fn": loglikelihood}
    if api is blackjax.nss:
        settings = NSS
    with pytest.raises(error, match=words):
        bk.plan(api, budget, POSITIONS, **settings)
