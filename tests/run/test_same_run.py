"""Comparison of checkpoints with runs, of equal and of other versions."""

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from batchkit.run import CheckpointError, Provenance
from batchkit.run._packages import versions
from batchkit.run._same_run import (
    Part,
    SameRun,
    Values,
    of_arrays,
    of_words,
    rounding_of_function,
    sketch_of,
)
from batchkit.run._store import Saved

from ..helpers import assert_refuses
from .other_versions import OTHER


NUMBERS = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)


def function(digest: str) -> Part:
    return Part(digest, is_function=True)


def saved(parts: dict[str, Part], with_versions: Any = None, **header: Any) -> Saved:
    """A checkpoint of these parts; of other versions, if they are given."""
    entries, arrays = SameRun(parts).to_save()
    full_header = {**entries, "step": 7, **header}
    if with_versions is not None:
        full_header |= {"versions": with_versions, "provenance": [[0, with_versions]]}
    return Saved(full_header, dict(arrays), "run.h5")


def values(before: Any, now: Any, *parts: str) -> Values:
    return Values.of_logdensity(parts, np.array(before), np.array(now), 1e-3)


def never(*args: Any) -> Any:
    raise AssertionError("functions are not evaluated between equal versions")


def test_equal_versions_compare_only_digests() -> None:
    SameRun({"prior": function("a")}, never).check(saved({"prior": function("a")}))
    with pytest.raises(CheckpointError, match="its prior differs from"):
        SameRun({"prior": function("b")}, never).check(saved({"prior": function("a")}))


def test_other_versions_compare_values(caplog: pytest.LogCaptureFixture) -> None:
    file = saved({"prior": function("a"), "likelihood": function("b")}, OTHER)
    compared: list[Any] = []

    def compare(file: Saved, changed: Any) -> list[Values]:
        compared.append(list(changed))
        return [values([-1e6, -0.1, -np.inf], [-1e6 + 1, -0.1001, -np.inf], *changed)]

    run = SameRun(
        {"prior": function("a"), "likelihood": function("c")},
        compare,
        lambda header: header["step"],
    )
    with caplog.at_level(logging.INFO, "batchkit"):
        run.check(file)
    assert compared == [["likelihood"]]
    (record,) = caplog.records
    assert "jax 0.0.1, python 3.0.1" in record.getMessage()
    assert f"jax {jax.__version__}" in record.getMessage()
    # Until something is computed, only the other versions have computed anything.
    assert run.provenance == (Provenance(0, OTHER),)
    run.begin()
    assert run.provenance == (Provenance(0, OTHER), Provenance(7, versions()))
    again = SameRun({"prior": function("a"), "likelihood": function("c")}, never)
    again.check(Saved({**file.header, **run.to_save()[0]}, file.arrays, "run.h5"))
    again.begin()
    assert again.provenance == run.provenance


@pytest.mark.parametrize("now", [[-3.0, -5.01], [-3.0, np.nan], [-np.inf, -5.0]])
def test_function_with_other_values_is_refused(now: list[float]) -> None:
    run = SameRun(
        {"likelihood": function("b")},
        lambda file, changed: [values([-3.0, -5.0], now, "likelihood")],
    )
    file = saved({"likelihood": function("a")}, OTHER)
    words = (
        "its likelihood differs",
        "at 1 of 2 positions",
        "in the file",
        "written with jax 0.0.1, python 3.0.1",
        f"this is jax {jax.__version__}",
    )
    assert_refuses(lambda: run.check(file), CheckpointError, words)


def test_incomparable_part_names_the_versions() -> None:
    run = SameRun({"algorithm": function("b")}, lambda *_: [])
    file = saved({"algorithm": function("a")}, OTHER)
    words = "its algorithm is what", "Go on with it with jax 0.0.1, python 3.0.1"
    assert_refuses(lambda: run.check(file), CheckpointError, words)


def test_checkpoint_without_sketches_names_the_versions() -> None:
    """An older batchkit kept digests alone."""
    file = saved({"positions": of_arrays(NUMBERS)}, OTHER)
    for name in ("words", "sketches", "provenance"):
        del file.header[name]
    SameRun({"positions": of_arrays(NUMBERS)}).check(file)
    run = SameRun({"positions": of_arrays(NUMBERS + 1)})
    words = ("its positions is what", "Go on with it with jax 0.0.1")
    assert_refuses(lambda: run.check(file), CheckpointError, words)


def rounded(x: np.ndarray) -> np.ndarray:
    return np.nextafter(x, np.float32(np.inf))


