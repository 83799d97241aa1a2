"""Stan's warm-up in windows, one transition at a time.

The schedule, the dual averaging of the step size (Hoffman and Gelman 2014, Journal of
Machine Learning Research 15, section 3.2) and the regularised covariance are
blackjax's. `blackjax.window_adaptation` runs them as one loop over all transitions,
which has its own copy of the sampler's kernel. Here a transition of the warm-up and one
of the sampling are the same program: a gradient-based kernel takes seconds to compile,
and is compiled once; a run can be stopped, saved and resumed inside its warm-up.

The mass matrix changes at the end of a window and nowhere else. Blocks of transitions
end there too (`Segment`), so a dense matrix is factorised once a block, outside the
loop over transitions.
"""

from typing import Any, Final, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._util._formats import format_value as in_short
from ..run._extras import delayed


@final
class Adaptation(NamedTuple):
    """The state of the warm-up of one chain, and what it has found in the end.

    - `step_size`: the step size of the next transition.
    - `inverse_mass_matrix`: the inverse mass matrix of the next transition.
    - `averaging`: the state of the dual averaging of the step size.
    - `moments`: the state of the running covariance of the window.
    """

    step_size: Any
    inverse_mass_matrix: Any
    averaging: Any
    moments: Any


@final
class Segment(NamedTuple):
    """Transitions of one kind, all in one window of the warm-up or all draws.

    - `first`: how many transitions of the warm-up, or draws, are made already.
    - `count`: how many follow.
    - `is_warmup`: whether they adapt.
    - `is_slow`: whether positions enter the estimate of the mass matrix.
    - `ends_window`: whether the mass matrix is updated after the last one.
    - `ends_warmup`: whether the step size becomes the average of the warm-up's.
    """

    first: Any
    count: Any
    is_warmup: Any
    is_slow: Any
    ends_window: Any
    ends_warmup: Any


_NUMBER: Final = jax.ShapeDtypeStruct((), np.uint32)
_FLAG: Final = jax.ShapeDtypeStruct((), np.bool_)
SEGMENT_SHAPES: Final = Segment(*[_NUMBER] * 2, *[_FLAG] * 4)


def segment_of_draws(first: int, count: int) -> Segment:
    """Return the segment of some draws."""
    no = np.bool_(False)
    return Segment(np.uint32(first), np.uint32(count), no, no, no, no)


@final
class Window(NamedTuple):
    """A window of the warm-up: which transitions, and whether it is slow."""

    first: int
    length: int
    is_slow: bool
    ends_warmup: bool

    @property
    def end(self) -> int:
        """The number of the first transition after it."""
        return self.first + self.length

    def segment(self, at: int, count: int) -> Segment:
        """Return the segment of `count` transitions from number `at` on."""
        is_last = at + count == self.end
        return Segment(
            np.uint32(at),
            np.uint32(count),
            np.bool_(True),
            np.bool_(self.is_slow),
            np.bool_(is_last and self.is_slow),
            np.bool_(is_last and self.ends_warmup),
        )


def windows_of(num_warmup: int) -> list[Window]:
    """Return the windows of so many transitions: fast, slow of growing length, fast."""
    if num_warmup == 0:
        return []
    build_schedule = delayed("blackjax.adaptation.window_adaptation").build_schedule
    stages = np.asarray(build_schedule(num_warmup))
    # A window ends where the mass matrix is updated, or where the kind changes.
    changes = np.flatnonzero(stages[1:, 0] != stages[:-1, 0]) + 1
    updates = np.flatnonzero(stages[:, 1]) + 1
    ends = sorted({*map(int, changes), *map(int, updates), num_warmup})
    firsts = [0, *ends[:-1]]
    return [
        Window(first, end - first, bool(stages[first, 0]), end == num_warmup)
        for first, end in zip(firsts, ends, strict=True)
    ]


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
        """**Arguments:**

        - `target_acceptance`: the acceptance rate that the step size is adapted for; a
            float, or a scalar of a program.
        - `is_mass_matrix_diagonal`: whether the mass matrix is diagonal.
        - `initial_inverse_mass_matrix`: where it begins, of shape `(numbers,)` or
            `(numbers, numbers)`; by default the identity.
        - `imm_shrinkage_to_previous`: how many draws of a window the matrix of the
            window before counts as.
        - `initial_step_size`: where the step size begins.
        """
        # Imported here and not in a function that is traced, where the arrays that
        # blackjax makes when it is imported would become tracers.
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
        self._check_matrix(size)
        moments = self._start_covariance(size, self._matrix)
        averaging = self._start_averaging(self._step_size)
        return self._with(averaging, moments)

    def adapt(
        self, adaptation: Adaptation, position: PyTree, acceptance: Any, is_slow: Any
    ) -> Adaptation:
        """Return the adaptation after a transition.

        **Arguments:**

        - `adaptation`: that before it.
        - `position`: where the chain is.
        - `acceptance`: the acceptance rate of the transition.
        - `is_slow`: whether the position enters the estimate of the mass matrix.
        """
        moments = jax.lax.cond(
            is_slow,
            lambda moments: self._accumulate(moments, position),
            lambda moments: moments,
            adaptation.moments,
        )
        return self._with(self._average(adaptation.averaging, acceptance), moments)

    def end_window(self, adaptation: Adaptation) -> Adaptation:
        """Take the mass matrix of the window, and begin to average step sizes anew."""
        mean = self._mean_step_size(adaptation.averaging)
        moments = self._new_matrix(adaptation.moments)
        return self._with(self._start_averaging(mean), moments)

    def end(self, adaptation: Adaptation) -> Adaptation:
        """Take the mean step size of the last window, which draws are made with."""
        return adaptation._replace(step_size=self._mean_step_size(adaptation.averaging))

    def _with(self, averaging: Any, moments: Any) -> Adaptation:
        step_size = jnp.exp(averaging.log_step_size)
        return Adaptation(step_size, moments.inverse_mass_matrix, averaging, moments)

    def _check_matrix(self, size: int) -> None:
        if self._matrix is None:
            return
        shape = (size,) if self._is_diagonal else (size, size)
        if jnp.shape(self._matrix) != shape:
            raise ValueError(
                f"initial_inverse_mass_matrix={in_short(self._matrix)}: "
                f"with is_mass_matrix_diagonal={self._is_diagonal} it must have the "
                f"shape {shape}, for the {size} numbers of a position; it has "
                f"{jnp.shape(self._matrix)}."
            )
