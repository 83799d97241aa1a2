"""Arguments that functions of several kinds take, and refuse alike."""

from ..batchers import AbstractBatcher


def check_count(owner: str, name: str, value: object, remedy: str = "") -> int:
    """An int of at least 1, or an error.

    **Arguments:**

    - `owner`: what it is an argument of, such as `"run_chains"`.
    - `name`: what it is called there.
    - `value`: what was given for it.
    - `remedy`: what to do in place of a smaller number, after a space.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"{owner}({name}={value!r}): {name} must be an int, at least 1; got "
            f"{type(value).__name__}."
        )
    if value < 1:
        raise ValueError(f"{owner}({name}={value}): {name} must be at least 1.{remedy}")
    return value


def check_acceptance(owner: str, value: object) -> float:
    """A rate between 0 and 1, or an error."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(
            f"{owner}(target_acceptance={value!r}): target_acceptance must be a "
            f"number between 0 and 1, such as 0.8; got {type(value).__name__}."
        )
    if not 0 < value < 1:
        raise ValueError(
            f"{owner}(target_acceptance={value}): target_acceptance must be between "
            "0 and 1, such as 0.8, or 0.95 if transitions diverge."
        )
    return float(value)


def check_batcher(owner: str, batcher: object) -> None:
    """Raises if it is none."""
    if not isinstance(batcher, AbstractBatcher):
        raise TypeError(
            f"{owner}(batcher={batcher!r}): batcher must be a batcher such as "
            f"`Vmap()` or `Continuous(8)`; got {type(batcher).__name__}."
        )
