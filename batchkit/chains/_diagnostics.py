"""What can be wrong with chains, how one sees it, and what to do."""

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, final

import jax
import numpy as np
from jaxtyping import PyTree

from ..run._diagnostic import Diagnostic
from ._convergence import FEWEST_DRAWS, Convergence
from ._draws import named_numbers


# What Vehtari et al. (2021, arXiv:1903.08008) recommend.
HIGHEST_RHAT: Final = 1.01
LOWEST_ESS: Final = 100  # for each chain
FEWEST_CHAINS: Final = 4

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
    """Looks for everything that may be wrong with chains.

    **Arguments:**

    - `samples`: a pytree of arrays of shape `(chains, draws, ...)`.
    - `convergence`: R-hat and the effective sample sizes of them.
    - `logdensity`, `diverging`, `tree_depth`: of shape `(chains, draws)`. What is None,
        by default all of these, is not looked at.
    - `max_tree_depth`: the depth at which a trajectory is cut off; by default none.
    - `remedies`: the advice of warnings; by default for a call with an API.

    **Returns:**

    What was found, the most serious first.
    """
    found = [
        *_not_finite(samples, logdensity),
        *_not_converged(samples, convergence, remedies),
    ]
    if diverging is not None:
        found += _divergences(diverging, remedies)
    if tree_depth is not None and max_tree_depth is not None:
        found += _deepest_trees(tree_depth, max_tree_depth)
    return (*found, *_few_chains(samples, remedies))


def _not_finite(samples: PyTree, logdensity: Any) -> Iterator[Diagnostic]:
    kept = [*jax.tree.leaves(samples), *jax.tree.leaves(logdensity)]
    shape = kept[0].shape[:2]
    bad = np.zeros(shape, bool)
    for x in kept:
        finite = np.isfinite(np.asarray(x).astype(np.float64)).reshape(*shape, -1)
        bad |= ~np.all(finite, axis=-1)
    count = int(np.sum(bad))
    if count == 0:
        return
    chains = ", ".join(map(str, np.flatnonzero(np.any(bad, axis=1))))
    yield Diagnostic(
        "draws not finite",
        float(count),
        0.0,
        f"{count:,} of {bad.size:,} draws, in chains {chains}, have a position or a "
        "log-density that is not finite. Do not use this run. Make the log-density "
        "return minus infinity, never NaN, where there is no probability.",
    )


def _not_converged(
    samples: PyTree, convergence: Convergence, remedies: Remedies
) -> Iterator[Diagnostic]:
    chains, draws = jax.tree.leaves(samples)[0].shape[:2]
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
    sizes = dict(named_numbers(convergence.ess_bulk))
    stuck = [x for x in rhat if np.isnan(rhat[x]) and not np.isnan(sizes[x])]
    still = _still(samples)
    if still:
        yield Diagnostic(
            "unmoved",
            float(len(still)),
            0.0,
            f"chains {_some(still)} of {chains} are in one place in all {draws:,} "
            f"draws: every proposal was rejected. {_MOVE}",
        )
    elif stuck:
        yield Diagnostic(
            "unmoved",
            float(len(stuck)),
            0.0,
            f"all draws of {_some(stuck)} are equal, in all chains: nothing moves "
            f"there. {_MOVE}",
        )
    high = {x: value for x, value in rhat.items() if value > HIGHEST_RHAT}
    if high:
        worst = max(high, key=lambda name: high[name])
        yield Diagnostic(
            "R-hat",
            high[worst],
            HIGHEST_RHAT,
            f"R-hat of {worst} is {high[worst]:.3f}, and {len(high)} of {len(rhat)} "
            f"are above {HIGHEST_RHAT}: the chains have not found the same "
            f"distribution. Use more {remedies.longer}; if that does not help, there "
            "may be several modes, or a parametrisation in which steps are small "
            "against the width.",
        )
    needed = LOWEST_ESS * chains
    for name, tree, what in (
        ("bulk ESS", convergence.ess_bulk, "means and medians"),
        ("tail ESS", convergence.ess_tail, "the 5 % and 95 % quantiles"),
    ):
        named = {x: size for x, size in named_numbers(tree) if x not in stuck}
        low = {x: size for x, size in named.items() if size < needed}
        if low:
            worst = min(low, key=lambda name: low[name])
            yield Diagnostic(
                name,
                low[worst],
                float(needed),
                f"the draws of {worst} are worth {low[worst]:,.0f} independent ones "
                f"for {what}, and those of {len(low)} of {len(rhat)} less than "
                f"{needed:,}, 100 a chain. Below that R-hat and the sizes themselves "
                f"are not reliable. Use more {remedies.draws}.",
            )


def _divergences(diverging: Any, remedies: Remedies) -> Iterator[Diagnostic]:
    """Betancourt (2017, arXiv:1701.02434) says what divergences tell."""
    by_chain = np.sum(np.asarray(diverging), axis=1)
    count = int(np.sum(by_chain))
    if count == 0:
        return
    chains = ", ".join(map(str, np.flatnonzero(by_chain)))
    yield Diagnostic(
        "divergences",
        float(count),
        0.0,
        f"{count:,} transitions diverged, in chains {chains}: somewhere the density "
        "is too curved for the step size, and chains miss that region. "
        f"{remedies.steps}; if that does not help, choose other "
        "parameters for the same model, such as centred ones instead of offsets.",
    )


def _deepest_trees(tree_depth: Any, max_tree_depth: int) -> Iterator[Diagnostic]:
    cut = np.asarray(tree_depth) >= max_tree_depth
    count = int(np.sum(cut))
    if count == 0:
        return
    yield Diagnostic(
        "tree depth",
        float(count),
        0.0,
        f"{count:,} of {cut.size:,} draws have a trajectory that was cut off at "
        f"{max_tree_depth} doublings. The draws are right, but more alike than they "
        "could be. Raise `max_num_doublings`, use more `num_warmup`, or scale the "
        "parameters such that all are about as wide.",
    )


def _few_chains(samples: PyTree, remedies: Remedies) -> Iterator[Diagnostic]:
    chains = jax.tree.leaves(samples)[0].shape[0]
    if chains >= FEWEST_CHAINS:
        return
    yield Diagnostic(
        "chains",
        float(chains),
        float(FEWEST_CHAINS),
        f"there are {chains} chains. Whether chains agree is seen reliably with "
        f"{FEWEST_CHAINS} or more, started far from each other: {remedies.chains}.",
    )


def _still(samples: PyTree) -> list[int]:
    """The chains of which no number has ever moved."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(samples)]
    same = [np.all((x == x[:, :1]).reshape(len(x), -1), axis=1) for x in leaves]
    return np.flatnonzero(np.all(same, axis=0)).tolist()


def _some(names: Sequence[Any]) -> str:
    few = ", ".join(map(str, names[:5]))
    return f"{few} and {len(names) - 5} more" if len(names) > 5 else few
