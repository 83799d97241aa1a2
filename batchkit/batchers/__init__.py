"""Batchers: values that lay out the tasks of a mapped function."""

from ._abstract import AbstractBatcher as AbstractBatcher
from ._chunked import Chunked as Chunked
from ._filter import filter_batch as filter_batch
from ._marks import expensive as expensive
from ._sequential import Sequential as Sequential
from ._sharded import Sharded as Sharded
from ._trace_log import Site as Site
from ._vmap import Vmap as Vmap
