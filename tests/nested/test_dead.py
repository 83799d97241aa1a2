"""`DeadPoints` and `finalise`: sorted, consistent, and how many points are alive."""

from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.ns.base import NSInfo, NSState, StateWithLogLikelihood
from blackjax.ns.utils import compute_num_live, finalise as blackjax_finalise

from batchkit.nested import DeadPoints, finalise

from .perfect import Problem, peak, plateau, sample, steps


INFINITY = np.inf
LOWEST = np.finfo(np.float32).min
PROBLEMS = {
    "peak": peak(),
    "plateau": plateau(1.0),
    "zero": plateau(-INFINITY),
    "steps": steps(),
}


def particles(loglikelihood: Any, birth: Any) -> StateWithLogLikelihood:
    loglikelihood, birth = jnp.asarray(loglikelihood), jnp.asarray(birth)
    zeros = jnp.zeros_like(loglikelihood)
    return StateWithLogLikelihood({"x": 2 * loglikelihood}, zeros, loglikelihood, birth)


def state_of(loglikelihood: Any, birth: Any) -> NSState:
    return NSState(particles(loglikelihood, birth))


def info_of(loglikelihood: Any, birth: Any) -> Any:
    return NSInfo(particles(loglikelihood, birth), NSState(particles([0.0], [0.0])))


@pytest.mark.parametrize("num_delete", [1, 7])
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_num_live_counts_points_between_birth_and_death(
    problem: Problem, num_delete: int
) -> None:
    """Each point is counted from after its birth to its own death, ties in sequence."""
    dead = sample(problem, 0, num_live=20, num_delete=num_delete)
    births, deaths = dead.loglikelihood_birth, dead.loglikelihood
    for i, contour in enumerate(deaths):
        born = (births < contour) | np.isneginf(births)
        still = np.arange(len(dead)) >= i
        assert dead.num_live[i] == np.sum(born & still)
    assert dead.num_live[0] == dead.num_prior == 20
    assert dead.num_live[-1] == 1
    assert dead.num_live.max() == 20


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_num_live_is_that_of_blackjax(problem: Problem) -> None:
    dead = sample(problem, 1, num_live=20, num_delete=7)
    births = dead.loglikelihood_birth
    upstream = np.where(np.isneginf(births), np.nan, births)
    upstream = np.where(births == np.finfo(float).min, -np.inf, upstream)
    with jax.enable_x64(True):
        found = compute_num_live(info_of(dead.loglikelihood, upstream))
    np.testing.assert_array_equal(dead.num_live, found)


def test_points_are_sorted_in_all_their_arrays() -> None:
    logl = np.array([3.0, 1.0, 2.0, 1.0])
    dead = DeadPoints(
        {"a": 10 * logl, "b": (np.stack([logl, -logl], 1),)},
        logl,
        np.array([1.0, -INFINITY, -INFINITY, -INFINITY]),
        100 * logl,
    )
    assert dead.loglikelihood.tolist() == [1, 1, 2, 3]
    assert dead.logprior.tolist() == [100, 100, 200, 300]
    assert dead.positions["a"].tolist() == [10, 10, 20, 30]
    assert dead.positions["b"][0][:, 1].tolist() == [-1, -1, -2, -3]
    assert dead.loglikelihood_birth.tolist()[-1] == 1
    assert dead.num_live.tolist() == [3, 2, 2, 1]
    assert repr(dead) == "DeadPoints(4 points, 3 of the prior)"


def run_of_blackjax() -> tuple[Any, Any, list[Any]]:
    algorithm = blackjax.nss(
        logprior_fn=lambda x: jnp.sum(jnp.where(jnp.abs(x["x"]) < 1, 0.0, -jnp.inf)),
        loglikelihood_fn=lambda x: -jnp.sum(x["x"] ** 2),
        num_inner_steps=3,
        num_delete=4,
    )
    keys = jax.random.split(jax.random.key(0), 7)
    positions = {"x": jax.random.uniform(keys[0], (12, 2), minval=-1.0)}

    def step(state: Any, key: jax.Array) -> Any:
        return algorithm.step(key, state)

    init = jax.jit(algorithm.init)
    state, stacked = jax.lax.scan(step, init(positions), keys[1:])
    # On the host, where slices are not compiled.
    state, stacked = jax.tree.map(np.asarray, (state, stacked))
    infos = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(6)]
    return state, stacked, infos


