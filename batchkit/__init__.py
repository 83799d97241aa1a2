"""batchkit: the layout of a sampler's tasks, as a value."""

from .auto import (
    Auto as Auto,
    BudgetError as BudgetError,
    Selection as Selection,
)
from .batchers import (
    AbstractBatcher as AbstractBatcher,
    Chunked as Chunked,
    Sequential as Sequential,
    Sharded as Sharded,
    Site as Site,
    Vmap as Vmap,
    expensive as expensive,
    filter_batch as filter_batch,
)
from .chains import (
    ChainRun as ChainRun,
    ChainSeconds as ChainSeconds,
    ChainSummary as ChainSummary,
    StartError as StartError,
    run_chains as run_chains,
)
from .continuous import Continuous as Continuous, LaneStats as LaneStats
from .fitting import Fitted as Fitted, fit as fit
from .nested import (
    DeadPoints as DeadPoints,
    NestedRun as NestedRun,
    merge as merge,
)
from .rebuild import (
    AbstractPolicy as AbstractPolicy,
    ByPhase as ByPhase,
    BySite as BySite,
    Sites as Sites,
    UnreachableSiteError as UnreachableSiteError,
    rebuild_sampler as rebuild_sampler,
    sites as sites,
)
from .reports import (
    Explanation as Explanation,
    MemoryUse as MemoryUse,
    ReachedSite as ReachedSite,
    explain as explain,
    memory as memory,
)
from .run import (
    Checkpoint as Checkpoint,
    CheckpointError as CheckpointError,
    Diagnostic as Diagnostic,
)
from .shards import (
    CombinedShards as CombinedShards,
    SamplingPlan as SamplingPlan,
    SamplingStats as SamplingStats,
    ShardedData as ShardedData,
    ShardFailure as ShardFailure,
    ShardRun as ShardRun,
    combine_shards as combine_shards,
    run_shards as run_shards,
    sharded_logdensity as sharded_logdensity,
)


__all__ = [
    "AbstractBatcher",
    "AbstractPolicy",
    "Auto",
    "BudgetError",
    "ByPhase",
    "BySite",
    "ChainRun",
    "ChainSeconds",
    "ChainSummary",
    "Checkpoint",
    "CheckpointError",
    "Chunked",
    "CombinedShards",
    "Continuous",
    "DeadPoints",
    "Diagnostic",
    "Explanation",
    "Fitted",
    "LaneStats",
    "MemoryUse",
    "NestedRun",
    "ReachedSite",
    "SamplingPlan",
    "SamplingStats",
    "Selection",
    "Sequential",
    "ShardFailure",
    "ShardRun",
    "Sharded",
    "ShardedData",
    "Site",
    "Sites",
    "StartError",
    "UnreachableSiteError",
    "Vmap",
    "combine_shards",
    "expensive",
    "explain",
    "filter_batch",
    "fit",
    "memory",
    "merge",
    "rebuild_sampler",
    "run_chains",
    "run_shards",
    "sharded_logdensity",
    "sites",
]
