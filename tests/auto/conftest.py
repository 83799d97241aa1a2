"""Settings of the tests of `Auto` and `plan`."""

import pytest

from batchkit.auto import _auto, _task_seconds
from batchkit.auto._task_seconds import Rates


def set_cores(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    """Fix the speeds of the device, so that every machine chooses the same layout."""
    device = Rates(1e10, 2.5e8, products=1e11, bytes=2e10, cores=cores)
    monkeypatch.setattr(_task_seconds, "rates", lambda: device)
    monkeypatch.setattr(_auto, "_CHOICES", type(_auto._CHOICES)())


@pytest.fixture(autouse=True)
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the device so many cores that memory limits the tasks at once, not time."""
    set_cores(monkeypatch, 1_000)


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch, many_cores: None) -> None:
    """Give the device two cores instead."""
    set_cores(monkeypatch, 2)
