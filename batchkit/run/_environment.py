"""What a run ran with."""

import importlib.metadata
import platform
from typing import Final


_PACKAGES: Final = ("batchkit", "jax", "jaxlib", "blackjax", "numpy")


def versions() -> dict[str, str]:
    """The versions of what the numbers of a run depend on, and the platform."""
    return {
        **{name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        # A copy of the source that runs without being installed has none.
        return "unknown"
