"""Data over devices: the log-density and its derivatives are those of one device."""

import tracemalloc
from pathlib import Path
from typing import Any

import blackjax
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from jax.sharding import AxisType, Mesh
from scipy import sparse

import batchkit as bk
from batchkit.chains._chain_programs import Chains, all_alike
from batchkit.chains._sampler import sampler_of_api
from batchkit.shards._sharded_logdensity import split_table, sum_over_rows

from ..helpers import assert_refuses, mesh


RNG = np.random.default_rng(0)
AT = {"slope": jnp.array([0.1, 0.2, -0.3]), "level": jnp.array(0.4)}


def rows(count: int) -> dict[str, np.ndarray]:
    return {"x": RNG.normal(size=(count, 3)), "y": RNG.poisson(1.0, count)}


def logprior(params: Any) -> jax.Array:
    return -0.5 * (jnp.sum(params["slope"] ** 2) + params["level"] ** 2)


def loglikelihood(params: Any, rows: Any) -> jax.Array:
    rate = rows["x"] @ params["slope"] + params["level"]
    return jnp.sum(rows["y"] * rate - jnp.exp(rate))


def in_a_loop(params: Any, rows: Any) -> jax.Array:
    def add(total: jax.Array, row: Any) -> tuple[jax.Array, None]:
        return total + loglikelihood(params, jax.tree.map(lambda x: x[None], row)), None

    return jax.lax.scan(add, jnp.zeros(()), rows)[0]


def plain(data: Any) -> Any:
    data = jax.tree.map(jnp.asarray, data)
    return lambda params: logprior(params) + loglikelihood(params, data)


def close(found: Any, expected: Any) -> None:
    def compare(a: Any, b: Any) -> None:
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)

    jax.tree.map(compare, found, expected)


# Some devices without a row, with as many each, and with one more.
@pytest.mark.parametrize(
    ("devices", "count"), [(1, 5), (2, 1), (2, 10), (4, 3), (4, 4), (4, 1001)]
)
def test_values_and_gradients_are_those_of_one_device(devices: int, count: int) -> None:
    data = rows(count)
    sharded = bk.sharded_logdensity(
        logprior, loglikelihood, bk.ShardedData(data, mesh(devices))
    )
    value, gradient = jax.jit(jax.value_and_grad(sharded))(AT)
    slope, level = np.asarray(AT["slope"], float), float(AT["level"])
    rate = data["x"] @ slope + level
    exact = np.sum(data["y"] * rate - np.exp(rate)) - 0.5 * (slope @ slope + level**2)
    away = data["y"] - np.exp(rate)
    np.testing.assert_allclose(value, exact, rtol=1e-5)
    for found, expected in (
        (gradient["slope"], away @ data["x"] - slope),
        (gradient["level"], np.sum(away) - level),
    ):
        scale = np.max(np.abs(expected))
        np.testing.assert_allclose(found, expected, atol=1e-5 * scale)


def test_derivatives_and_maps_are_those_of_one_device() -> None:
    data = rows(10)
    whole = plain(data)
    on_devices = bk.ShardedData(data, mesh(4))
    sharded, loop = (
        bk.sharded_logdensity(logprior, likelihood, on_devices)
        for likelihood in (loglikelihood, in_a_loop)
    )
    many = jax.tree.map(lambda x: jnp.stack([x, 2 * x, -x]), AT)
    for transform, at, functions in (
        (jax.grad, AT, (sharded, loop)),
        (jax.hessian, AT, (sharded, loop)),
        (lambda f: jax.jacrev(jax.jacrev(f)), AT, (sharded,)),
        (lambda f: lambda x: jax.jvp(f, (x,), (x,)), AT, (sharded,)),
        (lambda f: jax.vmap(jax.value_and_grad(f)), many, (sharded, loop)),
        (lambda f: bk.Chunked(2)(jax.grad(f)), many, (sharded,)),
    ):
        expected = jax.jit(transform(whole))(at)
        for function in functions:
            close(jax.jit(transform(function))(at), expected)


@pytest.mark.parametrize("axes", [None, "a", "b", ("b", "a")])
def test_rows_are_spread_over_the_axes_asked_for(axes: Any) -> None:
    square = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"))
    data = rows(7)
    on_devices = bk.ShardedData(data, square, axes)
    assert on_devices.num_parts == (2 if isinstance(axes, str) else 4)
    sharded = bk.sharded_logdensity(logprior, loglikelihood, on_devices)
    close(jax.jit(jax.grad(sharded))(AT), jax.grad(plain(data))(AT))


