"""From a memory budget and a device to a batcher, with the reason."""

from ._auto import Auto as Auto, Selection as Selection
from ._lane_memory import BudgetError as BudgetError
from ._layout_plan import LayoutPlan as LayoutPlan, plan as plan
from ._phase_layout import PhaseLayout as PhaseLayout
