"""Chains as two programs, start and advance, and the lengths of their blocks.

In both programs each chain is one task of the batcher. Chains may sample densities of
their own (`Samplers`). `start` makes the states, which are checked before anything else
is compiled. `advance` makes the transitions of one `Segment`, of the warm-up or of the
draws. That both kinds are one program halves the time to compile, which for NUTS is
most of a short run.

The length of a segment is an operand, and so is the number of its first transition, so
segments of any length up to the largest are one program. It is a `scan` over as many
places as a block may hold, with a `cond` that skips the places beyond the count. The
predicate is the same for every chain, so it stays a branch under `jax.vmap`, and a
skipped place costs microseconds. A `while_loop` with the count as its bound would have
to carry the draws, which under `Continuous` would be copied whenever a lane moves; what
a `scan` stacks is written in place. Cutting a run into segments changes no bit of it,
as long as each chain keeps its place in the batch.

A run can stop after any call of `advance` and resume later from: the key of the run,
the states and adaptations (`ChainState`, a pytree of arrays), the number of transitions
and draws made, and those draws. Keys depend only on the key of the run, the index of
the chain and the number of the transition:

    chain                        = fold_in(rng_key, index of the chain)
    init                         = fold_in(chain, 0)
    transition of the warm-up    = fold_in(fold_in(chain, 1), its number)
    transition of the draws      = fold_in(fold_in(chain, 2), its number)

Where each chain keeps its place in the batch, under `Vmap`, `Sequential`, `Chunked` and
`Sharded`, the length of a block changes no bit. There a block takes about half a
second, so that progress is shown and Ctrl-C is answered.

Under `Continuous` the lane that takes a chain is the one that is idle, hence depends on
where blocks end; and what a lane computes may depend in the last bit on its number,
because XLA computes the rows of a batch in groups. There blocks end at multiples of a
fixed number of draws, whatever the clock says, so that a run that was killed makes the
same blocks as one that was not. That number is large, because lanes wait for each other
at the end of a block: for NUTS on Neal's funnel, 64 chains in 16 lanes make 2.3 times
as many gradients as they need without blocks, 2.8 times in blocks of 128 draws, 3.3
times in blocks of 32 and 14.7 times under `Vmap`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..batchers import AbstractBatcher, Chunked, Sequential, Sharded, Vmap
from ..explain._explain import format_batcher
from ..run._program import Program, ProgramCache, shapes_of, type_of
from ..run._trees import to_host
from ._sampler import (
    Sampler,
    Segment,
    Statistics,
    Tuned,
    added,
    no_statistics,
    statistics_of,
)


_INIT: Final = 0
_WARM: Final = 1
_SAMPLE: Final = 2
_SEGMENT: Final = Segment(*[jax.ShapeDtypeStruct((), np.uint32)] * 6)
# The most draws in a block: an unused place costs some microseconds.
_MOST: Final = 1024
_FIXED: Final = 128
# The most bytes of the draws of one block.
_BYTES: Final = 64 * 2**20
# XLA compiles a loop of one turn as no loop, which rounds differently.
_LEAST: Final = 2


@final
class Draw(NamedTuple):
    """A position with its log-density and the `Statistics` of the way to it.

    The fields are flat: they name the arrays of a checkpoint. None if unknown.
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
    adaptation: Any  # an `Adaptation`; None without a warm-up

    @property
    def tuned(self) -> Tuned | None:
        """The step size and the inverse mass matrix; None without a warm-up."""
        return None if self.adaptation is None else Tuned(*self.adaptation[:2])


@final
class Samplers(NamedTuple):
    """The samplers of several chains."""

    of: Callable[[PyTree, PyTree], Sampler]  # from a part of `own`, and `shared`
    index: Any  # of shape `(chains,)`, from which the keys of chains are made
    own: PyTree = None  # arrays of shape `(chains, ...)`
    shared: PyTree = None  # arrays of any shape


