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

_OF_SMC = {"blackjax.smc.base:map_fn", "blackjax.smc.base:map_kernel"}
_OF_GRADIENTS = {
    "blackjax.sgmcmc.gradients:logdensity_estimator.<locals>.logdensity_estimator_fn"
}

# The vmaps in functions of blackjax that a case hands in, or takes from a module inside
# the one that is rebuilt: reading the API cannot know of them.
HANDED_IN: dict[str, set[str]] = {
    "ns[uniform_prior]": {"blackjax.ns.utils:uniform_prior"},
    "generate_top_level_api_from": _OF_SMC,
    "inner_kernel_tuning": _OF_SMC,
    "pretuning": {"blackjax.smc.pretuning:esjd"},
    "sgld": _OF_GRADIENTS,
    "sgld[control_variates]": _OF_GRADIENTS,
    "sghmc": _OF_GRADIENTS,
    "sgnht": _OF_GRADIENTS,
    "csgld": _OF_GRADIENTS,
}
