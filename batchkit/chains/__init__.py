"""Markov chain Monte Carlo: chains from their starts to draws with diagnostics."""

from ._chain_loop import ChainProgress as ChainProgress
from ._chain_run import ChainRun as ChainRun
from ._convergence import Convergence as Convergence
from ._run_chains import run_chains as run_chains
