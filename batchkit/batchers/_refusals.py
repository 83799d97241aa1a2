"""What keeps tasks from being split, read off the jaxpr of one of them.

A layout that runs tasks apart from each other has to know whether they talk to each
other, whether their random numbers depend on who runs beside them, and whether an
output is the same for all of them. Where the question is what `jax.vmap` would do, it
is asked: the jaxpr is mapped by `jax.vmap` in the abstract, without running.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend as jex
from jaxtyping import PyTree

from ._jaxprs import equations, inner_equations, zeros
from ._task import Task


# Under `jax.vmap` the rbg generators draw one block for the whole batch, from its first
# key; with "unsafe_rbg" ("urbg") so do `split` and `fold_in`.
# https://docs.jax.dev/en/latest/jax.random.html#more-prng-implementations
_DRAWS_BY_BATCH = {
    "key<rbg>": {"random_bits"},
    "key<urbg>": {"random_bits", "random_split", "random_fold_in"},
}


def refuse_collectives(task: Task, axis_name: Any, batcher: object) -> None:
    """Raises if the task communicates over `axis_name`."""
    if axis_name is None:
        return
    # Most collectives are effects of the jaxpr; `ppermute` is only an equation.
    used = {getattr(effect, "name", None) for effect in task.jaxpr.effects}
    for eqn in equations(task.jaxpr.jaxpr):
        names = eqn.params.get("axis_name")
        used.update(names if isinstance(names, tuple) else (names,))
    if axis_name in used:
        raise ValueError(
            f"The function uses a collective or `axis_index` over "
            f"axis_name={axis_name!r}, but {batcher} does not run its {task.size} "
            "tasks together, so they cannot communicate. Use `Vmap()` (or a chunk "
            "size of at least the number of tasks), or pass what the tasks need from "
            "each other as an argument, for example `jnp.arange(n)` for `axis_index`."
        )


def refuse_draws_by_batch(task: Task, batcher: object) -> None:
    """Raises if a task draws random bits that depend on its neighbours."""
    if task.size <= 1:
        return
    rows = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in task.rows]
    drawn_by = draws_by_batch(task.jaxpr.jaxpr.eqns, task.run, rows)
    if drawn_by is not None:
        raise ValueError(
            f"The function draws random numbers by {drawn_by}, and the draws differ "
            "between tasks. `jax.vmap` draws the bits of a whole batch from the first "
            f"key of the batch, so under {batcher} they would not be those of "
            "`jax.vmap`. Use threefry keys "
            "(`jax.random.key(seed, impl='threefry2x32')`), or `Vmap()`."
        )


def draws_by_batch(
    eqns: Sequence[Any], run: Callable[..., Any], row: Sequence[Any]
) -> str | None:
    """What `jax.vmap` of a function draws by that depends on the batch, if anything.

    **Arguments:**

    - `eqns`: the equations of the function.
    - `run`: the function itself.
    - `row`: the types of its arguments for one index, all of them mapped.
    """
    every = [x for eqn in eqns for x in (eqn, *inner_equations(eqn))]
    if not any(map(_key_type, every)):
        return None
    # A draw depends on the batch if jax.vmap batches it, which a number of tasks shows
    # that is larger than every size in the program.
    shapes = [
        x.aval.shape
        for eqn in every
        for x in (*eqn.invars, *eqn.outvars)
        if hasattr(x.aval, "shape")
    ]
    mark = 1 + max((size for shape in shapes for size in shape), default=0)
    rows = [jax.ShapeDtypeStruct((mark, *x.shape), x.dtype) for x in row]
    try:
        batched = jax.make_jaxpr(jax.vmap(run, axis_size=mark))(*rows)
    except (NotImplementedError, ValueError):
        return None  # jax.vmap cannot run it, so there are no draws to differ from
    for eqn in equations(batched.jaxpr):
        variables = (*eqn.invars, *eqn.outvars)
        if _key_type(eqn) and any(mark in x.aval.shape for x in variables):
            return _key_type(eqn)
    return None


def refs_are_whole(batcher: object) -> ValueError:
    """The refusal to split tasks that are mapped over a mutable array."""
    return ValueError(
        "A mapped argument is a mutable array (`jax.Ref`), which cannot be cut into "
        f"chunks, but {batcher} does not run its tasks together. Pass its values, "
        "`ref[...]`, and return what is to be written to it; or use `Vmap()`."
    )


def refuse_varying_outputs(task: Task, axis_name: Any) -> None:
    """Raises `jax.vmap`'s error if an `out_axes=None` output varies."""
    avals = task.jaxpr.out_avals
    same = [not is_mapped for is_mapped in task.is_mapped]
    if not _depend_on_rows(task, same):
        return

    def outputs(*row: Any) -> PyTree:
        outs = jex.core.jaxpr_as_fun(task.jaxpr)(*row)
        leaves = [
            out if needed else zeros(aval)
            for out, needed, aval in zip(outs, same, avals, strict=True)
        ]
        return jax.tree.unflatten(task.out_tree, leaves)

    rows = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in task.rows]
    mapped = jax.vmap(
        outputs, 0, task.out_axes, axis_name=axis_name, axis_size=task.size
    )
    try:
        jax.eval_shape(mapped, *rows)
    except ValueError as error:
        error.add_note(
            "An output with out_axes=None must not depend on a mapped argument; give "
            "it an axis and reduce over it afterwards."
        )
        raise


def _depend_on_rows(task: Task, outputs: list[bool]) -> bool:
    """Whether some of these outputs lead back to a mapped argument."""
    jaxpr = task.jaxpr.jaxpr
    needed = {
        x
        for x, wanted in zip(jaxpr.outvars, outputs, strict=True)
        if wanted and not isinstance(x, jex.core.Literal)
    }
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            needed.update(x for x in eqn.invars if not isinstance(x, jex.core.Literal))
    return bool(needed.intersection(jaxpr.invars))


def _key_type(eqn: Any) -> str | None:
    """By what an equation draws, if it draws by the batch."""
    if eqn.primitive.name == "rng_bit_generator":
        return "rng_bit_generator"
    for x in eqn.invars:
        key_type = str(getattr(x.aval, "dtype", ""))
        if eqn.primitive.name in _DRAWS_BY_BATCH.get(key_type, ()):
            return f"PRNG keys of type {key_type}"
    return None
