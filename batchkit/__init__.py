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
    AbstractStop as AbstractStop,
    DeadPoints as DeadPoints,
    EffectiveSize as EffectiveSize,
    Evaluations as Evaluations,
    InvalidLikelihoodError as InvalidLikelihoodError,
    NestedRun as NestedRun,
    NumSteps as NumSteps,
    RemainingEvidence as RemainingEvidence,
    WallTime as WallTime,
    merge as merge,
    run_nested as run_nested,
)
from .plots import (
    plot_corner as plot_corner,
    plot_run as plot_run,
    plot_trace as plot_trace,
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


__all__ = [
    "AbstractBatcher",
    "AbstractPolicy",
    "AbstractStop",
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
    "Continuous",
    "DeadPoints",
    "Diagnostic",
    "EffectiveSize",
    "Evaluations",
    "Explanation",
    "Fitted",
    "InvalidLikelihoodError",
    "LaneStats",
    "MemoryUse",
    "NestedRun",
    "NumSteps",
    "ReachedSite",
    "RemainingEvidence",
    "Selection",
    "Sequential",
    "Sharded",
    "Site",
    "Sites",
    "StartError",
    "UnreachableSiteError",
    "Vmap",
    "WallTime",
    "expensive",
    "explain",
    "filter_batch",
    "fit",
    "memory",
    "merge",
    "plot_corner",
    "plot_run",
    "plot_trace",
    "rebuild_sampler",
    "run_chains",
    "run_nested",
    "sites",
]
