"""Chains as two programs: start, and advance.

Each chain is one task of the batcher, in both of them. Chains may sample densities of
their own (`Samplers`). `start` makes the states, which are checked before anything else
is compiled. `advance` makes the transitions of one `Segment`, of the warm-up or of the
draws, and is called until there are enough. That both are one program halves the time
to compile, which for NUTS is most of a short run.

The length of a segment is an operand, and so is the number of its first transition.
Inside is a `scan` over as many places as a block may hold, and a `cond` that passes
over the places beyond the count. The predicate is the same for every chain, so it stays
a branch under `jax.vmap`, and costs microseconds for a place that is passed over. A
`while_loop` with the count as its bound would have to carry the draws, which under
`Continuous` would be copied whenever a lane moves; what a `scan` stacks is written in
place. So segments of any length up to the largest are one program, traced and compiled
once. Cutting a run into segments changes no bit of it, as long as each chain keeps its
place in the batch; see `_blocks.py`.

A run can stop after any call of `advance` and resume later from: the key of the run,
the states and adaptations (`ChainState`, a pytree of arrays), the number of transitions
and draws made, and those draws. The key of each transition comes from the key of the
run, the index of the chain and the number of the transition; all statistics are kept by
draw.

    chain                        = fold_in(rng_key, index of the chain)
    init                         = fold_in(chain, 0)
    transition of the warm-up    = fold_in(fold_in(chain, 1), its number)
    transition of the draws      = fold_in(fold_in(chain, 2), its number)
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
from ._statistics import Statistics, added, no_statistics, statistics_of
from ._warmup import SEGMENT_SHAPES, Adaptation, Segment


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
    """All that chains carry from one segment to the next."""

    states: Any
    adaptation: Adaptation | None

    @property
    def tuned(self) -> Tuned | None:
        """The step size and the inverse mass matrix; None of an algorithm."""
        return None if self.adaptation is None else Tuned(*self.adaptation[:2])


@final
class Samplers(NamedTuple):
    """What each of several chains does.

    - `of`: from the chain's own part of `own`, and `shared`, its `Sampler`.
    - `index`: numbers of shape `(chains,)`, which tell keys of chains apart.
    - `own`: arrays of shape `(chains, ...)`.
    - `shared`: arrays of any shape.
    """

    of: Callable[[PyTree, PyTree], Sampler]
    index: Any
    own: PyTree = None
    shared: PyTree = None


def all_alike(sampler: Sampler, count: int) -> Samplers:
    """Chains of one sampler.

    Arrays of a log-density that is a pytree are operands of the programs. As constants,
    which JAX makes of what a function closes over, they would be on every device as a
    whole.
    """
    index = np.arange(count, dtype=np.uint32)
    again = sampler.with_logdensity
    if again is None:
        return Samplers(lambda own, shared: sampler, index)
    arrays, rest = eqx.partition(sampler.logdensity_fn, eqx.is_array)

    def of(own: PyTree, shared: PyTree) -> Sampler:
        return again(eqx.combine(shared, rest))

    return Samplers(of, index, shared=arrays)


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
        - `block`: the most draws, or transitions of the warm-up, that `advance` makes
            in one call; by default as many as suit the batcher and fit in memory.
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
        self._chain, self._draw = self.keep(
            "shapes", lambda: shapes_of_one(samplers, rng_key, positions)
        )
        self.blocks = blocks_for(batcher, self.draw_shapes, block)
        known = None, 0, 0, None

        def program(one: Any, *axes: Any) -> Program:
            name = one.__name__, thin, self.blocks.places
            return Program(batcher(one, (*known, *axes)), self._kept, name)

        self._start = program(self._start_one, 0)
        self._advance = program(self._advance_one, 0, None)
        self.warmup_seconds = self.sampling_seconds = 0.0

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

    def trace_advance(self) -> None:
        """Traces `advance`, so that it is known how chains are laid out."""
        self._advance.trace(*self._shapes, *self._shapes_to_advance())

    def compile_advance(self) -> Any:
        """Compiles `advance` before it is called, and returns the executable."""
        return self._advance.compile(*self._shapes, *self._shapes_to_advance())

    def start(self, positions: PyTree = None) -> ChainState:
        """Return all chains at their starts, or at other positions."""
        where = self._positions if positions is None else positions
        before = self._start.seconds
        chains = self._call(self._start, where)
        self.warmup_seconds += self._start.seconds - before
        return chains

    def advance(self, chains: ChainState, segment: Segment) -> tuple[Any, Draw | None]:
        """Make the transitions of a segment.

        **Arguments:**

        - `chains`: what the call before returned.
        - `segment`: which transitions; at most `blocks.most`.

        **Returns:**

        The chains, and a `Draw` of arrays of shape `(chains, count, ...)` on the host;
        None for the warm-up.
        """
        before = self._advance.seconds
        chains, draws = self._call(self._advance, chains, segment)
        seconds = self._advance.seconds - before
        if segment.is_warmup:
            self.warmup_seconds += seconds
            return chains, None
        self.sampling_seconds += seconds
        return chains, jax.tree.map(lambda x: x[:, : segment.count], to_host(draws))

    def _call(self, program: Program, *args: Any) -> Any:
        program.compile(*self._shapes, *args)
        # What is the same in every call moves to the devices once.
        placed = program.placed(*self._known, *args)
        self._known = placed[: len(self._known)]
        return program.run(*placed)

    @property
    def compile_seconds(self) -> float:
        """How long it took to compile the programs."""
        return self._start.compile_seconds + self._advance.compile_seconds

    def _of_all(self, shapes: PyTree) -> Any:
        def of_all(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((self.num_chains, *x.shape), x.dtype)

        return jax.tree.map(of_all, shapes)

    def _shapes_to_advance(self) -> tuple[Any, ...]:
        return self.chain_shapes, SEGMENT_SHAPES

    def _start_one(
        self, rng_key: Any, index: Any, own: Any, shared: Any, position: PyTree
    ) -> ChainState:
        sampler = self._sampler_of(own, shared)
        chain = _start(sampler, _key(rng_key, index, _INIT), position)
        # Transitions give step sizes and the like the precision of their statistics.
        adaptation = jax.tree.map(
            lambda x, y: jnp.asarray(x, y.dtype),
            chain.adaptation,
            self._chain.adaptation,
        )
        return ChainState(chain.states, adaptation)

    def _advance_one(
        self,
        rng_key: Any,
        index: Any,
        own: Any,
        shared: Any,
        chain: ChainState,
        segment: Segment,
    ) -> tuple[ChainState, Draw]:
        sampler = self._sampler_of(own, shared)
        key = _key(rng_key, index, jnp.where(segment.is_warmup, _WARM, _SAMPLE))
        turn = _turn(sampler, chain, key, self._draw, self._thin)

        def pass_over(chain: ChainState, *_: Any) -> tuple[ChainState, Draw]:
            return chain, jax.tree.map(
                lambda x: jnp.zeros(x.shape, x.dtype), self._draw
            )

        def place(chain: ChainState, place: Any) -> tuple[ChainState, Draw]:
            number = segment.first + place
            return jax.lax.cond(
                place < segment.count, turn, pass_over, chain, number, segment
            )

        places = jnp.arange(self.blocks.places, dtype=jnp.uint32)
        chain, draws = jax.lax.scan(place, chain, places)
        if sampler.warmup is None:
            return chain, draws
        adaptation = chain.adaptation
        for ends, end in (
            (segment.ends_window, sampler.warmup.end_window),
            (segment.ends_warmup, sampler.warmup.end),
        ):
            adaptation = jax.lax.cond(ends, end, lambda x: x, adaptation)
        return ChainState(chain.states, adaptation), draws


def _start(sampler: Sampler, key: Any, position: PyTree) -> ChainState:
    adaptation = None if sampler.warmup is None else sampler.warmup.init(position)
    return ChainState(sampler.init(key, position), adaptation)


def _turn(
    sampler: Sampler, chain: ChainState, key: Any, like: Draw, thin: int
) -> Callable[..., tuple[ChainState, Draw]]:
    """Return the function that makes a draw, or one transition of the warm-up.

    **Arguments:**

    - `sampler`: the chain as functions.
    - `chain`: the chain at the start of the segment, with its mass matrix.
    - `key`: that of all transitions of the segment.
    - `like`: the shapes of a draw.
    - `thin`: the number of transitions for each draw.

    **Returns:**

    A function of the chain, the number of the draw or transition, and the segment.
    """
    matrix = None if chain.adaptation is None else chain.adaptation.inverse_mass_matrix
    # Outside the loop over transitions, which a dense matrix is factorised for.
    step = sampler.bind(matrix)

    def transition(chain: ChainState, at: Any) -> tuple[Any, Statistics]:
        adaptation = chain.adaptation
        step_size = None if adaptation is None else adaptation.step_size
        state, info = step(jax.random.fold_in(key, at), chain.states, step_size)
        return state, statistics_of(info)

    def turn(
        chain: ChainState, number: Any, segment: Segment
    ) -> tuple[ChainState, Draw]:
        if thin == 1:
            state, statistics = transition(chain, number)
        else:
            # Not a `scan` over `thin` turns: the warm-up makes one.
            turns = jnp.where(segment.is_warmup, 1, thin).astype(jnp.uint32)

            def add(turn: Any, so_far: Any) -> Any:
                state, statistics = so_far
                here = ChainState(state, chain.adaptation)
                state, last = transition(here, number * turns + turn)
                return state, added(statistics, last)

            nothing = no_statistics(Statistics(*like[2:]))
            state, statistics = jax.lax.fori_loop(
                jnp.uint32(0), turns, add, (chain.states, nothing)
            )
            statistics = statistics.mean_over(turns)
        adaptation = chain.adaptation
        if sampler.warmup is not None and adaptation is not None:
            adaptation = jax.lax.cond(
                segment.is_warmup,
                sampler.warmup.adapt,
                lambda adaptation, *_: adaptation,
                adaptation,
                state.position,
                statistics.acceptance,
                segment.is_slow,
            )
        return ChainState(state, adaptation), _draw(state, statistics)

    return turn


def _draw(state: Any, statistics: Statistics) -> Draw:
    return Draw(state.position, getattr(state, "logdensity", None), *statistics)


def shapes_of_one(
    samplers: Samplers, rng_key: Any, positions: PyTree
) -> tuple[ChainState, Draw]:
    """The shapes of one chain and one draw; it also says early what cannot work."""

    def whole(
        rng_key: Any, own: PyTree, shared: PyTree, position: PyTree
    ) -> tuple[ChainState, Draw]:
        sampler = samplers.of(own, shared)
        key = _key(rng_key, jnp.uint32(0), _INIT)
        chain = _start(sampler, key, position)
        _check_state(chain.states)
        adaptation, matrix, step_size = chain.adaptation, None, None
        if adaptation is not None:
            step_size, matrix, *_ = adaptation
        state, info = sampler.bind(matrix)(key, chain.states, step_size)
        statistics = statistics_of(info)
        if sampler.warmup is not None and adaptation is not None:
            adaptation = sampler.warmup.adapt(
                adaptation, state.position, statistics.acceptance, True
            )
        return ChainState(chain.states, adaptation), _draw(state, statistics)

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


def _key(rng_key: Any, index: Any, what: Any) -> Any:
    return jax.random.fold_in(jax.random.fold_in(rng_key, index), what)
