"""batchkit: the layout of a sampler's tasks, as a value."""

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


__all__ = [
    "AbstractBatcher",
    "AbstractPolicy",
    "ByPhase",
    "BySite",
    "Chunked",
    "Continuous",
    "Explanation",
    "LaneStats",
    "MemoryUse",
    "ReachedSite",
    "Sequential",
    "Sharded",
    "Site",
    "Sites",
    "UnreachableSiteError",
    "Vmap",
    "expensive",
    "explain",
    "filter_batch",
    "memory",
    "rebuild_sampler",
    "sites",
]
