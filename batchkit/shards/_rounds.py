"""A round: the shards without draws to be trusted run, all that there are together.

The chains of a round are saved as those of `run_chains` are, with all that was known
before the round beside them. So a run that was killed goes on in the middle of a round,
and one that has ended has its last round to return to.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import jax
import numpy as np
from jaxtyping import PyTree

from ..batchers import AbstractBatcher
from ..chains import ChainProgress
from ..chains._chain_identity import layout_of
from ..chains._chain_loop import ResumableChains
from ..chains._chain_programs import Chains
from ..run._checkpoint import CheckpointError
from ..run._file import understood
from ..run._processes import in_first, speaker
from ..run._progress import Reporter
from ..run._resumable import complete
from ..run._saving import Saver
from ..run._store import Saved
from ..run._trees import named_arrays, tree_of
from ._progress import ShardProgress
from ._starts import check_starts
from ._tasks import Model, Shards, ShardTasks
from ._tries import (
    Known,
    after_round,
    known_from,
    nothing_known,
    target_of,
    to_run,
)


_log: Final = logging.getLogger("batchkit")


@final
@dataclass(frozen=True)
class Rounds:
    """What all rounds have in common.

    **Arguments:**

    - `model`: what is sampled, and how.
    - `shards`: the rows of all shards.
    - `batcher`: how chains are laid out.
    - `starts`: where they start, arrays of shape `(shards, chains, ...)`.
    - `rng_key`: the key of the run.
    - `target`: the acceptance rate to tune for in the first round.
    - `block`: the most draws that are made in one call, or None.
    """

    model: Model
    shards: Shards
    batcher: AbstractBatcher
    starts: PyTree
    rng_key: Any
    target: float
    block: int | None

    @property
    def num_chains(self) -> int:
        """How many chains each shard has."""
        return jax.tree.leaves(self.starts)[0].shape[1]

    @property
    def flat_starts(self) -> PyTree:
        """Where all chains of all shards start, arrays of shape `(tasks, ...)`."""
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), self.starts)

    def run(
        self,
        max_tries: int,
        saver: Saver,
        reporter: Reporter,
        about: Mapping[str, Any],
    ) -> Known:
        """Runs rounds until all shards have draws, or tries are used up.

        **Arguments:**

        - `max_tries`: how often a shard runs at most.
        - `saver`: what saves them.
        - `reporter`: what tells of them.
        - `about`: what else the file shall tell of the run, something JSON has.
        """
        saved = saver.resume()
        known = nothing_known(self.shards.count)
        if saved is not None:
            with understood(saved.path):
                known = known_from(saved.header, self.shards.count)
            _check_tries(saved, known, max_tries)
        while which := to_run(known, max_tries):
            known = self._round(known, which, saver, reporter, about, saved)
            saved = None
        return known

    def _round(
        self,
        known: Known,
        which: list[int],
        saver: Saver,
        reporter: Reporter,
        about: Mapping[str, Any],
        saved: Saved | None,
    ) -> Known:
        """Runs some shards, and says what is known then.

        All of them have been tried equally often: who succeeds does not run again.
        """
        (number,) = {len(known.header["shards"][shard]) for shard in which}
        targets, chains = self.chains(known.header["shards"], which)
        self._say(number, which, layout_of(chains))
        if saved is not None and number > 0:
            known = known._replace(arrays=self._known_arrays(saved, chains))
        saver.keep(
            {**known.header, "running": which},
            named_arrays("known", known.arrays),
        )

        def check(states: Any) -> None:
            if number == 0:
                check_starts(
                    (states.logdensity, getattr(states, "logdensity_grad", None)),
                    self.flat_starts,
                    self.num_chains,
                    self.model.logprior_fn,
                )

        def record(progress: ChainProgress, diverged: Any) -> ShardProgress:
            by_shard = None
            if diverged is not None:
                counts = np.sum(np.reshape(diverged, (len(which), -1)), axis=1)
                by_shard = tuple(map(int, counts))
            return ShardProgress(
                phase=progress.phase,
                number=number,
                shards=tuple(which),
                num_shards=self.shards.count,
                draws=progress.draws,
                num_samples=progress.num_samples,
                divergences=by_shard,
                seconds=progress.seconds,
                seconds_left=progress.seconds_left,
            )

        run = ResumableChains(
            chains,
            self.model.num_warmup,
            self.model.num_samples,
            needs_host=saver.is_on or reporter.shows,
            caller="run_shards",
            check_states=check,
            record=record,
            about=about,
        )
        complete(run, saved, saver, reporter)
        made = run.made
        found = made.tuned, made.draws
        known = after_round(known, which, found, targets, made.seconds)
        # Where each process computes everything, their devices may round in their own
        # ways, and must still run the same shards next.
        return known._replace(header=in_first(lambda: known.header))

    def chains(
        self, tries: list[list[dict[str, Any]]], which: list[int]
    ) -> tuple[list[float], Any]:
        """Target acceptance rates of the next try, and the programs of its chains.

        **Arguments:**

        - `tries`: those of each shard so far.
        - `which`: the shards that run.
        """
        targets = [target_of(tries[shard], self.target) for shard in which]
        tasks = ShardTasks(
            self.model, self.shards, which, self.num_chains, self.batcher, targets
        )
        chains = tasks.chains(
            jax.random.fold_in(self.rng_key, len(tries[which[0]])),
            jax.tree.map(lambda x: x[which], self.starts),
            self.block,
        )
        return targets, chains

    def _known_arrays(self, saved: Saved, chains: Chains) -> Any:
        """The arrays of `Known` in a checkpoint."""
        first = self.shards.count, self.num_chains
        samples = self.model.num_samples
        tuned = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((*first, *x.shape), x.dtype),
            chains.tuned_shapes,
        )
        draws = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((*first, samples, *x.shape[1:]), x.dtype),
            chains.draw_shapes,
        )
        with understood(saved.path):
            return tree_of("known", saved.arrays, (tuned, draws))

    def _say(self, number: int, which: list[int], layout: list[str]) -> None:
        told = "; ".join(layout)
        if number > 0:
            names = ", ".join(map(str, which))
            speaker(_log).warning(
                "run_shards: try %d of shards %s, whose draws cannot be used; %s",
                number + 1,
                names,
                told,
            )
            return
        speaker(_log).info(
            "run_shards: %d shards of %d rows, %d chains of each; %d transitions of "
            "warm-up and %d draws; %s",
            self.shards.count,
            self.shards.size(0),
            self.num_chains,
            self.model.num_warmup,
            self.model.num_samples,
            told,
        )

    def gradients(self, used: tuple[int, ...]) -> Callable[[PyTree], PyTree]:
        """A function to the gradients of the log-density of the rows of some shards.

        From arrays of shape `(positions, ...)` to arrays of the same shapes.
        """
        tasks = ShardTasks(self.model, self.shards, list(used), 1, self.batcher)
        of_shards = tasks.gradients()

        def gradients(positions: PyTree) -> PyTree:
            found = of_shards(positions)
            return jax.tree.map(lambda x: np.sum(x, axis=0, dtype=np.float64), found)

        return gradients


def _check_tries(saved: Saved, known: Known, max_tries: int) -> None:
    """Raises if the round that was saved would not be run."""
    running = saved.header["running"]
    number = len(known.header["shards"][running[0]])
    if number >= max_tries:
        raise CheckpointError(
            f"{saved.path!r} was saved in try {number + 1} of shard {running[0]}, and "
            f"max_tries={max_tries} asks for fewer.",
            f"Pass max_tries={number + 1} or more, or start over with `fresh=True`.",
        )
