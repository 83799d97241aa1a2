"""batchkit: the layout of a sampler's tasks, as a value."""

from .auto import (
    Auto as Auto,
    BudgetError as BudgetError,
    plan as plan,
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
    run_chains as run_chains,
)
from .continuous import Continuous as Continuous
from .devices import (
    described_device as described_device,
    described_devices as described_devices,
)
from .explain import explain as explain, memory as memory
from .hosts import connect_processes as connect_processes
from .nested import (
    AbstractStop as AbstractStop,
    EffectiveSize as EffectiveSize,
    InvalidLikelihoodError as InvalidLikelihoodError,
    MaxEvaluations as MaxEvaluations,
    MaxSteps as MaxSteps,
    MaxTime as MaxTime,
    NestedRun as NestedRun,
    RemainingEvidence as RemainingEvidence,
    run_nested as run_nested,
)
from .plots import (
    plot_corner as plot_corner,
    plot_layout as plot_layout,
    plot_run as plot_run,
    plot_trace as plot_trace,
)
from .rebuild import (
    AbstractPolicy as AbstractPolicy,
    ByPhase as ByPhase,
    BySite as BySite,
    UnreachableSiteError as UnreachableSiteError,
    rebuild_sampler as rebuild_sampler,
    sites as sites,
)
from .run import (
    Checkpoint as Checkpoint,
    CheckpointError as CheckpointError,
    StartError as StartError,
)
from .shards import (
    SamplingPlan as SamplingPlan,
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
    "AbstractStop",
    "Auto",
    "BudgetError",
    "ByPhase",
    "BySite",
    "ChainRun",
    "Checkpoint",
    "CheckpointError",
    "Chunked",
    "Continuous",
    "EffectiveSize",
    "InvalidLikelihoodError",
    "MaxEvaluations",
    "MaxSteps",
    "MaxTime",
    "NestedRun",
    "RemainingEvidence",
    "SamplingPlan",
    "Sequential",
    "ShardFailure",
    "ShardRun",
    "Sharded",
    "ShardedData",
    "Site",
    "StartError",
    "UnreachableSiteError",
    "Vmap",
    "combine_shards",
    "connect_processes",
    "described_device",
    "described_devices",
    "expensive",
    "explain",
    "filter_batch",
    "memory",
    "plan",
    "plot_corner",
    "plot_layout",
    "plot_run",
    "plot_trace",
    "rebuild_sampler",
    "run_chains",
    "run_nested",
    "run_shards",
    "sharded_logdensity",
    "sites",
]
