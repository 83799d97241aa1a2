"""Nested sampling as two programs: the first state, and a block of steps.

A block is a `while_loop` of steps, each followed by the rule to stop, so nothing waits
for the host in between. How many steps it may make is an operand, as are the key, the
numbers of the rule and the clock: a block of any length is the same program and cutting
a run into blocks changes no bit. What dies in a block is written to buffers of a fixed
number of steps, which go to the host when it ends.

The key of step `n` is `fold_in(key of the run, n)`, so all that a run needs to go on is
its state, its status and its key.
"""

import inspect
from typing import Any, Final, NamedTuple, final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from ..batchers._around import whole
from ..explain._explain import ReachedSite, records_of
from ..explain._tracing import recording
from ..run._program import Kept, Program, shapes_of, type_of
from ._chains_moved import ChainCounts, chain_counts
from ._evaluations import evaluations_of
from ._guard import is_invalid_point
from ._states import with_particles
from ._status import NestedStatus
from ._stop import AbstractStop


# The key of `init`, which no step has.
_INIT: Final = 2**32 - 1
# What the buffers of a block may take, in bytes, and in steps.
_BUFFER: Final = 2**26
_MOST_STEPS: Final = 1024


@final
class Dying(NamedTuple):
    """What is kept of points that die; arrays of any leading shape."""

    positions: PyTree
    loglikelihood: Any
    loglikelihood_birth: Any
    logprior: Any

    @staticmethod
    def of(particles: Any) -> "Dying":
        """From the particles of blackjax."""
        return Dying(
            particles.position,
            particles.loglikelihood,
            particles.loglikelihood_birth,
            particles.logdensity,
        )


@final
class RunState(NamedTuple):
    """All that a run carries from one block to the next."""

    sampler: Any
    status: NestedStatus
    chains: ChainCounts | None
    invalid: Bool[Array, ""]


@final
class Block(NamedTuple):
    """What a block has made: `made` steps, the first rows of `dead`."""

    state: RunState
    dead: Dying
    made: Int[Array, ""]
    ended: Bool[Array, ""]


@final
class NestedPrograms:
    """The two programs of an algorithm for live points of some shape."""

    def __init__(
        self,
        algorithm: Any,
        rng_key: Any,
        positions: PyTree,
        kept: Kept | None = None,
    ) -> None:
        """**Arguments:**

        - `algorithm`: a nested sampler of blackjax, or one like it.
        - `rng_key`: the key of the run.
        - `positions`: the first live points, arrays of shape `(live, ...)`.
        - `kept`: where executables are kept for other runs of the same algorithm; by
            default they go with these.
        """

        algorithm = with_particles(algorithm)

        @jax.jit  # so that it is traced once, for its shapes and for the block
        def step(key: Any, state: Any) -> Any:
            # A step sorts its points: every device has the state, and only what makes
            # new points is spread.
            with whole():
                return algorithm.step(key, state)

        self._step = step
        takes_key = _takes_key(algorithm.init)

        @jax.jit
        def bare(rng_key: Any, positions: PyTree) -> Any:
            key = jax.random.fold_in(rng_key, _INIT)
            with whole():
                return algorithm.init(positions, *((key,) if takes_key else ()))

        def init(rng_key: Any, positions: PyTree) -> RunState:
            return self._first(bare(rng_key, positions))

        kept = Kept() if kept is None else kept
        self.init = Program(init, kept, "init")
        self.block = Program(self._block, kept, "block")
        self._key_shape, shape = shapes_of((rng_key, positions))

        def traced() -> tuple[Any, tuple[Any, Any], tuple[ReachedSite, ...]]:
            with recording() as root:
                first = jax.eval_shape(bare, self._key_shape, shape)
                after = jax.eval_shape(step, self._key_shape, first)
            return first, after, records_of(root)

        key = "shapes", type_of((self._key_shape, shape))
        first, (self._state, self._info), self.sites = kept.get(key, traced)
        self.num_live = first.particles.loglikelihood.shape[0]
        self.num_delete = self._info.particles.loglikelihood.shape[0]
        counted = jax.eval_shape(evaluations_of, self._info.update_info)
        self.counts_evaluations = counted is not None
        self._chains = jax.eval_shape(
            chain_counts, self._info.update_info, self._state.particles.position
        )
        dead = Dying.of(self._info.particles)
        self.capacity = max(1, min(_MOST_STEPS, _BUFFER // _bytes(dead)))

    @property
    def state_shapes(self) -> RunState:
        """The shapes of what a run carries from block to block."""
        return jax.eval_shape(self._first, self._state)

    def dead_shapes(self, steps: int) -> Dying:
        """The shapes of the points that die in some steps, one row a point."""
        rows = steps * self.num_delete
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype),
            Dying.of(self._info.particles),
        )

    @property
    def num_inner_steps(self) -> int | None:
        """How long the chain is that makes a new point; None if it does not tell."""
        accepted = getattr(self._info.update_info, "is_accepted", None)
        shape = getattr(accepted, "shape", ())
        return shape[1] if len(shape) == 2 else None

    def _first(self, sampler: Any) -> RunState:
        # `step` may return other dtypes than `init`, or leave out that they are weak.
        sampler = jax.tree.map(
            lambda x, like: jnp.asarray(x, like.dtype), sampler, self._state
        )
        live = sampler.particles.loglikelihood
        return RunState(
            sampler,
            NestedStatus.first(live, self.num_delete),
            jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self._chains),
            jnp.any(is_invalid_point(sampler.particles)),
        )

    def _block(
        self,
        state: RunState,
        rng_key: Any,
        limit: Any,
        seconds: Any,
        rule: AbstractStop,
    ) -> Block:
        status = state.status._replace(seconds=jnp.asarray(seconds, jnp.float32))
        state = state._replace(status=status)

        def ended(state: RunState) -> Any:
            return rule.met(state.status) | state.status.exhausted | state.invalid

        def goes_on(carry: tuple[RunState, Dying, Any]) -> Any:
            return (carry[2] < limit) & ~ended(carry[0])

        def turn(carry: tuple[RunState, Dying, Any]) -> tuple[RunState, Dying, Any]:
            state, dead, made = carry
            key = jax.random.fold_in(rng_key, state.status.step)
            sampler, info = self._step(key, state.sampler)
            dying = Dying.of(info.particles)
            dead = jax.tree.map(lambda all, new: all.at[made].set(new), dead, dying)
            live = sampler.particles.loglikelihood
            evaluations = evaluations_of(info.update_info)
            counts = chain_counts(info.update_info, sampler.particles.position)
            new = RunState(
                sampler,
                state.status.after(
                    jnp.sort(dying.loglikelihood),
                    live,
                    0 if evaluations is None else evaluations,
                ),
                jax.tree.map(jnp.add, state.chains, counts),
                jnp.any(is_invalid_point(sampler.particles)),
            )
            return new, dead, made + 1

        room = jax.tree.map(
            lambda x: jnp.zeros((self.capacity, *x.shape), x.dtype),
            Dying.of(self._info.particles),
        )
        carry = state, room, jnp.zeros((), jnp.int32)
        state, dead, made = jax.lax.while_loop(goes_on, turn, carry)
        return Block(state, dead, made, ended(state))


def _takes_key(init: Any) -> bool:
    try:
        parameters = inspect.signature(init).parameters.values()
    except (TypeError, ValueError):
        return False
    kinds = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    return sum(x.kind in kinds for x in parameters) > 1


def _bytes(tree: PyTree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)) or 1
