"""`plan`: the programs of a sampler fit the budget as wholes, and no larger size does.

Compiling a step of `blackjax.nss` takes seconds. So most tests plan a small sampler
with two sites in its step; planning takes the same path for both.
"""

from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import batchkit as bk
from batchkit._util._formats import format_bytes
from batchkit.auto import PhaseLayout, Selection, _auto, _lane_memory, _phase_program
from batchkit.auto._lane_memory import largest_that_fits
from batchkit.auto._phase_program import PhaseProgram
from batchkit.explain import MemoryUse
from batchkit.explain._explain import format_batcher

from ..devices.test_described import needs_cuda
from ..helpers import explained


# The profiler of `plan` is called for every function; checking types in each of these
# calls takes longer than all else.
pytestmark = pytest.mark.usefixtures("no_type_checks")

DATA = np.linspace(0.0, 1.0, 1_200, dtype=np.float32)
POSITIONS = jax.random.normal(jax.random.key(0), (40, 2))


@pytest.fixture
def only_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory alone limits the tasks at once: `Auto` would run all of them."""
    monkeypatch.setattr(_phase_program, "Auto", lambda *_, **__: bk.Vmap())


def loglikelihood(x: jax.Array) -> jax.Array:
    """Needs memory for all of its data: XLA cannot fuse away a sort."""
    return -jnp.sum(jnp.sort(DATA * x[0])[:10]) - jnp.sum(x**2)


SETTINGS: dict[str, Any] = {"loglikelihood_fn": loglikelihood, "num_delete": 20}
NSS: dict[str, Any] = {
    **SETTINGS,
    "logprior_fn": lambda x: -0.5 * jnp.sum(x**2),
    "num_inner_steps": 1,
}


def total(api: Any, settings: dict[str, Any], policy: bk.ByPhase, phase: str) -> int:
    """The bytes of one program of a rebuilt sampler, compiled as a user would."""
    packages = ("blackjax", "toy")
    algorithm = bk.rebuild_sampler(api, batcher=policy, packages=packages)(**settings)
    args: tuple[Any, ...] = (POSITIONS,)
    if phase == "step":
        state = jax.eval_shape(algorithm.init, POSITIONS)
        args = jax.eval_shape(jax.random.key, 0), state
    program = jax.jit(getattr(algorithm, phase)).lower(*args).compile()
    use = program.memory_analysis()
    assert use is not None
    assert use.alias_size_in_bytes == 0
    made = use.output_size_in_bytes + use.temp_size_in_bytes
    return use.argument_size_in_bytes + made


def assert_fits(api: Any, settings: dict[str, Any], plan: Any, phase: str) -> None:
    """Assert that a program fits, and with one more task at once does not."""

    def total_with(batcher: bk.AbstractBatcher) -> int:
        return total(api, settings, bk.ByPhase(**{phase: batcher}), phase)

    layout: PhaseLayout = getattr(plan, phase)
    needed = total_with(layout.batcher)
    assert layout.memory.total == needed <= plan.budget
    if isinstance(layout.batcher, bk.Vmap):
        assert layout.larger is None
        return
    assert layout.larger is not None
    larger, more = layout.larger
    assert total_with(larger) == more > plan.budget
    if isinstance(layout.batcher, bk.Continuous):
        assert larger == bk.Continuous(layout.batcher.lanes + 1)
    elif isinstance(larger, bk.Chunked):
        # Between the two, chunks of equal size are those of the layout that fits.
        assert total_with(bk.Chunked(larger.size - 1)) == needed


@pytest.mark.usefixtures("only_memory")
@pytest.mark.parametrize("budget", ["60 kB", "90 kB"])
def test_both_programs_fit_and_no_larger_size_does(budget: str, sampler: Any) -> None:
    plan = bk.plan(sampler, budget, POSITIONS, **SETTINGS)
    for phase in ("init", "step"):
        assert isinstance(getattr(plan, phase).batcher, bk.Chunked)
        assert_fits(sampler, SETTINGS, plan, phase)


def test_size_beyond_a_wrong_prediction_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A search predicts that 8 tasks need 80 bytes, and they need 70."""
    x = jnp.ones(840)  # of which 7, 8 and 9 at once are three layouts
    program = PhaseProgram("step", lambda batcher: batcher(jnp.sin), (x,), 75)
    tried: list[int] = []

    def memory(batcher: bk.AbstractBatcher) -> MemoryUse:
        size = batcher.size if isinstance(batcher, bk.Chunked) else 840
        tried.append(size)
        return MemoryUse(0, 0, 70 if size == 8 else 10 * size, 0)

    found = largest_that_fits(lambda size: memory(bk.Chunked(size)).total, 75, 840)
    assert found.size == 7
    assert 8 not in tried
    monkeypatch.setattr(program, "memory", memory)
    layout = program.fitting()
    assert layout.batcher == bk.Chunked(8)
    assert layout.larger == (bk.Chunked(9), 90)


