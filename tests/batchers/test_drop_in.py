"""A batcher is a drop-in for `jax.vmap`: same signature, pytrees, transforms.

Compilation takes most of the time. So all calls of a table are one program for each
batcher.
"""

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
    assert_all_same,
    assert_same,
    counted,
    equations,
    every_batcher,
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
    "64-bit arrays": lambda: Case(
        lambda x, i: (jnp.sqrt(x) + i, i, jnp.zeros(())),
        (_grid(N, 2, dtype=np.float64), np.arange(N)),
    ),
    "a module": lambda: Case(
        eqx.nn.Linear(3, 2, key=jax.random.key(1)), (_grid(N, 3) / 8,)
    ),
}


def _mapped(batcher: Any, case: Case) -> Callable[..., Any]:
    return batcher(case.fun, case.in_axes, case.out_axes, axis_size=case.axis_size)


def _results_of_cases(batcher: Any) -> tuple[dict[str, Any], dict[str, int]]:
    """The results of all cases in one program, and how often each was traced."""
    cases = {name: make() for name, make in CASES.items()}
    traces: dict[str, list[int]] = {}
    arguments = {name: (x.args, dict(x.kwargs)) for name, x in cases.items()}
    arrays, static = eqx.partition(arguments, eqx.is_array)

    @jax.jit
    def run(arrays: Any) -> dict[str, Any]:
        results = {}
        for name, (args, kwargs) in eqx.combine(arrays, static).items():
            fun, traces[name] = counted(cases[name].fun)
            mapped = _mapped(batcher, cases[name]._replace(fun=fun))
            results[name] = mapped(*args, **kwargs)
        return results

    return run(arrays), {name: len(times) for name, times in traces.items()}


@functools.cache
def _expected_cases() -> dict[str, Any]:
    return _results_of_cases(jax.vmap)[0]


@every_batcher
def test_results_equal_those_of_vmap_from_one_trace(
    batcher: bk.AbstractBatcher,
) -> None:
    actual, traces = _results_of_cases(batcher)
    assert_all_same(actual, _expected_cases(), 0 if same_layout(batcher) else 4)
    assert traces == dict.fromkeys(traces, 1)


@pytest.mark.parametrize("layout", ["Sequential()", "Chunked(3)", "Sharded(4)"])
@pytest.mark.parametrize("name", ["prefix pytrees", "unmapped output", "raw keys"])
def test_results_without_jit_equal_those_of_vmap(layout: str, name: str) -> None:
    case = CASES[name]()
    fun, traces = counted(case.fun)
    actual = _mapped(BATCHERS[layout], case._replace(fun=fun))(*case.args)
    assert_same(actual, _expected_cases()[name])
    assert len(traces) == 1


@every_batcher
def test_any_number_of_tasks_is_traced_once(batcher: bk.AbstractBatcher) -> None:
    for n in (0, 1, 2, 5, 12):
        fun, traces = counted(lambda x: jnp.sin(x).sum())
        jax.make_jaxpr(batcher(fun))(jnp.ones((n, 2)))
        assert len(traces) == 1


def _smooth(x: Any, w: Any) -> tuple[Any, Any]:
    return jnp.exp(x * w).sum(), x * 2 + w


def _loop(x: Any, steps: int = 2) -> Any:
    """A loop of which one output varies over the tasks and the other does not."""
    body = lambda carry, _: ((carry[0] * x, carry[1] + 1.0), None)
    return jax.lax.scan(body, (x, 0.5), None, length=steps)[0]


def _nested(inner: str) -> Callable[..., Any]:
    """Mapped over rows and, inside, over columns, with the outer row closed over."""

    def run(m: Any, x: Any, w: Any) -> Any:
        inside = m if m is jax.vmap else BATCHERS[inner]
        return m(lambda row: inside(lambda v: jnp.cumsum(row) * v)(_grid(5)))(x)

    return run


