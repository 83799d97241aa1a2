"""Nested sampling from live points to an evidence that can be trusted."""

from ._chain_counts import (
    ChainCounts as ChainCounts,
    chain_counts as chain_counts,
    evaluations_of as evaluations_of,
)
from ._dead import DeadPoints as DeadPoints, finalise as finalise
from ._nested_arguments import InvalidLikelihoodError as InvalidLikelihoodError
from ._nested_diagnostics import (
    diagnose as diagnose,
    insertion_p_value as insertion_p_value,
    insertion_ranks as insertion_ranks,
)
from ._nested_run import NestedRun as NestedRun
from ._run_nested import run_nested as run_nested
from ._status import Count as Count, NestedStatus as NestedStatus
from ._stop import (
    AbstractStop as AbstractStop,
    EffectiveSize as EffectiveSize,
    MaxEvaluations as MaxEvaluations,
    MaxSteps as MaxSteps,
    MaxTime as MaxTime,
    RemainingEvidence as RemainingEvidence,
)
