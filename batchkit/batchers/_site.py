"""`Site`: a place in the source where tasks are mapped."""

import inspect
from dataclasses import dataclass
from types import FrameType
from typing import Final, final


# Packages to skip when looking for the caller's frame.
_SKIPPED: Final = ("batchkit", "jax", "equinox", "functools", "jaxtyping", "beartype")


@final
@dataclass(frozen=True)
class Site:
    """One place in a package's source where a `vmap` is called.

    ```python
    import blackjax
    import batchkit as bk

    algorithm = blackjax.nss(
        logprior_fn=lambda x: -(x**2).sum(),
        loglikelihood_fn=lambda x: -(x**2).sum(),
        num_inner_steps=5,
    )
    likelihood, ravelling = [x for x in bk.sites(algorithm) if x.phase == "init"]
    assert likelihood.module == "blackjax.ns.nss"
    assert likelihood.spelling == "jax.vmap"
    ```

    `str(site)` names it as `module:qualname:line`.

    **Arguments:**

    - `module`: the name of the module, such as `"blackjax.ns.from_mcmc"`.
    - `qualname`: the function that calls the vmap, such as
        `"build_kernel.<locals>.kernel"`.
    - `line`: the line of the call in the module's file.
    - `spelling`: the vmap as written in the source: `"jax.vmap"`, `"vmap"`,
        `"@jax.vmap"` for a decorator, or the name of a variable that holds it.
    - `phase`: the part of the algorithm that reaches the site: `"init"`, `"step"`, or
        `None` if it is not known.
    """

    module: str
    qualname: str
    line: int
    spelling: str
    phase: str | None = None

    @property
    def name(self) -> str:
        """`module:qualname`, which the patterns of a policy are matched with."""
        return f"{self.module}:{self.qualname}"

    def __str__(self) -> str:
        return f"{self.name}:{self.line}"


def site_of_frame(frame: FrameType, spelling: str) -> Site:
    """Return the line that a frame executes as a site."""
    module = str(frame.f_globals.get("__name__"))
    return Site(module, frame.f_code.co_qualname, frame.f_lineno, spelling)


def calling_site(spelling: str) -> Site:
    """Return the line of the nearest caller outside batchkit and JAX as a site."""
    frame = inspect.currentframe()
    while frame is not None:
        site = site_of_frame(frame, spelling)
        if site.module.split(".")[0] not in _SKIPPED:
            return site
        frame = frame.f_back
    raise AssertionError("a batcher is called from some module")