def _sizes(x: Any) -> Any:
    n, m = jax.lax.psum(1, "i"), jax.lax.axis_size("i")
    return x / n, jnp.full(m, x.sum()), jax.lax.psum(2.5, "i")


@jax.custom_jvp
def _twisted(x: Any) -> Any:
    return jnp.sin(x)


@_twisted.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return _twisted(*primals), 3.0 * tangents[0]


@jax.custom_vjp
def _clipped(x: Any) -> Any:
    return x


_clipped.defvjp(lambda x: (x, x), lambda x, g: (jnp.minimum(g, x) * 5.0,))


def _with_rules(x: Any, w: Any) -> Any:
    return _twisted(x * w) + _clipped(x + w)


X = _grid(N, 2) / 16
W = np.array([0.5, 1.5], np.float32)

# Each maps `_smooth` or a function of its own by `m`.
TRANSFORMS: dict[str, Callable[..., Any]] = {
    "value_and_grad": lambda m, x, w: jax.value_and_grad(
        lambda x, w: sum(map(jnp.sum, m(_smooth, (0, None))(x, w))), argnums=(0, 1)
    )(x, w),
    "jvp": lambda m, x, w: jax.jvp(m(_smooth, (0, None)), (x, w), (x + 1, w + 2)),
    "jvp of one argument": lambda m, x, w: jax.jvp(
        lambda w: m(_smooth, (0, None))(x, w), (w,), (w,)
    ),
    "jacfwd": lambda m, x, w: jax.jacfwd(m(_smooth, (0, None)), argnums=1)(x, w),
    "hessian": lambda m, x, w: jax.hessian(
        lambda w: m(_smooth, (0, None))(x, w)[0].sum()
    )(w),
    "vmap of the unmapped": lambda m, x, w: jax.vmap(m(_smooth, (0, None)), (None, 0))(
        x, jnp.stack([w, 2 * w, 3 * w])
    ),
    "vmap of the mapped": lambda m, x, w: jax.vmap(m(_smooth, (0, None)), (0, None), 1)(
        jnp.stack([x, x + 1]), w
    ),
    "checkpoint": lambda m, x, w: jax.grad(
        jax.checkpoint(lambda w: m(_smooth, (0, None))(x, w)[0].sum())
    )(w),
    "scan": lambda m, x, w: jax.lax.scan(
        lambda carry, _: (carry + 0.1, m(_smooth, (0, None))(x, carry)[0]), w, length=2
    ),
    "derivative rules": lambda m, x, w: jax.grad(
        lambda v: m(lambda x: _with_rules(x, v) + _with_rules(v, x))(_grid(N)).sum()
    )(w[0]),
    "nested, Chunked(3)": _nested("Chunked(3)"),
    "nested, Sharded(4)": _nested("Sharded(4)"),
    "arguments by position": lambda m, x, w: m(
        lambda x: x / jax.lax.axis_size("i"), 1, 0, "i", N, None, True
    )(x.T),
    "size of the axis": lambda m, x, w: m(_sizes, axis_name="i")(x),
    "collectives over an outer axis": lambda m, x, w: jax.vmap(
        m(lambda x: (jax.lax.psum(x, "o"), jax.lax.axis_index("o")), axis_name="i"),
        axis_name="o",
    )(jnp.stack([x, x + 1])),
    "inner axis of the same name": lambda m, x, w: m(
        lambda x: jax.vmap(lambda v: v / jax.lax.psum(v, "i"), axis_name="i")(x),
        axis_name="i",
    )(x),
}

