"""Which kind of batcher a site gets. This is the whole rule.

1. Where lanes take different ways through loops around an expensive function, they
   should not wait for each other: `Continuous`, with one lane for every
   `TASKS_PER_LANE` tasks, so that nearly all evaluations are needed ones, but not fewer
   than `FEW_LANES`. A function is expensive from `EXPENSIVE` floating-point operations
   on, which `benchmarks/auto.py` measures: below, the work around it is more than what
   is saved.
2. Else, where all tasks fit the budget at once, there is nothing to gain: `Vmap`.
3. Else as many at a time as fit: `Chunked`.

If not even one lane of a `Continuous` fits, the second and third apply.
"""

from typing import Final


EXPENSIVE: Final = 20_000
TASKS_PER_LANE: Final = 8
FEW_LANES: Final = 8


def lanes_that_pay(tasks: int, differ: bool, operations: float) -> int:
    """How many lanes that never wait pay; 0 if lanes had better wait.

    **Arguments:**

    - `tasks`: the number of tasks.
    - `differ`: whether tasks take different ways through loops around the expensive
        function.
    - `operations`: the floating-point operations of one of its calls.
    """
    lanes = max(FEW_LANES, -(-tasks // TASKS_PER_LANE))
    if not differ or operations < EXPENSIVE or lanes >= tasks:
        return 0
    return lanes
