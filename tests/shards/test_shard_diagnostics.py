"""Diagnostics of combined draws, on draws made by hand."""

import inspect
import re
from typing import Any

import jax
import numpy as np
import pytest
from scipy.stats import norm as normal

import batchkit as bk
from batchkit.run import Seconds
from batchkit.shards import (
    DIVERGENCE_NOTE,
    DIVERGENCE_UNRELIABLE,
    DIVERGENCE_WARNING,
    ShardTry,
    _shard_diagnostics,
)

from ..helpers import assert_refuses


SHARDS, CHAINS, DRAWS, DIM = 5, 4, 500, 2
RNG = np.random.default_rng(0)


def is_bimodal(x: np.ndarray, ess: float) -> bool:
    return _shard_diagnostics.is_bimodal(x, float(ess))


def draws() -> np.ndarray:
    """Shards of one model: their means are as far apart as they are wide."""
    shape = SHARDS, CHAINS, DRAWS, DIM
    means = np.random.default_rng(2).normal(size=(SHARDS, 1, 1, DIM))
    return means + np.random.default_rng(1).normal(size=shape)


def run(x: np.ndarray | None = None, rate: float = 0.0, **options: Any) -> bk.ShardRun:
    """A run with this rate of divergences in shard 1."""
    x = draws() if x is None else x
    options = {"rng_key": jax.random.key(0), **options}
    shards = [bk.ChainRun({"a": y}, diverging=np.zeros(y.shape[:2], int)) for y in x]
    diverging = np.array(shards[1].diverging)
    diverging.flat[: round(rate * diverging.size)] = 2
    shards[1] = bk.ChainRun({"a": x[1]}, diverging=diverging)
    return bk.ShardRun(shards, **options)


# Of shard 1 two, as after divergences.
TRIES = [
    tuple(
        ShardTry(i, 0.8, 0.0, True, True, "", Seconds(1.0, 1.0, 1.0))
        for i in range(2 if shard == 1 else 1)
    )
    for shard in range(SHARDS)
]


def names(*args: Any, **options: Any) -> list[str]:
    return [warning.name for warning in run(*args, **options).warnings]


def test_fatal_warnings_come_first() -> None:
    x = draws()
    x[3, ..., 1] += 6.0
    # What was left out is looked at before what disagrees.
    found = names(x, failed={0: "bad"}, tries=TRIES)
    assert found == ["shards disagree", "shards left out", "tries"]


def test_shards_that_are_left_out_are_not_diagnosed() -> None:
    x = draws()
    x[1] += 9 * np.arange(CHAINS)[:, None, None]
    assert names(x, 0.4, failed={1: "bad"}) == ["shards left out"]


def test_slow_chains_do_not_make_shards_disagree() -> None:
    # Chains that go up by and by are worth few draws, and their means are uncertain.
    x = np.tile(np.linspace(-1, 1, DRAWS)[:, None], (2, CHAINS, 1, 1))
    x += 0.2 * np.random.default_rng(0).normal(size=x.shape)
    x -= np.mean(x, axis=(1, 2), keepdims=True)
    x /= np.std(x, axis=(1, 2), keepdims=True)
    ess = min(float(bk.chains.Convergence(y).ess_bulk[0]) for y in x)
    assert ess < 20
    x[1] += np.sqrt(2 * 6.635 * (1 + 0.9 / ess))
    assert "shards disagree" not in names(x)


def test_shards_disagree_beyond_a_quantile_of_chi_squared() -> None:
    # Two shards of unit width, their means at a distance: Q is half of its square.
    x = np.random.default_rng(0).normal(size=(2, CHAINS, 4000, 1))
    x -= np.mean(x, axis=(1, 2), keepdims=True)
    x /= np.std(x, axis=(1, 2), keepdims=True)
    for dim, limit in ((1, 6.635), (10, 10.828)):  # chi squared, at 1 % and 0.1 %
        for part, expected in ((0.99, False), (1.01, True)):
            moved = np.repeat(x, dim, axis=-1)
            moved += 1e-9 * np.random.default_rng(1).normal(size=moved.shape)
            moved[1, ..., -1] += np.sqrt(2 * part * limit * (1 + 1 / 16_000))
            assert ("shards disagree" in names(shuffled(moved))) == expected


def shuffled(x: np.ndarray) -> np.ndarray:
    """Each parameter in an order of its own, so that none depends on another."""
    flat = x.reshape(len(x), -1, x.shape[-1])
    return np.random.default_rng(2).permuted(flat, axis=1).reshape(x.shape)


