"""Sites behind imports, jitted functions and strangers; patterns deep in policies."""

from typing import Any, final

import jax.numpy as jnp
import pytest

import batchkit as bk

from ..helpers import explained


ROWS = jnp.arange(24.0).reshape(12, 2)


def sites(api: Any) -> bk.Sites:
    return bk.sites(api, packages=("toy",))


@pytest.mark.parametrize("statement", ["import jax", "from jax import vmap"])
def test_an_import_of_the_function_around(statement, make_package, no_type_checks):
    vmap = "vmap" if "from" in statement else "jax.vmap"
    module = make_package(
        init=f"""
        def run(x):
            {statement}
            def inner(x):
                return (
                    {vmap}(lambda r: r.sum())
                )(x)
            return inner(x)
        """
    )
    (site,) = sites(module.run)
    assert (site.qualname, site.line, site.spelling) == ("run.<locals>.inner", 6, vmap)
    rebuilt = bk.rebuild_sampler(
        module.run, batcher={str(site): bk.Chunked(2)}, packages=("toy",)
    )
    (reached,) = explained(rebuilt, ROWS)
    assert (reached.site, reached.batcher) == (site, "Chunked(2)")


def test_a_module_that_only_the_function_loads(make_package, tmp_path):
    module = make_package(
        init="""
        def run(x):
            import toy.sub
            return toy.sub.inner(x)
        """
    )
    (tmp_path / "toy" / "sub.py").write_text(
        "import jax\ndef inner(x): return jax.vmap(lambda r: r)(x)\n"
    )
    (site,) = sites(module.run)
    assert site.name == "toy.sub:inner"


def test_a_module_of_jitted_functions(make_package):
    module = make_package(
        init="""
        import jax
        @jax.jit
        def run(x): return jax.vmap(lambda r: r.sum())(x)
        """
    )
    assert [site.name for site in sites(module)] == ["toy:run"]
    with pytest.raises(bk.UnreachableSiteError, match="toy:run"):
        _ = bk.rebuild_sampler(module, batcher=bk.Chunked(2), packages=("toy",)).run
    left = {"toy:run": bk.Vmap(), "default": bk.Chunked(2)}
    same = bk.rebuild_sampler(module, batcher=left, packages=("toy",))
    assert (same.run(ROWS) == ROWS.sum(1)).all()


def test_strangers_whose_attributes_cannot_be_looked_up(make_package):
    module = make_package(
        init="""
        import sys, types
        import jax
        class Lazy(types.ModuleType):
            def __getattr__(self, name): raise ImportError(name)
        class Stranger:
            __module__ = "elsewhere"
            def __getattr__(self, name): raise RuntimeError(name)
            def __call__(self, x): return x
        lazy, stranger = Lazy("lazy"), Stranger()
        def run(x, late=False):
            if late:
                from . import broken
                lazy.function(x)
            return jax.vmap(lambda r: r.sum())(stranger(x))
        """,
    )
    (site,) = sites(module.run)
    rebuilt = bk.rebuild_sampler(module.run, batcher=bk.Chunked(2), packages=("toy",))
    assert site.name == "toy:run"
    assert (rebuilt(ROWS) == ROWS.sum(1)).all()


def test_a_module_of_its_own_that_cannot_be_loaded(make_package, tmp_path):
    module = make_package(
        init="""
        import jax
        def run(x):
            from . import broken
            return jax.vmap(lambda r: r)(x)
        """
    )
    (tmp_path / "toy" / "broken.py").write_text("raise OSError('no such device')\n")
    assert [site.name for site in sites(module.run)] == ["toy:run"]


@final
class Many(bk.AbstractPolicy):
    """Asks the first of several policies."""

    parts: tuple[bk.AbstractPolicy, ...]

    def choose(self, site: bk.Site) -> bk.AbstractBatcher:
        return self.parts[0].choose(site)


def test_patterns_in_the_parts_of_a_policy(make_package):
    module = make_package(init="import jax\ndef run(x): return jax.vmap(len)(x)\n")
    good = Many((bk.BySite({"toy:run": bk.Chunked(2)}),))
    bk.rebuild_sampler(module.run, batcher=good, packages=("toy",))
    bad = Many((bk.BySite({"toy:nowhere": bk.Chunked(2)}),))
    with pytest.raises(ValueError, match="toy:nowhere"):
        bk.rebuild_sampler(module.run, batcher=bad, packages=("toy",))


@pytest.mark.usefixtures("no_type_checks")
def test_the_wrong_phase_is_named() -> None:
    with pytest.raises(TypeError, match=r"ByPhase\(default='A'\)"):
        bk.ByPhase(default="A")  # pyright: ignore