@pytest.mark.slow
@pytest.mark.usefixtures("only_memory")
@pytest.mark.parametrize("budget", ["60 kB", "150 kB"])
def test_programs_of_nss_fit_and_no_larger_size_does(budget: str) -> None:
    plan = bk.plan(blackjax.nss, budget, POSITIONS, **NSS)
    assert isinstance(plan.init.batcher, bk.Chunked)
    for phase in ("init", "step"):
        assert_fits(blackjax.nss, NSS, plan, phase)


@pytest.mark.usefixtures("only_memory")
def test_vmap_is_chosen_if_all_fits_and_nothing_runs(sampler: Any) -> None:
    ran: list[int] = []

    def observed(x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda: ran.append(1))
        return loglikelihood(x)

    shapes = jax.ShapeDtypeStruct(POSITIONS.shape, POSITIONS.dtype)
    settings = {**SETTINGS, "loglikelihood_fn": observed}
    plan = bk.plan(sampler, "1 GiB", shapes, **settings)
    jax.effects_barrier()
    assert ran == []
    assert plan.batcher == bk.ByPhase(init=bk.Vmap(), step=bk.Vmap())
    assert plan.budget == 1024**3
    assert plan.init.reason.startswith("all 40 tasks at once need ")


@pytest.mark.usefixtures("only_memory")
def test_plan_prints_as_a_table(sampler: Any) -> None:
    plan = bk.plan(sampler, "60 kB", POSITIONS, **SETTINGS)
    assert isinstance(plan.init.batcher, bk.Chunked)
    size = plan.init.batcher.size
    title, heads, init, step, *reasons = repr(plan).splitlines()
    assert title == "cpu, budget 60 kB"
    assert heads.split()[:4] == ["phase", "batcher", "temporaries", "total"]
    needed, larger = plan.init.memory, plan.init.larger
    assert larger is not None
    more = format_batcher(larger[0]), format_bytes(larger[1])
    rebuilt = bk.rebuild_sampler(sampler, plan.batcher, packages=("toy",))
    (site,) = explained(rebuilt(**SETTINGS).init, POSITIONS)
    assert site.at_once == size
    cells = [x.strip() for x in init.split("  ") if x.strip()]
    assert cells == [
        "init",
        f"Chunked({size})",
        format_bytes(needed.temporary),
        format_bytes(needed.total),
        f"{needed.total / 600:.1f} %",
        f"{more[0]}: {more[1]}",
    ]
    assert step.startswith("step")
    assert reasons[0] == (
        f"init: {size} of 40 tasks at once need {format_bytes(needed.total)} of 60 kB, "
        f"{more[0]} would need {more[1]}"
    )
    assert max(map(len, reasons)) <= 96
    assert "<table" in plan._repr_html_()


def test_more_points_replaced_than_there_are_is_an_error(sampler: Any) -> None:
    settings = {**SETTINGS, "num_delete": 41}
    with pytest.raises(ValueError, match=r"replaces 41 .*`positions` has 40; some"):
        bk.plan(sampler, "1 GB", POSITIONS, **settings)


