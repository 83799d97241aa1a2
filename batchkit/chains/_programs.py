"""Chains as three programs: start, warm up, advance.

Each chain is one task of the batcher, in each of the three. `start` makes the states,
which are looked at before anything else is compiled. `warm` is a whole warm-up.
`advance` makes some draws, and is called until there are enough.

How many draws `advance` makes is an operand, and so is the number of the first. Inside
is a `scan` over as many places as a block may hold, and a `cond` that passes over the
places beyond the count. The predicate is the same for every chain, so it stays a branch
under `jax.vmap`, and costs microseconds for a place that is passed over. A
`while_loop` with the count as its bound would have to carry the draws, which under
`Continuous` would be copied whenever a lane moves; what a `scan` stacks is written in
place. So blocks of any length up to the largest are one program, traced and compiled
once, and cutting a run into blocks changes no bit of it.

A run can stop after any call of `advance` and go on later. What it needs to go on is:
the key of the run, the states and what the warm-up found (`ChainState`, a pytree of
arrays), the number of draws made, and those draws. Nothing else is carried: the key of
each transition comes from the key of the run, the index of the chain and the number of
the transition, and all statistics are kept by draw. A run that stops in its warm-up
starts over; it finds the same again.

    chain      = fold_in(rng_key, index of the chain)
    init       = fold_in(chain, 0)
    warm-up    = fold_in(chain, 1)
    transition = fold_in(fold_in(chain, 2), number of the transition)
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..batchers import AbstractBatcher
from ..run._program import Program
from ._blocks import blocks_for
from ._sampler import Sampler, Tuned


_INIT: Final = 0
_WARM: Final = 1
_SAMPLE: Final = 2


@final
class Draw(NamedTuple):
    """One draw of one chain, and what its transitions tell; None where they do not.

    - `position`: where the chain is.
    - `logdensity`: the log-density there.
    - `diverging`: how many transitions diverged.
    - `acceptance`: the mean acceptance rate.
    - `num_integration_steps`: all integration steps.
    - `tree_depth`: the depth of the deepest tree.
    """

    position: PyTree
    logdensity: Any
    diverging: Any
    acceptance: Any
    num_integration_steps: Any
    tree_depth: Any


@final
class ChainState(NamedTuple):
    """All that chains carry from one block of draws to the next."""

    states: Any
    tuned: Tuned | None


@final
class Chains:
    """The programs for chains of one sampler."""

    def __init__(
        self,
        sampler: Sampler,
        rng_key: Any,
        positions: PyTree,
        batcher: AbstractBatcher,
        thin: int,
        block: int | None = None,
    ) -> None:
        """**Arguments:**

        - `sampler`: what one chain does.
        - `rng_key`: the key of the run.
        - `positions`: where chains start, arrays of shape `(chains, ...)`.
        - `batcher`: how chains are laid out.
        - `thin`: the number of transitions for each draw.
        - `block`: the most draws that `advance` makes in one call; by default as many
            as suit the batcher and fit in memory.
        """
        self._sampler = sampler
        self._key = rng_key
        self._positions = positions
        self._thin = thin
        self._index = jnp.arange(len(jax.tree.leaves(positions)[0]), dtype=jnp.uint32)
        self._chain, self._draw = shapes_of_one(sampler, rng_key, positions, thin)
        self.blocks = blocks_for(batcher, self.draw_shapes, block)
        own, same = 0, None
        self._start = Program(batcher(self._start_one, (same, own, own)))
        self._warm = Program(batcher(self._warm_one, (same, own, own)))
        self._advance = Program(
            batcher(self._advance_one, (same, own, own, same, same))
        )

    @property
    def num_chains(self) -> int:
        """How many chains there are."""
        return len(self._index)

    @property
    def tuned_shapes(self) -> Tuned | None:
        """The shapes of what the warm-up finds for one chain."""
        return self._chain.tuned

    @property
    def draw_shapes(self) -> Draw:
        """The shapes of one draw of all chains."""
        return self._of_all(self._draw)

    @property
    def chain_shapes(self) -> ChainState:
        """The shapes of what `warm` and `advance` return for all chains."""
        return self._of_all(self._chain)

    @property
    def has_warmup(self) -> bool:
        """Whether the warm-up does anything."""
        return self._sampler.warm is not None

    def compile_start(self) -> Any:
        """Compiles `start` before it is called, and returns the executable."""
        return self._start.compile(self._key, self._index, self._positions)

    def compile_warm(self) -> Any:
        """Compiles `warm` before it is called, if it does anything."""
        return self._warm.compile(self._key, self._index, self._positions)

    def trace_advance(self) -> None:
        """Traces `advance`, so that it is known how chains are laid out."""
        self._advance.trace(*self._shapes_to_advance())

    def compile_advance(self) -> Any:
        """Compiles `advance` before it is called, and returns the executable."""
        return self._advance.compile(*self._shapes_to_advance())

    def start(self) -> Any:
        """The states at the starts of all chains."""
        return self._start(self._key, self._index, self._positions)

    def warm(self, states: Any) -> ChainState:
        """The chains after their warm-up, or as they started where there is none."""
        if self._sampler.warm is None:
            return ChainState(states, None)
        return ChainState(*self._warm(self._key, self._index, self._positions))

    def advance(self, chains: ChainState, first: int, count: int) -> Any:
        """Makes draws.

        **Arguments:**

        - `chains`: what the call before returned.
        - `first`: how many draws there are already.
        - `count`: how many to make, at most `blocks.most`.

        **Returns:**

        The chains, and a `Draw` of arrays of shape `(chains, count, ...)` on the host.
        """
        numbers = np.uint32(first), np.uint32(count)
        chains, draws = self._advance(self._key, self._index, chains, *numbers)
        return chains, jax.tree.map(lambda x: np.asarray(x)[:, :count], draws)

    @property
    def compile_seconds(self) -> float:
        """How long it took to compile the programs."""
        programs = (self._start, self._warm, self._advance)
        return sum(program.compile_seconds for program in programs)

    @property
    def warmup_seconds(self) -> float:
        """How long chains took to start and to warm up."""
        return self._start.seconds + self._warm.seconds

    @property
    def sampling_seconds(self) -> float:
        """How long draws took."""
        return self._advance.seconds

    def _of_all(self, shapes: PyTree) -> Any:
        def of_all(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((self.num_chains, *x.shape), x.dtype)

        return jax.tree.map(of_all, shapes)

    def _shapes_to_advance(self) -> tuple[Any, ...]:
        number = jax.ShapeDtypeStruct((), jnp.uint32)
        return self._key, self._index, self.chain_shapes, number, number

    def _start_one(self, rng_key: Any, index: Any, position: PyTree) -> Any:
        return self._sampler.init(_key(rng_key, index, _INIT), position)

    def _warm_one(self, rng_key: Any, index: Any, position: PyTree) -> Any:
        assert self._sampler.warm is not None
        return self._sampler.warm(_key(rng_key, index, _WARM), position)

    def _advance_one(
        self, rng_key: Any, index: Any, chain: ChainState, first: Any, count: Any
    ) -> Any:
        key = _key(rng_key, index, _SAMPLE)
        step = self._sampler.bind(chain.tuned)

        def draw(state: Any, number: Any) -> tuple[Any, Draw]:
            return draw_one(step, key, state, number, self._thin)

        def pass_over(state: Any, number: Any) -> tuple[Any, Draw]:
            return state, jax.tree.map(
                lambda x: jnp.zeros(x.shape, x.dtype), self._draw
            )

        def turn(state: Any, place: Any) -> tuple[Any, Draw]:
            return jax.lax.cond(place < count, draw, pass_over, state, first + place)

        places = jnp.arange(self.blocks.places, dtype=jnp.uint32)
        state, draws = jax.lax.scan(turn, chain.states, places)
        return ChainState(state, chain.tuned), draws


def draw_one(
    step: Callable[..., Any], key: Any, state: Any, number: Any, thin: int
) -> tuple[Any, Draw]:
    """One draw of one chain.

    **Arguments:**

    - `step`: a transition, from a key and a state to a state and an info.
    - `key`: that of all transitions of the chain.
    - `state`: where the chain is.
    - `number`: how many draws there are already.
    - `thin`: the number of transitions.
    """

    def transition(state: Any, turn: Any) -> tuple[Any, Any]:
        at = jnp.uint32(number) * thin + turn
        state, info = step(jax.random.fold_in(key, at), state)
        return state, _told_by(info)

    if thin == 1:
        state, told = transition(state, jnp.uint32(0))
    else:
        turns = jnp.arange(thin, dtype=jnp.uint32)
        state, told = jax.lax.scan(transition, state, turns)
        told = _together(told)
    logdensity = getattr(state, "logdensity", None)
    return state, Draw(state.position, logdensity, *told)


def shapes_of_one(
    sampler: Sampler, rng_key: Any, positions: PyTree, thin: int
) -> tuple[ChainState, Draw]:
    """The shapes of one chain and one draw; it also says early what cannot work."""

    def whole(rng_key: Any, position: PyTree) -> tuple[ChainState, Draw]:
        key = _key(rng_key, jnp.uint32(0), _WARM)
        if sampler.warm is None:
            chain = ChainState(sampler.init(key, position), None)
        else:
            chain = ChainState(*sampler.warm(key, position))
        _check_state(chain.states)
        step = sampler.bind(chain.tuned)
        return chain, draw_one(step, key, chain.states, jnp.uint32(0), thin)[1]

    row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), positions)
    return jax.eval_shape(whole, rng_key, row)


def _check_state(state: Any) -> None:
    if not hasattr(state, "position"):
        kind = "array" if isinstance(state, jax.Array) else type(state).__name__
        raise TypeError(
            f"run_chains: the states of the algorithm, of type {kind}, have no "
            "field `position`, so there is nothing to draw. Pass an algorithm that "
            "moves a position, such as those of blackjax's MCMC samplers."
        )


def _key(rng_key: Any, index: Any, what: int) -> Any:
    return jax.random.fold_in(jax.random.fold_in(rng_key, index), what)


def _told_by(info: Any) -> tuple[Any, Any, Any, Any]:
    """Of what a transition tells the scalars that a `Draw` keeps."""

    def scalar(name: str, dtype: Any) -> Any:
        value = getattr(info, name, None)
        if value is None or jnp.ndim(value) > 0:
            return None
        return jnp.asarray(value, dtype)

    return (
        scalar("is_divergent", jnp.int32),
        scalar("acceptance_rate", None),
        scalar("num_integration_steps", jnp.int32),
        scalar("num_trajectory_expansions", jnp.int32),
    )


def _together(told: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
    """The same for several transitions."""
    diverging, acceptance, steps, depth = told
    return (
        None if diverging is None else jnp.sum(diverging, dtype=jnp.int32),
        None if acceptance is None else jnp.mean(acceptance),
        None if steps is None else jnp.sum(steps, dtype=jnp.int32),
        None if depth is None else jnp.max(depth),
    )
