"""Candidates side by side, on a clock that only moves when something is computed."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, strategies as st

from batchkit.auto._layout_timing import HOPELESS, ROUNDS, SideBySide


class Machine:
    """Compiles in a second, and takes for each call what is next in a list."""

    def __init__(self, seconds: dict[str, list[float]], compile: float = 1.0) -> None:
        self.now = 0.0
        self.order: list[str] = []
        self.seconds = {name: list(taken) for name, taken in seconds.items()}
        self.compile = compile

    def prepare(self, name: str) -> Callable[[], Any] | None:
        self.now += self.compile
        return None if name == "cannot run" else lambda: self.call(name)

    def call(self, name: str) -> str:
        self.order.append(name)
        taken = self.seconds[name]
        self.now += taken.pop(0) if len(taken) > 1 else taken[0]
        return name

    def measured(
        self,
        deadline: float = 1e9,
        advance: Any = lambda fastest: None,
        longest: float = 0.0,
        before: float = 0.0,
    ) -> SideBySide[str]:
        times = SideBySide(self.prepare, advance, longest, before, lambda: self.now)
        times.measure(list(self.seconds), deadline)
        return times


def test_candidates_take_turns_and_the_median_decides() -> None:
    # The machine is busy in the third round, which hits both, and in the first of "a".
    machine = Machine({"a": [3.0, 1.0, 9.0, 1.0, 1.1], "b": [2.0, 2.0, 9.0, 2.0, 2.0]})
    times = machine.measured()
    assert machine.order == ["a", "b"] * ROUNDS
    assert times.medians == pytest.approx({"a": 1.1, "b": 2.0})
    assert list(times.medians) == ["a", "b"]
    assert times.is_complete


def test_hopeless_candidate_is_called_once() -> None:
    slow = HOPELESS * 1.01
    for names in (("a", "slow"), ("slow", "a")):
        machine = Machine({x: [slow if x == "slow" else 1.0] for x in (*names, "b")})
        times = machine.measured()
        assert Counter(machine.order) == {"a": ROUNDS, "b": ROUNDS, "slow": 1}
        assert times.medians["slow"] == pytest.approx(slow)
        assert times.is_complete


def test_dropped_candidate_does_not_win_when_calls_get_longer() -> None:
    longer = [1.0, 9.0, 9.0, 9.0, 9.0]
    times = Machine({"a": longer, "dropped": [5.5], "b": longer}).measured()
    assert list(times.medians) == ["a", "b", "dropped"]
    assert times.fastest() == "a"


def test_nothing_is_begun_that_is_expected_to_end_too_late() -> None:
    machine = Machine({"a": [1.0], "b": [1.0]})
    assert machine.measured(deadline=9.0, before=10.0).num_tried == 0
    assert machine.measured(deadline=30.0, before=10.0).num_tried == 2


def test_what_cannot_run_is_left_out_and_one_alone_is_called_once() -> None:
    machine = Machine({"cannot run": [1.0], "a": [1.0]})
    times = machine.measured()
    assert times.medians == {"a": 1.0}
    assert machine.order == ["a"]
    assert (times.num_tried, times.is_complete) == (2, True)


def test_fastest_call_makes_the_arguments_of_the_next_round() -> None:
    made: list[str] = []
    machine = Machine({"a": [2.0], "b": [1.0]})
    machine.measured(advance=lambda fastest: made.append(fastest()))
    assert made == ["b"] * (ROUNDS - 1)


def test_short_calls_are_repeated() -> None:
    machine = Machine({"a": [1e-3], "b": [2e-3]})
    times = machine.measured()
    assert Counter(machine.order) == {"a": 1 + 4 * 20, "b": 1 + 4 * 10}
    assert times.medians["a"] == pytest.approx(1e-3)


def test_no_candidate_is_begun_that_may_end_too_late() -> None:
    machine = Machine({x: [1.0] for x in "abcd"})
    # Two candidates take 4 s. The next may take 1 s to compile, and 5 s in a first call
    # that is not hopeless; a round takes 2 s. There is time for three of four rounds.
    times = machine.measured(deadline=11.9)
    assert (times.num_tried, times.is_complete) == (2, False)
    assert machine.order == ["a", "b"] * 4
    assert times.medians == {"a": 1.0, "b": 1.0}
    assert Machine({"a": [1.0]}).measured(deadline=-0.1).medians == {}
    assert Machine({"a": [1.0]}).measured(deadline=2.9, longest=3.0).medians == {}


def test_no_round_is_begun_that_ends_too_late() -> None:
    machine = Machine({"a": [1.0], "b": [1.0]})
    times = machine.measured(deadline=4.0 + 2 * 2.0 + 1.9)
    assert machine.order == ["a", "b"] * 3
    assert (times.num_tried, times.is_complete) == (2, False)


@given(
    st.lists(st.floats(0.1, 10.0), min_size=1, max_size=6),
    st.floats(0.0, 5.0),
    st.floats(20.0, 200.0),
)
def test_limit_holds_where_calls_take_what_is_expected(
    seconds: list[float], compile: float, deadline: float
) -> None:
    fastest = min(seconds)
    taken = {str(i): [min(x, HOPELESS * fastest)] for i, x in enumerate(seconds)}
    machine = Machine(taken, compile)
    times = machine.measured(deadline)
    # The first candidate is begun whatever it takes: at most 5 + 10 * 5 seconds.
    assert machine.now <= max(deadline, compile + taken["0"][0])
    best = next(iter(times.medians))
    assert taken[best][0] == min(taken[x][0] for x in times.medians)
