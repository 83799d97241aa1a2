"""Where a value was found, which tells whose it is."""

import enum
from typing import final


@final
class Found(enum.Enum):
    """Where a value was found, which tells whose a `jax.vmap` is."""

    IN_MODULE = enum.auto()  # at the top level of a module: the package's
    IN_CLOSURE = enum.auto()  # the package's, but for functions that are the user's
    IN_ARGUMENT = enum.auto()  # the user's
