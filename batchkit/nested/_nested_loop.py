"""A nested run in blocks of steps, from its first live points to its result."""

from dataclasses import dataclass, field, replace
from typing import Any, Final, final

import jax
import numpy as np
from jaxtyping import PyTree

from ..run._checkpoint import CheckpointError
from ..run._names import parameter_names
from ..run._packages import Provenance
from ..run._processes import log
from ..run._result import Diagnostic, Seconds
from ..run._resumable import AbstractResumable, Reporter
from ..run._store import Saved
from ..run._trees import named_arrays, numbers, to_host, tree_from_arrays
from ._chain_counts import describe_moves
from ._dead import DeadPoints, Points, concatenated, dead_points, flat_points, points_of
from ._nested_arguments import refuse_invalid, refuse_zero_likelihood
from ._nested_diagnostics import diagnose
from ._nested_programs import NestedPrograms
from ._nested_run import NestedRun, names_for_load
from ._status import NestedStatus
from ._stop import AbstractStop, MaxSteps, rules_met


# The volumes are simulated with this key, which no step has.
_VOLUMES: Final = 2**32 - 2
_ADVICE: Final = (
    " The run is saved as it was before; with another likelihood it has to start over "
    "(`fresh=True`), with on_invalid='reject' it can go on."
)


@final
@dataclass(eq=False)
class ResumableNested(AbstractResumable):
    """One nested run, from its first live points or its checkpoint to its result."""

    caller = "run_nested"

    _programs: NestedPrograms
    _key: Any
    _positions: PyTree
    _rule: AbstractStop
    _settings: dict[str, Any]
    _is_saved: bool  # for the advice of an error
    # Set by `begin` or `resume`.
    _state: Any = None
    _dead: list[Points] = field(default_factory=list)
    _seconds_before: Seconds = field(default_factory=Seconds)
    # Set by `result`.
    _run: NestedRun | None = None

    def begin(self, reporter: Reporter) -> None:
        init, args = self._programs.init, (self._key, self._positions)
        reporter.compile(self.caller, lambda: init.compile(*args), "first live points")
        with reporter.waiting("likelihoods of the first live points"):
            self._state = init(*args)
        points = self._live()
        refuse_invalid(points, "of the live points given")
        refuse_zero_likelihood(points.loglikelihood)
        shapes = self._programs.dead_shapes(0)
        self._dead = [jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)]

    def resume(self, saved: Saved) -> str:
        try:
            shapes = self._programs.state_shapes
            self._state = tree_from_arrays("state", saved.arrays, shapes)
        except ValueError as error:
            raise CheckpointError(
                f"{saved.path!r} holds a run whose state has other arrays than here: a "
                "version of batchkit wrote it that counts other things.",
                "Finish the run with that version, or start over with `fresh=True`.",
            ) from error
        shapes = self._programs.dead_shapes(int(self._state.status.step))
        self._dead = [tree_from_arrays("dead", saved.arrays, shapes)]
        self._seconds_before = Seconds(*numbers(saved.header, "seconds", 4))
        return f"step {saved.header['step']}"

    def has_ended(self, seconds: float) -> bool:
        status = self._status(seconds)
        return bool(status.exhausted) or bool(rules_met(self._rule, status))

    def advance(self, limit: int, seconds: float, reporter: Reporter) -> int:
        program = self._programs.block
        limits = np.int32(limit), np.float32(seconds)
        args = self._state, self._key, *limits, self._rule
        if not program.is_compiled:
            reporter.compile(self.caller, lambda: program.compile(*args), "steps")
        block = program(*args)
        made = int(block.made)
        self._state = block.state
        self._dead.append(
            flat_points(jax.tree.map(lambda x: x[:made], to_host(block.dead)))
        )
        if bool(block.state.invalid):
            which = f"live points after step {int(block.state.status.step)}"
            refuse_invalid(self._live(), which, _ADVICE if self._is_saved else "")
        return made

    def next_limit(self, made: int | None, per_block: int) -> int:
        # The first block measures a step. Later ones grow slowly, since a single fast
        # block may be an outlier.
        if made is None:
            return 1
        return max(1, min(per_block, 4 * made, self._programs.capacity))

    def progress(self) -> tuple[NestedStatus, int, int | None]:
        status = self._status(self.seconds)
        total = self._rule.steps if isinstance(self._rule, MaxSteps) else None
        return status, int(status.step), total

    def checkpoint(self) -> tuple[dict[str, Any], dict[str, Any]]:
        dead = self._all_dead()
        positions = points_of(self._state.sampler).positions
        header = {
            "step": int(self._state.status.step),
            "seconds": list(self._seconds),
            "settings": self._settings,
            "parameters": list(parameter_names(positions)),
            "rule": repr(self._rule),
            "dead": "positions, log-likelihood, birth, log-prior",
            "evaluations": self._count_evaluations(),
            "result": names_for_load(self._state, dead, self._run),
        }
        arrays = {
            **named_arrays("state", self._state),
            **named_arrays("dead", dead),
            "key": self._volumes_key,
        }
        return header, arrays

    def result(self, seconds: float, provenance: tuple[Provenance, ...]) -> NestedRun:
        """Return the result of the run so far; checkpoints have it from now on."""
        dead = dead_points([self._all_dead(), self._live()])
        status = self._status(seconds)
        met = rules_met(self._rule, status)
        reasons = [rule.reason(status) for rule in met]
        converged = bool(status.exhausted) or any(rule.is_convergence for rule in met)
        if status.exhausted:
            reasons.append("no likelihood is above those of the live points")
        warnings = self._warnings(dead)
        if any(warning.name == "copies" for warning in warnings):
            reasons.append("points are copies of others")
            converged = False
        for warning in warnings:
            log.warning("run_nested: %s", warning)
        self._run = NestedRun(
            dead,
            num_steps=int(status.step),
            num_evaluations=self._count_evaluations(),
            converged=converged,
            stop_reason=", and ".join(reasons),
            key=self._volumes_key,
            warnings=warnings,
            seconds=self._seconds,
            settings=self._settings,
            provenance=provenance,
        )
        return self._run

    @property
    def _seconds(self) -> Seconds:
        init, block = self._programs.init, self._programs.block
        before = self._seconds_before
        return Seconds(
            compile=before.compile + init.compile_seconds + block.compile_seconds,
            sampling=before.sampling + init.seconds + block.seconds,
        )

    def _status(self, seconds: float) -> NestedStatus:
        """Return the status on the host after so many seconds."""
        # Of the dtype that it has in the program, where rules compare it.
        now = np.asarray(seconds, np.float32)
        return replace(to_host(self._state.status), seconds=now)

    @property
    def _volumes_key(self) -> Any:
        return jax.random.fold_in(self._key, _VOLUMES)

    def _live(self) -> Points:
        return to_host(points_of(self._state.sampler))

    def _all_dead(self) -> Points:
        self._dead = [concatenated(self._dead)]
        return self._dead[0]

    def _count_evaluations(self) -> int | None:
        if not self._programs.counts_evaluations:
            return None
        return int(to_host(self._state.status).evaluations)

    def _warnings(self, dead: DeadPoints) -> tuple[Diagnostic, ...]:
        chains = jax.tree.map(np.asarray, self._state.chains)
        if chains is not None and chains.has_moves:
            log.info("run_nested: %s", describe_moves(chains))
        return diagnose(
            dead,
            num_inner_steps=self._programs.num_inner_steps,
            dim=len(parameter_names(dead.positions)),
            num_delete=self._programs.num_delete,
            chains=chains,
        )