def test_a_mesh_that_is_set_changes_nothing() -> None:
    data = rows(11)
    explicit = jax.make_mesh((4,), ("rows",), devices=jax.devices()[:4])
    on_devices = bk.ShardedData(data, explicit)
    # Otherwise all that is computed from the log-density would have a sharding.
    assert on_devices.mesh.axis_types == (AxisType.Auto,)
    sharded = bk.sharded_logdensity(logprior, loglikelihood, on_devices)
    expected = jax.grad(plain(data))(AT)
    close(jax.jit(jax.grad(sharded))(AT), expected)
    with jax.set_mesh(explicit):
        close(jax.jit(jax.grad(sharded))(AT), expected)


@pytest.mark.parametrize(
    ("shape", "axes"), [((2,), ("tasks",)), ((1,), ("tasks",)), ((4,), ("rows",))]
)
def test_a_mesh_that_splits_rows_in_another_way_is_refused(
    shape: Any, axes: Any
) -> None:
    data = rows(7)
    sharded = bk.sharded_logdensity(
        logprior, loglikelihood, bk.ShardedData(data, mesh(4))
    )
    count = int(np.prod(shape))
    other = jax.make_mesh(shape, axes, devices=jax.devices()[:count])
    with jax.set_mesh(other):
        for transform in (lambda f: f, jax.grad, lambda f: jax.jit(jax.grad(f))):
            assert_refuses(
                lambda transform=transform: transform(sharded)(AT),
                ValueError,
                ("{'tasks': 4}", str({axes[0]: count}), "`jax.set_mesh`"),
            )


def test_a_mesh_may_have_more_axes() -> None:
    data = rows(7)
    two, square = mesh(2), jax.make_mesh((2, 2), ("tasks", "other"))
    sharded = bk.sharded_logdensity(logprior, loglikelihood, bk.ShardedData(data, two))
    with jax.set_mesh(square):
        close(jax.jit(jax.grad(sharded))(AT), jax.grad(plain(data))(AT))


def test_data_may_be_an_argument_of_a_jitted_function() -> None:
    data = rows(9)

    @jax.jit
    def gradient(data: bk.ShardedData, params: Any) -> Any:
        sharded = bk.sharded_logdensity(logprior, loglikelihood, data)
        return jax.grad(sharded)(params)

    on_devices = bk.ShardedData(data, mesh(4))
    close(gradient(on_devices, AT), jax.grad(plain(data))(AT))


def test_a_repeated_row_changes_no_derivative() -> None:
    # It is there only to fill up: whatever it gives, also NaN, is left out.
    def likelihood(params: jax.Array, rows: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sqrt(params * rows) + jnp.log(rows * params))

    for bad in (0.0, -1.0, jnp.nan, jnp.inf):
        last = jnp.array([1.0, 4.0, bad])

        def total(params: jax.Array, is_real: bool, last: Any = last) -> jax.Array:
            real = jnp.array(is_real)
            return sum_over_rows(likelihood, params, last[:2], last[2:], real)

        good = lambda p: likelihood(p, jnp.array([1.0, 4.0]))
        for transform in (lambda f: f, jax.grad, jax.hessian, jax.jacfwd):
            found = transform(lambda p: total(p, False))(jnp.array(2.0))
            np.testing.assert_allclose(found, transform(good)(jnp.array(2.0)))
        assert not jnp.isfinite(jax.grad(lambda p: total(p, True))(jnp.array(2.0)))


def test_an_infinite_gradient_stays_infinite() -> None:
    # Zero times infinity, of a row that is repeated, would make NaN of the sum.
    data = np.ones(5)
    for devices in (1, 4):
        sharded = bk.sharded_logdensity(
            lambda p: 0.0 * p,
            lambda p, rows: jnp.sum(jnp.sqrt(p * rows)),
            bk.ShardedData(data, mesh(devices)),
        )
        assert jax.jit(jax.grad(sharded))(0.0) == jnp.inf


