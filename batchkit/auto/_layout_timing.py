"""Times of several ways to compute the same, side by side, until a limit.

Each candidate is compiled and called once, and dropped if it takes many times as long
as the best. The others are then called in turn for a few rounds, so that a change in
the load of the machine hits all alike, and their medians are compared.

Neither a compilation nor a call can be interrupted, so none is begun that is expected
to end after the limit. A compilation is expected to take as long as the longest before
it, and a first call as long as one that is not dropped may take. Time is left for a
round of those that ran, since a first call says little.
"""

import statistics
import time
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Final, Generic, TypeVar, final


_T = TypeVar("_T", bound=Hashable)

# Calls of each candidate.
ROUNDS: Final = 5
# A candidate is dropped if its first call takes so many times as long as the best.
HOPELESS: Final = 5.0
# Shorter calls, in seconds, are repeated to be measured.
_SHORTEST: Final = 2e-2


@final
class SideBySide(Generic[_T]):
    """The times of candidates that are compared."""

    def __init__(
        self,
        prepare: Callable[[_T], Callable[[], Any] | None],
        advance: Callable[[Callable[[], Any]], object] = lambda fastest: None,
        longest: float = 0.0,
        before: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Compare the calls that `prepare` compiles, which are None if they cannot run.

        `advance` is called between rounds, with the fastest call, and may change the
        arguments of all calls. `longest` is how many seconds a compilation is expected
        to take, `before` how many the first call and what comes before it.
        """
        self.num_tried = 0
        self.is_complete = False
        self._prepare = prepare
        self._advance = advance
        self._longest = longest
        self._before = before
        self._clock = clock
        self._calls: dict[_T, Callable[[], Any]] = {}
        self._seconds: dict[_T, list[float]] = {}

    @property
    def medians(self) -> dict[_T, float]:
        """Median seconds of a call of each candidate that ran, the fastest first.

        Those that were dropped are last: later calls of the others may take longer.
        """
        medians = {x: statistics.median(taken) for x, taken in self._seconds.items()}
        names = sorted(medians, key=lambda x: (x not in self._calls, medians[x]))
        return {x: medians[x] for x in names}

    def fastest(self) -> Any:
        """Call the fastest of the candidates that ran, and return its result."""
        return self._calls[next(iter(self.medians))]()

    def measure(self, candidates: Iterable[_T], deadline: float) -> None:
        """Measure candidates, the most promising first, until a time of the clock.

        Later candidates may depend on the times of those before.
        """
        for candidate in candidates:
            fastest = min(self.medians.values(), default=self._before / HOPELESS)
            first = self._longest + HOPELESS * fastest
            if self._clock() + first + self._round_seconds() > deadline:
                break
            start = self._clock()
            call = self._prepare(candidate)
            self._longest = max(self._longest, self._clock() - start)
            self.num_tried += 1
            if call is not None:
                self._calls[candidate] = call
                self._seconds[candidate] = [self._timed(candidate)]
                self._drop_hopeless()
        else:
            self.is_complete = True
        # With less than two there is nothing to compare.
        for _ in range(1, ROUNDS if len(self._calls) > 1 else 1):
            if self._clock() + self._round_seconds() > deadline:
                self.is_complete = False
                return
            self._advance(self.fastest)
            for x in self._calls:
                self._seconds[x].append(self._timed(x))

    def _round_seconds(self) -> float:
        """Expect the time of one round of the candidates that are left."""
        times = (self._repeats(x) * self._seconds[x][-1] for x in self._calls)
        return sum(times, 0.0)

    def _repeats(self, candidate: _T) -> int:
        """Return how often a call is repeated; the first one is not."""
        taken = self._seconds.get(candidate, [_SHORTEST])
        return max(1, int(_SHORTEST / max(taken[0], 1e-6)))

    def _timed(self, candidate: _T) -> float:
        repeats = self._repeats(candidate)
        start = self._clock()
        for _ in range(repeats):
            self._calls[candidate]()
        return (self._clock() - start) / repeats

    def _drop_hopeless(self) -> None:
        """Forget the calls, and so the programs, of candidates that are too slow."""
        limit = HOPELESS * min(self.medians.values())
        for candidate in [x for x in self._calls if self._seconds[x][0] > limit]:
            del self._calls[candidate]
