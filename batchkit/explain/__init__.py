"""Mapped calls that one trace of a function reaches, and the memory XLA allocates."""

from ._explain import (
    Explanation as Explanation,
    MemoryUse as MemoryUse,
    ReachedSite as ReachedSite,
    explain as explain,
    memory as memory,
)
from ._loops import Loop as Loop
