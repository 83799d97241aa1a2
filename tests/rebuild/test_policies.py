"""Which batcher a site gets: policies by themselves, and what they refuse."""

import re
from typing import Any, final

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import batchkit as bk


A, B, C, D = (bk.Chunked(size) for size in (2, 3, 4, 5))


def site(
    qualname: str = "f", line: int = 7, module: str = "toy", phase: str | None = None
) -> bk.Site:
    return bk.Site(module, qualname, line, "jax.vmap", phase)


@final
class ByLine(bk.AbstractPolicy):
    """A policy of a user's own."""

    before: int = eqx.field(static=True)
    early: bk.AbstractBatcher | bk.AbstractPolicy
    late: bk.AbstractBatcher | bk.AbstractPolicy

    def choose(self, site: bk.Site) -> bk.AbstractBatcher:
        part = self.early if site.line < self.before else self.late
        return part if isinstance(part, bk.AbstractBatcher) else part.choose(site)


@final
class Many(bk.AbstractPolicy):
    """Asks the first of several policies."""

    parts: tuple[bk.AbstractPolicy, ...]

    def choose(self, site: bk.Site) -> bk.AbstractBatcher:
        return self.parts[0].choose(site)


@pytest.mark.parametrize(
    ("policy", "init", "step", "other"),
    [
        (bk.ByPhase(), bk.Vmap(), bk.Vmap(), bk.Vmap()),
        (bk.ByPhase(A), A, bk.Vmap(), bk.Vmap()),
        (bk.ByPhase(step=A), bk.Vmap(), A, bk.Vmap()),
        (bk.ByPhase(default=A), A, A, A),
        (bk.ByPhase(init=A, default=B), A, B, B),
        (bk.ByPhase(A, B, C), A, B, C),
        (bk.ByPhase(init=bk.BySite({"toy:*": A}), default=B), A, B, B),
        (bk.ByPhase(default=bk.ByPhase(A, B, C)), A, B, C),
        (ByLine(8, bk.ByPhase(A, B, C), D), A, B, C),
        (ByLine(7, D, bk.ByPhase(A, B, C)), A, B, C),
        (bk.BySite({"other:*": D}, default=bk.ByPhase(A, B, C)), A, B, C),
    ],
    ids=range(11),
)
def test_phase_chooses_the_batcher(policy, init, step, other):
    assert policy.choose(site(phase="init")) == init
    assert policy.choose(site(phase="step")) == step
    assert policy.choose(site(phase=None)) == other


@pytest.mark.parametrize(
    ("batchers", "expected"),
    [
        ({}, D),
        ({"toy:g": A}, D),
        ({"toy:f": A}, A),
        ({"f": A}, D),
        ({"toy:f:7": A}, A),
        ({"toy:f:8": A}, D),
        ({"toy:*": A}, A),
        ({"*:f": A}, A),
        ({"t?y:[ef]": A}, A),
        ({"TOY:*": A}, D),
        ({"toy": A}, D),
        # The first pattern that matches, in the order in which they were given.
        ({"toy:*": A, "*": B}, A),
        ({"*": B, "toy:*": A}, B),
        ({"other:*": C, "*": B, "toy:*": A}, B),
        # A name before any pattern, and a line before a name, in whatever order.
        ({"*": B, "toy:f": A}, A),
        ({"toy:f": A, "*": B}, A),
        ({"*": C, "toy:f": B, "toy:f:7": A}, A),
        ({"toy:f:7": A, "toy:f": B, "*": C}, A),
        ({"*": C, "toy:f": B, "toy:f:8": A}, B),
    ],
    ids=str,
)
@pytest.mark.parametrize("phase", ["init", None])
def test_name_of_a_site_chooses_the_batcher(batchers, expected, phase):
    default = bk.ByPhase(init=D, default=D)
    chosen = bk.BySite(batchers, default=default).choose(site(phase=phase))
    assert chosen == expected


