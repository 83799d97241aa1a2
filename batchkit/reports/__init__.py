"""Reports: what one trace reached, and what XLA will allocate for it."""

from ._explain import Explanation as Explanation, explain as explain
from ._memory import MemoryUse as MemoryUse, memory as memory
from ._reached import ReachedSite as ReachedSite
