"""From a budget of memory to a batcher, with the reason."""

from ._auto import Auto as Auto
from ._errors import BudgetError as BudgetError
from ._selection import Selection as Selection