@pytest.mark.parametrize(("count", "parts"), [(1, 4), (3, 4), (4, 4), (11, 4), (5, 1)])
def test_parts_have_every_row_once_and_pad_with_real_ones(
    count: int, parts: int
) -> None:
    full, last = split_table(count, parts)
    assert full.shape == (parts, count // parts)
    assert (last is None) == (count % parts == 0)
    table = full if last is None else np.concatenate([full, last], axis=1)
    sizes = [len(x) for x in np.array_split(np.arange(count), parts)]
    kept = [row[:size] for row, size in zip(table, sizes, strict=True)]
    np.testing.assert_array_equal(np.concatenate(kept), np.arange(count))
    assert table.min() >= 0
    assert table.max() < count


@pytest.mark.parametrize("count", [40_000, 40_003])
def test_a_device_holds_its_share_of_the_data(count: int) -> None:
    data = bk.ShardedData(rows(count), mesh(4))
    shares = {x.data.shape for x in data.rows["x"].addressable_shards}
    assert shares == {(10_000, 3)}
    assert len(data.rows["x"]) + len(data.last["x"] if count % 4 else ()) >= count
    sharded = bk.sharded_logdensity(logprior, loglikelihood, data)
    share = 10_000 * (3 + 1) * 4
    many = jax.tree.map(lambda x: x[None], AT)
    program = jax.jit(lambda f, x: jax.vmap(jax.grad(f))(x))
    stats = program.lower(sharded, many).compile().memory_analysis()
    assert stats is not None
    assert share <= stats.argument_size_in_bytes < share + 1000
    # Nothing is held besides but the rates of rows, also where one row more is cut off.
    assert stats.temp_size_in_bytes < 0.7 * share


@pytest.mark.parametrize("batcher", [bk.Vmap(), bk.Continuous(2)], ids=str)
def test_in_chains_a_device_holds_its_share(batcher: bk.AbstractBatcher) -> None:
    data = bk.ShardedData(rows(40_003), mesh(4))
    sharded = bk.sharded_logdensity(logprior, loglikelihood, data)
    settings = {"num_integration_steps": 2}
    samplers = all_alike(
        lambda f: sampler_of_api(blackjax.hmc, f, 0.8, settings), sharded, 2
    )
    starts = jax.tree.map(lambda x: jnp.stack([x, -x]), AT)
    chains = Chains(samplers, jax.random.key(0), starts, batcher, 1, 4)
    share = 10_000 * (3 + 1) * 4
    # Also where the sampler has jitted functions inside, as in the warm-up.
    for program in (chains.compile_start(), chains.compile_advance()):
        stats = program.memory_analysis()
        assert share <= stats.argument_size_in_bytes < share + 1000


@pytest.mark.parametrize("batcher", [bk.Vmap(), bk.Continuous(2)], ids=str)
def test_chains_are_those_of_one_device(batcher: bk.AbstractBatcher) -> None:
    data = rows(203)
    settings: Any = {"num_warmup": 20, "num_samples": 2, "num_integration_steps": 3}
    with jax.enable_x64(True):  # chains amplify rounding
        starts = {"slope": np.eye(3), "level": np.array([0.0, 0.4, -0.4])}
        sharded = bk.sharded_logdensity(
            logprior, loglikelihood, bk.ShardedData(data, mesh(4))
        )
        found, expected = (
            bk.run_chains(
                blackjax.hmc, f, jax.random.key(0), starts, batcher=batcher, **settings
            )
            for f in (sharded, plain(data))
        )
    compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6)
    jax.tree.map(compare, found.samples, expected.samples)


def test_a_sharded_batcher_is_refused() -> None:
    sharded = bk.sharded_logdensity(
        logprior, loglikelihood, bk.ShardedData(rows(8), mesh(4))
    )
    many = jax.tree.map(lambda x: jnp.stack([x] * 4), AT)
    assert_refuses(
        lambda: bk.Sharded(mesh(2))(sharded)(many),
        ValueError,
        ("inside of a `Sharded`", "`Continuous(lanes)`"),
    )
    alone = bk.sharded_logdensity(
        logprior, loglikelihood, bk.ShardedData(rows(8), mesh(1))
    )
    assert bk.Sharded(mesh(2))(alone)(many).shape == (4,)


