"""The table: what covers every public name of blackjax, and what needs no cover."""

import blackjax

from . import adaptation, diagnostics, ensemble, mcmc, ns, sgmcmc, smc, vi
from .cases import Case


_FAMILIES = (mcmc, ns, smc, sgmcmc, vi, adaptation, ensemble, diagnostics)

# An older release may lack a name.
CASES: tuple[Case, ...] = tuple(
    case
    for family in _FAMILIES
    for case in family.CASES
    if hasattr(blackjax, case.name)
)

_IMPORTED = "the standard library's, which blackjax imports"
_CLASS = "a class: it holds functions, and the names of its instances have cases"
_PACKAGE = "a package: what is in it has cases under names of its own"

EXCEPTIONS: dict[str, str] = {
    "Callable": _IMPORTED,
    "dataclasses": _IMPORTED,
    "functools": _IMPORTED,
    "GeneratePathfinderAPI": _CLASS,
    "GenerateSamplingAPI": _CLASS,
    "GenerateVariationalAPI": _CLASS,
    "SamplingAlgorithm": _CLASS,
    "VIAlgorithm": _CLASS,
    "adaptation": _PACKAGE,
    "mcmc": _PACKAGE,
    "optimizers": _PACKAGE,
    "sgmcmc": _PACKAGE,
    "smc": _PACKAGE,
    "vi": _PACKAGE,
    "base": "a module of classes and types",
    "types": "a module of types",
    "progress_bar": "a context manager that shows how far a scan is",
}

# The vmaps in blackjax's source that no case reaches.
UNREACHED: dict[str, str] = {
    "blackjax.adaptation.laps_burn_in:equipartition_fullrank": (
        "called by a method of a class, which `rebuild_sampler` refuses by name"
    ),
}

# What `Sharded` cannot run yet: a task that meets an array which lies on the mesh
# already, in a derivative or a vmap, and the derivative with respect to a constant.
SHARDED_FAILS: frozenset[str] = frozenset(
    (
        "tempered_smc",
        "tempered_smc[nuts]",
        "tempered_smc[waste_free]",
        "tempered_smc[unshared]",
        "tempered",
        "smc_family",
        "generate_top_level_api_from",
        "persistent_sampling_smc",
        "persistent_sampling",
        "adaptive_persistent_sampling_smc",
        "adaptive_persistent_sampling",
        "partial_posteriors_smc",
        "pretuning",
        "sgld[control_variates]",
        "fullrank_vi",
        "multipathfinder",
        "svgd",
        "staged_adaptation[chains]",
        "meads_adaptation",
        "meads_adaptation[low_rank]",
        "chees_adaptation",
        "chees_adaptation[metric]",
        "pathfinder_adaptation[chains]",
        "pathfinder_adaptation[paths]",
        "pathfinder_adaptation[empirical]",
        "mclmc_lrd_warmup",
    )
)
