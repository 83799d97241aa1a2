"""Reading JAX's equations, and the errors for unknown forms."""

import re
import warnings
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxpr_as_fun

import batchkit as bk
from batchkit._util._jaxprs import is_dropped
from batchkit.continuous import _equations
from batchkit.continuous._equations import (
    Cond,
    Scan,
    WhileLoop,
    called_jaxpr,
    control_flow,
    jit_name,
)


def _equation(name: str) -> Any:
    """Return an equation of this name, as the installed JAX makes it."""

    def fun(x: jax.Array, flag: Any) -> Any:
        y = jax.lax.while_loop(
            lambda c: c[0] < flag, lambda c: (c[0] + 1.0, c[1] * flag), (x, x)
        )[0]
        y, rows = jax.lax.scan(
            lambda c, row: (c + flag * row, c), y, jnp.arange(4.0), reverse=True
        )
        y = jax.lax.cond(flag > 0, lambda y: y + 1, lambda y: y * flag, y)
        return jax.jit(lambda y: y**2)(y), rows

    jaxpr = jax.make_jaxpr(fun)(1.0, 2.0).jaxpr
    return next(eqn for eqn in jaxpr.eqns if eqn.primitive.name == name)


def _read(eqn: Any) -> Any:
    return called_jaxpr(eqn) or control_flow(eqn, eqn.invars)


def test_operands_of_a_while_loop():
    eqn = _equation("while")
    loop = control_flow(eqn, ["cond", "body", "x", "y"])
    assert isinstance(loop, WhileLoop)
    assert (loop.cond_consts, loop.body_consts) == (["cond"], ["body"])
    assert loop.init == ["x", "y"]
    assert [is_dropped(x) for x in eqn.outvars] == [str(x) == "_" for x in eqn.outvars]


def test_operands_of_a_scan():
    scan = control_flow(_equation("scan"), ["flag", "carry", "rows"])
    assert isinstance(scan, Scan)
    assert (scan.consts, scan.init, scan.rows) == (["flag"], ["carry"], ["rows"])
    assert (scan.length, scan.reverse) == (4, True)


def test_operands_of_a_cond():
    eqn = _equation("cond")
    cond = control_flow(eqn, eqn.invars)
    assert isinstance(cond, Cond)
    assert cond.index is eqn.invars[0]
    assert len(cond.branches) == 2
    # The branch for a false condition comes first.
    assert jaxpr_as_fun(cond.branches[0])(*([3.0] * len(cond.args)))[0] == 9.0
    assert jaxpr_as_fun(cond.branches[1])(*([3.0] * len(cond.args)))[0] == 4.0


def test_jaxpr_of_a_call():
    call = called_jaxpr(_equation("jit"))
    assert call is not None
    assert jaxpr_as_fun(call)(3.0) == [9.0]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("while", ["cond_nconsts", "body_nconsts", "cond_jaxpr", "body_jaxpr"]),
        ("scan", ["jaxpr", "length", "reverse"]),
        ("cond", ["branches"]),
        ("jit", ["jaxpr"]),
    ],
)
def test_missing_parameters_are_named(name: str, parameters: list[str]):
    eqn = _equation(name)
    for missing in parameters:
        params = {k: v for k, v in eqn.params.items() if k != missing}
        text = f"the equation '{name}' of JAX {jax.__version__}: it has no parameter"
        with pytest.raises(NotImplementedError, match=re.escape(f"{text} '{missing}'")):
            _read(eqn.replace(params=params))


def test_calls_without_a_name_are_refused():
    eqn = _equation("jit")
    params = {k: v for k, v in eqn.params.items() if k != "name"}
    with pytest.raises(NotImplementedError, match="it has no parameter 'name'"):
        jit_name(eqn.replace(params=params))


class _Operands:
    """Trees of operands of a form that no JAX has."""

    def unpack(self) -> Any:
        return "two", "things"


@pytest.mark.parametrize(
    "operands", [_Operands(), SimpleNamespace(), None, SimpleNamespace(unpack=3)]
)
def test_unknown_operands_of_a_scan_are_refused(operands: Any):
    eqn = _equation("scan")
    unknown = ("num_consts", "num_carry")
    params = {k: v for k, v in eqn.params.items() if k not in unknown}
    with pytest.raises(NotImplementedError, match="its trees of operands"):
        _read(eqn.replace(params={**params, "ft_in": operands}))
    params.pop("ft_in", None)
    with pytest.raises(NotImplementedError, match="it has no parameter 'ft_in'"):
        _read(eqn.replace(params=params))


def test_errors_of_a_batched_function_name_the_remedy(monkeypatch: pytest.MonkeyPatch):
    names = {**_equations._CALLS, "jit": "renamed", "pjit": "renamed"}
    monkeypatch.setattr(_equations, "_CALLS", names)

    def task(x: jax.Array) -> jax.Array:
        step = jax.jit(lambda x: x + 1)
        return jax.lax.while_loop(lambda x: x < 5, step, x)

    with pytest.raises(NotImplementedError, match="or another batcher"):
        bk.Continuous(2)(task)(jnp.arange(4.0))


def test_no_warnings() -> None:
    @bk.expensive
    def half(x: Any) -> Any:
        return x / 2

    task = lambda x: jax.lax.while_loop(lambda x: x > 1, half, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.jit(bk.Continuous(3)(task))(jnp.arange(6.0))
