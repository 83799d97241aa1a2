"""The loop on the host: blocks of steps, with looks at the clock in between."""

import functools
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._util._formats import format_bytes
from ..explain._memory_use import memory_of
from ..run._checkpoint import CheckpointError
from ..run._diagnostic import Diagnostic
from ..run._file import understood
from ..run._names import parameter_names
from ..run._processes import (
    explaining_loss,
    first_says,
    is_first,
    several,
    speaker,
    summed,
)
from ..run._progress import Reporter
from ..run._result_file import numbers, typed
from ..run._saving import Saver
from ..run._store import Saved
from ..run._trees import named_arrays, to_host, tree_of
from ._arguments import check_first, check_prior, refuse_invalid
from ._chains_moved import describe_moves
from ._dead import DeadPoints, dead_points
from ._diagnostics import diagnose
from ._guard import Rejected
from ._nested_run import NestedRun
from ._programs import Block, Dying, NestedPrograms, RunState
from ._progress import progress_of, total_steps
from ._saved import for_readers
from ._stop import AbstractStop, rules_met


_log: Final = logging.getLogger("batchkit")

# The volumes are simulated with this key, which no step has.
_VOLUMES: Final = 2**32 - 2
# A block takes about so many seconds: as long as Ctrl-C may wait, and much longer than
# the host needs between two blocks.
_BLOCK_SECONDS: Final = 0.5


