"""Progress: bars, lines in the log, calls of a function."""

import io
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import jax
import pytest

from batchkit.run import _resumable
from batchkit.run._processes import SafeLog
from batchkit.run._resumable import Reporter, format_duration
from batchkit.run._saving import check_run

from ..helpers import assert_refuses


class Screen(io.StringIO):
    """A terminal that remembers what it shows."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    monkeypatch.setattr(_resumable, "_TICK", 0.01)
    return Screen()


@contextmanager
def shown_on(screen: Screen, progress: Any) -> Iterator[Reporter]:
    with redirect_stderr(screen), Reporter(progress, "a run", " steps") as reporter:
        yield reporter


def test_terminal_shows_a_bar(screen: Screen) -> None:
    with shown_on(screen, True) as reporter:
        reporter.show("half of it", 5, 10)
        time.sleep(0.15)  # a bar does not redraw at once
        reporter.show("all of it", 10, 10)
    shown = screen.getvalue()
    assert "a run" in shown
    assert "all of it" in shown
    assert "10/10 steps [" in shown
    assert "steps/s" not in shown  # it would count what is not sampling


def test_unknown_total_shows_a_count(screen: Screen) -> None:
    with shown_on(screen, True) as reporter:
        reporter.show("so far", 1200)
        time.sleep(0.15)
        reporter.show("and more", 2500)
    assert "a run: 2,500 steps [" in screen.getvalue()
    assert "and more" in screen.getvalue()


class Broken(Screen):
    """A terminal that goes away while it is written to."""

    error: Exception | None = None

    def write(self, text: str) -> int:
        if self.error is not None:
            raise self.error
        return super().write(text)

    def flush(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    "error", [BrokenPipeError(32, "Broken pipe"), ValueError("closed"), OSError(5, "")]
)
def test_closed_terminal_ends_the_bar_and_not_the_run(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_resumable, "_TICK", 0.01)
    screen = Broken()
    with shown_on(screen, True) as reporter:
        screen.error = error
        with reporter.waiting("compiling"):
            time.sleep(0.05)
        time.sleep(0.15)
        reporter.show("half of it", 5, 10)
    # The next bar does not wait for a lock that this one has kept.
    with shown_on(Screen(), True) as reporter:
        reporter.show("half of it", 5, 10)


def test_closed_stderr_does_not_end_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    log = logging.Logger("batchkit.test")
    log.addHandler(logging.StreamHandler(closed))
    monkeypatch.setattr(sys, "stderr", closed)
    with pytest.raises(ValueError, match="closed"):
        log.warning("what logging does")
    SafeLog(log, {}).warning("a warning")
    with Reporter(True, "a run", " steps") as reporter:
        reporter.show("half of it", 5, 10)
    monkeypatch.setattr(sys, "stderr", None)
    with Reporter(True, "a run", " steps") as reporter:
        reporter.show("half of it", 5, 10)


def test_bar_shows_a_wait(screen: Screen) -> None:
    with shown_on(screen, True) as reporter, reporter.waiting("compiling"):
        time.sleep(0.1)
    assert "compiling, 0 s" in screen.getvalue()


def test_log_has_lines_without_a_terminal(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "batchkit")
    with Reporter(True, "a run", " steps") as reporter:
        reporter.show("too early", 1)
        monkeypatch.setattr(_resumable, "LOG_EVERY", 0.0)
        reporter.show("now", 5000, 10000)
        monkeypatch.setattr(_resumable, "LOG_EVERY", 30.0)
        reporter.show("too early again", 6)
    assert caplog.messages == ["a run: 5,000 of 10,000 steps; now"]


def test_log_has_long_waits(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "batchkit")
    monkeypatch.setattr(_resumable, "LOG_EVERY", 0.02)
    with Reporter(True, "a run", "") as reporter, reporter.waiting("compiling"):
        time.sleep(0.2)
    assert any("a run: compiling" in x for x in caplog.messages)


def test_progress_false_shows_nothing(
    screen: Screen, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "batchkit")
    monkeypatch.setattr(_resumable, "LOG_EVERY", 0.0)
    with shown_on(screen, False) as reporter, reporter.waiting("compiling"):
        reporter.show("half of it", 5)
    assert not screen.getvalue()
    assert not caplog.messages


def test_function_gets_the_record_itself(screen: Screen) -> None:
    records: list[Any] = []
    with shown_on(screen, records.append) as reporter, reporter.waiting("compiling"):
        reporter.show({"step": 5}, 5)
    assert records == [{"step": 5}]
    assert not screen.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3723, "1:02:03")]
)
def test_format_of_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_wrong_progress_is_refused() -> None:
    def check(progress: object) -> None:
        check_run("run", jax.random.key(0), None, False, progress)

    assert_refuses(lambda: check(3), TypeError, ("run(progress=3)",))
    for value in (True, False, print):
        check(value)