def test_a_result_without_most_shards_is_unreliable() -> None:
    found = run(failed={0: "bad", 2: "bad", 4: "bad"})
    assert found.warnings[0].name == "few shards"
    assert "only 40% of the shards" in repr(found)
    assert found.verdict == "unreliable"
    assert names(draws()[:4], failed={0: "bad", 2: "bad"}) == ["shards left out"]


def test_good_draws_are_reliable() -> None:
    found = run()
    assert found.warnings == ()
    assert found.verdict == "reliable"
    assert found.success_rate == 1.0
    assert found.samples["a"].shape == (CHAINS, DRAWS, DIM)
    assert found.tries == ((),) * SHARDS
    assert found.rhat["a"].shape == found.ess_bulk["a"].shape == (DIM,)
    assert found.ess_tail["a"].shape == (DIM,)
    assert abs(found.summary()["a[0]"]["std"] - SHARDS**-0.5) < 0.05


def test_shards_that_disagree_are_unreliable() -> None:
    x = draws()
    x[3, ..., 1] += 6.0
    found = run(x)
    assert found.warnings[0].name == "shards disagree"
    assert found.verdict == "unreliable"
    assert "a[1]" in found.warnings[0].message
    assert "a[0]" not in found.warnings[0].message
    assert "shard 3 farthest" in found.warnings[0].message
    assert "unreliable: do not use" in repr(found)


def test_warnings_name_shards_by_their_numbers() -> None:
    x = draws()
    x[3, ..., 1] += 6.0
    x[4, ..., 0] += np.where(RNG.random((CHAINS, DRAWS)) < 0.5, -4, 4)
    found = {w.name: w.message for w in run(x, failed={1: "bad"}).warnings}
    assert "shard 3 farthest" in found["shards disagree"]
    assert "shard 4:" in found["modes"]


@pytest.mark.slow
def test_shards_that_agree_are_hardly_ever_said_to_disagree() -> None:
    rng = np.random.default_rng(5)
    count = 0
    for _ in range(60):
        means = rng.normal(size=(8, 1, 1, 3))
        x = means + rng.normal(size=(8, 2, 150, 3))
        count += "shards disagree" in names(x)
    assert count <= 3


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (DIVERGENCE_NOTE, []),
        (0.051, ["divergences: note"]),
        (DIVERGENCE_WARNING, ["divergences: note"]),
        (0.101, ["divergences: warning"]),
        (DIVERGENCE_UNRELIABLE, ["divergences: warning"]),
        (0.301, ["divergences: unreliable"]),
    ],
)
def test_divergences_are_warned_of_at_three_levels(
    rate: float, expected: list[str]
) -> None:
    assert (DIVERGENCE_NOTE, DIVERGENCE_WARNING, DIVERGENCE_UNRELIABLE) == (
        0.05,
        0.10,
        0.30,
    )
    found = run(rate=rate)
    assert [warning.name for warning in found.warnings] == expected
    assert found.verdict == (
        "unreliable" if rate > 0.3 else "doubtful" if expected else "reliable"
    )


def test_shards_that_have_not_converged_are_named() -> None:
    x = draws()
    x[1, ..., 0] += np.linspace(-0.7, 0.7, CHAINS)[:, None]
    x[3, ..., 1] = np.repeat(x[3, :, ::20, 1], 20, axis=1)
    found = run(x)
    of_shards = {w.name: w for w in found.warnings if "of shards" in w.name}
    rhat, ess = of_shards["R-hat of shards"], of_shards["ESS of shards"]
    assert rhat.value == np.max([np.max(y.rhat["a"]) for y in found.shards]) > 1.05
    assert ess.value == np.min([np.min(y.ess_bulk["a"]) for y in found.shards]) < 200
    assert "shard 1" in rhat.message or "shards 1, 3" in rhat.message
    assert "in shards 1, 3" in ess.message
    # What is NaN counts as failed.
    few = [w for w in run(x[:, :, :3]).warnings if "of shards" in w.name]
    assert [w.name for w in few] == ["R-hat of shards", "ESS of shards"]
    assert all(np.isnan(w.value) and "shards 0, 1, 2" in w.message for w in few)


def test_shards_that_differ_are_refused() -> None:
    chains = bk.ChainRun({"a": draws()[0]})
    for other in (
        {"b": draws()[1]},
        {"a": draws()[1][:, 1:]},
        {"a": draws()[1, ..., 0]},
    ):
        words = ("shards=", "the same parameters")
        some = [chains, bk.ChainRun(other)]
        assert_refuses(lambda some=some: bk.ShardRun(some), ValueError, words)
    plain: Any = bk.ShardRun
    assert_refuses(lambda: plain(draws()), TypeError, ("shards=", "ChainRuns"))
    assert_refuses(lambda: plain([]), ValueError, ("leave one",))


