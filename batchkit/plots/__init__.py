"""Figures of nested runs, of chains, of shards and of layouts."""

from ._boxes import plot_layout as plot_layout
from ._corner import plot_corner as plot_corner
from ._run import plot_run as plot_run
from ._trace import plot_trace as plot_trace
