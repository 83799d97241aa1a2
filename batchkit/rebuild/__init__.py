"""Rebuilding samplers: the same functions, with another `vmap`."""

from ._policies import (
    AbstractPolicy as AbstractPolicy,
    ByPhase as ByPhase,
    BySite as BySite,
)
from ._rebuild import rebuild_sampler as rebuild_sampler
from ._sites import (
    Sites as Sites,
    UnreachableSiteError as UnreachableSiteError,
    sites as sites,
)
