"""Stan's warm-up in windows, one transition at a time.

The schedule, the dual averaging of the step size (Hoffman and Gelman 2014, Journal of
Machine Learning Research 15, section 3.2) and the regularised covariance are
blackjax's. `blackjax.window_adaptation` runs them as one loop over all transitions,
with its own copy of the sampler's kernel. Here a transition of the warm-up and one of
the draws are the same program: a gradient-based kernel takes seconds to compile, and is
compiled once; and a run can be saved and resumed inside its warm-up.

The mass matrix changes at the end of a window and nowhere else. Blocks of transitions
(`Segment`) end there too, so a dense matrix is factorised once a block, outside the
loop over transitions.
"""

from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._util._formats import format_value
from ..run._extras import delayed


@final
class Adaptation(NamedTuple):
    """State of the warm-up of one chain.

    - `step_size`, `inverse_mass_matrix`: those of the next transition.
    - `averaging`: the state of the dual averaging of the step size.
    - `moments`: the state of the running covariance of the window.
    """

    step_size: Any
    inverse_mass_matrix: Any
    averaging: Any
    moments: Any


@final
class Segment(NamedTuple):
    """Transitions of one window of the warm-up, or draws: all of them or a part.

    - `first`: the number of transitions of the warm-up, or of draws, before them.
    - `count`: the number of transitions, or of draws.
    - `end`: the number of the first transition after the window.
    - `is_warmup`: whether the transitions adapt.
    - `is_slow`: whether positions enter the estimate of the mass matrix, which changes
      at the end of the window.
    - `ends_warmup`: whether the step size becomes its average at the end of the window.
    """

    first: Any
    count: Any
    end: Any
    is_warmup: Any = False
    is_slow: Any = False
    ends_warmup: Any = False


def windows_of(num_warmup: int) -> list[Segment]:
    """Return the windows of a warm-up: fast, slow of growing length, fast."""
    if num_warmup == 0:
        return []
    build_schedule = delayed("blackjax.adaptation.window_adaptation").build_schedule
    is_slow, ends_window = np.asarray(build_schedule(num_warmup)).astype(bool).T
    # A window ends where the mass matrix is updated, or where the kind changes.
    changes = np.append(is_slow[1:] != is_slow[:-1], True)
    ends = [int(i) + 1 for i in np.flatnonzero(changes | ends_window)]
    return [
        Segment(first, end - first, end, True, bool(is_slow[first]), end == num_warmup)
        for first, end in zip([0, *ends[:-1]], ends, strict=True)
    ]


def draws_segment(first: int, count: int) -> Segment:
    """Return the segment of `count` draws from number `first` on."""
    return Segment(first, count, first + count)


@final
class Warmup:
    """Functions of one chain that adapt its step size and its mass matrix."""

    def __init__(
        self,
        target_acceptance: Any,
        *,
        is_mass_matrix_diagonal: bool = True,
        initial_inverse_mass_matrix: Any = None,
        imm_shrinkage_to_previous: float = 0.0,
        initial_step_size: Any = 1.0,
    ) -> None:
        """**Arguments:** as `blackjax.window_adaptation`; the target may be traced."""
        # Imported outside of any trace: the arrays that blackjax makes while it is
        # imported would be tracers, and leak.
        step_size = delayed("blackjax.adaptation.step_size")
        mass_matrix = delayed("blackjax.adaptation.mass_matrix")
        averaging = step_size.dual_averaging_adaptation(target_acceptance)
        covariance = mass_matrix.mass_matrix_adaptation(
            is_mass_matrix_diagonal, imm_shrinkage_to_previous
        )
        self._start_averaging, self._average, self._mean_step_size = averaging
        self._start_covariance, self._accumulate, self._new_matrix = covariance
        self._is_diagonal = is_mass_matrix_diagonal
        self._matrix = initial_inverse_mass_matrix
        self._step_size = initial_step_size

    def init(self, position: PyTree) -> Adaptation:
        """Return the adaptation before the first transition."""
        size = sum(jnp.size(x) for x in jax.tree.leaves(position))
        shape = (size,) if self._is_diagonal else (size, size)
        if self._matrix is not None and jnp.shape(self._matrix) != shape:
            raise ValueError(
                f"initial_inverse_mass_matrix={format_value(self._matrix)}: "
                f"with is_mass_matrix_diagonal={self._is_diagonal} it must have the "
                f"shape {shape}, for the {size} numbers of a position; it has "
                f"{jnp.shape(self._matrix)}."
            )
        moments = self._start_covariance(size, self._matrix)
        return _adaptation(self._start_averaging(self._step_size), moments)

    def adapt(
        self, adaptation: Adaptation, position: PyTree, acceptance: Any, is_slow: Any
    ) -> Adaptation:
        """Return the adaptation after a transition to a position."""
        moments = jax.lax.cond(
            is_slow,
            lambda moments: self._accumulate(moments, position),
            lambda moments: moments,
            adaptation.moments,
        )
        return _adaptation(self._average(adaptation.averaging, acceptance), moments)

    def end_window(self, adaptation: Adaptation) -> Adaptation:
        """Take the mass matrix of the window, and restart the step size's average."""
        mean = self._mean_step_size(adaptation.averaging)
        return _adaptation(
            self._start_averaging(mean), self._new_matrix(adaptation.moments)
        )

    def end(self, adaptation: Adaptation) -> Adaptation:
        """Take the mean step size of the last window, which draws are made with."""
        return adaptation._replace(step_size=self._mean_step_size(adaptation.averaging))


def _adaptation(averaging: Any, moments: Any) -> Adaptation:
    step_size = jnp.exp(averaging.log_step_size)
    return Adaptation(step_size, moments.inverse_mass_matrix, averaging, moments)
