"""How long a nested run took."""

from typing import NamedTuple, final


@final
class Seconds(NamedTuple):
    """How long a run took: to compile, and to run what was compiled.

    ```python
    from batchkit.nested import Seconds

    assert sum(Seconds(compile=1.5, run=20.0)) == 21.5
    ```
    """

    compile: float
    run: float
