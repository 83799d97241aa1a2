"""Collectives of a step over several devices, read from the compiled program."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import batchkit as bk
from batchkit.nested._nested_programs import NestedPrograms

from ..helpers import mesh
from .problems import gaussian


COLLECTIVE = re.compile(r"= (.*?) (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\(")
ARRAY = re.compile(r"\b(pred|[fsu]\d+)\[([\d,]*)\]")


def collectives(num_delete: int, inner: Any) -> list[tuple[str, str]]:
    """The collectives of a block of steps, with their results."""
    dim, steps = 2, 3
    algorithm = gaussian(dim).algorithm(
        num_delete, bk.Sharded(mesh(4), inner=inner), steps
    )
    positions = jnp.zeros((2 * num_delete, dim), jnp.float32)
    key = jax.random.key(0)
    programs = NestedPrograms(algorithm, key, positions)
    args = programs.state_shapes, key, jnp.int32(1), jnp.float32(0)
    return collectives_of(programs.block.compile(*args, bk.MaxSteps(1)))


def collectives_of(compiled: Any) -> list[tuple[str, str]]:
    found = COLLECTIVE.findall(compiled.as_text())
    return [(kind, result) for result, kind in found]


@pytest.mark.parametrize(
    ("num_delete", "inner"),
    [pytest.param(8, bk.Vmap(), marks=pytest.mark.slow), (6, bk.Chunked(1))],
    ids=str,
)
def test_devices_exchange_only_new_points(
    num_delete: int, inner: bk.AbstractBatcher
) -> None:
    found = collectives(num_delete, inner)
    assert {kind for kind, _ in found} == {"all-gather"}
    filled, dim, steps = 8, 2, 3
    expected = {
        f"f32[{filled},{dim}]": 1,  # positions
        f"f32[{filled}]": 2,  # likelihoods and priors
        f"s32[{filled},{steps}]": 2,  # of slices, how long they took
        f"pred[{filled},{steps}]": 1,  # and whether they found a point
    }
    shapes = [f"{a}[{b}]" for _, x in found for a, b in ARRAY.findall(x)]
    assert {x: shapes.count(x) for x in shapes} == expected


def test_step_in_a_program_of_the_user_sorts_without_communication() -> None:
    algorithm = gaussian(2).algorithm(8, bk.Sharded(mesh(4)), 3)
    state = jax.eval_shape(algorithm.init, jnp.zeros((16, 2), jnp.float32))
    compiled = jax.jit(algorithm.step).lower(jax.random.key(0), state).compile()
    found = collectives_of(compiled)
    # Six for the new points and two more for the rest of the info, which it returns.
    assert [kind for kind, _ in found] == ["all-gather"] * 8
