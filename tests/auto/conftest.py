"""Settings of the tests of `Auto` and `plan`."""

import pytest

from batchkit.auto import _lane_count
from batchkit.auto._lane_count import Rates


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fix the speeds of the device, so that every machine chooses the same lanes."""
    device = Rates(operations=1e9, products=1e11, bytes=2e10, cores=2)
    monkeypatch.setattr(_lane_count, "rates", lambda: device)
