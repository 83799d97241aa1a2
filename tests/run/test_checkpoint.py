"""Where and how often a run is saved."""

import pathlib
import pickle
import tomllib

import pytest
from hypothesis import given, strategies as st

from batchkit.run import Checkpoint, CheckpointError
from batchkit.run._checkpoint import seconds_until_next
from batchkit.run._environment import versions

from ..helpers import assert_refuses


def test_a_path_may_be_written_in_two_ways():
    assert Checkpoint("a/run.h5") == Checkpoint(pathlib.PurePosixPath("a/run.h5"), 60)
    assert len({Checkpoint("run.h5", 5), Checkpoint("run.h5", 5.0)}) == 1
    assert repr(Checkpoint("run.h5")) == "Checkpoint(path='run.h5', every=60.0)"


@pytest.mark.parametrize("path", [None, 3, b"run.h5"])
def test_what_is_no_path(path):
    words = ("Checkpoint(path=", "'run.h5'", f"got {type(path).__name__}")
    assert_refuses(lambda: Checkpoint(path), TypeError, words)


@pytest.mark.parametrize("path", ["", "run\0.h5"])
def test_a_path_that_names_nothing(path):
    assert_refuses(lambda: Checkpoint(path), ValueError, ("must name a file",))


@pytest.mark.parametrize("every", [True, "60", None])
def test_what_is_no_time(every):
    words = (f"Checkpoint(every={every!r})", f"got {type(every).__name__}")
    assert_refuses(lambda: Checkpoint("run.h5", every), TypeError, words)


@pytest.mark.parametrize("every", [0, -1.0, float("inf"), float("nan")])
def test_a_time_is_above_zero_and_finite(every):
    words = (f"Checkpoint(every={every!r})", "`checkpoint=None`")
    assert_refuses(lambda: Checkpoint("run.h5", every), ValueError, words)


@given(every=st.floats(1e-3, 1e6), cost=st.floats(0, 1e6))
def test_checkpoints_take_less_than_a_hundredth(every, cost):
    wait = seconds_until_next(every, cost)
    assert wait >= every
    assert cost / (cost + wait) < 0.01
    assert wait == every or cost / wait == pytest.approx(0.01)


def test_an_error_keeps_its_parts():
    error = CheckpointError("It is damaged.", "Start over.", damaged=True)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == "It is damaged. Start over."
    assert (again.reason, again.remedy) == ("It is damaged.", "Start over.")
    assert again.damaged


def test_versions_are_of_what_the_numbers_depend_on():
    found = versions()
    assert set(found) == {
        "batchkit",
        "jax",
        "jaxlib",
        "blackjax",
        "numpy",
        "python",
        "platform",
    }
    assert all(found.values())
    assert found["jax"] == __import__("jax").__version__
    assert found["numpy"] == __import__("numpy").__version__


def test_the_version_is_that_of_the_distribution(monkeypatch):
    pyproject = pathlib.Path(__file__).parents[2] / "pyproject.toml"
    project = tomllib.loads(pyproject.read_text("utf-8"))["project"]
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"that of {name}")
    assert versions()["batchkit"] == f"that of {project['name']}"


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr("batchkit.run._environment._PACKAGES", ("nowhere-to-be-found",))
    assert versions()["nowhere-to-be-found"] == "unknown"
