"""A log that does not end a run."""

import logging
import sys
from typing import Any, final


@final
class SafeLog(logging.LoggerAdapter[logging.Logger]):
    """A log that never raises because `sys.stderr` is closed.

    Warnings go there by default. `logging` catches errors of its handlers and reports
    them on `sys.stderr`, which then raises once more.
    """

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
        try:
            super().log(level, msg, *args, **kwargs)
        except ValueError:
            if sys.stderr is None or not sys.stderr.closed:
                raise
