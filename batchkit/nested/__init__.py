"""Nested sampling from live points to an evidence that can be trusted."""

from ._chains_moved import ChainCounts as ChainCounts, chain_counts as chain_counts
from ._dead import DeadPoints as DeadPoints, finalise as finalise
from ._diagnostics import diagnose as diagnose
from ._evaluations import evaluations_of as evaluations_of
from ._insertion import (
    insertion_p_value as insertion_p_value,
    insertion_ranks as insertion_ranks,
)
from ._merge import merge as merge
from ._nested_run import NestedRun as NestedRun
from ._seconds import Seconds as Seconds
