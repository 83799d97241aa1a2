"""Chains from their starts to their last draw, as one run in blocks that resumes."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, final

import jax
import numpy as np
from jaxtyping import PyTree

from .._util._formats import format_value
from ..run._arguments import StartError, check_scalar, locate_rows, not_finite, row_of
from ..run._names import join_few, named_numbers
from ..run._packages import Provenance
from ..run._result import Seconds
from ..run._resumable import AbstractResumable, Reporter, format_duration
from ..run._store import Saved
from ..run._trees import named_arrays, numbers, to_host, tree_from_arrays, typed
from ._chain_programs import Chains, ChainState, Draw
from ._chain_run import ChainRun, names_for_load
from ._sampler import Tuned, draws_segment, windows_of


def check_logdensity(logdensity_fn: Callable[..., Any], positions: PyTree) -> Any:
    """Return the dtype of a log-density; raise unless it returns a scalar."""
    row = row_of(positions)
    try:
        return check_scalar("run_chains", "logdensity_fn", logdensity_fn, row)
    except Exception as error:
        if not _is_one_start(logdensity_fn, positions):
            raise
        raise ValueError(
            "run_chains(positions=...): positions looks like the start of a single "
            f"chain, {format_value(positions)}: logdensity_fn takes the whole of it, "
            f"and not one row, {format_value(row)}. Give every array the shape "
            "(chains, ...), one row a chain; four chains or more, started far from "
            "each other."
        ) from error


def _is_one_start(logdensity_fn: Callable[..., Any], positions: PyTree) -> bool:
    """Return True if a log-density accepts all positions as a single one."""
    try:
        check_scalar("", "", logdensity_fn, positions)
    except Exception:
        return False
    return True


def check_states(
    owner: str,
    states: Any,
    shards: Sequence[int] = (),
    note: Callable[[PyTree], str] = lambda position: "",
) -> None:
    """Raise `StartError` if a log-density or a gradient that there is is not finite.

    States are of chains, or of the chains of each of some `shards`. A `note` on a
    position follows where its log-density is not finite.
    """
    leaves = jax.tree.leaves(getattr(states, "logdensity", None))
    slopes = not_finite(getattr(states, "logdensity_grad", None))
    rows, _, total = not_finite(leaves if len(leaves) == 1 else None)
    parameters: Sequence[str] = ()
    if rows:
        found = join_few([f"{leaves[0][i]:g}" for i in rows])
        what = f"the log-density is not finite ({found})"
    else:
        rows, parameters, total = slopes
        what = "the log-density is finite, but its gradient with respect to "
        what += f"{join_few(parameters)} is not"
    if not rows:
        return
    where, chains = locate_rows(rows, total, shards=shards)
    position, names = jax.tree.map(lambda x: x[rows[0]], states.position), slopes[1]
    numbers = [x for x in named_numbers(position) if not names or x[0] in names]
    shown = join_few([f"{name} = {x:.4g}" for name, x in numbers])
    raise StartError(
        f"{owner}: {what}, at the start of {where}; first at {shown}"
        f"{'' if parameters else note(position)}. Start inside of the support, not so "
        "far out that the log-density overflows, and look for a `jnp.where` whose "
        "branch not taken divides by zero: its NaN enters the gradient. The exception "
        "has the indices of the chains as `.chains`.",
        chains,
        parameters,
    )


@final
class ChainProgress(NamedTuple):
    """Progress of chains, or of those of shards, the argument of `progress=callable`.

    ```python
    from batchkit.chains import ChainProgress

    progress = ChainProgress(
        phase="sampling",
        num_chains=4,
        draws=300,
        num_samples=1000,
        warmed_up=500,
        num_warmup=500,
        divergences=(0, 2, 0, 0),
        acceptance=0.84,
        seconds=12.0,
        seconds_left=28.0,
    )
    print(progress)
    ```

    - `phase`: `"warm-up"` or `"sampling"`.
    - `num_chains`: the number of chains, of all shards that run.
    - `draws`: the number of draws of each chain so far, of `num_samples`.
    - `num_samples`: the number of draws of each chain at the end.
    - `warmed_up`: the number of transitions of the warm-up so far, of `num_warmup`.
    - `num_warmup`: the number of transitions of the warm-up; 0 without one.
    - `divergences`: the number of divergent transitions of each chain after the
        warm-up; None if the sampler does not report them.
    - `acceptance`: the mean acceptance rate of all draws; None if the sampler does not
      report it, NaN before the first draw.
    - `seconds`: how long the run, or the try of these shards, has taken, without
        compiling.
    - `seconds_left`: an estimate, NaN if there is none.
    - `shards`: the indices of the shards that run, each with as many chains; the others
        have their draws. Empty in `run_chains`.
    - `try_`: the number of the try of these shards, from 0.
    """

    phase: str
    num_chains: int
    draws: int
    num_samples: int
    warmed_up: int
    num_warmup: int
    divergences: tuple[int, ...] | None
    acceptance: float | None
    seconds: float
    seconds_left: float
    shards: tuple[int, ...] = ()
    try_: int = 0

    def __str__(self) -> str:
        parts = [f"{self.phase} of {self.num_chains} chains{self._of_shards}"]
        if self.try_ > 0:
            parts.append(f"try {self.try_ + 1}")
        if self.phase == "warm-up":
            parts.append(f"{self.warmed_up:,} of {self.num_warmup:,} transitions")
        if self.phase == "sampling":
            if self.divergences is not None:
                parts.append(f"{sum(self.divergences):,} divergences{self._worst}")
            if self.acceptance is not None and not math.isnan(self.acceptance):
                parts.append(f"acceptance {self.acceptance:.2f}")
            if not math.isnan(self.seconds_left):
                parts.append(f"{format_duration(self.seconds_left)} left")
        return ", ".join(parts)

    @property
    def _of_shards(self) -> str:
        if len(self.shards) == 1:
            return f" of shard {self.shards[0]}"
        return f" of {len(self.shards)} shards" if self.shards else ""

    @property
    def _worst(self) -> str:
        """The shard of most divergences, where it is one of several."""
        if self.divergences is None or not any(self.divergences):
            return ""
        if len(self.shards) < 2:
            return ""
        counts = np.reshape(self.divergences, (len(self.shards), -1)).sum(axis=1)
        return f" ({np.max(counts):,} in shard {self.shards[np.argmax(counts)]})"


@final
class CompletedChains(NamedTuple):
    """Draws and tuning of complete chains, on the host."""

    draws: Draw  # arrays of shape `(chains, draws, ...)`
    tuned: Tuned | None
    seconds: Seconds


def chain_run(
    made: CompletedChains,
    max_tree_depth: int | None,
    provenance: Sequence[Provenance] = (),
) -> ChainRun:
    """Return the result of complete chains."""
    draws, tuned, seconds = made
    return ChainRun(
        draws.position,
        logdensity=draws.logdensity,
        diverging=draws.diverging,
        acceptance_rate=draws.acceptance,
        num_integration_steps=draws.num_integration_steps,
        tree_depth=draws.tree_depth,
        energy=draws.energy,
        step_size=tuned and tuned.step_size,
        inverse_mass_matrix=tuned and tuned.inverse_mass_matrix,
        max_tree_depth=max_tree_depth,
        seconds=seconds,
        provenance=provenance,
    )


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
        check_states: Callable[[Any], None],
        shards: Sequence[int] = (),
        try_: int = 0,
        about: Mapping[str, Any],
    ) -> None:
        """Make a run of chains, without a warm-up if `num_warmup` is 0.

        It `needs_host` if progress is shown, that of a try of `shards` if there are
        any, or if checkpoints are saved, whose header has `about`.
        """
        self.caller = caller
        self._chains = chains
        self._num_warmup = num_warmup
        self._windows = windows_of(num_warmup)
        self._num_samples = num_samples
        self._needs_host = needs_host
        self._check_states = check_states
        self._shards = tuple(shards)
        self._try = try_
        self._about = dict(about)
        self._state = ChainState(None, None)
        self._is_compiled = False
        shapes = chains.shapes_of_draws(num_samples)
        self._draws = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), shapes)
        self._warmed_up = 0
        # The draws made, and those after which `self._state` is, which are fewer after
        # a block that was cut short.
        self._done = 0
        self._at = 0
        self._before = Seconds()
        self._made_here = 0
        # Over the draws so far.
        self._diverged = np.zeros(chains.num_chains, np.int64)
        self._accepted = 0.0

    @property
    def made(self) -> CompletedChains:
        """The draws and the tuning of the complete run."""
        return CompletedChains(
            self._first(self._num_samples), to_host(self._state.tuned), self._seconds
        )

    def begin(self, reporter: Reporter) -> None:
        reporter.compile(self.caller, self._chains.compile_start, "starts")
        with reporter.waiting("starts"):
            self._state = self._chains.start()
        self._check_states(to_host(self._state.states))

    def resume(self, saved: Saved) -> str:
        header, arrays = saved.header, saved.arrays
        self._state = tree_from_arrays("state", arrays, self._chains.chain_shapes)
        self._warmed_up = typed(header, "warmed_up", int)
        self._done = typed(header, "draws", int)
        self._at = typed(header, "at", int)
        if not 0 <= self._warmed_up <= self._num_warmup:
            raise ValueError(f"its warm-up has {self._warmed_up} transitions")
        if not 0 <= self._at <= self._done:
            raise ValueError(f"its draws are {self._done}, at {self._at}")
        self._before = Seconds(*numbers(header, "seconds", 4))
        shapes = self._chains.shapes_of_draws(self._done)._asdict()
        draws = Draw(
            **{x: tree_from_arrays(f"draws/{x}", arrays, shapes[x]) for x in shapes}
        )
        self._put(0, jax.tree.map(lambda x: x[:, : self._num_samples], draws))
        resumed = self._done
        if self._done < self._num_samples:
            # The draws of a block that was cut short are made again.
            self._done = self._at
        self._count(self._first(self._at))
        if self._warmed_up < self._num_warmup:
            return f"{self._warmed_up} transitions of the warm-up"
        return f"{resumed} draws of each chain"

    def has_ended(self, seconds: float) -> bool:
        return self._done >= self._num_samples

    def advance(self, limit: int, seconds: float, reporter: Reporter) -> int:
        if not self._is_compiled:
            reporter.compile(self.caller, self._chains.compile_advance, "transitions")
            self._is_compiled = True
        if self._warmed_up < self._num_warmup:
            window = next(x for x in self._windows if self._warmed_up < x.end)
            at = self._warmed_up
        else:
            window, at = draws_segment(0, self._num_samples), self._at
        blocks = self._chains.blocks
        count = blocks.count(at - window.first, limit, window.count)
        segment = window._replace(first=at, count=count)
        after, made = self._chains.advance(self._state, segment)
        if made is None:
            self._state, self._warmed_up = after, at + count
            return count
        self._put(at, made)
        self._count(made)
        self._done = at + count
        self._made_here += count
        if blocks.is_whole(at, count):
            self._state, self._at = after, self._done
        return count

    def next_limit(self, made: int | None, per_block: int) -> int:
        blocks = self._chains.blocks
        return blocks.limit(made, per_block) if self._needs_host else blocks.most

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
            "result": names_for_load(self._state, self._draws),
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
        # Draws of all chains, so that the unit does not depend on their number.
        made, total = chains.num_chains * done, chains.num_chains * self._num_samples
        rate = self._accepted / made if made else math.nan
        diverged = None
        if self._draws.diverging is not None:
            diverged = tuple(map(int, self._diverged))
        record = ChainProgress(
            phase="sampling" if self._warmed_up == self._num_warmup else "warm-up",
            num_chains=chains.num_chains,
            draws=done,
            num_samples=self._num_samples,
            warmed_up=self._warmed_up,
            num_warmup=self._num_warmup,
            divergences=diverged,
            acceptance=None if self._draws.acceptance is None else rate,
            seconds=self.seconds,
            seconds_left=left,
            shards=self._shards,
            try_=self._try,
        )
        return record, made, total

    @property
    def _seconds(self) -> Seconds:
        chains, before = self._chains, self._before
        return Seconds(
            before.compile + chains.compile_seconds,
            before.warmup + chains.warmup_seconds,
            before.sampling + chains.sampling_seconds,
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
