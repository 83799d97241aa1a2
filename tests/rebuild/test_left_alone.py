"""A vmap that cannot be rebuilt is an error, unless the policy leaves it as it is."""

import re
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk


ROWS = jnp.arange(8.0).reshape(4, 2)

HIDDEN = """
    import jax
    @jax.jit
    def jitted(x): return jax.vmap(lambda r: r.sum())(x)
    class Thing:
        def method(self, x): return jax.vmap(lambda r: r.sum())(x)
    def total(x): return jax.vmap(lambda r: r.prod())(x)
    def by_function(x): return jitted(x) + total(x)
    def by_class(x): return Thing().method(x) + total(x)
    """
NAMES = {"by_function": "toy:jitted", "by_class": "toy:Thing.method"}
LINES = {"by_function": 4, "by_class": 6}


@final
class LeaveHidden(bk.AbstractPolicy):
    """A policy of a user's own."""

    def choose(self, site: bk.Site) -> bk.AbstractBatcher:
        return bk.Chunked(2) if site.qualname == "total" else bk.Vmap()


def rebuild(api: Any, batcher: Any) -> Any:
    return bk.rebuild_sampler(api, batcher=batcher, packages=("toy",))


def scans(fun: Any) -> int:
    return str(jax.make_jaxpr(fun)(ROWS)).count("scan[")


@pytest.mark.parametrize("name", NAMES)
def test_it_is_an_error_by_default(name, make_package):
    module = make_package(init=HIDDEN)
    other = "toy:total"
    for batcher in (
        bk.Chunked(2),
        bk.Chunked(100),
        bk.ByPhase(default=bk.Chunked(2)),
        {"default": bk.Chunked(2), other: bk.Vmap()},
        bk.BySite({NAMES[name]: bk.Sequential()}),
        bk.BySite({f"{NAMES[name]}:{LINES[name]}": bk.Sequential()}),
    ):
        with pytest.raises(bk.UnreachableSiteError) as caught:
            rebuild(getattr(module, name), batcher)
        assert caught.value.site.name == NAMES[name]
        assert caught.value.site.line == LINES[name]
        assert f'BySite({{"{NAMES[name]}": Vmap()}}' in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["name", "line", "pattern", "own", "mapping", "site"])
def test_it_may_be_left_alone(name, how, make_package):
    module = make_package(init=HIDDEN)
    hidden = NAMES[name]
    chunked = bk.Chunked(2)
    policies: dict[str, Any] = {
        # This is what the error advises.
        "name": bk.BySite({hidden: bk.Vmap()}, default=chunked),
        "line": bk.BySite({f"{hidden}:{LINES[name]}": bk.Vmap()}, default=chunked),
        "pattern": bk.BySite({f"{hidden[:8]}*": bk.Vmap()}, default=chunked),
        "own": LeaveHidden(),
        "mapping": {"default": chunked, hidden: bk.Vmap()},
        "site": bk.BySite({"toy:total": chunked}),
    }
    original = getattr(module, name)
    copy = rebuild(original, policies[how])
    assert scans(original) == 0
    assert scans(copy) == 1
    np.testing.assert_allclose(copy(ROWS), original(ROWS))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "batcher",
    [bk.Vmap(), bk.ByPhase(), bk.BySite({}), {"init": bk.Vmap()}],
    ids=range(4),
)
def test_nothing_is_raised_with_plain_vmap(name, batcher, make_package):
    original = getattr(make_package(init=HIDDEN), name)
    copy = rebuild(original, batcher)
    assert scans(copy) == 0
    np.testing.assert_array_equal(copy(ROWS), original(ROWS))


def test_the_advice_names_each_in_turn(make_package):
    module = make_package(
        init=HIDDEN
        + """
    def both(x): return by_function(x) + by_class(x)
    """
    )
    left: dict[str, bk.AbstractBatcher] = {}
    for _ in NAMES:
        policy = bk.BySite(left, default=bk.Chunked(2))
        with pytest.raises(bk.UnreachableSiteError) as caught:
            rebuild(module.both, policy)
        advice = re.search(r'BySite\(\{"(.*)": Vmap\(\)\}', str(caught.value))
        assert advice is not None
        left[advice.group(1)] = bk.Vmap()
    assert left.keys() == set(NAMES.values())
    assert scans(rebuild(module.both, bk.BySite(left, default=bk.Chunked(2)))) == 2


PAIR = (
    HIDDEN
    + """
    import typing
    class Pair(typing.NamedTuple):
        init: typing.Any
        step: typing.Any
    pair = Pair(by_function, total)
    """
)


def test_a_phase_may_leave_it_alone(make_package):
    module = make_package(init=PAIR)
    pair = rebuild(module.pair, bk.ByPhase(init=bk.Vmap(), step=bk.Chunked(2)))
    assert (scans(pair.init), scans(pair.step)) == (0, 1)


def test_a_phase_that_wants_it_is_an_error(make_package):
    module = make_package(init=PAIR)
    with pytest.raises(bk.UnreachableSiteError, match="toy:jitted, line 4"):
        rebuild(module.pair, bk.ByPhase(init=bk.Chunked(2), step=bk.Vmap()))


def test_what_is_handed_in_is_left_alone_as_well(make_package):
    module = make_package(
        init=HIDDEN
        + """
    def run(x, inner): return inner(x) + total(x)
    """
    )
    with pytest.raises(bk.UnreachableSiteError, match="toy:jitted, line 4"):
        rebuild(module.run, bk.Chunked(2))(ROWS, module.jitted)
    run = rebuild(module.run, LeaveHidden())
    assert scans(lambda x: run(x, module.jitted)) == 1


def test_the_advice_works_for_what_is_handed_over_itself(make_package):
    source = "import jax\n@jax.jit\ndef run(x): return jax.vmap(lambda r: r)(x)\n"
    module = make_package(init=source)
    with pytest.raises(bk.UnreachableSiteError, match="toy:run"):
        rebuild(module.run, bk.Chunked(2))
    assert rebuild(module.run, bk.Vmap()) is module.run
    left = bk.BySite({"toy:run": bk.Vmap()}, default=bk.Chunked(2))
    assert rebuild(module.run, left) is module.run
