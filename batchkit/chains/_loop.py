"""The loop on the host: a warm-up, then draws, in blocks between which it is saved."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from .._util._formats import format_bytes
from ..explain._memory_use import memory_of
from ..run._file import understood
from ..run._processes import explaining_loss, speaker
from ..run._progress import Reporter
from ..run._result_file import numbers, typed
from ..run._saving import Saver
from ..run._store import Saved
from ..run._trees import named_arrays, to_host, tree_of
from ._programs import Chains, ChainState, Draw
from ._progress import ChainProgress
from ._sampler import Tuned
from ._saved import for_readers
from ._starts import check_states
from ._warmup import Segment, segment_of_draws, windows_of


_log: Final = logging.getLogger("batchkit")


@final
class Made(NamedTuple):
    """What chains have made, on the host.

    - `draws`: arrays of shape `(chains, draws, ...)`.
    - `tuned`: what the warm-up has found; None where there was none.
    - `seconds`: how long it took to compile, to warm up and to sample.
    """

    draws: Draw
    tuned: Tuned | None
    seconds: tuple[float, float, float]


@final
class ChainLoop:
    """Chains, from their starts or their checkpoint to the last draw."""

    def __init__(
        self,
        chains: Chains,
        num_warmup: int,
        num_samples: int,
        saver: Saver,
        reporter: Reporter,
        *,
        caller: str = "run_chains",
        check_states: Callable[[Any], None] = check_states,
        record: Callable[[ChainProgress, Any], Any] = lambda progress, _: progress,
        about: Mapping[str, Any],
    ) -> None:
        """**Arguments:**

        - `chains`: the programs.
        - `num_warmup`: how many transitions to warm up for; 0 of an algorithm.
        - `num_samples`: how many draws to make.
        - `saver`: what saves them.
        - `reporter`: what tells of it.
        - `caller`: the function that the user called.
        - `check_states`: raises if chains cannot start with these states.
        - `record`: what is told, from what chains tell, and how often each of them
            diverged, or None.
        - `about`: what else the file shall tell of the run, something JSON has.
        """
        self._chains = chains
        self._num_warmup = num_warmup
        self._windows = windows_of(num_warmup)
        self._num_samples = num_samples
        self._saver = saver
        self._reporter = reporter
        self._caller = caller
        self._check_states = check_states
        self._record = record
        self._about = dict(about)
        self._draws = _room(chains.draw_shapes, num_samples)
        # So many draws there are, and after so many the chains go on.
        self._done = 0
        self._at = 0
        self._warmed_up = 0
        self._before = (0.0, 0.0, 0.0)
        self._made_here = 0
        # Over all draws so far.
        self._diverged = np.zeros(chains.num_chains, np.int64)
        self._accepted = 0.0

    def run(self, saved: Saved | None) -> Made:
        """Makes what is missing.

        **Arguments:**

        - `saved`: what there is of these chains already, or None.
        """
        with explaining_loss(self._caller, self._saver.path):
            state = self._begin() if saved is None else self._resume(saved)
            if self._done < self._num_samples:
                state = self._sample(state)
        tuned = None if state.tuned is None else to_host(state.tuned)
        return Made(self._first(self._num_samples), tuned, self._seconds)

    def _begin(self) -> ChainState:
        chains = self._chains
        self._saver.begin()
        self._compiled(chains.compile_start, "starts")
        with self._reporter.waiting("starts"):
            state = chains.start()
        self._check_states(to_host(state.states))
        return state

    def _resume(self, saved: Saved) -> ChainState:
        header, arrays = saved.header, saved.arrays
        with understood(saved.path):
            state = tree_of("state", arrays, self._chains.chain_shapes)
            state = jax.tree.map(
                lambda x: x if isinstance(x, jax.Array) else jnp.asarray(x), state
            )
            self._warmed_up = typed(header, "warmed_up", int)
            self._done = typed(header, "draws", int)
            self._at = typed(header, "at", int)
            if not 0 <= self._warmed_up <= self._num_warmup:
                raise ValueError(f"its warm-up has {self._warmed_up} transitions")
            if not 0 <= self._at <= self._done:
                raise ValueError(f"its draws are {self._done}, at {self._at}")
            shapes = self._chains.shapes_of_draws(self._done)
            parts = {
                name: tree_of(f"draws/{name}", arrays, part)
                for name, part in shapes._asdict().items()
            }
            self._before = numbers(header, "seconds", 3)
        kept = jax.tree.map(lambda x: x[:, : self._num_samples], Draw(**parts))
        self._put(0, kept)
        if self._done < self._num_samples:
            # Those of a block that was cut short are made again.
            self._done = self._at
        self._count(jax.tree.map(lambda x: x[:, : self._at], kept))
        speaker(_log).info(
            "%s: going on with %s, saved %s after %d draws of each chain",
            self._caller,
            saved.path,
            header["saved"],
            header["draws"],
        )
        return state

    def _sample(self, state: ChainState) -> ChainState:
        """Make the transitions and draws that are missing."""
        chains, saver, blocks = self._chains, self._saver, self._chains.blocks
        saver.begin()
        self._hurried = saver.is_on or self._reporter.shows
        self._limit = self._agree(blocks.first(self._hurried))
        if saver.interrupted:
            saver.leave()
        self._compiled(chains.compile_advance, "transitions")
        for window in self._windows:
            while (at := self._warmed_up - window.first) < window.length:
                count = blocks.count(at, self._limit, window.length)
                segment = window.segment(self._warmed_up, count)
                state, _ = self._advance(state, segment)
                self._warmed_up += count
                self._between_blocks(state)
        if self._windows and not self._done:
            self._save(state)
        while self._done < self._num_samples:
            count = blocks.count(self._at, self._limit, self._num_samples)
            after, made = self._advance(state, segment_of_draws(self._at, count))
            assert made is not None
            self._put(self._at, made)
            self._count(made)
            self._done = self._at + count
            self._made_here += count
            if blocks.is_whole(self._at, count):
                state, self._at = after, self._done
            self._between_blocks(state)
        return state

    def _advance(
        self, state: ChainState, segment: Segment
    ) -> tuple[ChainState, Draw | None]:
        start = time.perf_counter()
        after, made = self._chains.advance(state, segment)
        if self._hurried:
            seconds = time.perf_counter() - start
            self._limit = self._chains.blocks.next(int(segment.count), seconds)
        return after, made

    def _between_blocks(self, state: ChainState) -> None:
        """Shows progress, and saves if it is time or somebody interrupts."""
        saver = self._saver
        self._limit = self._agree(self._limit)
        if saver.interrupted:
            self._save(state)
            saver.leave()
        elif saver.due() or self._done == self._num_samples:
            self._save(state)

    def _agree(self, limit: int) -> int:
        """Shows how far it is, and lets all processes go on with the same."""
        (agreed,) = self._saver.look(limit, show=self._show)
        return int(agreed)

    def _compiled(self, compile: Callable[[], Any], what: str) -> None:
        start = time.perf_counter()
        with self._reporter.waiting(f"compiling {what}"):
            compiled = compile()
        try:
            needed = format_bytes(memory_of(compiled).total)
        except NotImplementedError:
            needed = "an unknown number of bytes"
        seconds = time.perf_counter() - start
        speaker(_log).info(
            "%s: compiled %s in %.1f s; a device needs %s",
            self._caller,
            what,
            seconds,
            needed,
        )

    def _save(self, state: ChainState) -> None:
        if not self._saver.is_on:
            return
        header = {
            "warmed_up": self._warmed_up,
            "draws": self._done,
            "at": self._at,
            "seconds": list(self._seconds),
            **self._about,
            "result": for_readers(state, self._draws),
        }
        arrays = named_arrays("state", state)
        for name, part in self._first(self._done)._asdict().items():
            arrays |= named_arrays(f"draws/{name}", part)
        self._saver.save(header, arrays)

    def _first(self, count: int) -> Draw:
        return jax.tree.map(lambda x: x[:, :count], self._draws)

    def _put(self, first: int, made: Draw) -> None:
        def put(draws: np.ndarray, made: np.ndarray) -> None:
            draws[:, first : first + made.shape[1]] = made

        jax.tree.map(put, self._draws, made)

    def _count(self, made: Draw) -> None:
        if made.diverging is not None:
            self._diverged += np.sum(made.diverging, axis=1)
        if made.acceptance is not None:
            self._accepted += float(np.sum(made.acceptance))

    @property
    def _seconds(self) -> tuple[float, float, float]:
        chains = self._chains
        compile, warmup, sampling = self._before
        return (
            compile + chains.compile_seconds,
            warmup + chains.warmup_seconds,
            sampling + chains.sampling_seconds,
        )

    def _show(self) -> None:
        chains, done = self._chains, self._done
        left = math.nan
        if self._made_here:
            speed = self._made_here / chains.sampling_seconds
            left = (self._num_samples - done) / speed
        made = chains.num_chains * done
        untold = self._draws.diverging is None
        record = ChainProgress(
            phase="sampling" if self._warmed_up == self._num_warmup else "warm-up",
            num_chains=chains.num_chains,
            draws=done,
            num_samples=self._num_samples,
            warmed_up=self._warmed_up,
            num_warmup=self._num_warmup,
            divergences=None if untold else int(np.sum(self._diverged)),
            acceptance=None
            if self._draws.acceptance is None
            else self._accepted / made
            if made
            else math.nan,
            seconds=sum(self._seconds[1:]),
            seconds_left=left,
        )
        told = self._record(record, None if untold else self._diverged)
        # Draws of all chains, so that what is counted does not depend on their number.
        total = chains.num_chains * self._num_samples
        self._reporter.show(told, made, total)


def _room(shapes: Draw, count: int) -> Draw:
    """Room for draws, of which one in all chains has these shapes."""

    def room(x: Any) -> np.ndarray:
        chains, *shape = x.shape
        return np.empty((chains, count, *shape), x.dtype)

    return jax.tree.map(room, shapes)