def test_finalise_takes_lists_and_stacked_infos() -> None:
    state, stacked, infos = run_of_blackjax()
    expected: Any = blackjax_finalise(state, infos, update_info=False).particles
    order = np.argsort(np.asarray(expected.loglikelihood), kind="stable")
    halves = [jax.tree.map(lambda x: x[:3], stacked), *infos[3:]]
    for given in (infos, stacked, [stacked], halves, tuple(infos)):
        dead = finalise(state, given)
        assert len(dead) == 12 + 6 * 4
        assert dead.num_prior == 12
        np.testing.assert_array_equal(dead.loglikelihood, expected.loglikelihood[order])
        np.testing.assert_array_equal(
            dead.positions["x"], expected.position["x"][order]
        )
        np.testing.assert_array_equal(dead.logprior, expected.logdensity[order])
    assert len(finalise(state, [])) == 12


def test_births_in_the_prior_and_above_zero_differ() -> None:
    """At minus infinity a draw from the prior and one from above zero differ."""
    nan, inf = np.nan, np.inf
    steps = [info_of([-inf, -inf], [nan, nan]), info_of([-inf], [nan])]
    end = state_of([1.0, 2.0, 3.0, 4.0, 5.0], [nan, -inf, nan, -inf, -inf])
    dead = finalise(end, steps)
    births = [-inf, -inf, -inf, -inf, LOWEST, -inf, LOWEST, LOWEST]
    assert dead.loglikelihood_birth.tolist() == births
    # Five of the prior: three die with nothing in their place, then three are born.
    assert dead.num_live.tolist() == [5, 4, 3, 5, 4, 3, 2, 1]


def test_births_marked_by_minus_infinity_are_in_the_prior() -> None:
    dead = finalise(
        state_of([2.0, 3.0], [-INFINITY, 1.0]), [info_of([1.0], [-INFINITY])]
    )
    assert dead.loglikelihood_birth.tolist() == [-INFINITY, -INFINITY, 1.0]
    assert dead.num_live.tolist() == [2, 2, 1]


def test_finalise_leaves_out_copies_at_the_top() -> None:
    """blackjax goes on when nothing is above the live points, and copies them."""
    nan = np.nan
    infos = [info_of([0.0], [nan]), info_of([2.0, 2.0], [nan, nan])]
    dead = finalise(state_of([2.0, 2.0, 2.0], [0.0, 2.0, 2.0]), infos)
    assert dead.loglikelihood.tolist() == [0, 2, 2, 2]
    assert dead.num_live.tolist() == [3, 3, 2, 1]


@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loglikelihood": np.ones((3, 2))}, "one entry a point.*shape .3, 2."),
        ({"logprior": np.ones(2)}, "logprior must have the shape of loglikelihood"),
        (
            {"positions": {"x": np.ones(4)}},
            r"positions\['x'\] must have a row",
        ),
        ({"positions": {}}, "at least one array"),
        ({"loglikelihood": np.array([1, np.nan, np.inf])}, "2 of 3 entries.*index 1"),
        ({"loglikelihood_birth": np.array([0, 1, np.nan])}, "loglikelihood_birth must"),
        ({"loglikelihood_birth": np.array([0, 1, 2.0])}, "above its birth; 1 of 3"),
    ],
)
def test_dead_points_refuse_inconsistent_arrays(
    change: dict[str, Any], message: str
) -> None:
    given = {
        "positions": {"x": np.zeros(3)},
        "loglikelihood": np.array([1.0, 2.0, 2.0]),
        "loglikelihood_birth": np.full(3, -np.inf),
        "logprior": np.zeros(3),
    }
    DeadPoints(**given)
    with pytest.raises(ValueError, match=message):
        DeadPoints(**{**given, **change})


def test_finalise_refuses_nan() -> None:
    """NaN cannot be compared, and is not left out as a copy."""
    with pytest.raises(ValueError, match="NaN"):
        finalise(state_of([2.0, np.nan], [np.nan, 1.0]), [info_of([1.0], [np.nan])])
