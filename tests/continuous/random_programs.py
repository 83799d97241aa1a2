"""Random programs: nested loops and branches that call one or two functions.

A program is a tuple of statements over a small state. Every number stays a small whole
number, so sums and products are exact in float32, whatever the order and whether or not
a product is fused with a sum. Loops end by a counter.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import batchkit as bk


WEIGHTS = np.array([3.0, 1.0], np.float32)
TABLE = np.arange(12, dtype=np.float32).reshape(3, 4)[:, 1:3] % 5


class State(NamedTuple):
    """What the statements of a program read and write."""

    i: Any  # a whole number below 11
    j: Any
    v: Any  # two whole numbers as floats
    b: Any  # a bool
    key: Any


def _first(v: Any) -> Any:
    return jnp.sum(v * WEIGHTS)


def _second(v: Any) -> Any:
    return jnp.dot(v, v) + v[0]


class Calls:
    """The two functions of one program, marked or not."""

    def __init__(self, marks: int) -> None:
        self.first = bk.expensive(_first) if marks > 0 else _first
        self.second = bk.expensive(_second) if marks > 1 else _second


Statement = tuple[Any, ...]


def _small(v: Any) -> Any:
    return jnp.mod(v, 8.0)


def _simple(kind: str, s: State, calls: Calls) -> State:
    match kind:
        case "count":
            return s._replace(i=(s.i * 3 + s.j + 1) % 11, b=s.i > s.j)
        case "swap":  # block parameters are assigned in parallel
            return s._replace(i=s.j, j=s.i, v=s.v[::-1], b=~s.b)
        case "copy":
            return s._replace(j=s.i)
        case "literal":
            return s._replace(i=jnp.int32(2), b=jnp.array(True))
        case "look up":
            return s._replace(v=_small(s.v + jnp.asarray(TABLE)[s.i % 3]))
        case "draw":
            key, sub = jax.random.split(s.key)
            return s._replace(j=jax.random.randint(sub, (), 0, 7), key=key)
        case "fold":
            return s._replace(key=jax.random.fold_in(s.key, s.j))
        case "value":
            return s._replace(v=_small(s.v.at[0].add(calls.first(s.v))))
        case "other value":
            return s._replace(v=_small(s.v.at[1].set(calls.second(s.v))))
        case "uniform value":  # it does not depend on the task
            return s._replace(v=_small(s.v + calls.first(jnp.asarray(WEIGHTS))))
        case "gradient":
            value, grad = jax.value_and_grad(calls.second)(s.v)
            return s._replace(v=_small(grad + value), j=(s.j + 1) % 7)
        case "gradient around":
            grad = jax.grad(lambda v: calls.first(v * v) * 2.0)(s.v)
            return s._replace(v=_small(grad))
        case "jvp":
            value, tangent = jax.jvp(calls.second, (s.v,), (s.v + 1.0,))
            return s._replace(v=_small(jnp.stack([value, tangent])))
        case "own vjp":  # which has no forward mode; `i` and `j` have no tangents
            apart = jax.custom_vjp(calls.first)
            apart.defvjp(lambda v: (apart(v), v), lambda v, g: (g * v,))
            numbers = jnp.stack([s.i, s.j]).astype(jnp.float32)
            return s._replace(v=_small(s.v + apart(numbers)))
        case "own jvp":  # around a marked call, and not its derivative
            around = jax.custom_jvp(calls.first)
            around.defjvp(lambda vs, ts: (around(*vs), 3 * ts[0][0] - ts[0][1]))
            return s._replace(v=_small(s.v + around(s.v)))
        case "unused":
            calls.first(s.v)
            return s
        case _:
            raise AssertionError(kind)


SIMPLE = [
    "count",
    "swap",
    "copy",
    "literal",
    "look up",
    "draw",
    "fold",
    "value",
    "value",
    "other value",
    "uniform value",
    "gradient",
    "gradient around",
    "jvp",
    "unused",
]


def _while(s: State, test: str, body: Any, calls: Calls) -> State:
    def goes_on(carry: Any) -> Any:
        turn, limit, _, s = carry
        if test == "call":
            return (turn < limit) & (jnp.mod(calls.first(s.v), 16.0) < 13.0)
        return turn < limit

    def again(carry: Any) -> Any:
        turn, limit, other, s = carry
        return turn + 1, limit, other * 2 % 7, body(s)

    _, _, other, s = jax.lax.while_loop(goes_on, again, (0, (s.i + s.j) % 4, 1, s))
    return s._replace(j=(s.j + other) % 7)


def _scan(s: State, length: int, reverse: bool, body: Any) -> State:
    rows = (jnp.arange(length), jax.random.split(s.key, length) if length else s.key)

    def turn(s: State, row: Any) -> Any:
        number, key = row
        s = body(s._replace(i=(s.i + number) % 11))
        return s, (s.i, s.v, key, s.b)

    if length == 0:
        rows = (rows[0], jax.random.split(s.key, 2)[:0])
    s, (i, v, keys, b) = jax.lax.scan(turn, s, rows, length, reverse)
    order = jnp.arange(1, length + 1)
    key = keys[0] if length else s.key
    return s._replace(
        j=jnp.sum(i * order) % 7,
        v=_small(s.v + (v * order[:, None]).sum(0)),
        b=s.b ^ b.any(),
        key=jax.random.fold_in(key, s.i),
    )


def _own_rule(s: State, body: Any) -> State:
    """Wrap the body in a function with a custom derivative."""
    # Its state is an argument: when JAX runs the rule, the trace may have ended in
    # which the state is a tracer.
    around = jax.custom_jvp(lambda v, rest: body(rest._replace(v=v)).v)
    around.defjvp(lambda primals, tangents: (around(*primals), 2 * tangents[0]))
    return s._replace(v=around(s.v, s))


def _block(program: Any, calls: Calls, s: State) -> State:
    return execute(program, s, calls)


def execute(program: tuple[Statement, ...], s: State, calls: Calls) -> State:
    """Run statements one after the other."""
    for kind, *rest in program:
        body = functools.partial(_block, rest[-1] if rest else (), calls)
        match kind:
            case "while":
                s = _while(s, rest[0], body, calls)
            case "scan":
                s = _scan(s, rest[0], rest[1], body)
            case "cond":
                s = jax.lax.cond(s.b, body, lambda s: s, s)
            case "switch":
                other = lambda s: execute((("swap",),), s, calls)
                s = jax.lax.switch(s.i % 3, [other, body, lambda s: s], s)
            case "jit":
                s = jax.jit(body)(s)
            case "remat":
                s = jax.checkpoint(body)(s)
            case "own rule":
                s = _own_rule(s, body)
            case _:
                s = _simple(kind, s, calls)
    return s


class RandomProgram(NamedTuple):
    """A task: its statements, the number of marked functions, and its outputs."""

    statements: tuple[Statement, ...]
    marks: int
    returned: tuple[str, ...] = State._fields

    def task(self, i: Any, v: Any, key: Any) -> dict[str, Any]:
        """Compute the task of one index."""
        s = State(i, jnp.int32(1), v, v[0] > v[1], key)
        s = execute(self.statements, s, Calls(self.marks))
        return {name: getattr(s, name) for name in self.returned} | {"i again": s.i}


def arguments(tasks: int) -> tuple[Any, Any, Any]:
    """Return the arguments of a number of tasks."""
    i = np.arange(tasks, dtype=np.int32) * 5 % 11
    v = (np.arange(2 * tasks, dtype=np.float32) * 3 % 7).reshape(tasks, 2)
    return i, v, jax.random.split(jax.random.key(4), tasks)


OWN_RULES = ["own vjp", "own jvp"] * 3


def _blocks(depth: int, kinds: list[str]) -> st.SearchStrategy[tuple[Statement, ...]]:
    """Generate up to four statements, which hold others down to a depth."""
    simple = st.sampled_from(kinds).map(lambda kind: (kind,))
    if depth == 0:
        return st.lists(simple, min_size=1, max_size=2).map(tuple)
    inner = _blocks(depth - 1, kinds)
    compound = st.one_of(
        st.tuples(st.just("while"), st.sampled_from(["cheap", "call"]), inner),
        st.tuples(st.just("scan"), st.sampled_from([3, 1, 0]), st.booleans(), inner),
        st.tuples(st.sampled_from(["cond", "switch"]), inner),
        st.tuples(st.sampled_from(["jit", "remat", "own rule"]), inner),
    )
    return st.tuples(
        st.lists(simple, max_size=1).map(tuple),
        st.lists(compound, min_size=1, max_size=2).map(tuple),
        st.lists(simple, max_size=1).map(tuple),
    ).map(lambda parts: sum(parts, ()))


def programs(
    depth: int, marks: tuple[int, ...], kinds: list[str] = SIMPLE
) -> st.SearchStrategy[RandomProgram]:
    """Generate programs with loops nested to a depth."""
    returned = st.sets(st.sampled_from(State._fields), min_size=1)
    return st.builds(
        RandomProgram,
        _blocks(depth, kinds),
        st.sampled_from(marks),
        returned.map(lambda names: tuple(sorted(names))),
    )
