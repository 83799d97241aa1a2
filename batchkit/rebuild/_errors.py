"""What can go wrong while rebuilding."""

from typing import Any, final


@final
class UnreachableSiteError(ValueError):
    """A vmap stands where rebuilding cannot reach it.

    Raised by `rebuild_sampler`, or while tracing a rebuilt function, for a vmap inside
    an already jitted function or a method of a class: both are shared with the original
    and never changed.

    ```python
    import pytest
    import batchkit as bk

    with pytest.raises(bk.UnreachableSiteError, match="jitted"):
        raise bk.UnreachableSiteError("jitted function", "jax.vmap in module:function")
    ```
    """

    def __init__(self, holder: Any, site: Any) -> None:
        """**Arguments:**

        - `holder`: the object that hides the vmap.
        - `site`: where the vmap stands: module, function and line.
        """
        self.holder = holder
        self.site = site
        super().__init__(
            f"{holder} holds a vmap that cannot be rebuilt: {site}. A class or an "
            "already compiled function is shared with the original and is never "
            "changed, so this vmap would silently stay as it is. If you made "
            "the object, hand in a plain function (for `jax.jit(f)`, pass `f` and jit "
            "the rebuilt result); if a package made it, that package has to change, "
            "or be left out of `packages` with all its vmaps."
        )
