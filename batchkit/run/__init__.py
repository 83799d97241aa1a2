"""From a sampler's `init` and `step` to a result, and back to it after a kill."""

from ._chains_moved import ChainCounts as ChainCounts, chain_counts as chain_counts
from ._checkpoint import Checkpoint as Checkpoint, CheckpointError as CheckpointError
from ._dead import DeadPoints as DeadPoints, finalise as finalise
from ._diagnostic import Diagnostic as Diagnostic
from ._diagnostics import diagnose as diagnose
from ._evaluations import evaluations_of as evaluations_of
from ._insertion import (
    insertion_p_value as insertion_p_value,
    insertion_ranks as insertion_ranks,
)
from ._merge import merge as merge
from ._names import parameter_names as parameter_names
from ._nested_run import NestedRun as NestedRun, Seconds as Seconds
from ._summary import Summary as Summary
