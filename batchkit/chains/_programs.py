"""Chains as three programs: start, warm up, advance.

Each chain is one task of the batcher, in each of the three. Chains may sample densities
of their own (`Samplers`). `start` makes the states, which are looked at before anything
else is compiled. `warm` is a whole warm-up. `advance` makes some draws, and is called
until there are enough.

How many draws `advance` makes is an operand, and so is the number of the first. Inside
is a `scan` over as many places as a block may hold, and a `cond` that passes over the
places beyond the count. The predicate is the same for every chain, so it stays a branch
under `jax.vmap`, and costs microseconds for a place that is passed over. A
`while_loop` with the count as its bound would have to carry the draws, which under
`Continuous` would be copied whenever a lane moves; what a `scan` stacks is written in
place. So blocks of any length up to the largest are one program, traced and compiled
once. Cutting a run into blocks changes no bit of it, as long as each chain keeps its
place in the batch; see `_blocks.py`.

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

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..batchers import AbstractBatcher
from ..run._kept import Kept, type_of
from ..run._program import Program, shapes_of
from ..run._trees import to_host
from ._blocks import blocks_for
from ._sampler import Sampler, Tuned
from ._statistics import statistics_of, statistics_of_draw


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
    - `energy`: the energy of the last transition, at the state that it drew.
    """

    position: PyTree
    logdensity: Any
    diverging: Any
    acceptance: Any
    num_integration_steps: Any
    tree_depth: Any
    energy: Any


@final
class ChainState(NamedTuple):
    """All that chains carry from one block of draws to the next."""

    states: Any
    tuned: Tuned | None


@final
class Samplers(NamedTuple):
    """What each of several chains does.

    - `of`: from the chain's own part of `own`, and `shared`, its `Sampler`.
    - `index`: numbers of shape `(chains,)`, which tell keys of chains apart.
    - `own`: arrays of shape `(chains, ...)`.
    - `shared`: arrays of any shape.
    - `has_warmup`: whether they warm up.
    """

    of: Callable[[PyTree, PyTree], Sampler]
    index: Any
    has_warmup: bool
    own: PyTree = None
    shared: PyTree = None


def all_alike(sampler: Sampler, count: int) -> Samplers:
    """Chains of one sampler.

    Arrays of a log-density that is a pytree are operands of the programs. As constants,
    which JAX makes of what a function closes over, they would be on every device as a
    whole.
    """
    index = np.arange(count, dtype=np.uint32)
    has_warmup = sampler.warm is not None
    again = sampler.with_logdensity
    if again is None:
        return Samplers(lambda own, shared: sampler, index, has_warmup)
    arrays, rest = eqx.partition(sampler.logdensity_fn, eqx.is_array)

    def of(own: PyTree, shared: PyTree) -> Sampler:
        return again(eqx.combine(shared, rest))

    return Samplers(of, index, has_warmup, shared=arrays)


