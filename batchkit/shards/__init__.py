"""One posterior from data too large for one device or one chain."""

from ._sharded_data import ShardedData as ShardedData
from ._sharded_logdensity import sharded_logdensity as sharded_logdensity
