"""`Site`: a place in the source where tasks are mapped."""

from dataclasses import dataclass
from typing import final


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
    """

    module: str
    qualname: str
    line: int
    spelling: str
    phase: str | None = None

    def __init__(
        self,
        module: str,
        qualname: str,
        line: int,
        spelling: str,
        phase: str | None = None,
    ) -> None:
        """**Arguments:**

        - `module`: the name of the module, such as `"blackjax.ns.from_mcmc"`.
        - `qualname`: the function that calls the vmap, such as
            `"build_kernel.<locals>.kernel"`.
        - `line`: the line of the call in the module's file.
        - `spelling`: the vmap as written in the source: `"jax.vmap"`, `"vmap"`,
            `"@jax.vmap"` for a decorator, or the name of a variable that holds it.
        - `phase`: the part of the algorithm that reaches the site: `"init"`, `"step"`,
            or `None` if it is not known.
        """
        for name, value in (
            ("module", module),
            ("qualname", qualname),
            ("line", line),
            ("spelling", spelling),
            ("phase", phase),
        ):
            object.__setattr__(self, name, value)

    @property
    def name(self) -> str:
        """`module:qualname`, which the patterns of a policy are matched with."""
        return f"{self.module}:{self.qualname}"

    def __str__(self) -> str:
        return f"{self.name}:{self.line}"
