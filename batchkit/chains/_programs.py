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

import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple, final

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..batchers import AbstractBatcher
from ._sampler import Sampler, Tuned, shapes_of


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
class Program:
    """A function that is compiled when it is first called, with the seconds of both.

    Arrays on several devices that the function closes over are operands. As constants,
    which JAX would make of them, the whole would be on each of the devices.
    """

    def __init__(self, fun: Callable[..., Any]) -> None:
        self._fun = fun
        self._compiled: Any = None
        self._spread: list[Any] = []
        self._out_tree: Any = None
        self.compile_seconds = 0.0
        self.seconds = 0.0

    def __call__(self, *args: Any) -> Any:
        if self._compiled is None:
            start = time.perf_counter()
            self._compiled = self._compile(args)
            self.compile_seconds += time.perf_counter() - start
        start = time.perf_counter()
        # Arguments may come from anywhere; the program says where it wants them.
        operands = self._spread, jax.tree.leaves(args)
        operands = jax.device_put(operands, self._compiled.input_shardings[0])
        out = jax.block_until_ready(self._compiled(*operands))
        self.seconds += time.perf_counter() - start
        return jax.tree.unflatten(self._out_tree, out)

    def _compile(self, args: tuple[Any, ...]) -> Any:
        shapes = shapes_of(args)
        closed, out = jax.make_jaxpr(self._fun, return_shape=True)(*shapes)
        self._out_tree = jax.tree.structure(out)
        self._spread = [x for x in closed.consts if _is_spread(x)]

        def run(spread: list[Any], leaves: list[Any]) -> list[Any]:
            given = iter(spread)
            consts = [next(given) if _is_spread(x) else x for x in closed.consts]
            whole = jex.core.ClosedJaxpr(closed.jaxpr, consts)
            return jex.core.jaxpr_as_fun(whole)(*leaves)

        spread = [
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
            for x in self._spread
        ]
        jitted = jax.jit(run, keep_unused=True)
        return jitted.lower(spread, jax.tree.leaves(shapes)).compile()


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
        block: int,
    ) -> None:
        """**Arguments:**

        - `sampler`: what one chain does.
        - `rng_key`: the key of the run.
        - `positions`: where chains start, arrays of shape `(chains, ...)`.
        - `batcher`: how chains are laid out.
        - `thin`: the number of transitions for each draw.
        - `block`: the most draws that `advance` makes in one call.
        """
        self.block = block
        self._sampler = sampler
        self._key = rng_key
        self._positions = positions
        self._thin = thin
        self._index = jnp.arange(len(jax.tree.leaves(positions)[0]), dtype=jnp.uint32)
        self._draw = self._shapes_of_a_draw()
        own, same = 0, None
        self._start = Program(batcher(self._start_one, (same, own, own)))
        self._warm = Program(batcher(self._warm_one, (same, own, own)))
        self._advance = Program(
            batcher(self._advance_one, (same, own, own, same, same))
        )

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
        - `count`: how many to make, at most `block`.

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
            return self._draw_one(step, key, state, number)

        def pass_over(state: Any, number: Any) -> tuple[Any, Draw]:
            return state, jax.tree.map(
                lambda x: jnp.zeros(x.shape, x.dtype), self._draw
            )

        def turn(state: Any, place: Any) -> tuple[Any, Draw]:
            return jax.lax.cond(place < count, draw, pass_over, state, first + place)

        places = jnp.arange(self.block, dtype=jnp.uint32)
        state, draws = jax.lax.scan(turn, chain.states, places)
        return ChainState(state, chain.tuned), draws

    def _draw_one(
        self, step: Callable[..., Any], key: Any, state: Any, number: Any
    ) -> tuple[Any, Draw]:
        def transition(state: Any, turn: Any) -> tuple[Any, Any]:
            at = jnp.uint32(number) * self._thin + turn
            state, info = step(jax.random.fold_in(key, at), state)
            return state, told_by(info)

        if self._thin == 1:
            state, told = transition(state, jnp.uint32(0))
        else:
            turns = jnp.arange(self._thin, dtype=jnp.uint32)
            state, told = jax.lax.scan(transition, state, turns)
            told = _together(told)
        logdensity = getattr(state, "logdensity", None)
        return state, Draw(state.position, logdensity, *told)

    def _shapes_of_a_draw(self) -> Draw:
        """What one draw looks like; it also says early what cannot work."""

        def whole(rng_key: Any, position: PyTree) -> Draw:
            key = _key(rng_key, jnp.uint32(0), _WARM)
            if self._sampler.warm is None:
                chain = ChainState(self._start_one(rng_key, 0, position), None)
            else:
                chain = ChainState(*self._sampler.warm(key, position))
            _check_state(chain.states)
            step = self._sampler.bind(chain.tuned)
            return self._draw_one(step, key, chain.states, jnp.uint32(0))[1]

        row = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), self._positions
        )
        return jax.eval_shape(whole, self._key, row)


def _check_state(state: Any) -> None:
    if not hasattr(state, "position"):
        raise TypeError(
            f"run_chains: the states of the algorithm, {type(state).__name__}, have no "
            "field `position`, so there is nothing to draw. Pass an algorithm that "
            "moves a position, such as those of blackjax's MCMC samplers."
        )


def _is_spread(x: Any) -> bool:
    return isinstance(x, jax.Array) and len(x.sharding.device_set) > 1


def _key(rng_key: Any, index: Any, what: int) -> Any:
    return jax.random.fold_in(jax.random.fold_in(rng_key, index), what)


def told_by(info: Any) -> tuple[Any, Any, Any, Any]:
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