def test_shards_that_ran_again_are_reported() -> None:
    found = run(tries=TRIES)
    (warning,) = found.warnings
    assert warning.name == "tries"
    assert "80% of the shards succeeded at once" in warning.message
    assert str(warning) in repr(found)


def test_shards_that_are_left_out_are_reported_with_reasons() -> None:
    x = draws()
    x[0] = 1.0
    x[4, 0, 0] = np.nan
    found = run(x, failed={2: "3 tries failed"})
    assert found.used == (1, 3)
    assert list(found.left_out) == [0, 2, 4]
    assert found.success_rate == 0.4
    assert [w.name for w in found.warnings] == ["few shards", "shards left out"]
    for words in ("shard 0", "zero", "shard 2: 3 tries failed", "shard 4", "NaN"):
        assert words in repr(found)
    assert run(failed={2: "3 tries failed"}).verdict == "doubtful"


def test_warnings_name_settings_of_run_shards() -> None:
    accepted = set(inspect.signature(bk.run_shards).parameters)
    x = draws()[:, :2, :50]
    x[:, 0] += 3.0
    found = run(x, rate=0.2)
    named = set(re.findall(r"`(\w+)`", " ".join(w.message for w in found.warnings)))
    assert {"num_warmup", "num_samples", "num_chains", "plan"} <= named
    assert named <= accepted | {"sharded_logdensity"}


def test_two_modes_of_a_shard_are_found() -> None:
    x = draws()
    signs = np.random.default_rng(0).random((CHAINS, DRAWS)) < 0.5
    x[2, ..., 0] += np.where(signs, -4, 4)
    found = run(x)
    assert "modes" in [warning.name for warning in found.warnings]
    (message,) = [w.message for w in found.warnings if w.name == "modes"]
    assert "a[0]" in message
    assert "a[1]" not in message
    assert "shard 2" in message


def test_modes_are_found_where_each_chain_stays_in_one() -> None:
    x = draws()
    x[2, :2, :, 0] -= 8.0
    assert bk.chains.Convergence(x[2, ..., 0]).ess_bulk < 50
    found = run(x)
    assert "modes" in [warning.name for warning in found.warnings]
    assert found.verdict == "unreliable"


def test_slow_chains_have_one_mode() -> None:
    rng = np.random.default_rng(3)
    for correlation in (0.95, 0.99, 0.999):
        x = rng.normal(size=(SHARDS, CHAINS, DRAWS, DIM))
        for i in range(1, DRAWS):
            x[:, :, i] += correlation * x[:, :, i - 1]
        assert "modes" not in names(x)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: RNG.normal(size=n),
        lambda n: RNG.normal(size=n) * 1e-8,
        lambda n: RNG.standard_t(2, n),
        lambda n: RNG.standard_cauchy(n),
        lambda n: RNG.exponential(size=n),
        lambda n: np.exp(1.5 * RNG.normal(size=n)),
        lambda n: RNG.random(n) - 0.5,
        lambda n: RNG.normal(size=n).round(1),
    ],
)
def test_densities_with_one_mode_are_not_called_bimodal(make: Any) -> None:
    assert not any(is_bimodal(make(n), n) for n in (100, 1000, 4000) for _ in range(20))


def test_a_valley_counts_only_if_it_is_deep() -> None:
    # Two normal densities at a distance: the valley between their modes.
    x = normal.ppf(np.linspace(0.0005, 0.9995, 20_000))
    for distance, expected in ((2.6, False), (3.8, True)):
        both = np.concatenate([x, x + distance])
        assert is_bimodal(both, both.size) == expected


def test_repeated_draws_make_no_modes() -> None:
    # Of 60 independent draws gaps are seen, however often each of them is repeated.
    rng = np.random.default_rng(7)
    flags = [is_bimodal(np.repeat(rng.normal(size=60), 100), 60) for _ in range(300)]
    assert not any(flags)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_two_modes_are_found_in_any_unit(scale: float) -> None:
    for share in (0.5, 0.15):
        x = RNG.normal(size=2000) + np.where(RNG.random(2000) < share, 3, -3)
        assert is_bimodal(scale * x, 2000)
        assert is_bimodal(scale * (x + 100), 2000)


