"""Programs of loops and branches have the same results as under `jax.vmap`."""

import functools
from typing import Any

import jax
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

import batchkit as bk

from ..helpers import assert_same
from .random_programs import (
    OWN_RULES,
    SIMPLE,
    RandomProgram,
    Statement,
    arguments,
    programs,
)


TASKS = 6
LANES = st.sampled_from([1, 2, TASKS])
SETTINGS = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}
# All numbers are small integers, so the results are the same bits at any level of
# optimisation, and LLVM compiles a third faster at the lowest one.
FAST = {"xla_backend_optimization_level": 0}
few = settings(max_examples=8, **SETTINGS)
many = settings(max_examples=250, **SETTINGS)

VALUE: Statement = ("value",)
COUNT: Statement = ("count",)
SWAP: Statement = ("swap",)

# One for each form of control flow that lowering treats in its own way.
CHOSEN: dict[str, RandomProgram] = {
    "swapped in a while": RandomProgram((("while", "cheap", (SWAP, VALUE, COUNT)),), 1),
    "swapped in a scan": RandomProgram((COUNT, ("scan", 3, False, (SWAP, VALUE))), 1),
    "tested by a call": RandomProgram(
        (("while", "call", (COUNT, ("gradient",), ("copy",))),), 1
    ),
    "reverse scan": RandomProgram(
        (("scan", 3, True, (("while", "cheap", (VALUE, ("draw",))),)), ("fold",)), 1
    ),
    "no turn at all": RandomProgram(
        (("scan", 0, False, (VALUE, COUNT)), ("while", "cheap", (VALUE,))), 1
    ),
    "in one branch": RandomProgram(
        (
            ("scan", 3, False, (COUNT, ("cond", (VALUE,)), ("draw",))),
            ("switch", (("jvp",), COUNT)),
        ),
        1,
    ),
    "three loops deep": RandomProgram(
        (
            (
                "while",
                "cheap",
                (("scan", 3, False, (("while", "cheap", (VALUE, SWAP, COUNT)),)),),
            ),
        ),
        1,
    ),
    "two functions": RandomProgram(
        (
            ("while", "cheap", (("other value",), ("value",), COUNT)),
            ("while", "call", (("gradient",), ("draw",))),
        ),
        2,
    ),
    "hidden in calls": RandomProgram(
        (
            ("jit", (("while", "cheap", (VALUE, COUNT)),)),
            ("remat", (("cond", (("gradient around",),)),)),
            ("own rule", (("while", "cheap", (VALUE, COUNT)),)),
        ),
        1,
    ),
    "uniform values": RandomProgram(
        (
            ("while", "cheap", (("uniform value",), ("literal",))),
            ("cond", (("uniform value",), ("unused",))),
        ),
        1,
    ),
    "no marks": RandomProgram(
        (
            ("while", "cheap", (SWAP, VALUE, ("scan", 3, True, (("draw",), COUNT)))),
            ("scan", 3, False, (("while", "cheap", (COUNT, ("look up",))),)),
        ),
        0,
    ),
    "no marks, tested by a loop": RandomProgram(
        (("while", "call", (("while", "cheap", (COUNT,)), ("gradient",))),), 0
    ),
}


def _check(program: RandomProgram, *lanes: int) -> None:
    args = arguments(TASKS)
    compiled = functools.partial(jax.jit, compiler_options=FAST)
    expected = compiled(jax.vmap(program.task))(*args)
    for count in lanes:
        actual = compiled(bk.Continuous(count)(program.task))(*args)
        assert_same(actual, expected, ulps=0)


def _check_forward(program: RandomProgram, *lanes: int) -> None:
    """Compare values, `jax.jvp`, and `jax.linearize`."""
    i, v, key = arguments(TASKS)
    direction = v[::-1] + 1

    def run(mapped: Any) -> Any:
        @functools.partial(jax.jit, compiler_options=FAST)
        def derivatives(i: Any, v: Any, key: Any, direction: Any) -> Any:
            batched = lambda v: mapped(program.task)(i, v, key)
            out, linear = jax.linearize(batched, v)
            return jax.jvp(batched, (v,), (direction,)), out, linear(direction)

        return derivatives(i, v, key, direction)

    expected = run(jax.vmap)
    for count in lanes:
        assert_same(run(bk.Continuous(count)), expected, ulps=64)


RULES: dict[str, RandomProgram] = {
    # Two calls of one kind, of which the first has a tangent and the second has none.
    "one evaluation": RandomProgram((("while", "cheap", (VALUE, ("own vjp",))),), 1),
    "around a call": RandomProgram((("while", "cheap", (("own jvp",), COUNT)),), 1),
    "around a loop": RandomProgram((("own rule", (("while", "cheap", (VALUE,)),)),), 1),
    "no marks": RandomProgram(
        (("while", "cheap", (("own jvp",), ("own vjp",), ("gradient",))),), 0
    ),
    "in branches": RandomProgram(
        (("scan", 3, True, (("cond", (("own vjp",), VALUE)), ("own jvp",))),), 2
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("program", RULES.values(), ids=RULES)
def test_forward_mode_propagates_the_tangents_of_vmap(program: RandomProgram) -> None:
    _check_forward(program, 2)


@pytest.mark.slow
@many
@given(programs(1, (0, 1, 2), SIMPLE + OWN_RULES), LANES)
def test_forward_mode_of_any_program(program: RandomProgram, lanes: int) -> None:
    _check_forward(program, lanes)


@pytest.mark.parametrize("program", CHOSEN.values(), ids=CHOSEN)
def test_chosen_programs(program: RandomProgram) -> None:
    _check(program, 1, 2, TASKS)


def test_lanes_beyond_the_number_of_tasks_are_left_out() -> None:
    task, args = CHOSEN["reverse scan"].task, arguments(TASKS)
    as_many = str(jax.make_jaxpr(bk.Continuous(TASKS)(task))(*args))
    assert str(jax.make_jaxpr(bk.Continuous(TASKS + 3)(task))(*args)) == as_many


@few
@given(programs(1, (1, 2)), LANES)
def test_marked_calls(program: RandomProgram, lanes: int) -> None:
    _check(program, lanes)


@few
@given(programs(1, (0,)), LANES)
def test_turns_of_loops(program: RandomProgram, lanes: int) -> None:
    _check(program, lanes)


@pytest.mark.slow
@many
@given(programs(2, (0, 1, 2)), LANES)
@example(CHOSEN["three loops deep"], 2)
def test_deep_programs(program: RandomProgram, lanes: int) -> None:
    _check(program, lanes)
