"""Where a run is saved, how often, and what can go wrong with it."""

import os
from dataclasses import dataclass
from typing import final

from .._util._checks import check_number, check_type


@final
@dataclass(frozen=True)
class Checkpoint:
    """Where a run is saved, and how often.

    `every` is a minimum. Where a checkpoint takes long to write, the next one comes
    later, such that checkpoints take less than 1 % of the time of the run.

    ```python
    import batchkit as bk

    checkpoint = bk.Checkpoint("run.h5", every=300)
    assert checkpoint == bk.Checkpoint(path="run.h5", every=300.0)
    ```
    """

    path: str
    every: float

    def __init__(self, path: str | os.PathLike[str], every: int | float = 60.0) -> None:
        """**Arguments:**

        - `path`: the file, in a folder that exists. Beside it are the generation
            before, `path + ".previous"`, and while the run goes on `path + ".lock"`.
        - `every`: the least number of seconds from one checkpoint to the next; above
            zero and finite, 60 by default.

        **Raises:**

        `TypeError` if `path` is no path or `every` no number, `ValueError` if `path` is
        empty or `every` is not above zero and finite.
        """
        is_path = isinstance(path, str | os.PathLike)
        is_path = is_path and isinstance(os.fspath(path), str)
        rule = "a str or an os.PathLike of str, such as 'run.h5'"
        check_type(is_path, "Checkpoint", "path", path, rule)
        text = os.fspath(path)
        if not text or "\0" in text:
            raise ValueError(
                f"Checkpoint(path={path!r}): path must name a file, such as 'run.h5'."
            )
        check_number(
            "Checkpoint",
            "every",
            every,
            "the least number of seconds between checkpoints, such as 60.0",
            kind=float,
            remedy="For a run that is not saved use `checkpoint=None`.",
        )
        object.__setattr__(self, "path", text)
        object.__setattr__(self, "every", float(every))


@final
class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or cannot be used.

    ```python
    import pytest
    import batchkit as bk

    with pytest.raises(bk.CheckpointError, match="cut short. Start over") as info:
        raise bk.CheckpointError("run.h5 is cut short.", "Start over with fresh=True.")
    assert info.value.remedy == "Start over with fresh=True."
    ```
    """

    def __init__(self, reason: str, remedy: str, damaged: bool = False) -> None:
        """**Arguments:**

        - `reason`: what is wrong, and with which file; a sentence.
        - `remedy`: what to do; a sentence.
        - `damaged`: whether a file does not hold what was once written, so that an
            older one may help. A sound file of another run is not damaged.
        """
        # Both are arguments of the exception, so that it can be pickled.
        super().__init__(reason, remedy)
        self.reason = reason
        self.remedy = remedy
        self.damaged = damaged

    def __str__(self) -> str:
        return f"{self.reason} {self.remedy}"