def test_few_or_bad_draws_show_no_modes() -> None:
    x = RNG.normal(size=2000) + np.where(RNG.random(2000) < 0.5, 3, -3)
    assert is_bimodal(x, 2000)
    assert not is_bimodal(x, 40)
    assert not is_bimodal(x, np.nan)
    assert not is_bimodal(np.zeros(100), 100)
    assert not is_bimodal(np.full(100, np.nan), 100)


def test_kernel_densities_of_many_parameters_are_warned_of() -> None:
    x = np.random.default_rng(0).normal(size=(SHARDS, CHAINS, DRAWS, 6))
    assert "kernel densities" in names(x, combine="kde")
    assert names(x) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tries": TRIES[:4]}, ("tries=", "5 shards", "tries of 4")),
        ({"failed": {5: "bad"}}, ("failed={5: 'bad'}", "below 5")),
        ({"failed": dict.fromkeys(range(5), "bad")}, ("leave one",)),
    ],
)
def test_tries_and_failures_of_other_shards_are_refused(
    options: Any, words: tuple[str, ...]
) -> None:
    assert_refuses(lambda: run(**options), ValueError, words)


def test_the_table_has_the_worst_parameter() -> None:
    x = draws()
    x[..., 0] += np.linspace(-1, 1, CHAINS)[:, None]
    found = run(x)
    rhat, ess = np.max(found.rhat["a"]), np.min(found.ess_bulk["a"])
    assert rhat > 1.01 > np.min(found.rhat["a"])
    assert f"at most {rhat:.3f} (a[0])" in repr(found)
    assert f"at least {ess:,.0f} (a[0])" in repr(found)


def test_a_run_prints_as_a_table() -> None:
    text = repr(run(rate=0.2))
    assert "5 of 5, combined by 'consensus'" in text
    assert "4 chains of 500" in text
    assert "doubtful: look at the warnings" in text
    assert "not checked by gradients" in text
    assert "reliable: nothing was found" in repr(run())
    assert run()._repr_html_().startswith("<table>")


def of_normal(mean: float) -> Any:
    """Gradients of a posterior as wide as the draws are, with a mean in deviations."""
    x = run().samples["a"]
    center, width = np.mean(x, axis=(0, 1)), np.std(x, axis=(0, 1))

    def of_shards(used: tuple[int, ...]) -> Any:
        assert used == (0, 1, 2, 3, 4)
        return lambda y: {"a": -((y["a"] - center) / width - [0, mean]) / width}

    return of_shards


@pytest.mark.parametrize(("shift", "expected"), [(0.2, []), (-0.8, ["shift"])])
def test_draws_are_moved_by_as_much_as_the_table_says(
    shift: float, expected: list[str]
) -> None:
    found = run(gradients_fn=of_normal(shift))
    assert [warning.name for warning in found.warnings] == expected
    assert f"by up to {abs(shift):.2f} standard deviations" in repr(found)
    x = run().samples["a"]
    away = np.broadcast_to(found.samples["a"][0, 0] - x[0, 0], x.shape)
    np.testing.assert_allclose(found.samples["a"] - x, away)
    # The search ends where its next step is at most 0.01 standard deviations. The draws
    # have a correlation that the posterior has not, so Newton's step may be longer, by
    # the ratio of the largest curvature to the smallest.
    r = abs(np.corrcoef(x.reshape(-1, DIM), rowvar=False)[0, 1])
    off = away[0, 0] / np.std(x, axis=(0, 1)) - [0, shift]
    assert np.linalg.norm(off) < 0.01 * (1 + r) ** 1.5 / (1 - r)


def test_draws_that_could_not_be_moved_are_unreliable() -> None:
    # Of a density that grows for ever.
    found = names(gradients_fn=lambda used: lambda y: {"a": np.ones_like(y["a"])})
    assert found == ["mean gradient", "integration by parts", "not refined"]


def test_the_check_sees_draws_that_were_not_moved() -> None:
    found = run(gradients_fn=of_normal(0.0), refine=False)
    assert found.verdict == "reliable"
    check = found.gradient_check
    assert check is not None
    mean, variance = check.bounds
    assert f"within {mean:.2f} standard deviations of the" in repr(found)
    assert f"within {variance:.0%} of the" in repr(found)
    found = run(gradients_fn=of_normal(0.18), refine=False)
    assert [warning.name for warning in found.warnings] == ["mean gradient"]
    assert found.verdict == "unreliable"
    assert "a[1]" in found.warnings[0].message
    assert "within" not in repr(found)
    np.testing.assert_array_equal(found.samples["a"], run().samples["a"])
