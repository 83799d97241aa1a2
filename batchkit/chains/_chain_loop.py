"""Chains in blocks: the warm-up, then the draws, as one resumable run."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from ..run._result_file import numbers, typed
from ..run._resumable import AbstractResumable, Host
from ..run._store import Saved
from ..run._trees import named_arrays, to_host, tree_of
from ._chain_run import for_readers
from ._programs import Chains, ChainState, Draw
from ._progress import ChainProgress
from ._sampler import Tuned
from ._starts import check_states
from ._warmup import segment_of_draws, windows_of


@final
class Made(NamedTuple):
    """Draws and tuning of complete chains, on the host.

    - `draws`: arrays of shape `(chains, draws, ...)`.
    - `tuned`: what the warm-up has found; None where there was none.
    - `seconds`: how long it took to compile, to warm up and to sample.
    """

    draws: Draw
    tuned: Tuned | None
    seconds: tuple[float, float, float]


@final
class ResumableChains(AbstractResumable):
    """Chains, from their starts or their checkpoint to the last draw."""

    def __init__(
        self,
        chains: Chains,
        num_warmup: int,
        num_samples: int,
        *,
        needs_host: bool,
        caller: str = "run_chains",
        check_states: Callable[[Any], None] = check_states,
        record: Callable[[ChainProgress, Any], Any] = lambda progress, _: progress,
        about: Mapping[str, Any],
    ) -> None:
        """**Arguments:**

        - `chains`: the programs.
        - `num_warmup`: how many transitions to warm up for; 0 of an algorithm.
        - `num_samples`: how many draws to make.
        - `needs_host`: whether progress is shown, or checkpoints are saved.
        - `caller`: the function that the user called.
        - `check_states`: raises if chains cannot start with these states.
        - `record`: what is shown, from the progress of chains and how often each of
            them diverged, or None.
        - `about`: what else the file has of the run, something for JSON.
        """
        self.caller = caller
        self._chains = chains
        self._num_warmup = num_warmup
        self._windows = windows_of(num_warmup)
        self._num_samples = num_samples
        self._needs_host = needs_host
        self._check_states = check_states
        self._record = record
        self._about = dict(about)
        self._state = ChainState(None, None)
        self._is_compiled = False
        self._draws = _room(chains.draw_shapes, num_samples)
        self._warmed_up = 0
        # So many draws are made, and after so many the chains continue.
        self._done = 0
        self._at = 0
        self._before = (0.0, 0.0, 0.0)
        self._made_here = 0
        # Over all draws so far.
        self._diverged = np.zeros(chains.num_chains, np.int64)
        self._accepted = 0.0

    @property
    def made(self) -> Made:
        """The draws and the tuning of the complete run."""
        tuned = self._state.tuned
        return Made(
            self._first(self._num_samples),
            None if tuned is None else to_host(tuned),
            self._seconds,
        )

    def begin(self, host: Host) -> None:
        host.compile(self._chains.compile_start, "starts")
        with host.waiting("starts"):
            self._state = self._chains.start()
        self._check_states(to_host(self._state.states))

    def resume(self, saved: Saved) -> str:
        header, arrays = saved.header, saved.arrays
        state = tree_of("state", arrays, self._chains.chain_shapes)
        self._state = jax.tree.map(
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
        found = self._done
        if self._done < self._num_samples:
            # Those of a block that was cut short are made again.
            self._done = self._at
        self._count(jax.tree.map(lambda x: x[:, : self._at], kept))
        if self._warmed_up < self._num_warmup:
            return f"{self._warmed_up} transitions of the warm-up"
        return f"{found} draws of each chain"

    def has_ended(self, seconds: float) -> bool:
        return self._done >= self._num_samples

    def advance(self, limit: int, seconds: float, host: Host) -> int:
        if not self._is_compiled:
            host.compile(self._chains.compile_advance, "transitions")
            self._is_compiled = True
        blocks = self._chains.blocks
        if self._warmed_up < self._num_warmup:
            window = next(x for x in self._windows if self._warmed_up < x.end)
            at = self._warmed_up - window.first
            count = blocks.count(at, limit, window.length)
            segment = window.segment(self._warmed_up, count)
            self._state, _ = self._chains.advance(self._state, segment)
            self._warmed_up += count
            return count
        count = blocks.count(self._at, limit, self._num_samples)
        segment = segment_of_draws(self._at, count)
        after, made = self._chains.advance(self._state, segment)
        assert made is not None
        self._put(self._at, made)
        self._count(made)
        self._done = self._at + count
        self._made_here += count
        if blocks.is_whole(self._at, count):
            self._state, self._at = after, self._done
        return count

    def next_limit(self, made: int | None, in_time: int) -> int:
        blocks = self._chains.blocks
        if made is None or not self._needs_host:
            return blocks.first(self._needs_host)
        return blocks.next(made, in_time)

    @property
    def must_save(self) -> bool:
        ends_warmup = self._warmed_up == self._num_warmup > 0 == self._done
        return ends_warmup or self._done >= self._num_samples

    def checkpoint(self) -> tuple[dict[str, Any], dict[str, Any]]:
        header = {
            "warmed_up": self._warmed_up,
            "draws": self._done,
            "at": self._at,
            "seconds": list(self._seconds),
            **self._about,
            "result": for_readers(self._state, self._draws),
        }
        arrays = named_arrays("state", self._state)
        for name, part in self._first(self._done)._asdict().items():
            arrays |= named_arrays(f"draws/{name}", part)
        return header, arrays

    def progress(self) -> tuple[Any, int, int]:
        chains, done = self._chains, self._done
        left = math.nan
        if self._made_here:
            speed = self._made_here / chains.sampling_seconds
            left = (self._num_samples - done) / speed
        # Draws of all chains, so that what is counted does not depend on their number.
        made, total = chains.num_chains * done, chains.num_chains * self._num_samples
        rate = self._accepted / made if made else math.nan
        diverged = None if self._draws.diverging is None else self._diverged
        record = ChainProgress(
            phase="sampling" if self._warmed_up == self._num_warmup else "warm-up",
            num_chains=chains.num_chains,
            draws=done,
            num_samples=self._num_samples,
            warmed_up=self._warmed_up,
            num_warmup=self._num_warmup,
            divergences=None if diverged is None else int(np.sum(diverged)),
            acceptance=None if self._draws.acceptance is None else rate,
            seconds=self.seconds,
            seconds_left=left,
        )
        return self._record(record, diverged), made, total

    @property
    def seconds(self) -> float:
        return sum(self._seconds[1:])

    @property
    def _seconds(self) -> tuple[float, float, float]:
        chains = self._chains
        compile, warmup, sampling = self._before
        return (
            compile + chains.compile_seconds,
            warmup + chains.warmup_seconds,
            sampling + chains.sampling_seconds,
        )

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


def _room(shapes: Draw, count: int) -> Draw:
    """Room for draws, of which one in all chains has these shapes."""

    def room(x: Any) -> np.ndarray:
        chains, *shape = x.shape
        return np.empty((chains, count, *shape), x.dtype)

    return jax.tree.map(room, shapes)
