"""batchkit: the layout of a sampler's tasks, as a value."""

from .batchers import (
    AbstractBatcher as AbstractBatcher,
    Chunked as Chunked,
    Sequential as Sequential,
    Sharded as Sharded,
    Vmap as Vmap,
    filter_batch as filter_batch,
)
from .rebuild import (
    UnreachableSiteError as UnreachableSiteError,
    rebuild_sampler as rebuild_sampler,
)


__all__ = [
    "AbstractBatcher",
    "Chunked",
    "Sequential",
    "Sharded",
    "UnreachableSiteError",
    "Vmap",
    "filter_batch",
    "rebuild_sampler",
]