def all_alike(
    sampler_of: Callable[[Callable[[PyTree], Any]], Sampler],
    logdensity_fn: Callable[[PyTree], Any],
    count: int,
) -> Samplers:
    """Return the samplers of chains that all sample one log-density."""
    # Arrays of a log-density that is a pytree are operands. As constants, which JAX
    # makes of what a function closes over, every device would hold the whole of them.
    arrays, rest = eqx.partition(logdensity_fn, eqx.is_array)

    def of(own: PyTree, shared: PyTree) -> Sampler:
        return sampler_of(eqx.combine(shared, rest))

    return Samplers(of, np.arange(count, dtype=np.uint32), shared=arrays)


@final
class Chains:
    """The compiled programs of some chains."""

    def __init__(
        self,
        samplers: Samplers,
        rng_key: Any,
        positions: PyTree,
        batcher: AbstractBatcher,
        thin: int,
        block: int | None = None,
        kept: ProgramCache | None = None,
    ) -> None:
        """**Arguments:** as of `run_chains`, and `kept`, a cache of executables."""
        self._sampler_of = samplers.of
        # Operands that are the same in every call.
        self._constants = rng_key, samplers.index, samplers.own, samplers.shared
        *alike, shared = shapes_of(self._constants)
        self._shapes = *alike, jax.tree.map(_with_sharding, shared, samplers.shared)
        self._positions = positions
        self._thin = thin
        self._kept = ProgramCache() if kept is None else kept
        self.num_chains = len(samplers.index)
        key = "shapes", type_of((self._shapes, shapes_of(positions))), thin, block
        self._chain, self._draw = self._kept.get(
            key, lambda: shapes_of_one(samplers, rng_key, positions)
        )
        self.blocks = blocks_for(batcher, self.draw_shapes, block)

        def program(one: Any, *axes: Any) -> Program:
            # Programs that differ in nothing else may have less room for draws.
            name = one.__name__, thin, self.blocks.places
            return Program(batcher(one, (None, 0, 0, None, *axes)), self._kept, name)

        self._start = program(self._start_one, 0)
        self._advance = program(self._advance_one, 0, None)
        self.warmup_seconds = self.sampling_seconds = 0.0

    @property
    def tuned_shapes(self) -> Tuned | None:
        """The shapes of the parameters that the warm-up finds for one chain."""
        return self._chain.tuned

    @property
    def draw_shapes(self) -> Draw:
        """The shapes of one draw of all chains."""
        return _stacked(self._draw, self.num_chains)

    def shapes_of_draws(self, count: int) -> Draw:
        """Return the shapes of `count` draws of all chains."""
        return _stacked(self._draw, self.num_chains, count)

    @property
    def chain_shapes(self) -> ChainState:
        """The shapes of what `start` and `advance` return for all chains."""
        return _stacked(self._chain, self.num_chains)

    def compile_start(self) -> Any:
        return self._start.compile(*self._shapes, self._positions)

    def compile_advance(self) -> Any:
        return self._advance.compile(*self._shapes, self.chain_shapes, _SEGMENT)

    @property
    def compile_seconds(self) -> float:
        return self._start.compile_seconds + self._advance.compile_seconds

    def start(self, positions: PyTree = None) -> ChainState:
        """Return all chains at their starts, or at other positions."""
        self.compile_start()
        where = self._positions if positions is None else positions
        chains, seconds = self._run(self._start, where)
        self.warmup_seconds += seconds
        return chains

    def advance(self, chains: ChainState, segment: Segment) -> tuple[Any, Draw | None]:
        """Make transitions; return the chains, and draws on the host, or None of a
        warm-up.
        """
        self.compile_advance()
        numbers = Segment(*map(np.uint32, segment))
        (chains, draws), seconds = self._run(self._advance, chains, numbers)
        if segment.is_warmup:
            self.warmup_seconds += seconds
            return chains, None
        self.sampling_seconds += seconds
        return chains, jax.tree.map(lambda x: x[:, : segment.count], to_host(draws))

    def _run(self, program: Program, *args: Any) -> tuple[Any, float]:
        """Return the results of a compiled program, and the seconds that it took."""
        placed = program.placed(*self._constants, *args)
        # They move to the devices once, in the first call.
        self._constants = placed[: len(self._constants)]
        before = program.seconds
        return program.run(*placed), program.seconds - before

    def _start_one(
        self, rng_key: Any, index: Any, own: Any, shared: Any, position: PyTree
    ) -> ChainState:
        key = _key(rng_key, index, _INIT)
        chain = _start(self._sampler_of(own, shared), key, position)
        # The first transition promotes step sizes and the like to the precision of its
        # statistics; the type of what a loop carries must not change.
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

        def skip(chain: ChainState, *_: Any) -> tuple[ChainState, Draw]:
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self._draw)
            return chain, zeros

        def place(chain: ChainState, place: Any) -> tuple[ChainState, Draw]:
            number = segment.first + place
            return jax.lax.cond(
                place < segment.count, turn, skip, chain, number, segment
            )

        places = jnp.arange(self.blocks.places, dtype=jnp.uint32)
        chain, draws = jax.lax.scan(place, chain, places)
        if sampler.warmup is None:
            return chain, draws
        adaptation = chain.adaptation
        is_last = segment.first + segment.count == segment.end
        for ends, end in (
            (segment.is_slow, sampler.warmup.end_window),
            (segment.ends_warmup, sampler.warmup.end),
        ):
            adaptation = jax.lax.cond(
                jnp.logical_and(ends, is_last), end, lambda x: x, adaptation
            )
        return ChainState(chain.states, adaptation), draws


