"""Ctrl-C and SIGTERM in a real process: the first is a request, the second acts."""

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


def interrupted(child, number):
    """A process that got one signal."""
    pid = child.start("interruptible")
    assert child.line() == "ready"
    os.kill(pid, number)
    assert child.line() == f"requested {number.name}"
    return pid


@pytest.mark.parametrize("number", SIGNALS)
def test_first_signal_is_only_a_request(child, number):
    interrupted(child, number)
    assert child.end() == (["left"], 0)


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_second_signal_acts_at_once(child, first, second):
    pid = interrupted(child, first)
    time.sleep(0.2)
    start = time.monotonic()
    os.kill(pid, second)
    if second == signal.SIGINT:
        assert child.end() == (["KeyboardInterrupt"], 1)
    else:
        assert child.end() == ([], -signal.SIGTERM)
    assert time.monotonic() - start < 0.5


@pytest.mark.parametrize("number", SIGNALS)
def test_simultaneous_signals_are_one_request(child, number):
    """As `timeout` ends a process and then its group, which sends two signals."""
    pid = interrupted(child, number)
    os.kill(pid, number)
    assert child.end() == (["left"], 0)


def test_signal_after_the_last_block_is_raised_on_exit(tmp_path, heard):
    path = tmp_path / "run.h5"
    with Saver(Checkpoint(path), "run", {}) as saver:
        saver.save({}, {})
        signal.raise_signal(signal.SIGTERM)
        assert not heard
    assert heard == [signal.SIGTERM]
    assert [x.name for x in tmp_path.iterdir()] == ["run.h5"]


def test_run_goes_on_after_a_handler_that_returns(tmp_path, heard):
    with Saver(Checkpoint(tmp_path / "run.h5"), "run", {}) as saver:
        signal.raise_signal(signal.SIGTERM)
        saver.look()
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


def test_handlers_are_restored_afterwards(child):
    pid = child.start("interrupted_afterwards")
    assert child.line() == "ready"
    os.kill(pid, signal.SIGINT)
    assert child.end() == (["KeyboardInterrupt"], 1)


def test_ignored_signal_stays_ignored(child):
    child.start("interruptible_but_ignored")
    assert child.end() == (["None", "True"], 0)


def test_other_threads_change_no_handler(child):
    child.start("interruptible_in_a_thread")
    assert child.end() == (["True None"], 0)


def test_handlers_of_others_are_kept(child):
    child.start("interruptible_with_other_handlers")
    assert child.end() == (["True", "before", "inside"], 0)
