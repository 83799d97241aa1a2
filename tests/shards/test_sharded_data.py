"""Data over devices: the log-density and its derivatives are those of one device."""

from typing import Any

import blackjax
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
from batchkit.shards._rows import starts_of_parts, sum_over_rows, table_of_parts

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


def plain(data: Any, likelihood: Any = loglikelihood) -> Any:
    data = jax.tree.map(jnp.asarray, data)
    return lambda params: logprior(params) + likelihood(params, data)


def close(found: Any, expected: Any) -> None:
    def compare(a: Any, b: Any) -> None:
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)

    jax.tree.map(compare, found, expected)


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 10, 1001])
def test_values_and_gradients(devices: int, count: int) -> None:
    data = rows(count)
    whole = plain(data)
    sharded = bk.sharded_logdensity(
        logprior, loglikelihood, bk.ShardedData(data, mesh(devices))
    )
    pair, expected = (jax.jit(jax.value_and_grad(f))(AT) for f in (sharded, whole))
    np.testing.assert_allclose(pair[0], expected[0], rtol=1e-5)
    for name in AT:
        scale = float(np.max(np.abs(expected[1][name])))
        np.testing.assert_allclose(pair[1][name], expected[1][name], atol=1e-5 * scale)


@pytest.mark.parametrize("likelihood", [loglikelihood, in_a_loop])
def test_derivatives_and_maps(likelihood: Any) -> None:
    data = rows(10)
    whole = plain(data, likelihood)
    on_devices = bk.ShardedData(data, mesh(4))
    sharded = bk.sharded_logdensity(logprior, likelihood, on_devices)
    many = jax.tree.map(lambda x: jnp.stack([x, 2 * x, -x]), AT)
    for transform, at in (
        (jax.grad, AT),
        (jax.hessian, AT),
        (lambda f: jax.jacrev(jax.jacrev(f)), AT),
        (lambda f: lambda x: jax.jvp(f, (x,), (x,)), AT),
        (lambda f: jax.vmap(jax.value_and_grad(f)), many),
        (lambda f: bk.Chunked(2)(jax.grad(f)), many),
    ):
        close(jax.jit(transform(sharded))(at), jax.jit(transform(whole))(at))


@pytest.mark.parametrize("axes", [None, "a", "b", ("b", "a")])
def test_meshes_of_several_axes(axes: Any) -> None:
    square = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"))
    data = rows(7)
    on_devices = bk.ShardedData(data, square, axes)
    assert on_devices.num_parts == (2 if isinstance(axes, str) else 4)
    sharded = bk.sharded_logdensity(logprior, loglikelihood, on_devices)
    close(jax.jit(jax.grad(sharded))(AT), jax.grad(plain(data))(AT))


def test_a_mesh_that_is_set() -> None:
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
def test_a_mesh_that_cuts_rows_otherwise(shape: Any, axes: Any) -> None:
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


def test_a_mesh_with_more_axes() -> None:
    data = rows(7)
    two, square = mesh(2), jax.make_mesh((2, 2), ("tasks", "other"))
    sharded = bk.sharded_logdensity(logprior, loglikelihood, bk.ShardedData(data, two))
    with jax.set_mesh(square):
        close(jax.jit(jax.grad(sharded))(AT), jax.grad(plain(data))(AT))


def test_data_as_an_argument() -> None:
    data = rows(9)

    @jax.jit
    def gradient(data: bk.ShardedData, params: Any) -> Any:
        sharded = bk.sharded_logdensity(logprior, loglikelihood, data)
        return jax.grad(sharded)(params)

    on_devices = bk.ShardedData(data, mesh(4))
    close(gradient(on_devices, AT), jax.grad(plain(data))(AT))


def test_a_repeated_row_is_never_seen() -> None:
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
    for devices in (1, 2, 4):
        sharded = bk.sharded_logdensity(
            lambda p: 0.0 * p,
            lambda p, rows: jnp.sum(jnp.sqrt(p * rows)),
            bk.ShardedData(data, mesh(devices)),
        )
        assert jax.jit(jax.grad(sharded))(0.0) == jnp.inf


@pytest.mark.parametrize(("count", "parts"), [(1, 4), (3, 4), (4, 4), (11, 4), (5, 1)])
def test_parts(count: int, parts: int) -> None:
    starts, table = starts_of_parts(count, parts), table_of_parts(count, parts)
    sizes = np.diff(starts)
    assert sizes.sum() == count
    assert sizes.max() - sizes.min() <= 1
    assert table.shape == (parts, sizes.max())
    kept = [row[:size] for row, size in zip(table, sizes, strict=True)]
    np.testing.assert_array_equal(np.concatenate(kept), np.arange(count))
    assert table.min() >= 0
    assert table.max() < count


@pytest.mark.parametrize("count", [40_000, 40_003])
def test_a_device_holds_its_share(count: int) -> None:
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
    sampler = sampler_of_api(blackjax.hmc, sharded, 0.8, settings)
    starts = jax.tree.map(lambda x: jnp.stack([x, -x]), AT)
    chains = Chains(all_alike(sampler, 2), jax.random.key(0), starts, batcher, 1, 4)
    share = 10_000 * (3 + 1) * 4
    # Also where the sampler has jitted functions inside, as in the warm-up.
    for program in (chains.compile_start(), chains.compile_advance()):
        stats = program.memory_analysis()
        assert share <= stats.argument_size_in_bytes < share + 1000


@pytest.mark.parametrize("batcher", [bk.Vmap(), bk.Continuous(2)], ids=str)
def test_chains(batcher: bk.AbstractBatcher) -> None:
    data = rows(203)
    starts = jax.tree.map(lambda x: jnp.stack([0 * x, x, -x]), AT)
    settings: Any = {"num_warmup": 20, "num_samples": 2, "batcher": batcher}
    sharded = bk.sharded_logdensity(
        logprior, loglikelihood, bk.ShardedData(data, mesh(4))
    )
    found, expected = (
        bk.run_chains(blackjax.nuts, f, jax.random.key(0), starts, **settings)
        for f in (sharded, plain(data))
    )
    # Chains amplify rounding.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3),
        found.samples,
        expected.samples,
    )
    np.testing.assert_array_equal(found.tree_depth, expected.tree_depth)


def test_devices_that_are_taken() -> None:
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
    "no rows": (np.ones((0, 3)), ValueError, ("0 rows",)),
    "scalar": ({"a": np.ones(())}, ValueError, ("data['a']", "scalar")),
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
        ("data['x'] has 3", "data['y'] has 4", "axis 0"),
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_data_that_are_none(case: Any) -> None:
    data, error, words = case
    assert_refuses(lambda: bk.ShardedData(data, mesh(2)), error, words)


def test_data_that_are_no_arrays() -> None:
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


def test_arguments() -> None:
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
