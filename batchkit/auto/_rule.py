"""Which kind of batcher a site gets. This is the whole rule.

1. Where lanes take different ways through loops around an expensive function, they
   should not wait for each other: `Continuous`. A function is expensive from
   `EXPENSIVE` floating-point operations on: below, the work around it is more than what
   is saved. There is one lane for every `TASKS_PER_LANE` tasks, so that nearly all
   evaluations are needed ones; but no fewer than `FEW_LANES`, with which a batched call
   is efficient, as long as each of them gets `FEW_TASKS`.
2. Else as many tasks at a time as fit the budget: `Vmap` if that is all of them, or
   `Chunked`. On a CPU it is as many as fit `CACHE`, if that is less and one lane does:
   more at once gain nothing there, and what leaves the cache is slow.

If not even one lane of a `Continuous` fits, the second applies. The numbers are from
`benchmarks/auto.py`, which tells how often the choice is a good one.
"""

from typing import Final


EXPENSIVE: Final = 2_000
TASKS_PER_LANE: Final = 8
FEW_LANES: Final = 16
FEW_TASKS: Final = 3
CACHE: Final = 16_000_000


def lanes_that_pay(tasks: int, differ: bool, operations: float) -> int:
    """How many lanes that never wait pay; 0 if lanes had better wait.

    **Arguments:**

    - `tasks`: the number of tasks.
    - `differ`: whether tasks take different ways through loops around the expensive
        function.
    - `operations`: the floating-point operations of one of its calls.
    """
    if not differ or operations < EXPENSIVE:
        return 0
    return max(-(-tasks // TASKS_PER_LANE), min(FEW_LANES, tasks // FEW_TASKS))


def bytes_that_pay(budget: int, lane: int, platform: str) -> int:
    """How many bytes lanes that wait should take together.

    **Arguments:**

    - `budget`: the most that they may.
    - `lane`: what one of them takes, roughly.
    - `platform`: JAX's name for the device.
    """
    if platform != "cpu" or lane > CACHE:
        return budget
    return min(budget, CACHE)
