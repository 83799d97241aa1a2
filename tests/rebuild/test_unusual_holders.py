"""Functions held by objects of unusual habits are rebuilt, and the original is not."""

from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import pytest

import batchkit as bk


@final
class Recorded(bk.AbstractPolicy):
    """`Vmap()` for every site, each of which is recorded."""

    record: Callable[[bk.Site], None] = eqx.field(static=True)

    def choose(self, site: bk.Site) -> bk.AbstractBatcher:
        self.record(site)
        return bk.Vmap()


HOLDERS = {
    "a wrapper of a dispatch": "run = plus_one(functools.singledispatch(inner))",
    "a class that wraps a cache": "run = Plus(functools.cache(inner))",
    "an object that copies to itself": (
        "same = Same(); same.f = inner\n    def run(n): return 1 + same.f(n)"
    ),
    "an object that needs arguments": (
        "strict = Strict(inner)\n    def run(n): return 1 + strict.f(n)"
    ),
    "a member of an enumeration": (
        "kind = Kind.A\n    def run(n): return 1 + kind.value[0](n)"
    ),
    "a module that has vmap by name": (
        "import toy.other\n    def run(n): return 1 + toy.other.inner(n)"
    ),
    "a module that has vmap, handed in": (
        "import toy.other\n    def apply(m, n): return 1 + m.inner(n)\n"
        "    def run(n): return apply(toy.other, n)"
    ),
}
INNER = "def inner(n): return int(jax.vmap(lambda r: r + n)(jnp.arange(4)).sum())"


HIDING = ("a class that wraps a cache", "a member of an enumeration")


def package(name: str, make_package: Any) -> Any:
    return make_package(
        other=f"""
    import jax
    import jax.numpy as jnp
    from jax import vmap
    {INNER}
    """,
        init=f"""
    import enum
    import functools
    import jax
    import jax.numpy as jnp
    {INNER}
    def plus_one(f):
        @functools.wraps(f)
        def wrapper(n): return 1 + f(n)
        return wrapper
    class Plus:
        def __init__(self, f):
            functools.update_wrapper(self, f)
            self.f = f
        def __call__(self, n): return 1 + self.f(n)
    class Same:
        def __copy__(self): return self
    class Strict:
        def __new__(cls, f): return super().__new__(cls)
        def __init__(self, f): self.f = f
    class Kind(enum.Enum):
        A = (inner,)
    {HOLDERS[name]}
    """,
    )


@pytest.mark.parametrize("name", sorted(HOLDERS.keys() - set(HIDING)))
def test_unusual_holders(name, make_package):
    module = package(name, make_package)
    reached: list[bk.Site] = []
    rebuilt = bk.rebuild_sampler(
        module, batcher=Recorded(reached.append), packages=("toy",)
    )
    assert rebuilt.run(1) == 11
    assert [site.qualname for site in reached] == ["inner"]
    assert module.run(2) == 15
    assert len(reached) == 1


@pytest.mark.parametrize("name", HIDING)
def test_what_hides_a_vmap_says_so(name, make_package):
    module = package(name, make_package)
    with pytest.raises(bk.UnreachableSiteError, match="toy:inner"):
        bk.rebuild_sampler(module.run, batcher=bk.Chunked(2), packages=("toy",))
    assert module.run(1) == 11
