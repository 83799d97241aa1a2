"""Looking inside values for functions: containers, partials, methods and instances.

One traversal serves twice: copying the functions that a value holds, and wrapping those
that leave a rebuilt function.
"""

import copy
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import MappingProxyType, MethodType, SimpleNamespace
from typing import Any


def wrapped_by(value: Any) -> Any:
    """What stands behind `value`, be it jitted or decorated; None if nothing does."""
    return attribute(value, "__wrapped__")


def attribute(value: Any, name: str) -> Any:
    """An attribute, or None, also where looking it up fails in a way of its own."""
    try:
        return getattr(value, name, None)
    except Exception:  # whatever the `__getattr__` of a stranger raises
        return None


def holds(
    value: Any, wanted: Callable[[Any], bool], opens: Callable[[Any], bool]
) -> bool:
    """Whether something `wanted` is in `value`, where `opens` admits instances."""
    seen: set[int] = set()
    pending = [value]
    while pending:
        item = pending.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if wanted(item):
            return True
        pending.extend(children(item, opens))
    return False


def children(value: Any, opens: Callable[[Any], bool]) -> Iterable[Any]:
    """What a value consists of; nothing for a leaf."""
    return [item for _, item in named_children(value, opens)]


def named_children(
    value: Any, opens: Callable[[Any], bool]
) -> Iterable[tuple[str | None, Any]]:
    """What a value consists of, each with the name under which users find it."""
    if isinstance(value, dict | MappingProxyType):
        keys = [(None, key) for key in value]
        return [*keys, *((_text(key), item) for key, item in value.items())]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return zip(value._fields, value, strict=True)  # pyright: ignore
    if isinstance(value, list | tuple | set | frozenset | deque):
        return [(None, item) for item in value]
    if isinstance(value, functools.partial):
        parts = [value.func, *value.args, *value.keywords.values()]
        return [(None, item) for item in parts]
    if isinstance(value, MethodType):
        return [(None, value.__func__), (None, value.__self__)]
    if isinstance(value, SimpleNamespace) or opens(value):
        return _attributes(value)
    return ()


def with_changed(
    value: Any,
    change: Callable[[Any, str | None], Any],
    remember: Callable[[Any, Any], None],
) -> Any:
    """A copy of a value with each of its children changed, which some are.

    **Arguments:**

    - `value`: something that has `children`.
    - `change`: what each child becomes, given the child and its name.
    - `remember`: called with the value and its copy before the children of a mutable
        value are changed, so that a value which holds itself ends.
    """
    if isinstance(value, dict):
        new = copy.copy(value)
        remember(value, new)
        new.clear()
        new.update((change(k, None), change(v, _text(k))) for k, v in value.items())
        return new
    if isinstance(value, list | deque):
        new = copy.copy(value)
        remember(value, new)
        new.clear()
        new.extend(change(item, None) for item in value)
        return new
    if isinstance(value, MappingProxyType):
        return MappingProxyType(
            {change(k, None): change(v, _text(k)) for k, v in value.items()}
        )
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        fields = zip(value, value._fields, strict=True)  # pyright: ignore
        return type(value)._make(change(*field) for field in fields)  # pyright: ignore
    if isinstance(value, tuple | set | frozenset):
        return type(value)(change(item, None) for item in value)
    if isinstance(value, functools.partial):
        keywords = {key: change(item, key) for key, item in value.keywords.items()}
        args = [change(item, None) for item in value.args]
        return type(value)(change(value.func, None), *args, **keywords)
    if isinstance(value, MethodType):
        function, owner = value.__func__, value.__self__
        return MethodType(change(function, None), change(owner, None))
    new = _bare_copy(value)
    remember(value, new)
    for name, item in _attributes(value):
        object.__setattr__(new, name, change(item, name))  # also where it is frozen
    return new


def _bare_copy(value: Any) -> Any:
    """Another instance of its class, also of one that does not let itself be copied."""
    try:
        new = copy.copy(value)
    except TypeError:
        new = value
    return object.__new__(type(value)) if new is value else new


def _text(key: Any) -> str | None:
    return key if isinstance(key, str) else None


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    yield from list(getattr(value, "__dict__", {}).items())
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)
