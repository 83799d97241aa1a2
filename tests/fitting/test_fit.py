"""`fit`: the programs of a sampler, as wholes, are in the budget and no smaller."""

from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.auto import _auto, _rule
from batchkit.fitting import _fit


# Watching is told of every call; checking the types of each takes longer than all else.
pytestmark = pytest.mark.usefixtures("no_type_checks")

DATA = np.linspace(0.0, 1.0, 1_200, dtype=np.float32)
POSITIONS = jax.random.normal(jax.random.key(0), (40, 2))


def small(x: jax.Array) -> jax.Array:
    """Holds much, whatever XLA fuses."""
    return -jnp.sum(jnp.sort(DATA * x[0])[:10]) - jnp.sum(x**2)


@pytest.fixture
def only_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is so expensive that lanes should never wait for it."""
    monkeypatch.setattr(_rule, "EXPENSIVE", 10**12)
    monkeypatch.setattr(_auto, "_CHOICES", type(_auto._CHOICES)())


def settings(loglikelihood: Any) -> dict[str, Any]:
    return {
        "logprior_fn": lambda x: -0.5 * jnp.sum(x**2),
        "loglikelihood_fn": loglikelihood,
        "num_inner_steps": 2,
        "num_delete": 20,
    }


def total(batcher: Any, phase: str, given: dict[str, Any]) -> int:
    nss = bk.rebuild_sampler(blackjax.nss, batcher=batcher)(**given)
    if phase == "init":
        return bk.memory(nss.init, POSITIONS).total
    state = jax.eval_shape(nss.init, POSITIONS)
    return bk.memory(nss.step, jax.eval_shape(jax.random.key, 0), state).total


@pytest.mark.usefixtures("only_memory")
@pytest.mark.parametrize("budget", ["60 kB", "150 kB"])
def test_both_programs_fit_and_nothing_larger_does(budget: str) -> None:
    given = settings(small)
    fitted = bk.fit(blackjax.nss, budget, POSITIONS, **given)
    assert isinstance(fitted.init, bk.Chunked)
    assert isinstance(fitted.step, bk.Chunked | bk.Vmap)
    for phase in ("init", "step"):
        batcher = getattr(fitted, phase)
        found = getattr(fitted, f"{phase}_memory").total
        assert found == total(fitted.batcher, phase, given) <= fitted.budget
        if isinstance(batcher, bk.Chunked):
            larger = bk.ByPhase(**{phase: bk.Chunked(batcher.size + 1)})
            assert total(larger, phase, given) > fitted.budget


@pytest.mark.usefixtures("only_memory")
def test_everything_at_once_where_it_fits() -> None:
    fitted = bk.fit(blackjax.nss, "1 GiB", POSITIONS, **settings(small))
    assert fitted.batcher == bk.ByPhase(init=bk.Vmap(), step=bk.Vmap())
    assert fitted.budget == 1024**3
    lines = repr(fitted).splitlines()
    assert lines[0].split() == ["phase", "batcher", "memory", "budget"]
    assert lines[1].split()[:2] == ["init", "Vmap()"]
    assert "<table" in fitted._repr_html_()


def test_lanes_that_never_wait() -> None:
    grid = np.linspace(0.0, 1.0, 40_000, dtype=np.float32)
    given = settings(lambda x: -jnp.sum(x**2) + 1e-30 * jnp.sum(jnp.sin(grid * x[0])))
    fitted = bk.fit(blackjax.nss, "3 MB", POSITIONS, **given)
    assert fitted.step == bk.Continuous(6)
    assert fitted.step_memory.total <= 3_000_000


def test_shapes_are_enough_and_nothing_runs() -> None:
    ran: list[int] = []

    def loglikelihood(x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda: ran.append(1))
        return small(x)

    shapes = jax.ShapeDtypeStruct(POSITIONS.shape, POSITIONS.dtype)
    given = settings(loglikelihood)
    one = bk.fit(blackjax.nss, "100 kB", shapes, **given)
    jax.effects_barrier()
    assert ran == []
    assert one.init_memory.total <= 100_000


def test_not_even_one_lane() -> None:
    with pytest.raises(bk.BudgetError, match=r"fit\(init\): one lane needs") as info:
        bk.fit(blackjax.nss, "3 kB", POSITIONS, **settings(small))
    assert "float32[1,1200]" in str(info.value)


def test_a_sampler_without_sites() -> None:
    fitted = bk.fit(
        blackjax.hmc,
        "1 MB",
        jnp.zeros(3),
        logdensity_fn=lambda x: -jnp.sum(x**2),
        step_size=0.1,
        inverse_mass_matrix=jnp.ones(3),
        num_integration_steps=3,
    )
    assert fitted.batcher == bk.ByPhase(init=bk.Vmap(), step=bk.Vmap())


def test_without_a_budget_half_of_what_is_free(monkeypatch) -> None:
    monkeypatch.setattr(_fit, "budget_or_free", lambda budget, _: 10**9)
    fitted = bk.fit(blackjax.nss, None, POSITIONS, **settings(small))
    assert fitted.budget == 10**9


@pytest.mark.parametrize(
    ("api", "budget", "error", "words"),
    [
        (blackjax.nss, "many", ValueError, r"fit\(budget='many'\)"),
        (blackjax.nss, 1.5, TypeError, r"fit\(budget=1.5\)"),
        (blackjax.window_adaptation, "1 MB", TypeError, "`init` and `step`"),
    ],
)
def test_what_it_is_given(api, budget, error, words) -> None:
    given: dict[str, Any] = {"algorithm": blackjax.nuts, "logdensity_fn": small}
    if api is blackjax.nss:
        given = settings(small)
    with pytest.raises(error, match=words):
        bk.fit(api, budget, POSITIONS, **given)
