"""From a memory budget and a device to a batcher, with the reason."""

from ._auto import Auto as Auto
from ._budget import BudgetError as BudgetError
from ._layout_plan import LayoutPlan as LayoutPlan, plan as plan
from ._select import Selection as Selection
