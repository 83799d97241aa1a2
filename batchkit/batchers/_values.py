"""Values of arguments in error messages, and the check that all who take a batcher use.

Arrays are elided: arguments that were swapped would print thousands of numbers, and the
numbers of a traced array are not known at all.
"""

import inspect
from types import UnionType
from typing import Any, Final, final

import equinox as eqx
import jax
import numpy as np

from ._abstract import AbstractBatcher


# A longer repr hides the sentence around it.
_MOST_CHARACTERS: Final = 200


def check_batcher(
    owner: str,
    batcher: object,
    name: str = "batcher",
    *,
    rule: str = "a batcher such as `Vmap()` or `Continuous(8)`",
    kinds: type | UnionType = AbstractBatcher,
) -> None:
    """Raises `TypeError` unless an argument is a batcher.

    **Arguments:**

    - `owner`: the function or class that takes the argument.
    - `batcher`: the value.
    - `name`: the name of the argument.
    - `rule`: what the argument must be, in words.
    - `kinds`: the types that it may have.
    """
    if not isinstance(batcher, kinds):
        raise TypeError(
            f"{owner}({name}={in_short(batcher)}): {name} must be {rule}; got "
            f"{kind_of(batcher)}."
        )


def in_short(value: object) -> str:
    """Format a value like `repr`, with arrays elided: `{'a': float32[60,2]}`."""
    if isinstance(value, type):
        return value.__name__
    try:
        text = repr(jax.tree.map(_elided, value))
    except Exception:  # a repr or a pytree of the user's may raise whatever it likes
        return f"<{type(value).__name__}>"
    hidden = len(text) - _MOST_CHARACTERS
    return f"{text[:_MOST_CHARACTERS]}..." if hidden > 0 else text


def kind_of(value: object) -> str:
    """Name the type of a value; of a class, also how to make an object of it."""
    if not isinstance(value, type):
        return type(value).__name__
    name = value.__name__
    if not issubclass(value, eqx.Module) or inspect.isabstract(value):
        return f"the class {name}"
    required = [
        x
        for x in inspect.signature(value).parameters.values()
        if x.default is x.empty and x.kind is x.POSITIONAL_OR_KEYWORD
    ]
    is_count = len(required) == 1 and required[0].annotation is int
    arguments = "16" if is_count else "..." if required else ""
    return f"the class {name}; make one: `{name}({arguments})`"


@final
class _Elided:
    """An array that prints as its dtype and shape."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _elided(x: Any) -> Any:
    if isinstance(x, np.generic):
        return x
    dtype, shape = getattr(x, "dtype", None), getattr(x, "shape", None)
    if dtype is None or not isinstance(shape, tuple):
        return x
    return _Elided(f"{dtype}[{','.join(map(str, shape))}]")
