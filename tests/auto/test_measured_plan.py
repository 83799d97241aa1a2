"""`plan(measure=True)`: the fastest layout that fits wins, and is remembered.

No clock decides here: each layout runs, and its seconds are made up.
"""

import inspect
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.auto import PhaseLayout, _layout_plan, _layout_timing, _phase_layout
from batchkit.auto._phase_program import (
    Measuring,
    PhaseProgram,
    layouts_to_measure,
    sizes_beside,
)
from batchkit.explain._explain import format_batcher

from ..run.compilations import compilations
from .test_plan import NSS, POSITIONS, SETTINGS, climbing, total


pytestmark = pytest.mark.usefixtures("no_type_checks")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The seconds that layouts take, by their names; 1 s unless they are set."""
    seconds: dict[str, float] = {}

    def timed(self: Any, batcher: bk.AbstractBatcher) -> float:
        self._calls[batcher]()
        return seconds.get(format_batcher(batcher), 1.0)

    monkeypatch.setattr(_layout_timing.SideBySide, "_timed", timed)
    return seconds


def measured(
    sampler: Any, folder: Any = False, settings: Any = SETTINGS, **options: Any
) -> Any:
    options = {"budget": "1 GB", "remember": folder} | options
    return bk.plan(sampler, positions=POSITIONS, measure=True, **options, **settings)


@pytest.mark.parametrize(
    ("tasks", "first", "names"),
    [
        (1, bk.Vmap(), "Vmap()"),
        (3, bk.Vmap(), "Vmap() Sequential() Continuous(3)"),
        (
            *(20, bk.Chunked(7)),
            "Chunked(7) Sequential() Chunked(4) Continuous(4) Chunked(16) "
            "Continuous(16) Vmap() Continuous(20)",
        ),
        (
            *(64, bk.Continuous(8)),
            "Continuous(8) Sequential() Chunked(4) Continuous(4) Chunked(16) "
            "Continuous(16) Vmap() Continuous(64)",
        ),
    ],
)
def test_layouts_of_every_kind_are_measured(tasks: int, first: Any, names: str) -> None:
    found = layouts_to_measure(tasks, first)
    assert " ".join(map(format_batcher, found)) == names


@pytest.mark.parametrize(
    ("best", "names"),
    [
        (bk.Vmap(), "Chunked(10)"),
        (bk.Sequential(), "Chunked(2)"),
        (bk.Chunked(4), "Chunked(2) Chunked(8)"),
        (bk.Chunked(16), "Chunked(8)"),
        (bk.Continuous(4), "Continuous(2) Continuous(8)"),
        (bk.Continuous(20), "Continuous(10)"),
    ],
)
def test_sizes_beside_the_best_are_measured(best: Any, names: str) -> None:
    assert " ".join(map(format_batcher, sizes_beside(best, 20))) == names
    assert sizes_beside(best, 2) == []


def test_fastest_layout_of_each_phase_wins(sampler: Any, clock: Any) -> None:
    clock |= {"Sequential()": 0.1, "Chunked(16)": 0.3, "Continuous(4)": 0.05}
    clock |= {"Continuous(8)": 0.04, "Continuous(2)": 0.06}  # beside the best
    plan = measured(sampler, settings=climbing(100))
    # No loop of `init` can keep lanes busy, so there `Continuous` is no candidate.
    assert plan.init.batcher == bk.Sequential()
    assert "Continuous(4)" not in plan.init.seconds
    assert plan.step.batcher == bk.Continuous(8)
    assert plan.step.seconds["Continuous(4)"] == 0.05
    times = (
        "Continuous(8) 40 ms, Continuous(4) 50 ms, Continuous(2) 60 ms, Sequential()"
    )
    assert plan.step.reason.startswith(f"fastest of {len(plan.step.seconds)}: {times}")
    for phase in ("init", "step"):
        needed = total(sampler, climbing(100), plan.batcher, phase)
        assert getattr(plan, phase).memory.total == needed


def test_layouts_that_do_not_fit_are_not_run(sampler: Any, clock: Any) -> None:
    clock |= {"Vmap()": 0.1, "Chunked(16)": 0.2, "Chunked(4)": 0.3}
    plan = measured(sampler, budget="60 kB")
    fits = {
        size: total(sampler, SETTINGS, bk.ByPhase(init=bk.Chunked(size)), "init")
        for size in (4, 16, 40)
    }
    assert fits[4] <= 60_000 < fits[16] < fits[40]
    assert {"Chunked(2)", "Chunked(4)", "Chunked(8)"} <= plan.init.seconds.keys()
    assert not {"Chunked(16)", "Vmap()"} & plan.init.seconds.keys()
    assert plan.init.batcher == bk.Chunked(4)


def out_of_memory(fails: Callable[[str], bool], text: str) -> Callable[..., Any]:
    """A `compile` of programs that will run; where tuning needs too much it fails."""
    compile_any = jax.stages.Lowered.compile

    def compiled(self: Any, options: Any = None) -> Any:
        if not options and fails(self.as_text()):
            raise jax.errors.JaxRuntimeError(text)
        return compile_any(self, options)

    return compiled


@pytest.mark.parametrize("text", ["RESOURCE_EXHAUSTED: 26 GB", "INTERNAL: no"])
def test_layout_that_cannot_be_compiled_for_want_of_memory_is_left_out(
    text: str, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = jnp.ones((40, 5))
    args = "step", lambda batcher: batcher(jnp.sin), (x,), 10**9
    measuring = Measuring(0.0, math.inf, None, False)
    all_at_once = lambda program: "sine %arg0 : tensor<40x5xf32>" in program
    compiled = out_of_memory(all_at_once, text)
    monkeypatch.setattr(jax.stages.Lowered, "compile", compiled)
    clock |= {"Vmap()": 0.1, "Chunked(16)": 0.2}
    if text.startswith("INTERNAL"):
        with pytest.raises(jax.errors.JaxRuntimeError, match="no"):
            PhaseProgram(*args).fastest(measuring, lambda: (x,))
        return
    layout = PhaseProgram(*args).fastest(measuring, lambda: (x,))
    assert layout.batcher == bk.Chunked(16)
    assert "Vmap()" not in layout.seconds


def test_layouts_that_refuse_the_tasks_are_left_out(clock: Any) -> None:
    def share(x: jax.Array) -> jax.Array:
        return x / jax.lax.psum(x, "tasks")

    def make(batcher: bk.AbstractBatcher) -> Callable[[jax.Array], jax.Array]:
        return batcher(share, axis_name="tasks")

    x = jnp.arange(1.0, 9.0)
    program = PhaseProgram("step", make, (x,), 10**9)
    layout = program.fastest(Measuring(0.0, math.inf, None, False), lambda: (x,))
    assert layout.batcher == bk.Vmap()
    assert layout.seconds == {"Vmap()": 1.0}
    assert layout.reason.startswith("all 8 tasks at once need ")


def test_rounds_are_steps_that_follow_each_other(
    sampler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    outs: list[Any] = []

    def timed(self: Any, batcher: Any) -> float:
        outs.append(self._calls[batcher]())
        return 1.0

    monkeypatch.setattr(_layout_timing.SideBySide, "_timed", timed)
    plan = measured(sampler)
    num_init, num_step = len(plan.init.seconds), len(plan.step.seconds)
    assert len(outs) == 5 * (num_init + num_step)
    algorithm = sampler(**SETTINGS)
    state = algorithm.init(POSITIONS)
    for out in outs[: 5 * num_init]:
        assert_close(out, state)
    for i in range(5):
        expected = algorithm.step(jax.random.key(i), state)
        first = 5 * num_init + i * num_step
        for out in outs[first : first + num_step]:
            assert_close(out, expected)
        state = expected[0]


def test_layouts_run_on_the_device_that_was_asked_for(
    sampler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: set[Any] = set()

    def timed(self: Any, batcher: Any) -> float:
        for x in jax.tree.leaves(self._calls[batcher]()):
            devices.update(x.devices())
        return 1.0

    monkeypatch.setattr(_layout_timing.SideBySide, "_timed", timed)
    settings = {"loglikelihood_fn": lambda x: -jnp.sum(x**2), "num_delete": 2}
    first, other, *_ = jax.devices()
    options = {"device": other, "measure": True, "remember": False, **settings}
    bk.plan(sampler, "1 GB", jax.device_put(POSITIONS[:3], first), **options)
    assert devices == {other}


def assert_close(actual: Any, expected: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), actual, expected)


def test_second_call_compiles_nothing(sampler: Any, clock: Any, tmp_path: Path) -> None:
    clock["Sequential()"] = 0.1
    first = measured(sampler, tmp_path / "new" / "folder")
    assert len(list((tmp_path / "new" / "folder").iterdir())) == 2
    clock["Sequential()"] = 2.0
    with compilations() as compiled:
        second = measured(sampler, tmp_path / "new" / "folder")
    assert compiled == []
    for phase in ("init", "step"):
        before, after = getattr(first, phase), getattr(second, phase)
        assert after.batcher == before.batcher == bk.Sequential()
        assert after.memory == before.memory
        assert after.seconds == before.seconds
        assert after.reason.startswith(f"{before.reason} (measured on 20")


def changed(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | values))


def changed_layout(file: Path, **values: Any) -> None:
    layout = json.loads(file.read_text())["layout"]
    changed(file, layout=layout | values)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-20]),
        lambda file: file.write_bytes(b"\xff\xfe"),
        lambda file: file.write_text("[]"),
        lambda file: changed(file, layout={"batcher": "Vmap()"}),
        lambda file: changed(file, limit="long"),
        lambda file: changed_layout(file, larger=["Chunked(3)", float("inf")]),
        lambda file: changed_layout(file, memory={"argument": None}),
        lambda file: file.write_text("[" * 100_000),
    ],
    ids=[
        *("cut off", "no text", "a list", "a part", "other values"),
        *("an infinite size", "no bytes", "many lists"),
    ],
)
def test_damaged_file_is_ignored_with_a_warning(
    damage: Callable[[Path], object], tmp_path: Path
) -> None:
    file = _phase_layout.LayoutFile(tmp_path / "step.json", {})
    memory = bk.memory(jnp.sin, 1.0)
    layout = PhaseLayout(bk.Chunked(3), memory, "why", (bk.Chunked(4), 7), {"x": 0.5})
    made = file.layout(5.0, lambda: (layout, True))
    assert made == layout
    read = file.layout(5.0, lambda: pytest.fail("it is in the file"))
    assert (read.batcher, read.memory, read.larger, read.seconds) == (
        *(layout.batcher, memory, layout.larger, layout.seconds),
    )
    damage(file.path)
    with pytest.warns(UserWarning, match=r"step\.json' cannot be read, so that"):
        file.layout(5.0, lambda: (layout, True))


def test_file_of_a_limited_measurement_serves_no_longer_one(tmp_path: Path) -> None:
    file = _phase_layout.LayoutFile(tmp_path / "step.json", {})
    memory = bk.memory(jnp.sin, 1.0)
    seconds = {"Vmap()": 1.0, "Chunked(3)": 2.0}
    short, long = (
        PhaseLayout(x, memory, "why", seconds=seconds)
        for x in (bk.Vmap(), bk.Chunked(3))
    )
    file.layout(5.0, lambda: (short, False))
    for left in (5.1, 4.0):
        assert file.layout(left, lambda: (long, False)).batcher == bk.Vmap()
    for left in (9.0, 8.0):
        assert file.layout(left, lambda: (long, False)).batcher == bk.Chunked(3)


def test_measurement_without_a_comparison_is_not_remembered(tmp_path: Path) -> None:
    file = _phase_layout.LayoutFile(tmp_path / "step.json", {})
    layout = PhaseLayout(bk.Vmap(), bk.memory(jnp.sin, 1.0), "why")
    file.layout(5.0, lambda: (layout, False))
    assert list(tmp_path.iterdir()) == []


def test_warning_about_a_file_points_at_the_call_of_plan(
    sampler: Any, clock: Any, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("")
    if inspect.unwrap(bk.plan) is not bk.plan:
        pytest.skip("checks of types are between the warning and its user")
    with pytest.warns(UserWarning, match="is not remembered") as caught:
        bk.plan(
            *(sampler, "1 GB", POSITIONS),
            measure=True,
            remember=tmp_path / "taken",
            progress=False,
            **SETTINGS,
        )
    assert {x.filename for x in caught} == {__file__}


def test_other_versions_devices_and_budgets_have_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def path(phase: str = "step", device: str = "cpu", budget: int = 9) -> Path:
        traced = jax.jit(fun).trace(jnp.ones(size))
        return _phase_layout.layout_file("x", phase, traced, device, budget).path

    fun, size = (lambda x: jnp.sin(x)), 3
    first = path()
    fun = lambda x: jnp.sin(x)
    assert path() == first
    others = [path("init"), path(device="TPU v4"), path(budget=8)]
    size = 4
    others.append(path())
    fun, size = (lambda x: jnp.cos(x)), 3
    others.append(path())
    fun = lambda x: jnp.sin(x)
    before = _phase_layout.versions()
    for name in ("jax", "blackjax", "batchkit"):
        changed = before | {name: "99.0"}
        monkeypatch.setattr(_phase_layout, "versions", lambda changed=changed: changed)
        others.append(path())
    monkeypatch.setattr(_phase_layout, "versions", lambda: before)
    monkeypatch.setattr(_phase_layout, "_num_cores", lambda: 999)
    others.append(path())
    assert len({first, *others}) == 1 + len(others)


def test_file_is_in_the_users_cache_unless_it_is_not_wanted(
    sampler: Any, clock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"loglikelihood_fn": lambda x: -jnp.sum(x**2), "num_delete": 2}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    measured(sampler, False, settings)
    assert list(tmp_path.glob("cache/*")) == []
    measured(sampler, True, settings)
    names = [x.name.split("-")[0] for x in tmp_path.glob("cache/batchkit/*.json")]
    assert sorted(names) == ["init", "step"]
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert _phase_layout.cache_folder() == Path("~/.cache/batchkit").expanduser()


def test_folder_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    file = _phase_layout.LayoutFile(tmp_path / "taken" / "step.json", {})
    layout = PhaseLayout(bk.Vmap(), bk.memory(jnp.sin, 1.0), "why")
    with pytest.warns(UserWarning, match="is not remembered.*as `remember=`"):
        assert file.layout(5.0, lambda: (layout, True)) == layout


def test_limit_of_time_is_in_the_reason(sampler: Any, clock: Any) -> None:
    plan = measured(sampler, max_seconds=1e-6)
    assert plan.init.seconds == {}
    fitting = bk.plan(sampler, "1 GB", POSITIONS, **SETTINGS).init
    assert plan.init.batcher == fitting.batcher
    limit = "max_seconds=1e-06 ended the measurement after 0 layouts"
    assert plan.init.reason == f"{fitting.reason}; {limit}"


def test_what_cannot_be_measured_is_refused(
    described: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"plan\(measure=True, device=.*measure=False"):
        measured(blackjax.nss, settings=NSS, device=described)
    monkeypatch.setattr(_layout_plan, "is_described", lambda device: False)
    shapes = jax.ShapeDtypeStruct(POSITIONS.shape, POSITIONS.dtype)
    with pytest.raises(TypeError, match="positions are shapes"):
        bk.plan(blackjax.nss, "1 GB", shapes, measure=True, **NSS)
    monkeypatch.setattr(_layout_plan, "is_multiprocess", lambda: True)
    with pytest.raises(RuntimeError, match="would measure different times"):
        measured(blackjax.nss, settings=NSS)
