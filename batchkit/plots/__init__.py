"""Figures of nested runs, of chains and of shards."""

from ._corner import plot_corner as plot_corner
from ._run import plot_run as plot_run
from ._trace import plot_trace as plot_trace
