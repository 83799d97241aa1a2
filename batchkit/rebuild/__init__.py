"""Rebuilding samplers: the same functions, with another `vmap`."""

from ._errors import UnreachableSiteError as UnreachableSiteError
from ._policies import (
    AbstractPolicy as AbstractPolicy,
    ByPhase as ByPhase,
    BySite as BySite,
)
from ._rebuild import rebuild_sampler as rebuild_sampler
from ._sites import Sites as Sites, sites as sites
