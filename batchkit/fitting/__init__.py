"""From a budget for a whole program to a batcher for each of its phases."""

from ._fit import fit as fit
from ._fitted import Fitted as Fitted