def test_brackets_in_names_are_no_wildcards():
    # `<locals>` is no wildcard, and `[` would be one.
    assert bk.BySite({"toy:f.<locals>.g": A}).choose(site("f.<locals>.g")) == A
    assert bk.BySite({"toy:f[0]": A}).choose(site("f[0]")) == A
    assert bk.BySite({"toy:*.g": A}).choose(site("f.<locals>.g")) == A


POLICIES: list[tuple[Any, Any]] = [
    (bk.ByPhase(A, B), bk.ByPhase(A, C)),
    (bk.BySite({"x": A}), bk.BySite({"x": B})),
    (bk.BySite({"x": A, "y": B}), bk.BySite({"y": B, "x": A})),
    (bk.BySite({"x": A}), bk.BySite({"x": A}, default=A)),
    (bk.ByPhase(bk.BySite({"x": A})), bk.ByPhase(bk.BySite({"y": A}))),
    (ByLine(3, A, B), ByLine(4, A, B)),
]


@pytest.mark.parametrize(("policy", "another"), POLICIES)
def test_policies_compare_and_hash_by_value(policy, another):
    copy = jax.tree.unflatten(jax.tree.structure(policy), [])
    assert copy is not policy
    assert copy == policy
    assert hash(copy) == hash(policy)
    assert policy != another
    assert {policy: 1}[copy] == 1
    with pytest.raises(AttributeError):
        policy.default = bk.Vmap()


@pytest.mark.parametrize(("policy", "another"), POLICIES)
def test_jit_traces_again_only_for_another_policy(policy, another):
    seen = []

    @jax.jit
    def run(policy: bk.AbstractPolicy, x: jax.Array) -> jax.Array:
        seen.append(policy)
        return policy.choose(site(phase="init"))(jnp.sum)(x)

    static = jax.jit(lambda x, policy: run(policy, x), static_argnames="policy")
    x = jnp.ones((6, 2))
    for argument in (policy, policy, another):
        run(argument, x)
    assert seen == [policy, another]
    assert static(x, policy=policy).tolist() == [2.0] * 6


# The types, too, refuse what is refused here.
phases: Any = bk.ByPhase
by_site: Any = bk.BySite
REFUSED = [
    (lambda: phases(init=16), r"ByPhase\(init=16\): init must be", "int"),
    (lambda: phases(default="A"), r"ByPhase\(default='A'\): default must", "str"),
    (lambda: phases(A, jax.vmap), r"ByPhase\(step=<fun.*step must", "function"),
    (lambda: phases(init={"x": A}), r"ByPhase\(init=\{'x.*init must", "dict"),
    (lambda: by_site([A]), r"BySite\(batchers=\[Chunked.*a mapping", "list"),
    (lambda: by_site(A), r"BySite\(batchers=Chunked.*a mapping", "Chunked"),
    (lambda: by_site({1: A}), r"BySite\(batchers=\{1: .*must be the name", "int"),
    (lambda: by_site({"x": 16}), r"BySite\(batchers\['x'\]=16.*a batcher", "int"),
    (lambda: by_site({"x": bk.ByPhase(A)}), r"(?s)BySite\(.*a batcher", "ByPhase"),
    (lambda: by_site({}, default=3), r"BySite\(default=3\): default must", "int"),
    (lambda: rebuild({"init": 16}), r"ByPhase\(init=16\): init must be", "int"),
    (
        lambda: rebuild({"init": None}),
        r"'init': None\}\): a value must be a batcher",
        "None",
    ),
    (lambda: rebuild({"blackjax.*": 16}), r"'blackjax.\*'\]=16.*a batcher", "int"),
    (lambda: rebuild({3: A}), r"BySite\(batchers=\{3: .*must be the name", "int"),
    (lambda: rebuild(16), r"rebuild_sampler\(batcher=16\): batcher must", "int"),
    (lambda: rebuild(None), r"rebuild_sampler\(batcher=None\)", "NoneType"),
    (lambda: rebuild([A]), r"rebuild_sampler\(batcher=\[Chunked", "list"),
    (lambda: rebuild(bk.ByPhase), r"batcher=ByPhase\).*one: `ByPhase", r"the class .*"),
    (
        lambda: rebuild(bk.Chunked),
        r"batcher=Chunked\).*`Chunked\(16\)",
        r"the class .*",
    ),
    (
        lambda: rebuild({"step": bk.Vmap}),
        r"step=Vmap\).*one: `Vmap\(\)`",
        r"the class .*",
    ),
    (lambda: by_site({"x": bk.Vmap}), r"x'\]=Vmap.*one: `Vmap\(\)`", r"the class .*"),
]


