"""Several processes give the numbers of one, and end together."""

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchkit.run._file import read_file

from .together import HEARTBEAT, Ended, Together, found


# Processes, and devices of each.
WAYS = [(2, 2), (4, 1)]
Results = dict[str, np.ndarray]


def assert_same(actual: Results, expected: Results, rtol: float = 1e-12) -> None:
    """Integers to the bit, other numbers to rounding."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype
        if value.dtype.kind == "f":
            np.testing.assert_allclose(
                actual[name], value, rtol=rtol, atol=rtol, err_msg=name
            )
        else:
            np.testing.assert_array_equal(actual[name], value, err_msg=name)


def assert_same_run(actual: Results, expected: Results) -> None:
    """The evidence to 1e-9; points to rounding that many steps have made larger."""
    np.testing.assert_allclose(actual["evidence"], expected["evidence"], atol=1e-9)
    assert_same(actual, expected, 1e-7)


def test_a_little_of_everything(tmp_path: Path) -> None:
    (one,) = found("quick", tmp_path / "one", 1, 4)
    two = found("quick", tmp_path / "two", 2, 2)
    for each in two:
        said = str(each.pop("said"))
        assert "process 0 has 4 tasks (float64[4])" in said
        assert "process 1 has 8 tasks (float64[8])" in said
        assert_same_run(each, {k: v for k, v in one.items() if k != "said"})
    assert read_file(tmp_path / "two" / "run.h5")[0]["step"] == two[0]["counts"][0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """What a program returns in one process, computed once."""
    folder = tmp_path_factory.mktemp("processes")
    known: dict[str, Any] = {}

    def one(name: str, **options: Any) -> tuple[Path, Results]:
        key = f"{name} {options}"
        if key not in known:
            place = folder / f"one {len(known)}"
            known[key] = place, found(name, place, 1, 4, **options)[0]
        return folder, known[key][1]

    return one


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_sharded(runs: Callable[..., Any], way: tuple[int, int]) -> None:
    folder, expected = runs("shares")
    for each in found("shares", folder / f"shares {way}", *way):
        assert_same(each, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("dtypes", r"process 0 has 4 tasks \(float32\[4\]\).*process 1 .*float64\[4\]"),
        ("closures", r"over float64\[2\].*process 1 has 4 tasks.*over float64\[3\]"),
        ("outputs", r"return float64\[2\].*process 1 .*return float64\[3\]"),
        ("seed", "2 processes .* do not agree on its first live points, key"),
        ("stop", "do not agree on its stop"),
        ("num_delete", "do not agree on its settings"),
        ("layout", "do not agree on its batcher"),
        ("data", "do not agree on its data"),
        ("num_shards", "do not agree on its likelihood, split into shards, positions"),
        ("batcher", "do not agree on its batcher"),
        ("combine", "do not agree on its combine"),
        ("on_failure", "do not agree on its on_failure"),
        ("refine", "do not agree on its refine"),
    ],
)
def test_disagreeing(tmp_path: Path, what: str, words: str) -> None:
    for each in found("disagreeing", tmp_path / "run", 2, 2, what=what):
        assert re.search(words, str(each["said"])), each["said"]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("batcher", "num_delete"),
    [("Sharded", 8), ("Sharded", 10), ("Sharded, Continuous", 3)],
)
def test_init_and_steps(
    runs: Callable[..., Any], way: tuple[int, int], batcher: str, num_delete: int
) -> None:
    options = {"batcher": batcher, "num_delete": num_delete}
    folder, expected = runs("step", **{**options, "batcher": "Vmap"})
    name = f"step {way} {batcher} {num_delete}"
    for each in found("step", folder / name, *way, **options):
        assert_same(each, expected, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "batcher", ["Sharded", "Vmap", "Sharded, then Vmap", "Vmap, then Sharded"]
)
def test_whole_run(
    runs: Callable[..., Any], way: tuple[int, int], batcher: str
) -> None:
    folder, expected = runs("run")
    name = f"run {way} {batcher}"
    for each in found("run", folder / name, *way, batcher=batcher):
        assert_same_run(each, expected)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("victim", [0, -1])
def test_killed(runs: Callable[..., Any], way: tuple[int, int], victim: int) -> None:
    """The others end with an error, and the run goes on in any number of processes."""
    folder, expected = runs("run")
    place = folder / f"killed {way} {victim}"
    with Together("run", place, *way, slow=0.2) as started:
        started.wait_for_step(6)
        started.processes[victim].kill()
        ended = started.end(limit=6 * HEARTBEAT)
    assert all(x.status != 0 for x in ended), ended
    assert "end" not in [line for x in ended for line in x.out.splitlines()]
    assert 0 < read_file(place / "run.h5")[0]["step"] < expected["counts"][0]
    for other in [way, (1, 4), (3, 2)] if way == (2, 2) else [way]:
        copy = folder / f"gone on {way} {victim} {other}"
        copy.mkdir()
        (copy / "run.h5").write_bytes((place / "run.h5").read_bytes())
        with Together("run", copy, *other) as again:
            for each in again.found():
                assert_same_run(each, expected)
            assert "resuming " in again.end()[0].errors


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("who", [0, 1])
def test_a_signal_counts_in_any_process(
    runs: Callable[..., Any], number: signal.Signals, who: int
) -> None:
    folder, expected = runs("run")
    place = folder / f"signal {number} {who}"
    # Nothing but the signal makes it save.
    with Together("run", place, 2, 2, slow=0.2, every=1e6) as started:
        started.wait_for_step(4)
        started.processes[who].send_signal(number)
        ended = started.end(limit=6 * HEARTBEAT)
    assert all(x.status != 0 for x in ended), ended
    assert ["saved to" in x.errors for x in ended] == [True, False]
    assert read_file(place / "run.h5")[0]["step"] >= 4
    for each in found("run", place, 2, 2):
        assert_same_run(each, expected)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("chains", {}),
        ("chains", {"batcher": "Sharded, Chunked"}),
        ("chains", {"batcher": "Vmap"}),
        ("chains", {"batcher": "Vmap", "exact": True}),
        # As many as the devices divide, so that results stay where they are.
        ("chains", {"count": 8}),
        ("shards", {"num_shards": 4}),
        # Only the first process is in a hurry: it tells of the run, and saves nothing.
        ("chains", {"saved": False}),
        ("shards", {"saved": False, "batcher": "Vmap"}),
        ("shards", {}),
        ("shards", {"batcher": "Sharded, Chunked"}),
        ("shards", {"batcher": "Vmap"}),
    ],
)
def test_chains_and_shards(
    runs: Callable[..., Any], way: tuple[int, int], name: str, options: dict[str, Any]
) -> None:
    sizes = {k: v for k, v in options.items() if k in ("count", "num_shards")}
    folder, expected = runs(name, **sizes)
    if name == "shards":
        assert max(expected["tries"]) > 1
    place = folder / f"{name} {way} {options}"
    for each in found(name, place, *way, **options):
        assert_same(each, expected, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chains", "shards"])
@pytest.mark.parametrize("victim", [0, -1])
def test_killed_chains(runs: Callable[..., Any], name: str, victim: int) -> None:
    folder, expected = runs(name)
    place = folder / f"{name} killed {victim}"
    with Together(name, place, 2, 2, slow=0.3) as started:
        started.wait_for_step(4)
        started.processes[victim].kill()
        ended = started.end(limit=6 * HEARTBEAT)
    assert all(x.status != 0 for x in ended), ended
    assert read_file(place / "run.h5")[0]["draws"] < 40
    for other in [(2, 2), (1, 4)]:
        copy = folder / f"{name} gone on {victim} {other}"
        copy.mkdir()
        (copy / "run.h5").write_bytes((place / "run.h5").read_bytes())
        with Together(name, copy, *other) as again:
            for each in again.found():
                assert_same(each, expected, 1e-9)
            first, *others = again.end()
            assert "resuming " in first.errors
            assert all("resuming " not in x.errors for x in others)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chains", "shards"])
def test_a_signal_counts_for_chains(runs: Callable[..., Any], name: str) -> None:
    folder, expected = runs(name)
    place = folder / f"{name} signal"
    with Together(name, place, 2, 2, slow=0.3, every=1e6) as started:
        started.wait_for_step(2)
        started.processes[1].send_signal(signal.SIGINT)
        ended = started.end(limit=6 * HEARTBEAT)
    assert all("KeyboardInterrupt" in x.errors for x in ended), ended
    assert 4 <= read_file(place / "run.h5")[0]["draws"] < 40
    for each in found(name, place, 2, 2):
        assert_same(each, expected, 1e-9)


@pytest.mark.slow
def test_exact_chains_go_on_in_another_number_of_processes(
    runs: Callable[..., Any],
) -> None:
    """What the data are is known by their values, wherever they lie."""
    options = {"batcher": "Vmap", "exact": True}
    folder, expected = runs("chains", **options)
    place = folder / "exact"
    found("chains", place, 2, 2, **options)
    with Together("chains", place, 1, 4, **options) as again:
        for each in again.found():
            assert_same(each, expected, 1e-9)
        assert "resuming " in again.end()[0].errors


@pytest.mark.slow
def test_only_the_first_process_speaks(runs: Callable[..., Any]) -> None:
    folder, _ = runs("run")
    with Together("run", folder / "speaks", 2, 2) as started:
        first, second = started.end()
    assert first.steps
    assert "compiled steps" in first.errors
    assert not second.steps
    assert "run_nested" not in second.errors


@pytest.mark.slow
def test_what_fails_in_the_first_process_fails_in_all(
    runs: Callable[..., Any], tmp_path: Path
) -> None:
    runs("run")
    folder = tmp_path / "fails"
    with Together("run", folder, 2, 2, fails_at=3) as started:
        ended = started.end()
    assert "LookupError: the user's function fails" in ended[0].errors
    assert "process 0 raised LookupError: the user's function" in ended[1].errors
    _assert_failed(ended)
    (folder / "run.h5").write_bytes(b"something else")
    (folder / "run.h5.previous").unlink(missing_ok=True)
    with Together("run", folder, 2, 2) as started:
        ended = started.end()
    _assert_failed(ended)
    for each in ended:
        assert "It is something else, or its first bytes are damaged" in each.errors


def _assert_failed(ended: list[Ended]) -> None:
    assert [x.status for x in ended] == [1] * len(ended)
