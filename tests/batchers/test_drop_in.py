"""A batcher is a drop-in for `jax.vmap`: same signature, pytrees, transforms."""

import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import batchkit as bk

from ..helpers import (
    BATCHERS,
    SPLITTING,
    TASKS,
    assert_same,
    counted,
    equations,
    every_batcher,
    every_splitting_batcher,
    mesh,
    primitives,
    same_layout,
)


N = TASKS


class Case(NamedTuple):
    """One call of a mapped function."""

    fun: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = MappingProxyType({})
    in_axes: Any = 0
    out_axes: Any = 0
    axis_size: int | None = None


def _grid(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.arange(1, 1 + np.prod(shape)).reshape(shape).astype(dtype)


def _keys() -> jax.Array:
    return jax.random.split(jax.random.key(0), N)


def _lots(tree: dict[str, Any], pair: tuple[Any, Any]) -> dict[str, Any]:
    a, (b, _) = tree["a"], pair
    return {"prod": a @ tree["b"]["c"], "both": (b * 2, a.sum()), "none": None}


CASES: dict[str, Callable[[], Case]] = {
    "one argument": lambda: Case(jnp.cumsum, (_grid(N, 3),)),
    "jax arrays": lambda: Case(jnp.cumsum, (jnp.asarray(_grid(N, 3)),)),
    "prefix pytrees": lambda: Case(
        _lots,
        (
            {"a": _grid(2, N), "b": {"c": _grid(2)}},
            (_grid(3, N), None),
        ),
        in_axes=({"a": 1, "b": None}, (-1, None)),
        out_axes={"prod": 0, "both": (1, 0), "none": None},
    ),
    "list in_axes": lambda: Case(
        lambda x, y: x * y, (_grid(N), _grid(2)), in_axes=[0, None]
    ),
    "negative axes": lambda: Case(
        lambda x, y: (x[:, None] * y, x),
        (_grid(2, N), _grid(N, 3)),
        in_axes=(-1, -2),
        out_axes=(-2, -1),
    ),
    "unmapped output": lambda: Case(
        lambda x, y: (x + y, {"total": y * 2.0}),
        (_grid(N), _grid(2)),
        in_axes=(0, None),
        out_axes=(0, None),
    ),
    "only unmapped outputs": lambda: Case(
        lambda x, y: y * 2.0, (_grid(N), _grid(2)), in_axes=(0, None), out_axes=None
    ),
    "broadcast output": lambda: Case(
        lambda x, y: (y, 1.0, jnp.arange(2)),
        (_grid(N), _grid(2)),
        in_axes=(0, None),
        out_axes=(1, 0, -1),
    ),
    "keyword arguments": lambda: Case(
        lambda x, *, scale, shift: x * scale + shift["by"],
        (_grid(2),),
        {"scale": _grid(N), "shift": {"by": _grid(N, 2)}},
        in_axes=None,
    ),
    "only keyword arguments": lambda: Case(
        lambda *, scale: scale * 2, (), {"scale": _grid(N)}
    ),
    "static leaves": lambda: Case(
        lambda x, mode, power, spare: x**power if mode == "power" else spare,
        (_grid(N), "power", 3, None),
        in_axes=(0, None, None, None),
    ),
    "typed keys": lambda: Case(
        lambda key: (jax.random.uniform(key, (2,)), jax.random.split(key, 3)),
        (_keys(),),
        out_axes=(0, -1),
    ),
    "raw keys": lambda: Case(
        lambda key: (jax.random.uniform(key, (2,)), jax.random.split(key)),
        (jax.random.key_data(_keys()),),
    ),
    "weak types": lambda: Case(
        lambda x: (x, x * 2, jnp.sqrt(x), x.astype(int)),
        (jnp.broadcast_to(2.0, (N,)),),
    ),
    "float0": lambda: Case(
        lambda t, x: (t, x * 2),
        (np.zeros((2, N), jax.dtypes.float0), _grid(N)),
        in_axes=(-1, 0),
        out_axes=(1, 0),
    ),
    "only float0": lambda: Case(lambda t: t, (np.zeros((N, 2), jax.dtypes.float0),)),
    "axis_size alone": lambda: Case(
        lambda: (jnp.arange(3.0), 1), (), axis_size=N, out_axes=(1, 0)
    ),
    "axis_size and an unmapped argument": lambda: Case(
        lambda x: x * 2, (_grid(3),), in_axes=None, axis_size=N
    ),
    "axis_size as well": lambda: Case(jnp.sum, (_grid(N, 2),), axis_size=N),
    "no tasks": lambda: Case(
        lambda x, y: (x.sum() * y, jnp.sin(x)),
        (_grid(0, 3), _grid(2)),
        in_axes=(0, None),
        out_axes=(-1, 0),
    ),
    "one task": lambda: Case(jnp.cumsum, (_grid(1, 3),), out_axes=1),
    "no outputs": lambda: Case(lambda x: None, (_grid(N),)),
    "empty pytrees": lambda: Case(lambda x, y: (x, [], y), (_grid(N), ((), {}))),
    "scalars of every kind": lambda: Case(
        lambda b, i, c: (~b, i // 2, jnp.conj(c), b & (i > 2)),
        (_grid(N) > 3, _grid(N, dtype=np.int8), _grid(N) * (1 + 2j)),
    ),
    "partial": lambda: Case(functools.partial(jnp.clip, max=4.0), (_grid(N),)),
    "already jitted": lambda: Case(jax.jit(lambda x: jnp.cumsum(x)), (_grid(N, 3),)),
    "a module": lambda: Case(
        eqx.nn.Linear(3, 2, key=jax.random.key(1)), (_grid(N, 3) / 8,)
    ),
}
every_case = pytest.mark.parametrize("name", CASES)


def _mapped(batcher: Any, case: Case) -> Callable[..., Any]:
    return batcher(case.fun, case.in_axes, case.out_axes, axis_size=case.axis_size)


def _jitted(batcher: Any, case: Case) -> Any:
    """The result under `jit`, with the arrays as arguments and all else static."""
    leaves, treedef = jax.tree.flatten((case.args, dict(case.kwargs)))
    is_array = [isinstance(x, np.ndarray | jax.Array) for x in leaves]

    @jax.jit
    def run(arrays: list[Any]) -> Any:
        traced = iter(arrays)
        full = [
            next(traced) if array else leaf
            for leaf, array in zip(leaves, is_array, strict=True)
        ]
        args, kwargs = jax.tree.unflatten(treedef, full)
        return _mapped(batcher, case)(*args, **kwargs)

    return run([x for x, array in zip(leaves, is_array, strict=True) if array])


@functools.cache
def _expected(name: str) -> Any:
    return _jitted(jax.vmap, CASES[name]())


@pytest.mark.parametrize(
    "layout",
    [
        "Vmap()",
        "Chunked(100)",
        "Sequential()",
        "Chunked(3)",
        "Sharded(4)",
        "Sharded(3, Chunked(2))",
    ],
)
@every_case
def test_equals_vmap(layout: str, name: str) -> None:
    case, batcher = CASES[name](), BATCHERS[layout]
    fun, traces = counted(case.fun)
    actual = _jitted(batcher, case._replace(fun=fun))
    assert_same(actual, _expected(name), ulps=0 if same_layout(batcher) else 4)
    assert len(traces) == 1


@pytest.mark.parametrize("name", ["Sequential()", "Chunked(3)", "Sharded(4)"])
@pytest.mark.parametrize("case", ["prefix pytrees", "unmapped output", "raw keys"])
def test_equals_vmap_without_jit(name: str, case: str) -> None:
    made = CASES[case]()
    fun, traces = counted(made.fun)
    actual = _mapped(BATCHERS[name], made._replace(fun=fun))(*made.args)
    assert_same(actual, _mapped(jax.vmap, made)(*made.args))
    assert len(traces) == 1


@every_batcher
@pytest.mark.parametrize("n", [0, 1, 2, 5, 12])
def test_traced_once_under_jit(batcher: bk.AbstractBatcher, n: int) -> None:
    fun, traces = counted(lambda x: jnp.sin(x).sum())
    jax.make_jaxpr(batcher(eqx.debug.assert_max_traces(fun, max_traces=1)))(
        jnp.ones((n, 2))
    )
    assert len(traces) == 1


def _smooth(x: Any, w: Any) -> tuple[Any, Any]:
    return jnp.exp(x * w).sum(), x * 2 + w


X = _grid(N, 2) / 16
W = np.array([0.5, 1.5], np.float32)

TRANSFORMS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "value_and_grad": lambda f: jax.value_and_grad(
        lambda x, w: sum(map(jnp.sum, f(x, w))), argnums=(0, 1)
    ),
    "jvp": lambda f: lambda x, w: jax.jvp(f, (x, w), (x + 1, w + 2)),
    "jvp of one argument": lambda f: (
        lambda x, w: jax.jvp(lambda w: f(x, w), (w,), (w,))
    ),
    "jacfwd": lambda f: jax.jacfwd(f, argnums=1),
    "hessian": lambda f: jax.hessian(lambda x, w: f(x, w)[0].sum(), argnums=1),
    "vmap of the unmapped": lambda f: (
        lambda x, w: jax.vmap(f, (None, 0))(x, jnp.stack([w, 2 * w, 3 * w]))
    ),
    "vmap of the mapped": lambda f: (
        lambda x, w: jax.vmap(f, (0, None), 1)(jnp.stack([x, x + 1]), w)
    ),
    "checkpoint": lambda f: jax.grad(
        jax.checkpoint(lambda x, w: f(x, w)[0].sum()), argnums=1
    ),
    "scan": lambda f: (
        lambda x, w: jax.lax.scan(
            lambda carry, _: (carry + 0.1, f(x, carry)[0]), w, length=2
        )
    ),
}


@functools.cache
def _transformed(name: str) -> Any:
    return jax.jit(TRANSFORMS[name](jax.vmap(_smooth, (0, None))))(X, W)


@every_splitting_batcher
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_equal_those_of_vmap(batcher: bk.AbstractBatcher, name: str) -> None:
    actual = jax.jit(TRANSFORMS[name](batcher(_smooth, (0, None))))(X, W)
    assert_same(actual, _transformed(name))


@pytest.mark.parametrize("name", ["Sequential()", "Chunked(3)", "Sharded(4)"])
def test_transforms_without_jit(name: str) -> None:
    transform = TRANSFORMS["value_and_grad"]
    expected = transform(jax.vmap(_smooth, (0, None)))(X, W)
    assert_same(transform(BATCHERS[name](_smooth, (0, None)))(X, W), expected)


@every_splitting_batcher
@pytest.mark.parametrize("name", ["Chunked(3)", "Sharded(4)"])
def test_nested_batchers_equal_nested_vmap(
    batcher: bk.AbstractBatcher, name: str
) -> None:
    """Mapped over rows and, inside, over columns, with the outer row closed over."""
    x, y = _grid(N, 3), _grid(5)

    def pairs(outer: Any, inner: Any) -> Callable[..., Any]:
        return outer(lambda row: inner(lambda v: jnp.cumsum(row) * v)(y))

    expected = jax.jit(pairs(jax.vmap, jax.vmap))(x)
    assert_same(jax.jit(pairs(batcher, BATCHERS[name]))(x), expected)


@every_batcher
def test_batcher_is_a_static_argument_and_a_pytree(batcher: bk.AbstractBatcher) -> None:
    @functools.partial(jax.jit, static_argnums=0)
    def static(batcher: bk.AbstractBatcher, x: Any) -> Any:
        return batcher(jnp.sum)(x)

    @jax.jit
    def pytree(batcher: bk.AbstractBatcher, x: Any) -> Any:
        return batcher(jnp.sum)(x)

    expected = jnp.sum(X, 1)
    assert_same(static(batcher, X), expected)
    assert_same(pytree(batcher, X), expected)
    assert jax.tree.leaves(batcher) == []


@every_batcher
def test_batcher_is_a_decorator(batcher: bk.AbstractBatcher) -> None:
    @batcher
    def double(x: Any) -> Any:
        """Twice."""
        return 2 * x

    assert double.__name__ == "double"
    assert "Twice." in (double.__doc__ or "")
    assert_same(double(X), jnp.asarray(2 * X))

    @functools.partial(batcher, in_axes=(None, 1), out_axes=1)
    def scale(a: Any, x: Any) -> Any:
        return a * x

    assert_same(scale(3.0, X), jnp.asarray(3 * X))


def test_batchers_are_hashable_values() -> None:
    """Batchers are immutable, compare by value and serve as dictionary keys."""
    twins: list[Callable[[], bk.AbstractBatcher]] = [
        bk.Vmap,
        bk.Sequential,
        lambda: bk.Chunked(3),
        lambda: bk.Chunked(4),
        lambda: bk.Chunked(3, remat=True),
        lambda: bk.Chunked(3, bk.Sequential()),
        bk.Sharded,
        lambda: bk.Sharded(mesh(2)),
        lambda: bk.Sharded(mesh(3)),
        lambda: bk.Sharded(mesh(3), "tasks"),
        lambda: bk.Sharded(mesh(3), ("tasks",), bk.Chunked(2)),
    ]
    table = {make(): i for i, make in enumerate(twins)}
    assert len(table) == len(twins)
    for i, make in enumerate(twins):
        assert table[make()] == i
        assert make() == make()
        assert hash(make()) == hash(make())
    for make in twins:
        batcher = make()
        for field in ("size", "inner", "mesh", "new"):
            with pytest.raises(AttributeError):
                setattr(batcher, field, None)


@every_batcher
@pytest.mark.parametrize("x64", [True, False])
def test_dtypes_with_and_without_x64(batcher: bk.AbstractBatcher, x64: bool) -> None:
    with jax.enable_x64(x64):
        x = np.arange(1, 1 + 2 * N, dtype=np.float64).reshape(N, 2)
        i = np.arange(N)
        f = lambda x, i: (jnp.sqrt(x) + i, i, jnp.zeros(()))
        expected = jax.jit(jax.vmap(f))(x, i)
        assert expected[0].dtype == (jnp.float64 if x64 else jnp.float32)
        assert_same(jax.jit(batcher(f))(x, i), expected)


@pytest.mark.parametrize("name", ["Vmap()", "Sequential()", "Chunked(3)", "Sharded(4)"])
def test_committed_arrays_may_be_on_one_device(name: str) -> None:
    """Arguments and closed-over arrays may live on one device, outside of `jit`."""
    batcher = BATCHERS[name]
    x, w = jax.device_put((X, W), jax.devices()[-1])
    f = lambda x: jnp.sin(x @ w)
    mapped = batcher(f)
    assert_same(mapped(x), jax.vmap(f)(x))
    assert_same(batcher(jax.jit(f))(x), jax.vmap(f)(x))
    # The gradient is on the device of its argument.
    grad = lambda m: jax.grad(lambda w, x: m(lambda x: jnp.sin(x @ w))(x).sum())(w, x)
    assert_same(grad(batcher), grad(jax.vmap))


@pytest.mark.parametrize("name", ["Vmap()", "Chunked(100)", "Chunked(3)"])
def test_spmd_axis_name_is_passed_on(name: str) -> None:
    """It says how a sharding constraint inside the function is extended."""
    sharding = NamedSharding(mesh(2), PartitionSpec(None))
    f = lambda x: jax.lax.with_sharding_constraint(x, sharding)
    mapped = BATCHERS[name](f, spmd_axis_name="tasks")
    specs = [
        eqn.params["sharding"].spec
        for eqn in equations(jax.make_jaxpr(mapped)(X))
        if eqn.primitive.name == "sharding_constraint"
    ]
    assert specs == [PartitionSpec("tasks")]


def test_signature_is_that_of_vmap() -> None:
    """Names, kinds and defaults allow the same positional arguments."""
    expected = [
        (x.name, x.kind, x.default)
        for x in inspect.signature(jax.vmap).parameters.values()
    ]
    for method in (bk.Chunked(3).__call__, bk.Continuous(3).with_stats):
        parameters = inspect.signature(method).parameters.values()
        assert [(x.name, x.kind, x.default) for x in parameters] == expected


@every_batcher
def test_arguments_by_position(batcher: bk.AbstractBatcher) -> None:
    f = lambda x: x / jax.lax.axis_size("i")
    run = lambda mapped: mapped(f, 1, 0, "i", N, None, True)(_grid(2, N))
    assert_same(run(batcher), run(jax.vmap))


def _loop(x: Any, steps: int = 2) -> Any:
    """A loop of which one output varies over the tasks and the other does not."""
    body = lambda carry, _: ((carry[0] * x, carry[1] + 1.0), None)
    return jax.lax.scan(body, (x, 0.5), None, length=steps)[0]


SUMS: dict[str, Callable[[Any], Any]] = {
    "varying": lambda m: m(jnp.sin, out_axes=None, sum_match=True)(_grid(N, 2)),
    "not varying": lambda m: m(lambda x: 2.0, out_axes=None, sum_match=True)(_grid(N)),
    "mapped": lambda m: m(jnp.sin, out_axes=-1, sum_match=True)(_grid(N, 2)),
    "one of several": lambda m: m(
        lambda x: {"a": x, "b": (x, 3.0), "c": x.astype(int)},
        out_axes={"a": 0, "b": None, "c": None},
        sum_match=True,
    )(_grid(N)),
    "one output of a loop": lambda m: m(_loop, out_axes=None, sum_match=True)(
        _grid(N) / N
    ),
    "an unmapped argument": lambda m: m(
        lambda x, y: (x * y, y), (0, None), None, sum_match=True
    )(_grid(N), _grid(2)),
    "float0": lambda m: m(lambda t, x: (t, x), out_axes=(0, None), sum_match=True)(
        np.zeros((N, 2), jax.dtypes.float0), _grid(N)
    ),
    "no tasks": lambda m: m(jnp.sin, out_axes=None, sum_match=True)(_grid(0, 2)),
    "gradient": lambda m: jax.grad(
        lambda w: m(lambda x: jnp.sin(x * w), out_axes=None, sum_match=True)(_grid(N))
    )(np.float32(0.5)),
    "outer vmap": lambda m: jax.vmap(m(_loop, out_axes=None, sum_match=True))(
        _grid(2, N) / N
    ),
}


@every_batcher
@pytest.mark.parametrize("name", SUMS)
def test_sum_match_sums_varying_outputs(batcher: bk.AbstractBatcher, name: str) -> None:
    """Outputs that vary are summed, if `out_axes` is None; others are returned once."""
    if name == "gradient" and isinstance(batcher, bk.Continuous):
        name = "varying"  # it refuses reverse mode
    actual, expected = (
        jax.jit(lambda m=m: SUMS[name](m))() for m in (batcher, jax.vmap)
    )
    assert_same(actual, expected, ulps=0 if same_layout(batcher) else 8)


@pytest.mark.parametrize("name", ["Chunked(3)", "Sharded(4)"])
def test_sum_match_raises_the_errors_of_vmap(name: str) -> None:
    keys = lambda m: m(lambda k: k, out_axes=None, sum_match=True)(_keys())
    for mapped in (jax.vmap, BATCHERS[name]):
        with pytest.raises(NotImplementedError, match="abstract method sum"):
            keys(mapped)


@every_batcher
def test_axis_size_is_a_constant(batcher: bk.AbstractBatcher) -> None:
    """The size of the whole axis is known without communication."""

    def f(x: Any) -> Any:
        n, m = jax.lax.psum(1, "i"), jax.lax.axis_size("i")
        return x / n, jnp.full(m, x), jax.lax.psum(2.5, "i")

    x = _grid(N)
    run = lambda mapped: jax.jit(mapped(f, axis_name="i"))(x)
    expected = run(jax.vmap)
    assert expected[1].shape == (N, N)
    assert_same(run(batcher), expected)


@pytest.mark.parametrize("name", SPLITTING)
def test_collectives_over_an_outer_axis(name: str) -> None:
    """Those over an axis bound outside communicate as under `jax.vmap`."""

    def both(mapped: Any) -> Any:
        f = lambda x: (jax.lax.psum(x, "out"), x + jax.lax.axis_index("out"))
        g = mapped(f, axis_name="i")
        return jax.jit(jax.vmap(g, axis_name="out"))(_grid(3, N))

    assert_same(both(BATCHERS[name]), both(jax.vmap))


@every_batcher
def test_inner_axis_may_reuse_the_name(batcher: bk.AbstractBatcher) -> None:
    """A vmap inside the function may use the name again for its own axis."""
    f = lambda x: jax.vmap(lambda v: v / jax.lax.psum(v, "i"), axis_name="i")(x)
    x = _grid(N, 3)
    run = lambda mapped: jax.jit(mapped(f, axis_name="i"))(x)
    assert_same(run(batcher), run(jax.vmap))


@every_batcher
def test_effects_of_every_task_happen(
    batcher: bk.AbstractBatcher, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every task prints its line; padded rows print theirs again, as documented."""

    def f(x: Any) -> Any:
        jax.debug.print("task {}", x.astype(int))
        return x

    jax.block_until_ready(batcher(f)(_grid(N)))
    jax.effects_barrier()
    lines = capfd.readouterr().out.split("\n")
    assert {f"task {i}" for i in range(1, N + 1)} <= set(lines)


def test_custom_derivative_rules_are_kept() -> None:
    """`custom_jvp` and `custom_vjp` rules survive, also where they are closed over."""

    @jax.custom_jvp
    def twisted(x: Any) -> Any:
        return jnp.sin(x)

    @twisted.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        return twisted(*primals), 3.0 * tangents[0]

    @jax.custom_vjp
    def clipped(x: Any) -> Any:
        return x

    clipped.defvjp(lambda x: (x, x), lambda x, g: (jnp.minimum(g, x) * 5.0,))
    f = lambda x, w: twisted(x * w) + clipped(x + w)
    g = lambda m: jax.jit(
        jax.grad(lambda w: m(lambda x: f(x, w) + f(w, x))(_grid(N)).sum())
    )(np.float32(0.5))
    expected = g(jax.vmap)
    for batcher in BATCHERS.values():
        assert_same(g(batcher), expected)


@pytest.mark.parametrize("name", SPLITTING)
def test_splitting_batchers_change_the_program(name: str) -> None:
    """No batcher of the table `SPLITTING` runs the program of `jax.vmap`."""
    f = lambda x: jnp.sin(x)
    assert primitives(SPLITTING[name](f), X) != primitives(jax.vmap(f), X)