def _start(sampler: Sampler, key: Any, position: PyTree) -> ChainState:
    adaptation = None if sampler.warmup is None else sampler.warmup.init(position)
    return ChainState(sampler.init(key, position), adaptation)


def _transition(
    sampler: Sampler, chain: ChainState
) -> Callable[[Any, ChainState], tuple[Any, Statistics]]:
    """Return a transition with the mass matrix that a chain has now."""
    # Outside the loop over transitions, since a dense matrix is factorised here.
    step = sampler.bind(chain.tuned and chain.tuned.inverse_mass_matrix)

    def transition(key: Any, chain: ChainState) -> tuple[Any, Statistics]:
        step_size = chain.tuned and chain.tuned.step_size
        state, info = step(key, chain.states, step_size)
        return state, statistics_of(info)

    return transition


def _turn(
    sampler: Sampler, chain: ChainState, key: Any, like: Draw, thin: int
) -> Callable[..., tuple[ChainState, Draw]]:
    """Return the function that makes a draw, or one transition of the warm-up."""
    transition = _transition(sampler, chain)

    def turn(
        chain: ChainState, number: Any, segment: Segment
    ) -> tuple[ChainState, Draw]:
        if thin == 1:
            state, statistics = transition(jax.random.fold_in(key, number), chain)
        else:
            # Not a `scan` over `thin` turns, since the warm-up makes one.
            turns = jnp.where(segment.is_warmup, 1, thin).astype(jnp.uint32)

            def add(turn: Any, carry: Any) -> Any:
                state, statistics = carry
                here = jax.random.fold_in(key, number * turns + turn)
                state, last = transition(here, chain._replace(states=state))
                return state, added(statistics, last)

            nothing = no_statistics(Statistics(*like[2:]))
            state, statistics = jax.lax.fori_loop(
                jnp.uint32(0), turns, add, (chain.states, nothing)
            )
            statistics = statistics.mean_over(turns)
        adaptation = chain.adaptation
        if sampler.warmup is not None:
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
    """Return the shapes of one chain and one draw; raise if it cannot be traced."""

    def one(
        rng_key: Any, own: PyTree, shared: PyTree, position: PyTree
    ) -> tuple[ChainState, Draw]:
        sampler = samplers.of(own, shared)
        key = _key(rng_key, jnp.uint32(0), _INIT)
        chain = _start(sampler, key, position)
        if not hasattr(chain.states, "position"):
            is_array = isinstance(chain.states, jax.Array)
            raise TypeError(
                "run_chains: the states of the sampler, of type "
                f"{'array' if is_array else type(chain.states).__name__}, have no "
                "field `position`, so there is nothing to draw. Pass a sampler that "
                "moves a position, such as those of blackjax's MCMC."
            )
        state, statistics = _transition(sampler, chain)(key, chain)
        adaptation = chain.adaptation
        if sampler.warmup is not None:
            adaptation = sampler.warmup.adapt(
                adaptation, state.position, statistics.acceptance, True
            )
        return ChainState(chain.states, adaptation), _draw(state, statistics)

    own, position = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
        shapes_of((samplers.own, positions)),
    )
    return jax.eval_shape(one, rng_key, own, shapes_of(samplers.shared), position)