def rebuild(batcher: Any) -> Any:
    return bk.rebuild_sampler(blackjax.nss, batcher)  # by position


@pytest.mark.parametrize(("make", "match", "kind"), REFUSED, ids=range(len(REFUSED)))
@pytest.mark.usefixtures("no_type_checks")
def test_wrong_types_are_named_with_a_remedy(make, match, kind):
    with pytest.raises(TypeError, match=match) as caught:
        make()
    message = str(caught.value)
    assert re.search(rf"got {kind}\.$", message)
    remedies = ("`Chunked(16)`", "Chunked(16)}", '"blackjax.ns.from_mcmc:*"')
    assert any(remedy in message for remedy in remedies)


INIT = next(x for x in bk.sites(blackjax.nss) if "init_fn" in x.qualname)
IDLE: list[tuple[Any, str]] = [
    ({"stpe": A}, "'stpe'"),
    ({"init": A, "Step": B}, "'Step'"),
    ({"blackjax.ns.from_mcmc:*": A, "blackjax.ns.nss:nothing": B}, "nss:nothing"),
    (bk.BySite({"blackjax.ns": A}), "'blackjax.ns'"),
    (bk.BySite({f"{INIT.name}:{INIT.line + 1}": A}), f"'{INIT.name}:{INIT.line + 1}'"),
    (bk.BySite({"blackjax.NS.*": A}), "'blackjax.NS.*'"),
    (bk.ByPhase(init=bk.BySite({"nowhere:*": A})), "'nowhere:*'"),
    (bk.ByPhase(step=bk.BySite({"*": A}, bk.BySite({"none": B}))), "'none'"),
    (bk.ByPhase(default=bk.BySite({"nowhere:*": A})), "'nowhere:*'"),
    (ByLine(10, A, bk.BySite({"nowhere:*": A})), "'nowhere:*'"),
    (ByLine(10, bk.ByPhase(bk.BySite({"nowhere:*": A})), A), "'nowhere:*'"),
    (Many((bk.BySite({"nowhere:*": A}),)), "'nowhere:*'"),
]


@pytest.mark.parametrize(("policy", "named"), IDLE, ids=[name for _, name in IDLE])
@pytest.mark.parametrize("built", [False, True], ids=["api", "built"])
def test_patterns_that_match_nothing_are_refused(policy, named, built):
    api: Any = blackjax.nss
    if built:
        api = api(lambda x: -x @ x, lambda x: -x @ x, num_inner_steps=2)
    with pytest.raises(ValueError, match="matches no site of this API") as caught:
        bk.rebuild_sampler(api, batcher=policy)
    message = str(caught.value)
    assert f"{named}" in message.split("matches no site")[0]
    listed = {str(x) for x in bk.sites(api)}
    assert listed
    assert listed <= set(message.split())


def test_mappings_without_a_use_are_refused():
    with pytest.raises(ValueError, match=r"batcher=\{\}\): the mapping is empty"):
        rebuild({})
    with pytest.raises(ValueError, match=r"of this API:\n\(none\)"):
        bk.rebuild_sampler(blackjax.hmc, batcher={"blackjax.*": A})
