"""The cache of programs between runs: its keys, and how long its entries live."""

import functools
import subprocess
import sys
import weakref
from collections.abc import Callable
from types import FunctionType
from typing import Any

import blackjax
import blackjax.util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.run._program import Program, ProgramCache, program_cache


def function(x: Any, y: Any = None) -> Any:
    return x


def other(x: Any) -> Any:
    return x


class Model:
    def logdensity(self, x: Any) -> Any:
        return x


MODEL = Model()
LARGE = np.zeros(10**5)
NOISE = FunctionType(
    blackjax.util.generate_gaussian_noise.__code__, dict(vars(blackjax.util))
)
REBUILT = bk.rebuild_sampler(blackjax.nss, batcher=bk.Chunked(2))


def nss(api: Any, **settings: Any) -> Any:
    settings = {"num_inner_steps": 3, "num_delete": 2, **settings}
    return api(logprior_fn=function, loglikelihood_fn=other, **settings)


@pytest.mark.parametrize(
    "make",
    [
        lambda: function,
        lambda: MODEL.logdensity,
        lambda: functools.partial(function, y=LARGE),
        lambda: {"initial": np.ones(3), "number": 0.5, "none": None},
        lambda: jnp.ones(3),
        lambda: bk.Chunked(4),
        lambda: jax.ShapeDtypeStruct((3,), jnp.float32),
        lambda: nss(blackjax.nss),
        lambda: blackjax.nuts(function, 0.1, np.ones(2)),
    ],
)
def test_equal_parts_share_entries(make: Callable[[], Any]) -> None:
    assert program_cache(make(), "a") is program_cache(make(), "a")


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (function, other),
        (1, 1.0),
        (1, True),
        (0.0, -0.0),
        ((1, 2), [1, 2]),
        (np.ones(3), np.zeros(3)),
        (np.ones(3), np.ones(3, np.float32)),
        (np.ones(4), np.ones((2, 2))),
        (np.zeros(10**5), LARGE),
        (Model().logdensity, MODEL.logdensity),
        (functools.partial(function, 1), functools.partial(function, 2)),
        (bk.Chunked(4), bk.Chunked(5)),
        (nss(blackjax.nss), nss(blackjax.nss, num_delete=3)),
        (nss(blackjax.nss), nss(blackjax.nss, max_steps=5)),
        (nss(blackjax.nss), nss(REBUILT)),
        (NOISE, FunctionType(NOISE.__code__, dict(NOISE.__globals__))),
        (
            nss(REBUILT),
            nss(bk.rebuild_sampler(blackjax.nss, batcher=bk.Chunked(3))),
        ),
        (
            blackjax.nuts(function, 0.1, np.ones(2)),
            blackjax.nuts(function, 0.1, np.array([1.0, 2.0])),
        ),
    ],
)
def test_different_parts_do_not_share_entries(one: Any, two: Any) -> None:
    assert program_cache(one) is program_cache(one)
    assert program_cache(two) is program_cache(two)
    assert program_cache(one) is not program_cache(two)


def test_array_changed_in_place_does_not_share_entries() -> None:
    scales = np.ones(3)
    before = program_cache(function, scales)
    scales[0] = 2.0
    assert program_cache(function, scales) is not before


@pytest.mark.parametrize(
    "setting",
    [
        lambda: jax.enable_x64(True),
        lambda: jax.default_matmul_precision("highest"),
        lambda: jax.default_device(jax.devices()[1]),
        lambda: jax.set_mesh(jax.make_mesh((2,), ("device",))),
    ],
)
def test_jax_settings_do_not_share_entries(setting: Callable[[], Any]) -> None:
    before = program_cache(function)
    with setting():
        inside = program_cache(function)
        assert program_cache(function) is inside
    assert inside is not before
    assert program_cache(function) is before


@pytest.mark.parametrize("batcher", ["None", "bk.Chunked(2)"])
def test_entries_live_as_long_as_the_functions(batcher: str) -> None:
    """In a process of its own: what checks types makes functions anew in each call."""
    subprocess.run([sys.executable, "-c", LIFE.format(batcher)], check=True)


LIFE = """
import gc, weakref
import blackjax
import blackjax.util
import jax
import batchkit as bk
from batchkit.run._program import program_cache

api = blackjax.nss
if {0} is not None:
    api = bk.rebuild_sampler(api, batcher={0})

def prior(x):
    return x

def likelihood(x):
    return x

def kept():
    return program_cache(api(prior, likelihood, num_inner_steps=2))

found = weakref.ref(kept())
gc.collect()
assert found() is not None
assert kept() is found()
jax.clear_caches()
gc.collect()
assert found() is None
found = weakref.ref(kept())
gc.collect()
assert found() is not None
del likelihood
gc.collect()
assert found() is None
"""


def test_parts_without_weak_references_are_not_cached() -> None:
    with pytest.raises(TypeError):
        weakref.ref(np.sin)
    assert program_cache(np.sin) is not program_cache(np.sin)


def test_entry_is_made_once() -> None:
    made: list[int] = []
    kept = ProgramCache()
    for _ in range(2):
        assert kept.get("a", lambda: made.append(1)) is None
    assert made == [1]


@pytest.mark.parametrize("platform", ["gpu", "cpu"])
def test_error_where_memory_runs_out_while_compiling_names_tuning(
    platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: Any) -> Any:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 26 GB")

    monkeypatch.setattr(jax.stages.Lowered, "compile", no_memory)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        Program(lambda x: 2 * x).compile(np.ones(3))
    notes = "".join(getattr(caught.value, "__notes__", []))
    assert ("xla_gpu_autotune_level=0" in notes) == (platform == "gpu")
