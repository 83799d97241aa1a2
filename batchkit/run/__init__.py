"""From a sampler's `init` and `step` to a result, and whether it can be trusted."""

from ._chain_run import ChainRun as ChainRun, ChainSeconds as ChainSeconds
from ._chain_summary import ChainSummary as ChainSummary
from ._chains import run_chains as run_chains
from ._convergence import Convergence as Convergence
from ._diagnostic import Diagnostic as Diagnostic
from ._names import parameter_names as parameter_names
from ._starts import StartError as StartError
