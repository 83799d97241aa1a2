"""Nested sampling as two programs: the first state, and a block of steps.

A block is a `while_loop` of steps, each followed by the rule to stop, so that no step
waits for the host. The most steps that it may make are an operand, as are the key, the
numbers of the rule and the clock: a block of any length is the same program, and
cutting a run into blocks changes no bit. The points that die in a block are written to
buffers for a fixed number of steps, which go to the host when it ends.

The key of step `n` is `fold_in(key of the run, n)`, so all that a run needs to continue
is its state and its key.
"""

import dataclasses
import inspect
from typing import Any, Final, NamedTuple, final

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Int, PyTree

from ..batchers._sharded import put_on_mesh
from ..explain._explain import reached_sites, recording
from ..run._program import Program, ProgramCache, shapes_of, type_of
from ._chain_counts import ChainCounts, chain_counts, evaluations_of, update_info_of
from ._dead import Points, points_of
from ._nested_arguments import is_invalid
from ._status import NestedStatus
from ._stop import AbstractStop


# The key of `init`, which no step has.
_INIT: Final = 2**32 - 1
# The most that the buffers of a block take, in bytes and in steps.
_MAX_BUFFER: Final = 2**26
_MAX_STEPS: Final = 1024


@final
class RunState(NamedTuple):
    """All that a run carries from one block to the next."""

    sampler: Any
    status: NestedStatus
    chains: ChainCounts | None
    invalid: Bool[Array, ""]


@final
class Block(NamedTuple):
    """Result of a block: the points that died in `made` steps are the first rows."""

    state: RunState
    dead: Points
    made: Int[Array, ""]


@final
class NestedPrograms:
    """The two programs of an algorithm for live points of some shape.

    - `init`: from the key and the live points to the first `RunState`.
    - `block`: from a state, the key, the most steps, the seconds so far and a rule to a
        `Block`.
    - `layout`: each site that they reach, its number of tasks and its batcher.
    """

    def __init__(
        self,
        algorithm: Any,
        rng_key: Any,
        positions: PyTree,
        kept: ProgramCache | None = None,
    ) -> None:
        takes_key = len(inspect.signature(algorithm.init).parameters) > 1

        @jax.jit
        def first(rng_key: Any, positions: PyTree) -> Any:
            key = jax.random.fold_in(rng_key, _INIT)
            return algorithm.init(positions, *((key,) if takes_key else ()))

        @jax.jit  # so that it is traced once, for its shapes and for the block
        def step(key: Any, state: Any) -> Any:
            return algorithm.step(key, state)

        def init(rng_key: Any, positions: PyTree) -> RunState:
            return self._start(self._replicated(first(rng_key, positions)))

        self._step = step
        kept = ProgramCache() if kept is None else kept
        self.init = Program(init, kept, "init")
        self.block = Program(self._block, kept, "block")
        shapes = shapes_of((rng_key, positions))

        # Cached beside the executables: a second run of the functions traces nothing.
        def traced() -> tuple[Any, Any, list[str], list[Any]]:
            with recording() as root:
                state = jax.eval_shape(first, *shapes)
                points_of(state)  # refuses other samplers before their step is traced
                state, info = jax.eval_shape(step, shapes[0], state)
            layout = [
                f"{x.site.name} {x.tasks} tasks, {x.batcher or 'jax.vmap'}, {x.layout}"
                for x in reached_sites(root)
                if "only moves data" not in x.note
            ]
            return state, info, layout, root.meshes

        key = "shapes", type_of(shapes)
        self._state, self._info, self.layout, self._meshes = kept.get(key, traced)
        self._dying = points_of(self._info)
        self.num_live: int = points_of(self._state).loglikelihood.shape[0]
        self.num_delete: int = self._dying.loglikelihood.shape[0]
        self._counted = jax.eval_shape(_counts_of, self._info, self._state)
        self.counts_evaluations = self._counted[0] is not None
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self._dying))
        self.capacity = max(1, min(_MAX_STEPS, _MAX_BUFFER // size))

    @property
    def state_shapes(self) -> RunState:
        """Shapes of the state of a run."""
        return jax.eval_shape(self._start, self._state)

    def dead_shapes(self, steps: int) -> Points:
        """Shapes of the points that die in some steps, one row a point."""
        rows = steps * self.num_delete
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), self._dying
        )

    @property
    def num_inner_steps(self) -> int | None:
        """The length of the chain that makes a new point; None if that is unknown."""
        accepted = getattr(update_info_of(self._info), "is_accepted", None)
        shape = getattr(accepted, "shape", ())
        return shape[1] if len(shape) == 2 else None

    def _replicated(self, tree: PyTree) -> PyTree:
        """Constrain the state to be on every device, if tasks are spread over several.

        The host reads it between blocks, and no process could read the parts that
        others have.
        """
        if not self._meshes:
            return tree
        leaves, treedef = jax.tree.flatten(tree)
        leaves = put_on_mesh(leaves, self._meshes[0], PartitionSpec())
        return jax.tree.unflatten(treedef, leaves)

    def _start(self, sampler: Any) -> RunState:
        # `step` may return other dtypes than `init`, or other weak types.
        sampler = jax.tree.map(
            lambda x, like: jnp.asarray(x, like.dtype), sampler, self._state
        )
        live = points_of(sampler)
        return RunState(
            sampler,
            NestedStatus.first(live.loglikelihood, self.num_delete),
            jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self._counted[1]),
            jnp.any(is_invalid(live.loglikelihood, live.logprior)),
        )

    def _block(
        self,
        state: RunState,
        rng_key: Any,
        limit: Any,
        seconds: Any,
        rule: AbstractStop,
    ) -> Block:
        now = jnp.asarray(seconds, jnp.float32)
        status = dataclasses.replace(state.status, seconds=now)
        state = state._replace(status=status)

        def goes_on(block: Block) -> Any:
            status = block.state.status
            ended = rule.met(status) | status.exhausted | block.state.invalid
            return (block.made < limit) & ~ended

        def after_step(block: Block) -> Block:
            state, dead, made = block
            key = jax.random.fold_in(rng_key, state.status.step)
            sampler, info = self._replicated(self._step(key, state.sampler))
            dying, live = points_of(info), points_of(sampler)
            evaluations, chains = _counts_of(info, sampler)
            return Block(
                RunState(
                    sampler,
                    state.status.after(
                        jnp.sort(dying.loglikelihood),
                        live.loglikelihood,
                        0 if evaluations is None else evaluations,
                    ),
                    jax.tree.map(jnp.add, state.chains, chains),
                    jnp.any(is_invalid(live.loglikelihood, live.logprior)),
                ),
                jax.tree.map(lambda all, new: all.at[made].set(new), dead, dying),
                made + 1,
            )

        room = jax.tree.map(
            lambda x: jnp.zeros((self.capacity, *x.shape), x.dtype), self._dying
        )
        start = Block(state, room, jnp.zeros((), jnp.int32))
        return jax.lax.while_loop(goes_on, after_step, start)


def _counts_of(info: Any, state: Any) -> tuple[Any, ChainCounts | None]:
    """Return the evaluations and the chains of a step; None where unknown."""
    update_info = update_info_of(info)
    live = points_of(state).positions
    return evaluations_of(update_info), chain_counts(update_info, live)
