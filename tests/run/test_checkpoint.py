"""Checkpoints, their errors, and the versions that files record."""

import math
import pathlib
import pickle
import tomllib
from typing import Any

import jax
import pytest
from hypothesis import given, strategies as st

from batchkit.run import Checkpoint, CheckpointError
from batchkit.run._packages import versions
from batchkit.run._saving import seconds_until_next

from ..helpers import assert_refuses


def test_paths_of_pathlib_and_text_are_equal():
    assert Checkpoint("a/run.h5") == Checkpoint(pathlib.PurePosixPath("a/run.h5"), 60)
    assert len({Checkpoint("run.h5", 5), Checkpoint("run.h5", 5.0)}) == 1
    assert repr(Checkpoint("run.h5")) == "Checkpoint(path='run.h5', every=60.0)"


def test_wrong_paths_and_intervals_are_refused():
    paths: list[Any] = [None, 3, b"run.h5"]
    for path in paths:
        words = ("Checkpoint(path=", "'run.h5'", f"got {type(path).__name__}")
        assert_refuses(lambda x=path: Checkpoint(x), TypeError, words)
    for path in ("", "run\0.h5"):
        assert_refuses(lambda x=path: Checkpoint(x), ValueError, ("must name a file",))
    words = ("Checkpoint(every=inf)", "a number above 0", "`checkpoint=None`")
    assert_refuses(lambda: Checkpoint("run.h5", math.inf), ValueError, words)


@given(every=st.floats(1e-3, 1e6), cost=st.floats(0, 1e6))
def test_checkpoints_take_less_than_a_hundredth_of_the_run(every, cost):
    wait = seconds_until_next(every, cost)
    assert wait >= every
    assert cost / (cost + wait) < 0.01
    assert wait == every or cost / wait == pytest.approx(0.01)


def test_checkpoint_error_survives_pickling():
    error = CheckpointError("It is damaged.", "Start over.", damaged=True)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == "It is damaged. Start over."
    assert (again.reason, again.remedy) == ("It is damaged.", "Start over.")
    assert again.damaged


def test_versions_cover_what_the_numbers_depend_on():
    found = versions()
    names = "batchkit", "jax", "jaxlib", "blackjax", "numpy", "python", "platform"
    assert tuple(found) == names
    assert all(found.values())
    assert found["jax"] == jax.__version__


def test_version_of_batchkit_is_that_of_the_distribution(monkeypatch):
    pyproject = pathlib.Path(__file__).parents[2] / "pyproject.toml"
    project = tomllib.loads(pyproject.read_text("utf-8"))["project"]
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"that of {name}")
    assert versions()["batchkit"] == f"that of {project['name']}"


def test_package_that_is_not_installed_has_an_unknown_version(monkeypatch):
    monkeypatch.setattr("batchkit.run._packages._PACKAGES", ("nowhere-to-be-found",))
    assert versions()["nowhere-to-be-found"] == "unknown"
