"""Chains of Markov chain Monte Carlo, from their starts to draws to be trusted."""

from ._chain_run import ChainRun as ChainRun
from ._convergence import Convergence as Convergence
from ._draws import ChainSeconds as ChainSeconds, ChainSummary as ChainSummary
from ._progress import ChainProgress as ChainProgress
from ._run_chains import run_chains as run_chains
from ._starts import StartError as StartError