REFUSED: dict[str, tuple[Any, type[Exception], tuple[str, ...]]] = {
    "nothing": ({}, ValueError, ("no array",)),
    "no rows": (np.ones((0, 3)), ValueError, ("shape (0, 3)", "at least 1")),
    "scalar": ({"a": np.ones(())}, ValueError, ("['a'] has the shape ()", "close")),
    "number": ({"a": 1.0}, TypeError, ("data['a']", "float")),
    "lists": ([[1.0, 2.0]], TypeError, ("data[0][0]", "float")),
    "words": (np.array(["a", "b"]), TypeError, ("numbers",)),
    "objects": (np.array([{}, None]), TypeError, ("object",)),
    "a mask": (
        np.ma.masked_array([1.0, 2.0, 3.0], [False, True, False]),
        ValueError,
        ("data is masked in 1 places",),
    ),
    "a shape": (jax.ShapeDtypeStruct((3,), np.float32), TypeError, ("ShapeDtype",)),
    "keys": (jax.random.split(jax.random.key(0), 3), TypeError, ("key",)),
    "sizes": (
        {"x": np.ones((3, 2)), "y": np.ones(4)},
        ValueError,
        ("data['x'] has the shape (3, 2)", "data['y'] has the shape (4,)", "axis 0"),
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_data_that_are_no_arrays_of_rows_are_refused(case: Any) -> None:
    data, error, words = case
    assert_refuses(lambda: bk.ShardedData(data, mesh(2)), error, words)


def test_tables_and_traced_arrays_are_refused() -> None:
    for make in (pd.DataFrame, sparse.csr_matrix):
        table = make(np.eye(4))
        words = "must be an array of numbers", type(table).__name__
        assert_refuses(lambda t=table: bk.ShardedData(t, mesh(2)), TypeError, words)
    traced = jax.jit(lambda x: bk.ShardedData(x, mesh(2)).rows)
    assert_refuses(lambda: traced(np.ones(4)), TypeError, ("traced", "as an argument"))
    series = pd.Series([1.0, 2.0, 3.0])
    assert bk.ShardedData({"a": series}, mesh(2)).num_rows == 3
    whole = np.ma.masked_array([1.0, 2.0], [False, False])
    assert bk.ShardedData(whole, mesh(2)).num_rows == 2


def test_functions_and_meshes_that_are_none_are_refused() -> None:
    data = bk.ShardedData(np.ones(4), mesh(2))
    for args, words in (
        ((1.0, loglikelihood, data), ("logprior_fn=1.0", "a function")),
        ((logprior, None, data), ("loglikelihood_fn=None",)),
        ((logprior, loglikelihood, np.ones(3)), ("ndarray", "ShardedData(data, mesh)")),
    ):
        some: Any = args
        make = lambda some=some: bk.sharded_logdensity(*some)
        assert_refuses(make, TypeError, words)
    bad: Any = (3, ("rows",))
    assert_refuses(lambda: bk.ShardedData(np.ones(3), bad[0]), TypeError, ("mesh=3",))
    assert_refuses(
        lambda: bk.ShardedData(np.ones(3), mesh(2), "rows"), ValueError, ("'rows'",)
    )
    summed = lambda p, rows: jnp.sum(p * rows)
    for prior, word in (
        (lambda p: jnp.stack([p]), "float32 of shape (1,)"),
        (lambda p: None, "NoneType"),
    ):
        of_rows = bk.sharded_logdensity(prior, summed, data)
        words = "logprior_fn(params) must return one real number", word
        assert_refuses(lambda f=of_rows: jax.grad(f)(1.0), TypeError, words)
    flat = bk.sharded_logdensity(lambda p: 0, summed, data)
    assert jax.value_and_grad(flat)(2.0) == (8.0, 4.0)
    by_row = bk.sharded_logdensity(lambda p: p, lambda p, rows: p * rows, data)
    assert_refuses(lambda: by_row(1.0), TypeError, ("of shape (2,)", "jnp.sum"))


def test_rows_are_not_copied_on_the_host() -> None:
    """A mapped file may be larger than the memory of the host."""
    data = np.zeros((2**20, 4), np.float32)
    bk.ShardedData(data[:100], mesh(4))
    tracemalloc.start()
    try:
        # The rows are not divided evenly.
        bk.ShardedData(data[1:], mesh(4))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < data.nbytes / 16


def test_file_is_read_in_parts(tmp_path: Path) -> None:
    class Watched:
        """A dataset of a file, which notes what is read of it."""

        def __init__(self, dataset: Any) -> None:
            self._dataset = dataset
            self.dtype, self.shape = dataset.dtype, dataset.shape
            self.read: list[int] = []

        def __len__(self) -> int:
            return len(self._dataset)

        def __getitem__(self, rows: slice) -> np.ndarray:
            self.read.append(rows.stop - rows.start)
            return self._dataset[rows]

        def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
            raise AssertionError("it is read whole")

    table = np.arange(30.0, dtype=np.float32).reshape(10, 3)
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["x"] = table
        watched = Watched(file["x"])
        data = bk.ShardedData(watched, mesh(4))
    assert sorted(watched.read) == [1] * 4 + [2] * 4
    expected = bk.ShardedData(table, mesh(4))
    np.testing.assert_array_equal(data.rows, expected.rows)
    np.testing.assert_array_equal(data.last, expected.last)