def climbing(size: int) -> dict[str, Any]:
    """Settings with a likelihood of some sines, and loops of different lengths."""
    grid = np.linspace(0.0, 1.0, size, dtype=np.float32)

    def expensive(x: jax.Array) -> jax.Array:
        return -jnp.sum(x**2) + 1e-30 * jnp.sum(jnp.sin(grid * x[0]))

    return {"loglikelihood_fn": expensive, "num_delete": 20, "climb": True}


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize("phase", ["init", "step"])
def test_kind_of_layout_and_reason_are_those_of_auto(
    phase: str, sampler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_auto, "CACHE_BYTES", 60_000)
    monkeypatch.setattr(_auto, "_CHOICES", type(_auto._CHOICES)())
    settings = climbing(40_000) if phase == "step" else SETTINGS
    auto = bk.rebuild_sampler(sampler, bk.Auto("1 GB"), packages=("toy",))(**settings)
    args: tuple[Any, ...] = (POSITIONS,)
    if phase == "step":
        args = jax.random.key(0), jax.eval_shape(auto.init, POSITIONS)
    site = explained(getattr(auto, phase), *args)[0]
    layout = getattr(bk.plan(sampler, "1 GB", POSITIONS, **settings), phase)
    if phase == "init":
        assert isinstance(layout.batcher, bk.Chunked)
        assert layout.batcher.size == site.at_once < 40
    else:
        assert layout.batcher == bk.Continuous(site.at_once)
    assert layout.larger is None  # more would fit, but not pay
    assert layout.reason.split("; ")[0] in site.note


