"""Ctrl-C and SIGTERM in a real process: once to ask, twice to leave at once."""

import os
import signal
import time

import pytest

from batchkit.run._checkpoint import Checkpoint
from batchkit.run._saving import Saver

from .processes import children


SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(scope="module")
def child():
    with children() as child:
        yield child


def asked(child, number):
    """A process that has been asked once."""
    pid = child.start("interruptible")
    assert child.line() == "ready"
    os.kill(pid, number)
    assert child.line() == f"requested {number.name}"
    return pid


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_only_asks(child, number):
    asked(child, number)
    assert child.end() == (["left"], 0)


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_second_signal_acts_at_once(child, first, second):
    pid = asked(child, first)
    time.sleep(0.2)
    start = time.monotonic()
    os.kill(pid, second)
    if second == signal.SIGINT:
        assert child.end() == (["KeyboardInterrupt"], 1)
    else:
        assert child.end() == ([], -signal.SIGTERM)
    assert time.monotonic() - start < 0.5


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_that_come_together_ask_once(child, number):
    """As `timeout` ends a process and then its group, so that it is told twice."""
    pid = asked(child, number)
    os.kill(pid, number)
    assert child.end() == (["left"], 0)


def test_one_that_comes_when_nobody_looks_any_more(tmp_path, heard):
    path = tmp_path / "run.h5"
    with Saver(Checkpoint(path), "run", {}) as saver:
        saver.save({}, {})
        signal.raise_signal(signal.SIGTERM)
        assert not heard
    assert heard == [signal.SIGTERM]
    assert [x.name for x in tmp_path.iterdir()] == ["run.h5"]


def test_a_run_that_the_handler_lets_go_on_is_asked_once(tmp_path, heard):
    with Saver(Checkpoint(tmp_path / "run.h5"), "run", {}) as saver:
        signal.raise_signal(signal.SIGTERM)
        assert saver.interrupted
        saver.leave()
        assert heard == [signal.SIGTERM]
        assert not saver.interrupted
    assert heard == [signal.SIGTERM]


@pytest.fixture
def heard():
    """The signals for which a handler was called that returns."""
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    yield heard
    signal.signal(signal.SIGTERM, before)


def test_afterwards_all_is_as_before(child):
    pid = child.start("interrupted_afterwards")
    assert child.line() == "ready"
    os.kill(pid, signal.SIGINT)
    assert child.end() == (["KeyboardInterrupt"], 1)


def test_what_is_ignored_stays_ignored(child):
    child.start("interruptible_but_ignored")
    assert child.end() == (["None", "True"], 0)


def test_outside_of_the_main_thread_nothing_changes(child):
    child.start("interruptible_in_a_thread")
    assert child.end() == (["True None"], 0)


def test_the_handlers_of_others(child):
    child.start("interruptible_with_other_handlers")
    assert child.end() == (["True", "before", "inside"], 0)
