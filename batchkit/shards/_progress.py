"""What shards tell while their chains go on."""

import math
from typing import NamedTuple, final

from ..run._progress import in_time


@final
class ShardProgress(NamedTuple):
    """How far shards are: what `progress=callable` is called with.

    ```python
    from batchkit.shards import ShardProgress

    progress = ShardProgress(
        phase="sampling",
        number=1,
        shards=(1, 3),
        num_shards=4,
        draws=300,
        num_samples=1000,
        divergences=(2, 0),
        seconds=12.0,
        seconds_left=28.0,
    )
    print(progress)
    ```

    - `phase`: `"warm-up"` or `"sampling"`.
    - `number`: the number of the try, from 0.
    - `shards`: the indices of the shards that run; the others have their draws.
    - `num_shards`: how many shards there are.
    - `draws`: how many draws each of their chains has made.
    - `num_samples`: how many it shall make.
    - `divergences`: for each shard that runs how many transitions have diverged; None
        if the sampler does not tell.
    - `seconds`: how long the try has taken, without compiling.
    - `seconds_left`: an estimate for the try, NaN if there is none.
    """

    phase: str
    number: int
    shards: tuple[int, ...]
    num_shards: int
    draws: int
    num_samples: int
    divergences: tuple[int, ...] | None
    seconds: float
    seconds_left: float

    def __str__(self) -> str:
        count = len(self.shards)
        which = f"all {count}" if count == self.num_shards else f"{count}"
        parts = [f"{self.phase} of {which} shards" if count > 1 else self._of_one()]
        if self.number > 0:
            parts.append(f"try {self.number + 1}")
        if self.phase == "sampling":
            if self.divergences is not None:
                parts.append(f"{sum(self.divergences):,} divergences")
                worst = max(self.divergences)
                if worst > 0 and count > 1:
                    shard = self.shards[self.divergences.index(worst)]
                    parts[-1] += f" ({worst:,} in shard {shard})"
            if not math.isnan(self.seconds_left):
                parts.append(f"{in_time(self.seconds_left)} left")
        return ", ".join(parts)

    def _of_one(self) -> str:
        return f"{self.phase} of shard {self.shards[0]}"
