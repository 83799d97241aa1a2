"""One posterior from data too large for one device or one chain."""

from ._combine import (
    CombinedShards as CombinedShards,
    combine_shards as combine_shards,
)
from ._failure import ShardFailure as ShardFailure
from ._gradients import GradientCheck as GradientCheck
from ._plan import SamplingPlan as SamplingPlan
from ._progress import ShardProgress as ShardProgress
from ._run_shards import run_shards as run_shards
from ._shard_run import ShardRun as ShardRun
from ._sharded_data import ShardedData as ShardedData
from ._sharded_logdensity import sharded_logdensity as sharded_logdensity
from ._stats import (
    SamplingStats as SamplingStats,
    ShardTry as ShardTry,
    Spread as Spread,
)
from ._tries import (
    DIVERGENCE_NOTE as DIVERGENCE_NOTE,
    DIVERGENCE_UNRELIABLE as DIVERGENCE_UNRELIABLE,
    DIVERGENCE_WARNING as DIVERGENCE_WARNING,
)