@final
class Chains:
    """The programs for some chains."""

    def __init__(
        self,
        samplers: Samplers,
        rng_key: Any,
        positions: PyTree,
        batcher: AbstractBatcher,
        thin: int,
        block: int | None = None,
        kept: Kept | None = None,
    ) -> None:
        """**Arguments:**

        - `samplers`: what each of them does.
        - `rng_key`: the key of the run.
        - `positions`: where chains start, arrays of shape `(chains, ...)`.
        - `batcher`: how chains are laid out.
        - `thin`: the number of transitions for each draw.
        - `block`: the most draws that `advance` makes in one call; by default as many
            as suit the batcher and fit in memory.
        - `kept`: where executables are kept for other chains that differ in nothing but
            arrays, `rng_key` and `positions`; by default they go with these.
        """
        self._sampler_of = samplers.of
        self._known = rng_key, samplers.index, samplers.own, samplers.shared
        *alike, shared = shapes_of(self._known)
        self._shapes = *alike, jax.tree.map(_where_it_lies, shared, samplers.shared)
        self._positions = positions
        self._thin = thin
        self._kept = Kept() if kept is None else kept
        # Programs may be for as many chains as others, and have less room for draws.
        self._type = type_of((self._shapes, shapes_of(positions))), thin, block
        self.num_chains = len(samplers.index)
        self.has_warmup = samplers.has_warmup
        self._chain, self._draw = self.keep(
            "shapes", lambda: shapes_of_one(samplers, rng_key, positions, thin)
        )
        self.blocks = blocks_for(batcher, self.draw_shapes, block)
        known = None, 0, 0, None

        def program(one: Any, *axes: Any) -> Program:
            name = one.__name__, thin, self.blocks.places
            return Program(batcher(one, (*known, *axes)), self._kept, name)

        self._start = program(self._start_one, 0)
        self._warm = program(self._warm_one, 0)
        self._advance = program(self._advance_one, 0, None, None)

    def keep(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what `make` finds by tracing; it is kept with the programs."""
        return self._kept.get((name, self._type), make)

    @property
    def tuned_shapes(self) -> Tuned | None:
        """The shapes of what the warm-up finds for one chain."""
        return self._chain.tuned

    @property
    def draw_shapes(self) -> Draw:
        """The shapes of one draw of all chains."""
        return self._of_all(self._draw)

    def shapes_of_draws(self, count: int) -> Draw:
        """The shapes of so many draws of all chains."""

        def shape(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((self.num_chains, count, *x.shape), x.dtype)

        return jax.tree.map(shape, self._draw)

    @property
    def chain_shapes(self) -> ChainState:
        """The shapes of what `warm` and `advance` return for all chains."""
        return self._of_all(self._chain)

    def compile_start(self) -> Any:
        """Compiles `start` before it is called, and returns the executable."""
        return self._start.compile(*self._shapes, self._positions)

    def compile_warm(self) -> Any:
        """Compiles `warm` before it is called, if it does anything."""
        return self._warm.compile(*self._shapes, self._positions)

    def trace_advance(self) -> None:
        """Traces `advance`, so that it is known how chains are laid out."""
        self._advance.trace(*self._shapes, *self._shapes_to_advance())

    def compile_advance_ahead(self) -> None:
        """Begins to compile `advance`, while other programs are compiled and run."""
        self._advance.compile_ahead(*self._shapes, *self._shapes_to_advance())

    def compile_advance(self) -> Any:
        """Compiles `advance` before it is called, and returns the executable."""
        return self._advance.compile(*self._shapes, *self._shapes_to_advance())

    def start(self, positions: PyTree = None) -> Any:
        """The states at the starts of all chains, or at other positions."""
        where = self._positions if positions is None else positions
        return self._call(self._start, where)

    def warm(self, states: Any) -> ChainState:
        """The chains after their warm-up, or as they started where there is none."""
        if not self.has_warmup:
            return ChainState(states, None)
        return ChainState(*self._call(self._warm, self._positions))

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
        chains, draws = self._call(self._advance, chains, *numbers)
        return chains, jax.tree.map(lambda x: x[:, :count], to_host(draws))

    def _call(self, program: Program, *args: Any) -> Any:
        program.compile(*self._shapes, *args)
        # What is the same in every call moves to the devices once.
        placed = program.placed(*self._known, *args)
        self._known = placed[: len(self._known)]
        return program.run(*placed)

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
        return self.chain_shapes, number, number

    def _start_one(
        self, rng_key: Any, index: Any, own: Any, shared: Any, position: PyTree
    ) -> Any:
        init = self._sampler_of(own, shared).init
        return init(_key(rng_key, index, _INIT), position)

    def _warm_one(
        self, rng_key: Any, index: Any, own: Any, shared: Any, position: PyTree
    ) -> Any:
        warm = self._sampler_of(own, shared).warm
        assert warm is not None
        return warm(_key(rng_key, index, _WARM), position)

    def _advance_one(
        self,
        rng_key: Any,
        index: Any,
        own: Any,
        shared: Any,
        chain: ChainState,
        first: Any,
        count: Any,
    ) -> Any:
        key = _key(rng_key, index, _SAMPLE)
        step = self._sampler_of(own, shared).bind(chain.tuned)

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
        return state, statistics_of(info)

    if thin == 1:
        state, told = transition(state, jnp.uint32(0))
    else:
        turns = jnp.arange(thin, dtype=jnp.uint32)
        state, told = jax.lax.scan(transition, state, turns)
        told = statistics_of_draw(told)
    logdensity = getattr(state, "logdensity", None)
    return state, Draw(state.position, logdensity, *told)


def shapes_of_one(
    samplers: Samplers, rng_key: Any, positions: PyTree, thin: int
) -> tuple[ChainState, Draw]:
    """The shapes of one chain and one draw; it also says early what cannot work."""

    def whole(
        rng_key: Any, own: PyTree, shared: PyTree, position: PyTree
    ) -> tuple[ChainState, Draw]:
        sampler = samplers.of(own, shared)
        key = _key(rng_key, jnp.uint32(0), _WARM)
        if sampler.warm is None:
            chain = ChainState(sampler.init(key, position), None)
        else:
            chain = ChainState(*sampler.warm(key, position))
        _check_state(chain.states)
        step = sampler.bind(chain.tuned)
        return chain, draw_one(step, key, chain.states, jnp.uint32(0), thin)[1]

    own, position = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
        shapes_of((samplers.own, positions)),
    )
    shared = shapes_of(samplers.shared)
    return jax.eval_shape(whole, rng_key, own, shared, position)


def _where_it_lies(shape: jax.ShapeDtypeStruct, x: Any) -> jax.ShapeDtypeStruct:
    """The shape of an array, with its place if that is several devices."""
    if isinstance(x, jax.Array) and len(x.sharding.device_set) > 1:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    return shape


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
