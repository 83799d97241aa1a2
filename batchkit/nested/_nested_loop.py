"""A nested run in blocks of steps, from its first live points to its result."""

import logging
from collections.abc import Mapping
from typing import Any, Final, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..run._checkpoint import CheckpointError
from ..run._diagnostic import Diagnostic
from ..run._environment import Provenance
from ..run._names import parameter_names
from ..run._processes import (
    first_says,
    is_first_process,
    is_multiprocess,
    speaker,
    summed,
)
from ..run._result_file import numbers, typed
from ..run._resumable import AbstractResumable, Host
from ..run._same_run import state_in
from ..run._store import Saved
from ..run._trees import named_arrays, to_host, tree_of
from ._arguments import check_first, check_prior, refuse_invalid
from ._chains_moved import describe_moves
from ._dead import DeadPoints, dead_points
from ._diagnostics import diagnose
from ._guard import Rejected
from ._nested_run import NestedRun, for_readers
from ._programs import Dying, NestedPrograms, RunState
from ._progress import NestedProgress, progress_of, total_steps
from ._stop import AbstractStop, rules_met


_log: Final = logging.getLogger("batchkit")

# The volumes are simulated with this key, which no step has.
_VOLUMES: Final = 2**32 - 2


@final
class ResumableNested(AbstractResumable):
    """One nested run, from its first live points or its checkpoint to its result."""

    caller = "run_nested"

    def __init__(
        self,
        programs: NestedPrograms,
        rng_key: Any,
        positions: PyTree,
        rule: AbstractStop,
        rejected: Rejected,
        settings: Mapping[str, Any],
        is_saved: bool,
    ) -> None:
        """**Arguments:**

        - `programs`: the first state and a block of steps, as programs.
        - `rng_key`: the key of the run.
        - `positions`: the first live points.
        - `rule`: when it ends.
        - `rejected`: the count of likelihoods that were rejected as invalid.
        - `settings`: those of the sampler, for JSON.
        - `is_saved`: whether there are checkpoints, for the advice of an error.
        """
        self._programs = programs
        self._key = rng_key
        self._positions = positions
        self._rule = rule
        self._rejected = rejected
        self._settings = dict(settings)
        self._is_saved = is_saved
        self._state: Any = None
        self._dead: list[Dying] = []
        self._compile_before = 0.0
        self._run_before = 0.0
        self._steps_per_second = 0.0  # of the last block
        # Evaluations and seconds when it was started or resumed.
        self._since = 0, 0.0
        self._run: NestedRun | None = None

    def begin(self, host: Host) -> None:
        init, args = self._programs.init, (self._key, self._positions)
        host.compile(lambda: init.compile(*args), "first live points")
        with host.waiting("likelihoods of the first live points"):
            self._state = init(*args)
        particles = to_host(self._state.sampler.particles)
        check_first(particles)
        check_prior(particles.logdensity, self._positions)
        self._since = int(self._state.status.evaluations), self.seconds

    def resume(self, saved: Saved) -> str:
        header, arrays = saved.header, saved.arrays
        shapes = self._programs.state_shapes
        try:
            state = state_in(saved, "state", shapes)
        except ValueError as error:
            raise CheckpointError(
                f"{saved.path!r} holds a run whose state has other arrays than here: a "
                "version of batchkit wrote it that counts other things.",
                "Finish the run with that version, or start over with `fresh=True`.",
            ) from error
        self._state = jax.tree.map(
            lambda x: x if hasattr(x, "devices") else jnp.asarray(x), state
        )
        dead_shapes = self._programs.dead_shapes(int(self._state.status.step))
        self._dead = [tree_of("dead", arrays, dead_shapes)]
        self._compile_before, self._run_before = numbers(header, "seconds", 2)
        if is_first_process():
            self._rejected.add(typed(header, "rejected", int))
        self._since = int(self._state.status.evaluations), self.seconds
        return f"step {header['step']}"

    def has_ended(self, seconds: float) -> bool:
        status = self._state.status._replace(seconds=np.float32(seconds))
        return bool(status.exhausted) or bool(rules_met(self._rule, status))

    def advance(self, limit: int, seconds: float, host: Host) -> int:
        block = self._programs.block
        limits = np.int32(limit), np.float32(seconds)
        args = self._state, self._key, *limits, self._rule
        if not block.is_compiled:
            host.compile(lambda: block.compile(*args), "steps")
        before = block.seconds
        found = block(*args)
        made = int(found.made)
        self._steps_per_second = made / max(block.seconds - before, 1e-6)
        self._state = found.state
        rows = jax.tree.map(lambda x: np.asarray(x[:made]), to_host(found.dead))
        self._dead.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows))
        self._refuse_invalid()
        return made

    def next_limit(self, made: int | None, in_time: int) -> int:
        if made is None:
            return 1
        return max(1, min(in_time, 4 * made, self._programs.capacity))

    def progress(self) -> tuple[NestedProgress, int, int | None]:
        status = to_host(self._state.status)._replace(seconds=self.seconds)
        record = progress_of(
            status,
            self._programs.num_live,
            self._programs.num_delete,
            self._rule,
            self._since,
            self._steps_per_second,
        )
        return record, record.step, total_steps(self._rule)

    def checkpoint(self) -> tuple[dict[str, Any], dict[str, Any]]:
        dead = self._all_dead()
        self._dead = [dead]
        positions = self._state.sampler.particles.position
        header = {
            "step": int(self._state.status.step),
            "seconds": [self._compile_seconds, self.seconds],
            "rejected": self._count_rejected(),
            "settings": self._settings,
            "parameters": list(parameter_names(positions)),
            "rule": repr(self._rule),
            "dead": "positions, log-likelihood, birth, log-prior",
            "evaluations": self._count_evaluations(),
            "result": for_readers(self._state, dead, self._run),
        }
        arrays = {
            **named_arrays("state", self._state),
            **named_arrays("dead", dead),
            "key": self._volumes_key,
        }
        return header, arrays

    @property
    def seconds(self) -> float:
        programs = self._programs
        return self._run_before + programs.init.seconds + programs.block.seconds

    def _refuse_invalid(self) -> None:
        if not bool(self._state.invalid):
            return
        advice = ""
        if self._is_saved:
            advice = (
                " The run is saved as it was before; with another likelihood it has to "
                "start over (`fresh=True`), with on_invalid='reject' it can go on."
            )
        step = int(self._state.status.step)
        particles = to_host(self._state.sampler.particles)
        refuse_invalid(particles, f"live points after step {step}", advice)

    def _count_rejected(self) -> int:
        """How many likelihoods were no numbers, on all devices."""
        count = self._rejected.count
        if not is_multiprocess():
            return count
        # A program for the devices of one process runs in each of them, as a whole.
        programs = self._programs.init, self._programs.block
        spread = any(program.spans_processes for program in programs)
        return summed(count) if spread else int(first_says(count)[0])

    def _count_evaluations(self) -> int | None:
        if not self._programs.counts_evaluations:
            return None
        return int(to_host(self._state.status).evaluations)

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

    def result(self, seconds: float, provenance: tuple[Provenance, ...]) -> NestedRun:
        """Return the result of the run so far; checkpoints have it from now on.

        **Arguments:**

        - `seconds`: how long the run took, the same in all processes.
        - `provenance`: the versions that computed it.
        """
        state = self._state
        live = Dying.of(to_host(state.sampler.particles))
        dead = dead_points([_part(x) for x in (self._all_dead(), live)])
        status = to_host(state.status)._replace(seconds=np.float32(seconds))
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
        self._run = NestedRun(
            dead,
            num_steps=int(status.step),
            num_evaluations=self._count_evaluations(),
            converged=not copied
            and (bool(status.exhausted) or any(x.is_convergence for x in met)),
            stop_reason=", and ".join(reasons),
            key=self._volumes_key,
            warnings=warnings,
            seconds=(self._compile_seconds, self.seconds),
            settings=self._settings,
            provenance=provenance,
        )
        return self._run

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


def _part(points: Dying) -> tuple[Any, ...]:
    return (
        points.positions,
        points.logprior,
        points.loglikelihood,
        points.loglikelihood_birth,
    )
