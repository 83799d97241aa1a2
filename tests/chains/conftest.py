"""Runs that are compiled once, however many tests make them."""

from ..nested.conftest import (
    compilation_cache_of_tests as compilation_cache_of_tests,
)
