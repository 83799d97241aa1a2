"""Diagnostics of chains: problems that their draws show, with remedies."""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple, final

import jax
import numpy as np
from jaxtyping import PyTree

from ..run._diagnostic import Diagnostic
from ..run._names import join_few
from ._convergence import FEWEST_DRAWS, Convergence
from ._draws import named_numbers


# Recommended by Vehtari et al. (2021, arXiv:1903.08008).
_HIGHEST_RHAT: Final = 1.01
_LOWEST_ESS: Final = 100  # for each chain
_FEWEST_CHAINS: Final = 4

_MOVE: Final = (
    "Use a smaller step size, or start where the log-density is finite all around."
)


@final
class Remedies(NamedTuple):
    """Advice of warnings, in settings of the call that made the draws.

    - `longer`: the settings for more transitions.
    - `draws`: the setting for more draws.
    - `chains`: how to have more chains.
    - `steps`: how to have smaller steps.
    """

    longer: str = "`num_warmup` and `num_samples`"
    draws: str = "`num_samples`"
    chains: str = "pass more `positions`"
    steps: str = "Raise `target_acceptance`, towards 0.99"


OF_API: Final = Remedies()
OF_ALGORITHM: Final = Remedies(longer="`num_samples`", steps="Use smaller steps")


def diagnose_chains(
    samples: PyTree,
    convergence: Convergence,
    *,
    logdensity: Any = None,
    diverging: Any = None,
    tree_depth: Any = None,
    max_tree_depth: int | None = None,
    remedies: Remedies = OF_API,
) -> tuple[Diagnostic, ...]:
    """Return warnings about chains, the most serious first.

    All arrays have the shape `(chains, draws, ...)`. None is not checked.
    """
    rows = _rows(samples)
    chains = len(rows[0])
    warnings = [
        *_not_finite([*rows, *_rows(logdensity)]),
        *_not_converged(rows, convergence, remedies),
    ]
    if diverging is not None and (count := int(np.sum(diverging))):
        # Betancourt (2017, arXiv:1701.02434) explains what divergences show.
        where = np.flatnonzero(np.sum(np.asarray(diverging), axis=1))
        message = (
            f"{count:,} transitions diverged, in chains {_listed(where)}: somewhere "
            "the density is too curved for the step size, and chains miss that "
            f"region. {remedies.steps}; if that does not help, choose other parameters "
            "for the same model, such as centred ones instead of offsets."
        )
        warnings.append(Diagnostic("divergences", float(count), 0.0, message))
    if tree_depth is not None and max_tree_depth is not None:
        cut = np.asarray(tree_depth) >= max_tree_depth
        if count := int(np.sum(cut)):
            message = (
                f"{count:,} of {cut.size:,} draws have a trajectory that was cut off "
                f"at {max_tree_depth} doublings. The draws are right, but more alike "
                "than they could be. Raise `max_num_doublings`, use more "
                "`num_warmup`, or scale the parameters such that all are about as wide."
            )
            warnings.append(Diagnostic("tree depth", float(count), 0.0, message))
    if chains < _FEWEST_CHAINS:
        message = (
            f"there are {chains} chains. Whether chains agree is seen reliably with "
            f"{_FEWEST_CHAINS} or more, started far from each other: {remedies.chains}."
        )
        warnings.append(
            Diagnostic("chains", float(chains), float(_FEWEST_CHAINS), message)
        )
    return tuple(warnings)


def _not_finite(arrays: list[np.ndarray]) -> Iterator[Diagnostic]:
    finite = [np.isfinite(x.astype(np.float64)).all(axis=-1) for x in arrays]
    bad = ~np.all(finite, axis=0)
    if count := int(np.sum(bad)):
        where = np.flatnonzero(np.any(bad, axis=1))
        yield Diagnostic(
            "draws not finite",
            float(count),
            0.0,
            f"{count:,} of {bad.size:,} draws, in chains {_listed(where)}, have a "
            "position or a log-density that is not finite. Do not use this run. Make "
            "the log-density return minus infinity, never NaN, where there is no "
            "probability.",
        )


def _not_converged(
    rows: list[np.ndarray], convergence: Convergence, remedies: Remedies
) -> Iterator[Diagnostic]:
    chains, draws = rows[0].shape[:2]
    if draws < FEWEST_DRAWS:
        yield Diagnostic(
            "draws",
            float(draws),
            float(FEWEST_DRAWS),
            f"nothing can be said about convergence from {draws} draws a chain. Use "
            f"{remedies.draws} of at least {FEWEST_DRAWS}, or better hundreds.",
        )
        return
    rhat = dict(named_numbers(convergence.rhat))
    bulk = dict(named_numbers(convergence.ess_bulk))
    # Parameters whose draws are all equal, and chains in which nothing ever moved.
    equal = [x for x in rhat if np.isnan(rhat[x]) and not np.isnan(bulk[x])]
    still = np.all([np.all(x == x[:, :1], axis=(1, 2)) for x in rows], axis=0)
    if np.any(still):
        names = join_few(list(map(str, np.flatnonzero(still))))
        yield Diagnostic(
            "unmoved",
            float(np.sum(still)),
            0.0,
            f"chains {names} of {chains} are in one place in all {draws:,} draws: "
            f"every proposal was rejected. {_MOVE}",
        )
    elif equal:
        yield Diagnostic(
            "unmoved",
            float(len(equal)),
            0.0,
            f"all draws of {join_few(equal)} are equal, in all chains: nothing moves "
            f"there. {_MOVE}",
        )
    high = {x: value for x, value in rhat.items() if value > _HIGHEST_RHAT}
    if high:
        worst = max(high, key=lambda name: high[name])
        yield Diagnostic(
            "R-hat",
            high[worst],
            _HIGHEST_RHAT,
            f"R-hat of {worst} is {high[worst]:.3f}, and {len(high)} of {len(rhat)} "
            f"are above {_HIGHEST_RHAT}: the chains have not found the same "
            f"distribution. Use more {remedies.longer}; if that does not help, there "
            "may be several modes, or a parametrisation in which steps are small "
            "against the width.",
        )
    needed = _LOWEST_ESS * chains
    for name, tree, of in (
        ("bulk ESS", convergence.ess_bulk, "means and medians"),
        ("tail ESS", convergence.ess_tail, "the 5 % and 95 % quantiles"),
    ):
        sizes = {x: size for x, size in named_numbers(tree) if x not in equal}
        low = {x: size for x, size in sizes.items() if size < needed}
        if low:
            worst = min(low, key=lambda name: low[name])
            yield Diagnostic(
                name,
                low[worst],
                float(needed),
                f"the effective sample size of {worst} is {low[worst]:,.0f} for {of}, "
                f"and that of {len(low)} of {len(rhat)} is below {needed:,}, 100 a "
                "chain. Below that R-hat and the sizes themselves are not reliable. "
                f"Use more {remedies.draws}.",
            )


def _rows(tree: PyTree) -> list[np.ndarray]:
    """Return the arrays with shape `(chains, draws, numbers)`."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(tree)]
    return [x.reshape(*x.shape[:2], -1) for x in leaves]


def _listed(indices: np.ndarray) -> str:
    return ", ".join(map(str, indices))
