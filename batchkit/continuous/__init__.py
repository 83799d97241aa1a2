"""Continuous batching: lanes that never wait for the slowest."""

from ._continuous import Continuous as Continuous, LaneStats as LaneStats