@final
class Loop:
    """One run, from its first live points or its checkpoint to its result."""

    def __init__(
        self,
        programs: NestedPrograms,
        rng_key: Any,
        rule: AbstractStop,
        saver: Saver,
        progress: bool | Callable[[Any], object],
        rejected: Rejected,
        settings: Mapping[str, Any],
    ) -> None:
        self._programs = programs
        self._key = rng_key
        self._rule = rule
        self._saver = saver
        self._reporter = Reporter(progress, "nested sampling", " steps")
        self._rejected = rejected
        self._settings = dict(settings)
        self._dead: list[Dying] = []
        self._compile_before = 0.0
        self._run_before = 0.0
        self._speed = 0.0  # steps a second, of late
        self._elapsed = 0.0  # seconds of the last block
        # The same in all processes: seconds of the run, and whether it is through.
        self._clock = 0.0
        self._ended = False

    def run(self, positions: PyTree) -> NestedRun:
        """Runs it.

        **Arguments:**

        - `positions`: the first live points.
        """
        with explaining_loss("run_nested", self._saver.path):
            return self._run(positions)

    def _run(self, positions: PyTree) -> NestedRun:
        saved = self._saver.resume()
        with self._reporter:
            state = self._begin(positions) if saved is None else self._resume(saved)
            since = int(state.status.evaluations), self._seconds
            limit = self._agree(1, state)
            if not self._ended:
                self._saver.begin()
            while not self._ended:
                block = self._advance(state, limit)
                state = block.state
                self._keep(block)
                self._refuse_invalid(state)
                limit = self._next_limit(int(block.made))
                show = functools.partial(self._show, state, since)
                limit = self._agree(limit, state, show)
                if self._saver.interrupted:
                    self._save(state)
                    self._saver.leave()
                elif self._saver.due():
                    self._save(state)
        try:
            run = self._result(state)
        except BaseException:
            # The run costs more than its result, which can be computed again.
            self._save_if_advanced(state)
            raise
        self._save_if_advanced(state, run)
        return run

    def _save_if_advanced(self, state: RunState, run: NestedRun | None = None) -> None:
        if self._programs.block.is_compiled:
            self._save(state, run)

    @property
    def _seconds(self) -> float:
        """How long the run has taken so far, without compiling."""
        return (
            self._run_before
            + self._programs.init.seconds
            + self._programs.block.seconds
        )

    def _agree(
        self, limit: int, state: RunState, show: Callable[[], None] | None = None
    ) -> int:
        """Shows how far it is, and lets all processes go on, or end, together."""
        seconds = self._seconds
        ended = self._has_ended(state, seconds)
        agreed = self._saver.look(limit, seconds, ended, show=show)
        self._clock, self._ended = agreed[1], bool(agreed[2])
        return int(agreed[0])

    def _begin(self, positions: PyTree) -> RunState:
        self._saver.begin()
        args = self._key, positions
        self._compiled(self._programs.init, "first live points", *args)
        with self._reporter.waiting("likelihoods of the first live points"):
            state = self._programs.init(*args)
        particles = to_host(state.sampler.particles)
        check_first(particles)
        check_prior(particles.logdensity, positions)
        self._save(state)
        return state

    def _resume(self, saved: Saved) -> RunState:
        header, arrays = saved.header, saved.arrays
        state_shapes = self._programs.state_shapes
        if not _fits(arrays, state_shapes):
            raise CheckpointError(
                f"{saved.path!r} holds a run whose state has other arrays than here: a "
                "version of batchkit wrote it that counts other things.",
                "Finish the run with that version, or start over with `fresh=True`.",
            )
        with understood(saved.path):
            state = tree_of("state", arrays, state_shapes)
            state = jax.tree.map(
                lambda x: x if hasattr(x, "devices") else jnp.asarray(x), state
            )
            dead_shapes = self._programs.dead_shapes(int(state.status.step))
            self._dead = [tree_of("dead", arrays, dead_shapes)]
            self._compile_before, self._run_before = numbers(header, "seconds", 2)
            if is_first():
                self._rejected.add(typed(header, "rejected", int))
        speaker(_log).info(
            "run_nested: going on with %s, saved %s after step %d",
            saved.path,
            header["saved"],
            header["step"],
        )
        return state

    def _advance(self, state: RunState, limit: int) -> Block:
        args = (
            state,
            self._key,
            np.int32(limit),
            np.float32(self._clock),
            self._rule,
        )
        if not self._programs.block.is_compiled:
            self._compiled(self._programs.block, "steps", *args)
        start = time.perf_counter()
        block = self._programs.block(*args)
        self._elapsed = time.perf_counter() - start
        return block

    def _compiled(self, program: Any, what: str, *args: Any) -> None:
        with self._reporter.waiting(f"compiling {what}"):
            compiled = program.compile(*args)
        try:
            bytes_needed = format_bytes(memory_of(compiled).total)
        except NotImplementedError:
            bytes_needed = "an unknown number of bytes"
        speaker(_log).info(
            "run_nested: compiled %s in %.1f s; a device needs %s",
            what,
            program.compile_seconds,
            bytes_needed,
        )

    def _next_limit(self, made: int) -> int:
        self._speed = made / max(self._elapsed, 1e-6)
        steps = int(self._speed * _BLOCK_SECONDS)
        return max(1, min(steps, 4 * made, self._programs.capacity))

    def _keep(self, block: Block) -> None:
        made = int(block.made)
        rows = jax.tree.map(lambda x: np.asarray(x[:made]), to_host(block.dead))
        self._dead.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows))

    def _has_ended(self, state: RunState, seconds: float) -> bool:
        status = state.status._replace(seconds=np.float32(seconds))
        return bool(status.exhausted) or bool(rules_met(self._rule, status))

    def _refuse_invalid(self, state: RunState) -> None:
        if not bool(state.invalid):
            return
        advice = ""
        if self._saver.is_on:
            advice = (
                " The run is saved as it was before; with another likelihood it has to "
                "start over (`fresh=True`), with on_invalid='reject' it can go on."
            )
        step = int(state.status.step)
        particles = to_host(state.sampler.particles)
        refuse_invalid(particles, f"live points after step {step}", advice)

    def _show(self, state: RunState, since: tuple[int, float]) -> None:
        status = to_host(state.status)._replace(seconds=self._seconds)
        record = progress_of(
            status,
            self._programs.num_live,
            self._programs.num_delete,
            self._rule,
            since,
            self._speed,
        )
        self._reporter.show(record, record.step, total_steps(self._rule))

    def _save(self, state: RunState, run: NestedRun | None = None) -> None:
        if not self._saver.is_on:
            return
        dead = self._all_dead()
        self._dead = [dead]
        positions = state.sampler.particles.position
        header = {
            "step": int(state.status.step),
            "seconds": [self._compile_seconds, self._seconds],
            "rejected": self._count_rejected(),
            "settings": self._settings,
            "parameters": list(parameter_names(positions)),
            "rule": repr(self._rule),
            "dead": "positions, log-likelihood, birth, log-prior",
            "evaluations": self._count_evaluations(state),
            "result": for_readers(state, dead, run),
        }
        arrays = {
            **named_arrays("state", state),
            **named_arrays("dead", dead),
            "key": self._volumes_key,
        }
        self._saver.save(header, arrays)

    def _count_rejected(self) -> int:
        """How many likelihoods were no numbers, on all devices."""
        count = self._rejected.count
        if not several():
            return count
        # A program for the devices of one process runs in each of them, as a whole.
        programs = self._programs.init, self._programs.block
        spread = any(program.spans_processes for program in programs)
        return summed(count) if spread else int(first_says(count)[0])

    def _count_evaluations(self, state: RunState) -> int | None:
        if not self._programs.counts_evaluations:
            return None
        return int(to_host(state.status).evaluations)

    @property
    def _volumes_key(self) -> Any:
        return jax.random.fold_in(self._key, _VOLUMES)

    @property
    def _compile_seconds(self) -> float:
        programs = self._programs
        return (
            self._compile_before
            + programs.init.compile_seconds
            + programs.block.compile_seconds
        )

    def _all_dead(self) -> Dying:
        if not self._dead:
            shapes = self._programs.dead_shapes(0)
            return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
        return jax.tree.map(lambda *parts: np.concatenate(parts), *self._dead)

    def _result(self, state: RunState) -> NestedRun:
        live = Dying.of(to_host(state.sampler.particles))
        dead = dead_points([_part(x) for x in (self._all_dead(), live)])
        status = to_host(state.status)._replace(seconds=np.float32(self._clock))
        met = rules_met(self._rule, status)
        reasons = [rule.reason(status) for rule in met]
        if status.exhausted:
            reasons.append("no likelihood is above those of the live points")
        warnings = self._warnings(state, dead)
        copied = any(warning.name == "copies" for warning in warnings)
        if copied:
            reasons.append("points are copies of others")
        for warning in warnings:
            speaker(_log).warning("run_nested: %s", warning)
        return NestedRun(
            dead,
            num_steps=int(status.step),
            num_evaluations=self._count_evaluations(state),
            converged=not copied
            and (bool(status.exhausted) or any(x.is_convergence for x in met)),
            stop_reason=", and ".join(reasons),
            key=self._volumes_key,
            warnings=warnings,
            seconds=(self._compile_seconds, self._seconds),
            settings=self._settings,
            provenance=self._saver.provenance,
        )

    def _warnings(self, state: RunState, dead: DeadPoints) -> tuple[Diagnostic, ...]:
        programs = self._programs
        counts = jax.tree.map(np.asarray, state.chains)
        if counts is not None and counts.chains > 0 and len(counts.products) > 0:
            speaker(_log).info("run_nested: %s", describe_moves(counts))
        dim = len(parameter_names(dead.positions))
        found = diagnose(
            dead,
            num_inner_steps=programs.num_inner_steps,
            dim=dim,
            num_delete=programs.num_delete,
            chains=counts,
        )
        count = self._count_rejected()
        if count == 0:
            return found
        return (
            Diagnostic(
                "invalid likelihoods",
                float(count),
                0.0,
                f"{count:,} likelihoods were NaN or plus infinity, and taken for minus "
                "infinity. The result is that of a likelihood of zero there. Find out "
                "where, with on_invalid='raise', and whether that is right.",
            ),
            *found,
        )


def _fits(arrays: Mapping[str, Any], state: PyTree) -> bool:
    """Return True if the arrays of a checkpoint have the shapes of such a state."""
    saved = {
        name: array.shape for name, array in arrays.items() if name.startswith("state/")
    }
    shapes = [x.shape for x in jax.tree.leaves(state)]
    return saved == {f"state/{i}": shape for i, shape in enumerate(shapes)}


def _part(points: Dying) -> tuple[Any, ...]:
    return (
        points.positions,
        points.logprior,
        points.loglikelihood,
        points.loglikelihood_birth,
    )
