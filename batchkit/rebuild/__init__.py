"""Rebuilding samplers: the same functions, with another `vmap`."""

from ._errors import UnreachableSiteError as UnreachableSiteError
from ._rebuild import rebuild_sampler as rebuild_sampler