# Outputs that vary are summed if `out_axes` is None; others are returned once.
SUMS: dict[str, Callable[..., Any]] = {
    "varying": lambda m, x, w: m(jnp.sin, out_axes=None, sum_match=True)(x),
    "not varying": lambda m, x, w: m(lambda x: 2.0, out_axes=None, sum_match=True)(x),
    "mapped": lambda m, x, w: m(jnp.sin, out_axes=-1, sum_match=True)(x),
    "one of several": lambda m, x, w: m(
        lambda x: {"a": x, "b": (x, 3.0), "c": x.astype(int)},
        out_axes={"a": 0, "b": None, "c": None},
        sum_match=True,
    )(x),
    "one output of a loop": lambda m, x, w: m(_loop, out_axes=None, sum_match=True)(x),
    "an unmapped argument": lambda m, x, w: m(
        lambda x, y: (x * y, y), (0, None), None, sum_match=True
    )(x, w),
    "float0": lambda m, x, w: m(
        lambda t, x: (t, x), out_axes=(0, None), sum_match=True
    )(np.zeros((N, 2), jax.dtypes.float0), x),
    "no tasks": lambda m, x, w: m(jnp.sin, out_axes=None, sum_match=True)(x[:0]),
    "gradient": lambda m, x, w: jax.grad(
        lambda v: m(lambda x: jnp.sin(x * v), out_axes=None, sum_match=True)(x[:, 0])
    )(w[0]),
    "outer vmap": lambda m, x, w: jax.vmap(m(_loop, out_axes=None, sum_match=True))(
        jnp.stack([x, x + 1])
    ),
}


def _results(batcher: Any, table: dict[str, Callable[..., Any]]) -> dict[str, Any]:
    run = lambda x, w: {name: call(batcher, x, w) for name, call in table.items()}
    return jax.jit(run)(X, W)


_transforms_of_vmap = functools.cache(lambda: _results(jax.vmap, TRANSFORMS))
_sums_of_vmap = functools.cache(lambda: _results(jax.vmap, SUMS))


@every_batcher
def test_transforms_equal_those_of_vmap(batcher: bk.AbstractBatcher) -> None:
    assert_all_same(_results(batcher, TRANSFORMS), _transforms_of_vmap())


@every_batcher
def test_sum_match_sums_varying_outputs(batcher: bk.AbstractBatcher) -> None:
    ulps = 0 if same_layout(batcher) else 8
    assert_all_same(_results(batcher, SUMS), _sums_of_vmap(), ulps)


@pytest.mark.parametrize("name", ["Chunked(3)", "Sharded(4)"])
def test_sum_match_raises_the_errors_of_vmap(name: str) -> None:
    keys = lambda m: m(lambda k: k, out_axes=None, sum_match=True)(_keys())
    for mapped in (jax.vmap, BATCHERS[name]):
        with pytest.raises(NotImplementedError, match="abstract method sum"):
            keys(mapped)


@pytest.mark.parametrize("name", ["Sequential()", "Chunked(3)", "Sharded(4)"])
def test_gradients_without_jit_equal_those_of_vmap(name: str) -> None:
    actual = TRANSFORMS["value_and_grad"](BATCHERS[name], X, W)
    assert_same(actual, _transforms_of_vmap()["value_and_grad"])


@pytest.mark.parametrize("name", ["Sequential()", "Chunked(3)", "Sharded(4)"])
def test_float64_results_equal_those_of_vmap(name: str) -> None:
    with jax.enable_x64(True):
        case = CASES["64-bit arrays"]()
        expected = jax.jit(jax.vmap(case.fun))(*case.args)
        assert expected[0].dtype == jnp.float64
        assert_same(jax.jit(BATCHERS[name](case.fun))(*case.args), expected)


@every_batcher
def test_batcher_is_a_static_argument_and_a_pytree(batcher: bk.AbstractBatcher) -> None:
    summed = lambda batcher, x: batcher(jnp.sum)(x)
    for static in (0, ()):
        run = jax.jit(summed, static_argnums=static)
        assert jax.eval_shape(run, batcher, X).shape == (N,)
        assert run.lower(batcher, X).as_text()
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
    """A sharding constraint inside the function is extended by it."""
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


@pytest.mark.parametrize("name", SPLITTING)
def test_splitting_batchers_change_the_program(name: str) -> None:
    """No batcher of the table `SPLITTING` runs the program of `jax.vmap`."""
    f = lambda x: jnp.sin(x)
    assert primitives(SPLITTING[name](f), X) != primitives(jax.vmap(f), X)