def with_one(x: np.ndarray, place: Any, value: float) -> np.ndarray:
    x = x.copy()
    x[place] = value
    return x


@pytest.mark.parametrize("between", [False, True], ids=["equal", "other versions"])
def test_rounded_arrays_agree_only_between_versions(between: bool) -> None:
    file = saved({"data": of_arrays(NUMBERS)}, OTHER if between else None)
    run = SameRun({"data": of_arrays(rounded(NUMBERS))})
    if between:
        run.check(file)
    else:
        with pytest.raises(CheckpointError, match="its data differs"):
            run.check(file)


LARGE = np.random.default_rng(1).normal(size=1_000_000).astype(np.float32)
CHANGED = {
    "one number": (NUMBERS, with_one(NUMBERS, (50, 1), 3.0)),
    "one of a million": (LARGE, with_one(LARGE, 123_456, 3.0)),
    "two in a row": (LARGE, with_one(with_one(LARGE, 0, LARGE[4096]), 4096, LARGE[0])),
    "rows": (NUMBERS, NUMBERS[::-1]),
    "sign": (NUMBERS, -NUMBERS),
    "dtype": (NUMBERS, NUMBERS.astype(np.float64)),
    "shape": (NUMBERS, NUMBERS.reshape(3, 100)),
    "not a number": (NUMBERS, with_one(NUMBERS, (50, 1), np.nan)),
    "another infinity": (np.array([np.inf, 1]), np.array([-np.inf, 1])),
    "integers": (np.arange(10), np.arange(1, 11)),
    "structure": ({"a": NUMBERS}, {"b": NUMBERS}),
    "key": (jax.random.key(0), jax.random.key(1)),
    "kind of key": (jax.random.key(0), jax.random.key(0, impl="rbg")),
    "a small array": ((NUMBERS * 1e9, NUMBERS), (NUMBERS * 1e9, NUMBERS + 0.1)),
    "complex": (NUMBERS + 1j, NUMBERS + 1.1j),
}


@pytest.mark.parametrize(("before", "now"), CHANGED.values(), ids=CHANGED)
def test_changed_arrays_are_refused_between_versions(before: Any, now: Any) -> None:
    file = saved({"data": of_arrays(before)}, OTHER)
    SameRun({"data": of_arrays(before)}).check(file)
    with pytest.raises(CheckpointError, match="its data differs"):
        SameRun({"data": of_arrays(now)}).check(file)


def test_sketch_has_a_bounded_size() -> None:
    assert sketch_of(LARGE).sums.nbytes <= 2**15
    assert sketch_of([LARGE] * 4).sums.size == 4096
    # Of small arrays it has every number, and of each array at least one.
    assert sketch_of([NUMBERS, NUMBERS]).sums.size == 600
    assert sketch_of([NUMBERS[:1]] * 5000).sums.size == 5000


def test_changed_settings_are_named_with_both_values() -> None:
    before = {"num_inner_steps": 5, "num_delete": 20}
    now = {"num_inner_steps": 6, "num_delete": 20}
    for with_versions in (None, OTHER):
        file = saved({"settings": of_words(before)}, with_versions)
        words = "its settings differ", "`num_inner_steps` was 5, is 6"
        run = SameRun({"settings": of_words(now)})
        assert_refuses(
            lambda run=run, file=file: run.check(file), CheckpointError, words
        )
    file = saved({"thin": of_words(None), "old": of_words(1)})
    run = SameRun({"thin": of_words("two"), "new": of_words(2)})
    words = ("its thin, new, old differ", "`thin` was None, is 'two'")
    assert_refuses(lambda: run.check(file), CheckpointError, words)


@pytest.mark.parametrize(
    "header",
    [{"versions": 3, "provenance": 0}, {"provenance": [[1]]}, {"sketches": [1]}],
    ids=str,
)
def test_malformed_header_is_refused(header: Any) -> None:
    file = saved({"prior": function("a")}, **header)
    with pytest.raises(CheckpointError, match="does not tell"):
        SameRun({"prior": function("a")}).check(file)


def test_rounding_is_that_of_the_least_precise_dtype() -> None:
    def mixed(x: Any) -> Any:
        return jnp.sum(jax.jit(jnp.exp)(x.astype(jnp.bfloat16)).astype(jnp.float32))

    x = jnp.ones(3)
    assert rounding_of_function(jnp.sum, x) == pytest.approx(2**-11.5)
    assert rounding_of_function(mixed, x) == pytest.approx(2**-3.5)
