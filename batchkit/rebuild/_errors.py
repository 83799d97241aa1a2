"""What can go wrong while rebuilding."""

from typing import final

from ..batchers import Site


@final
class UnreachableSiteError(ValueError):
    """A vmap stands where rebuilding cannot reach it.

    Raised by `rebuild_sampler`, or while tracing a rebuilt function, for a vmap inside
    an already jitted function or a method of a class: both are shared with the original
    and never changed.

    ```python
    import blackjax
    import jax
    import pytest
    import batchkit as bk

    algorithm = blackjax.nss(
        logprior_fn=lambda x: -(x**2).sum(),
        loglikelihood_fn=lambda x: -(x**2).sum(),
        num_inner_steps=5,
    )
    with pytest.raises(bk.UnreachableSiteError, match="jax.vmap in blackjax.ns.nss"):
        bk.rebuild_sampler(jax.jit(algorithm.init), batcher=bk.Chunked(16))
    ```
    """

    def __init__(self, holder: str, site: Site) -> None:
        """**Arguments:**

        - `holder`: a description of the object that hides the vmap.
        - `site`: where the vmap stands; its `str` names module, function and line.
        """
        self.holder = holder
        self.site = site
        super().__init__(
            f"{holder} holds a vmap that cannot be rebuilt: {site.spelling} in "
            f"{site.name}, line {site.line}. A class or an "
            "already compiled function is shared with the original and is never "
            "changed, so this vmap would silently stay as it is. If you made "
            "the object, hand in a plain function (for `jax.jit(f)`, pass `f` and jit "
            "the rebuilt result); if a package made it, that package has to change, "
            "or be left out of `packages` with all its vmaps. To leave just this one "
            f'as it is, give it `Vmap()`: BySite({{"{site.name}": Vmap()}}, '
            "default=...)."
        )
