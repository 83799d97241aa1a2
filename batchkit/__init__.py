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
from .continuous import Continuous as Continuous, LaneStats as LaneStats
from .fitting import Fitted as Fitted, fit as fit
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
    ChainRun as ChainRun,
    ChainSeconds as ChainSeconds,
    ChainSummary as ChainSummary,
    Diagnostic as Diagnostic,
    StartError as StartError,
    run_chains as run_chains,
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
    "Chunked",
    "Continuous",
    "Diagnostic",
    "Explanation",
    "Fitted",
    "LaneStats",
    "MemoryUse",
    "ReachedSite",
    "Selection",
    "Sequential",
    "Sharded",
    "Site",
    "Sites",
    "StartError",
    "UnreachableSiteError",
    "Vmap",
    "expensive",
    "explain",
    "filter_batch",
    "fit",
    "memory",
    "rebuild_sampler",
    "run_chains",
    "sites",
]
