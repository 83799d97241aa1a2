"""One posterior from data too large for one device or one chain."""

from ._combine import (
    CombinedShards as CombinedShards,
    combine_shards as combine_shards,
)
from ._gradients import GradientCheck as GradientCheck
from ._run_shards import ShardFailure as ShardFailure, run_shards as run_shards
from ._shard_run import ShardRun as ShardRun
from ._shard_tries import (
    DIVERGENCE_NOTE as DIVERGENCE_NOTE,
    DIVERGENCE_UNRELIABLE as DIVERGENCE_UNRELIABLE,
    DIVERGENCE_WARNING as DIVERGENCE_WARNING,
    SamplingPlan as SamplingPlan,
    ShardTry as ShardTry,
)
from ._sharded_logdensity import (
    ShardedData as ShardedData,
    sharded_logdensity as sharded_logdensity,
)