def _with_sharding(shape: jax.ShapeDtypeStruct, x: Any) -> jax.ShapeDtypeStruct:
    """Return the shape of an array, with its sharding if it has several devices."""
    if isinstance(x, jax.Array) and len(x.sharding.device_set) > 1:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    return shape


def _stacked(shapes: PyTree, *axes: int) -> Any:
    """Return shapes with more leading axes."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((*axes, *x.shape), x.dtype), shapes
    )


def _key(rng_key: Any, index: Any, purpose: Any) -> Any:
    return jax.random.fold_in(jax.random.fold_in(rng_key, index), purpose)


@final
@dataclass(frozen=True)
class Blocks:
    """Lengths of the blocks of a run."""

    places: int  # the most draws for which the program has room
    most: int  # the most draws that are made at once
    is_fixed: bool  # whether blocks end at multiples of `most`

    def limit(self, made: int | None, per_block: int) -> int:
        """Return the most draws of the next block, see `AbstractResumable`."""
        if self.is_fixed:
            return self.most
        # The first block shows how long a draw takes; growth is gradual, since the
        # next draws may take longer.
        return 1 if made is None else max(1, min(per_block, 4 * made, self.most))

    def count(self, at: int, limit: int, total: int) -> int:
        """Return how many draws follow the first `at`, of `total` in all."""
        if self.is_fixed:
            limit = self.most - at % self.most
        return min(limit, total - at)

    def is_whole(self, at: int, count: int) -> bool:
        """Return True if a run can go on from the end of a block.

        A fixed block that `num_samples` cuts short ends where a longer run would not
        end it, so a longer run makes it again.
        """
        return not self.is_fixed or (at + count) % self.most == 0


def blocks_for(batcher: AbstractBatcher, draws: PyTree, block: int | None) -> Blocks:
    """Return the blocks of chains, from the shapes of one draw of all of them."""
    leaves = jax.tree.leaves(draws)
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)
    fixed = not keeps_places(batcher)
    room = min(_BYTES // max(size, 1), _FIXED if fixed else _MOST)
    most = max(room, 1) if block is None else block
    return Blocks(max(most, _LEAST), most, fixed)


def layout_of(batcher: AbstractBatcher, block: int | None) -> list[str]:
    """Describe how chains are laid out, as far as their bits depend on it."""
    count = len(jax.devices())
    devices = f"{count} device{'s' if count > 1 else ''}"
    layout = [f"{format_batcher(batcher)}, {devices}"]
    if block is not None and not keeps_places(batcher):
        layout.append(f"blocks of {block} draws")
    return layout


def keeps_places(batcher: AbstractBatcher) -> bool:
    """Return True if a task's place in the batch never depends on other tasks."""
    if isinstance(batcher, Chunked | Sharded):
        return keeps_places(batcher.inner)
    return isinstance(batcher, Vmap | Sequential)
