"""Mapped calls that one trace of a function reaches, and the memory XLA allocates."""

from ._explain import (
    Explanation as Explanation,
    ReachedSite as ReachedSite,
    explain as explain,
)
from ._memory_use import MemoryUse as MemoryUse, memory as memory