def test_sequential_is_taken_over_from_auto(
    sampler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def select(*_: Any) -> Selection:
        return Selection(bk.Sequential(), "a branch is rare; it needs", None, 1)

    monkeypatch.setattr(_auto, "select", select)
    monkeypatch.setattr(_auto, "_CHOICES", type(_auto._CHOICES)())
    plan = bk.plan(sampler, "1 GB", POSITIONS, **SETTINGS)
    assert plan.batcher == bk.ByPhase(init=bk.Sequential(), step=bk.Sequential())
    assert plan.init.memory.total == total(sampler, SETTINGS, plan.batcher, "init")
    assert plan.init.reason.startswith("a branch is rare; it needs ")


def test_chunks_that_suit_the_cache_of_a_cpu_are_not_for_a_gpu(
    sampler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_auto, "CACHE_BYTES", 60_000)
    monkeypatch.setattr(_auto, "_CHOICES", type(_auto._CHOICES)())
    monkeypatch.setattr(_auto, "platform_of", lambda device: "gpu")
    plan = bk.plan(sampler, "1 GB", POSITIONS, **SETTINGS)
    assert plan.batcher == bk.ByPhase(init=bk.Vmap(), step=bk.Vmap())


def test_memory_may_limit_the_lanes(sampler: Any) -> None:
    grid = np.linspace(0.0, 1.0, 8_000, dtype=np.float32)

    def large(x: jax.Array) -> jax.Array:  # XLA cannot fuse away a sort
        return -jnp.sum(x**2) + 1e-30 * jnp.sum(jnp.sort(jnp.sin(grid * x[0]))[:10])

    settings = {**climbing(1), "loglikelihood_fn": large}
    plan = bk.plan(sampler, "200 kB", POSITIONS, **settings)
    assert isinstance(plan.step.batcher, bk.Continuous)
    assert plan.step.larger is not None
    assert_fits(sampler, settings, plan, "step")


@pytest.mark.slow
@pytest.mark.usefixtures("two_cores")
def test_step_of_nss_gets_continuous() -> None:
    expensive = climbing(40_000)["loglikelihood_fn"]
    settings = {**NSS, "loglikelihood_fn": expensive, "num_inner_steps": 2}
    plan = bk.plan(blackjax.nss, "3 MB", POSITIONS, **settings)
    assert isinstance(plan.step.batcher, bk.Continuous)
    assert plan.step.memory.total <= 3_000_000


def test_budget_below_one_lane_is_an_error(sampler: Any) -> None:
    with pytest.raises(bk.BudgetError, match=r"plan\(init\): one lane needs") as info:
        bk.plan(sampler, "3 kB", POSITIONS, **SETTINGS)
    assert "float32[1,1200]" in str(info.value)


def test_sampler_without_sites_gets_vmap() -> None:
    plan = bk.plan(
        blackjax.hmc,
        "1 MB",
        jnp.zeros(3),
        logdensity_fn=lambda x: -jnp.sum(x**2),
        step_size=0.1,
        inverse_mass_matrix=jnp.ones(3),
        num_integration_steps=3,
    )
    assert plan.batcher == bk.ByPhase(init=bk.Vmap(), step=bk.Vmap())


def test_default_budget_is_that_of_auto(
    sampler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_lane_memory, "budget_or_free", lambda budget, _: 10**9)
    plan = bk.plan(sampler, None, POSITIONS, **SETTINGS)
    assert plan.budget == 10**9
    assert repr(plan).startswith("cpu, budget 1 GB (half of the free memory)")


@pytest.mark.parametrize(
    ("budget", "title"),
    [
        (None, "cpu, budget 500 MB (half of its 1 GB)"),
        ("600 MB", "cpu, budget 600 MB (60 % of its 1 GB)"),
        ("900 MB", "cpu, budget 900 MB (90 % of its 1 GB; JAX takes 75 %, unless XLA_"),
    ],
)
def test_budget_is_said_as_a_share_of_the_described_device(
    budget: Any, title: str, sampler: Any, described: Any
) -> None:
    plan = bk.plan(sampler, budget, POSITIONS, device=described, **SETTINGS)
    assert repr(plan).startswith(title)


def test_budget_above_the_memory_of_the_device_is_refused(described: Any) -> None:
    with pytest.raises(ValueError, match=r"plan\(budget='2 GB'\): 'cpu' has 1 GB"):
        bk.plan(blackjax.nss, "2 GB", POSITIONS, device=described, **NSS)


def test_unknown_memory_needs_a_budget(
    described: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_lane_memory, "memory_of_device", lambda device: None)
    with pytest.raises(ValueError, match="memory of 'cpu' is not known"):
        bk.plan(blackjax.nss, None, POSITIONS, device=described, **NSS)


@needs_cuda
# JAX cannot read programs for described devices from its cache on disk, and compiles.
def test_plan_for_a_described_gpu(sampler: Any) -> None:
    device = bk.described_device("A100-40GB")
    plan = bk.plan(sampler, "60 kB", POSITIONS, device=device, **SETTINGS)
    assert isinstance(plan.init.batcher, bk.Chunked)
    assert plan.init.larger is not None
    for batcher, fits in ((plan.init.batcher, True), (plan.init.larger[0], False)):
        algorithm = bk.rebuild_sampler(sampler, batcher, packages=("toy",))
        init = algorithm(**SETTINGS).init
        assert (bk.memory(init, POSITIONS, device=device).total <= 60_000) == fits
    assert repr(plan).startswith("NVIDIA A100-SXM4-40GB, budget 60 kB")
    assert repr(plan).splitlines()[-1].startswith("Not counted: workspaces")


@pytest.mark.parametrize(
    ("api", "budget", "error", "words"),
    [
        (blackjax.nss, "many", ValueError, r"plan\(budget='many'\)"),
        (blackjax.nss, 1.5, TypeError, r"plan\(budget=1.5\)"),
        (blackjax.window_adaptation, "1 MB", TypeError, "`init` and `step`"),
    ],
)
def test_invalid_apis_and_budgets_are_refused(
    api: Any, budget: Any, error: type[Exception], words: str
) -> None:
    settings = {"algorithm": blackjax.nuts, "logdensity_fn": loglikelihood}
    if api is blackjax.nss:
        settings = NSS
    with pytest.raises(error, match=words):
        bk.plan(api, budget, POSITIONS, **settings)


@pytest.mark.parametrize(
    ("option", "value", "error", "words"),
    [
        ("device", "H100", TypeError, r"device must be a device of JAX.*described_dev"),
        ("measure", 1, TypeError, "measure must be True or False"),
        ("max_seconds", 0, ValueError, "max_seconds must be a number above 0"),
        ("remember", None, TypeError, "remember must be True, False or the path"),
        ("progress", "no", TypeError, "progress must be True or False"),
    ],
)
def test_invalid_options_are_refused(
    option: str, value: Any, error: type[Exception], words: str
) -> None:
    options = {option: value}
    with pytest.raises(error, match=words):
        bk.plan(blackjax.nss, "1 MB", POSITIONS, **options, **NSS)


def test_algorithm_that_is_called_otherwise_is_refused() -> None:
    grad = lambda x: -x
    settings = {"grad_logdensity_fn": grad, "optimizer": optax.sgd(0.1)}
    words = r"plan calls `step\(rng_key, state\)`, but here it is `step\("
    with pytest.raises(TypeError, match=words):
        bk.plan(blackjax.svgd, "1 GB", jnp.ones((5, 2)), **settings)
