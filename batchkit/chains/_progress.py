"""What chains tell while they go on."""

import math
from typing import NamedTuple, final

from ..run._progress import in_time


@final
class ChainProgress(NamedTuple):
    """How far chains are: what `progress=callable` is called with.

    ```python
    from batchkit.chains import ChainProgress

    progress = ChainProgress(
        phase="sampling",
        num_chains=4,
        draws=300,
        num_samples=1000,
        warmed_up=500,
        num_warmup=500,
        divergences=2,
        acceptance=0.84,
        seconds=12.0,
        seconds_left=28.0,
    )
    print(progress)
    ```

    - `phase`: `"warm-up"` or `"sampling"`.
    - `num_chains`: how many chains there are.
    - `draws`: how many draws each chain has made.
    - `num_samples`: how many it shall make.
    - `warmed_up`: how many transitions of the warm-up each chain has made.
    - `num_warmup`: how many it shall make; 0 of an algorithm.
    - `divergences`: how many transitions have diverged, in all chains, after the
        warm-up; None if the sampler does not tell.
    - `acceptance`: the mean acceptance rate of all draws; None if the sampler does not
        tell, NaN before the first draw.
    - `seconds`: how long the run has taken, without compiling.
    - `seconds_left`: an estimate, NaN if there is none.
    """

    phase: str
    num_chains: int
    draws: int
    num_samples: int
    warmed_up: int
    num_warmup: int
    divergences: int | None
    acceptance: float | None
    seconds: float
    seconds_left: float

    def __str__(self) -> str:
        parts = [f"{self.phase} of {self.num_chains} chains"]
        if self.phase == "warm-up":
            parts.append(f"{self.warmed_up:,} of {self.num_warmup:,} transitions")
        if self.phase == "sampling":
            if self.divergences is not None:
                parts.append(f"{self.divergences:,} divergences")
            if self.acceptance is not None and not math.isnan(self.acceptance):
                parts.append(f"acceptance {self.acceptance:.2f}")
            if not math.isnan(self.seconds_left):
                parts.append(f"{in_time(self.seconds_left)} left")
        return ", ".join(parts)
