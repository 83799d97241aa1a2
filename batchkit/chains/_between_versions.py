"""Comparison of chains with a checkpoint that other versions have written.

A checkpoint has the states of chains, with the log-density where they are and mostly
its gradient: states that are made anew at these positions must have the same. That says
nothing of an algorithm's step, which has its parameters in it. There the first draw is
made again, from the same starts with the same key. A chain amplifies rounding, and may
accept what it rejected before; most chains make the same draw.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
import numpy as np
from jaxtyping import PyTree

from ..run._same_run import Compare, Values, state_in
from ..run._store import Saved
from ..run._trees import to_host, tree_of
from ._programs import Chains
from ._warmup import segment_of_draws


ALGORITHM: Final = "algorithm"


def values_of(
    chains: Chains,
    starts: PyTree,
    parts: tuple[str, ...],
    rounding: Callable[[], float],
) -> Compare:
    """Return the comparison of a checkpoint with chains; see `batchkit.run._same_run`.

    **Arguments:**

    - `chains`: the programs.
    - `starts`: where the chains start, arrays of shape `(chains, ...)`.
    - `parts`: all that the log-density consists of, by their names in the fingerprint.
        Of an algorithm that is the algorithm.
    - `rounding`: how precise the log-density is, relative to its size.
    """

    def values(saved: Saved, changed: Sequence[str]) -> list[Values]:
        before = state_in(saved, "state", chains.chain_shapes).states
        which = tuple(part for part in parts if part in changed)
        if not which:
            return []
        found = _of_states(chains, before, which, rounding())
        if ALGORITHM in which and saved.header["at"] > 0:
            found += _of_first_draw(chains, starts, saved, rounding())
        return found

    return values


def _of_states(
    chains: Chains, before: Any, which: tuple[str, ...], rounding: float
) -> list[Values]:
    if len(jax.tree.leaves(getattr(before, "logdensity", None))) != 1:
        return []  # a state of another layout
    now = to_host(chains.start(before.position).states)
    ((old,), (new,)) = (jax.tree.leaves(x.logdensity) for x in (before, now))
    found = [Values.of_logdensity(which, old, new, rounding)]
    slopes = [getattr(x, "logdensity_grad", None) for x in (before, now)]
    for old, new in zip(*map(jax.tree.leaves, slopes), strict=True):
        # A gradient is near zero in some chains; in all of them it is not.
        scale = np.max(np.abs(old), axis=0, initial=0.0)
        found.append(Values(which, np.asarray(old), np.asarray(new), scale, rounding))
    return found


def _of_first_draw(
    chains: Chains, starts: PyTree, saved: Saved, rounding: float
) -> list[Values]:
    like = chains.shapes_of_draws(saved.header["draws"]).position
    draws = tree_of("draws/position", saved.arrays, like)
    before = _rows(jax.tree.map(lambda x: x[:, 0], draws))
    _, made = chains.advance(chains.start(), segment_of_draws(0, 1))
    assert made is not None
    now = _rows(jax.tree.map(lambda x: x[:, 0], made.position))
    first = _rows(starts)
    scale = np.max(np.maximum(np.abs(before), np.abs(now)), axis=0)
    # Chains that stay where they start, to rounding, tell nothing of the step.
    step = np.maximum(np.abs(before - first), np.abs(now - first))
    moved = np.any(step > rounding * scale, axis=1)
    if not np.any(moved):
        return []
    before, now = before[moved], now[moved]
    far = np.max(np.abs(before - now) / np.where(scale > 0, scale, 1.0), axis=1)
    most = np.argsort(far)[: len(far) // 2 + 1]
    return [Values((ALGORITHM,), before[most], now[most], scale, rounding)]


def _rows(positions: PyTree) -> np.ndarray:
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(positions)]
    return np.concatenate([x.reshape(len(x), -1) for x in leaves], axis=1)
