"""Continuous batching: lanes take the next task when theirs is done."""

from ._continuous import Continuous as Continuous, LaneStats as LaneStats
