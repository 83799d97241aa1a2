"""Pytrees as JSON and arrays with names, built again without any code from the file.

JSON has text, numbers, booleans, None and lists, which stand for themselves. All else
is a JSON object with one entry, which says what it is:

    {"array": "positions/mass"}         an array, by its name
    {"float": "-inf"}                   a number that JSON has not
    {"tuple": [1, 2]}                   a tuple
    {"dict": [["mass", 1], [7, 2]]}     a dict; its keys are text or whole numbers
    {"fields": [["mass", 1]]}           any other node of a pytree, such as a NamedTuple

A class is code, so a file cannot hold one. Its fields come back as a dict, or as
whatever the reader has an example of.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import (
    DictKey,
    FlattenedIndexKey,
    GetAttrKey,
    SequenceKey,
    tree_flatten_with_path,
)
from jaxtyping import PyTree

from ._names import path_name


_PLAIN: Final = (str, int, bool, type(None))
# Both directions and JSON itself are recursive.
_DEEPEST: Final = 64
_FLOATS: Final = {repr(x): x for x in (math.inf, -math.inf, math.nan)}


def take_apart(group: str, tree: PyTree, arrays: dict[str, Any]) -> Any:
    """The structure of a pytree as JSON has it.

    **Arguments:**

    - `group`: where its arrays belong, such as `"positions"`.
    - `tree`: the pytree.
    - `arrays`: its arrays are put here, under the names of parameters. A whole pytree
        that is one array has the name of the group.

    **Raises:**

    `TypeError` if a key of a dict is neither text nor a whole number, `ValueError` if
    it is nested too deeply.
    """

    def node(x: Any, path: tuple[Any, ...]) -> Any:
        if len(path) > _DEEPEST:
            raise ValueError(
                f"{group}: a pytree can be saved if at most {_DEEPEST} containers are "
                "inside each other. Flatten it."
            )
        if type(x) in _PLAIN:
            return x
        if type(x) is float:
            return x if math.isfinite(x) else {"float": repr(x)}
        if _is_array(x):
            name = _free_name(group, path, arrays)
            arrays[name] = x
            return {"array": name}
        children, _ = tree_flatten_with_path(x, is_leaf=lambda y: y is not x)
        if len(children) == 1 and children[0][1] is x:
            raise TypeError(
                f"{group}: {path_name(path)} is {x!r}, of type {type(x).__name__}, and "
                "only arrays, numbers and text can be saved. Convert it to an array."
            )
        inside = [(key, node(child, (*path, key))) for (key,), child in children]
        if type(x) is list:
            return [child for _, child in inside]
        if type(x) is tuple:
            return {"tuple": [child for _, child in inside]}
        pairs = [[_word(group, key), child] for key, child in inside]
        return {"dict" if type(x) is dict else "fields": pairs}

    return node(tree, ())


def put_together(structure: Any, arrays: dict[str, Any], depth: int = 0) -> PyTree:
    """The pytree that `take_apart` took apart.

    **Arguments:**

    - `structure`: what `take_apart` returned.
    - `arrays`: the arrays by name; those of the pytree are taken out.
    - `depth`: the number of containers around it.

    **Raises:**

    `LookupError`, `TypeError` or `ValueError` if the structure makes no sense, or an
    array is missing, or wanted twice.
    """

    def inner(children: Any) -> list[Any]:
        if depth >= _DEEPEST or not isinstance(children, list):
            raise ValueError("it has a container that is no list, or too deep")
        return [put_together(x, arrays, depth + 1) for x in children]

    def pairs(children: list[Any]) -> dict[str | int, Any]:
        keys = [key for key, _ in children]
        if not {type(key) for key in keys} <= {str, int} or len({*keys}) != len(keys):
            raise ValueError("it has names that are no names, or the same twice")
        return dict(zip(keys, inner([x for _, x in children]), strict=True))

    if isinstance(structure, list):
        return inner(structure)
    if not isinstance(structure, dict):
        return structure
    ((what, inside),) = structure.items()
    make: dict[str, Callable[[], Any]] = {
        "array": lambda: arrays.pop(inside),
        "float": lambda: _FLOATS[inside],
        "tuple": lambda: tuple(inner(inside)),
        "dict": lambda: pairs(inside),
        "fields": lambda: pairs(inside),
    }
    return make[what]()


def shaped_like(where: str, like: PyTree, tree: PyTree) -> PyTree:
    """The leaves of a pytree, in the structure of another.

    **Arguments:**

    - `where`: who asks, for messages.
    - `like`: a pytree with the structure to have; its leaves can be anything.
    - `tree`: dicts may stand where `like` has classes with fields of those names.

    **Raises:**

    `ValueError` if the two do not have the same names.
    """
    found = {_words(path): x for path, x in tree_flatten_with_path(tree)[0]}
    wanted, treedef = tree_flatten_with_path(like)
    if {_words(path) for path, _ in wanted} != found.keys():
        names = [path_name(path) for path, _ in wanted]
        theirs = [path_name(path) for path, _ in tree_flatten_with_path(tree)[0]]
        raise ValueError(
            f"{where}(like=...): like must have the names of the parameters in the "
            f"file, {', '.join(theirs)}; it has {', '.join(names) or 'none'}. Pass one "
            "position as the sampler had it."
        )
    return jax.tree.unflatten(treedef, [found[_words(path)] for path, _ in wanted])


def describable(value: Any) -> Any:
    """What a file can hold of a setting: the same, or its text if that is all there is.

    Lists, tuples and dicts of such things, numbers, text, None, and arrays of numbers
    stay what they are.
    """
    if type(value) in (*_PLAIN, float):
        return value
    if type(value) in (list, tuple):
        return type(value)(describable(x) for x in value)
    if type(value) is dict:
        return {
            key if type(key) in (str, int) else str(key): describable(x)
            for key, x in value.items()
        }
    if _is_array(value) and (_is_key(value) or np.asarray(value).dtype.kind in "biufc"):
        return value
    return repr(value)


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray | np.generic)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _free_name(group: str, path: tuple[Any, ...], arrays: Mapping[str, Any]) -> str:
    """A name that HDF5 can have, the parameter's own if it is one."""
    if not path:
        return group
    name = "".join(x if x.isprintable() and x != "/" else "_" for x in path_name(path))
    name = f"{name}_" if name in (".", "..") else name
    number, free = 1, f"{group}/{name}"
    while free in arrays:
        number += 1
        free = f"{group}/{name} ({number})"
    return free


def _word(group: str, key: Any) -> str | int:
    match key:
        case GetAttrKey(name=word):
            pass
        case DictKey(key=word) | FlattenedIndexKey(key=word) | SequenceKey(idx=word):
            pass
        case _:
            word = key
    if type(word) in (str, int):
        return word
    raise TypeError(
        f"{group}: a name of a parameter is {word!r}, of type {type(word).__name__}, "
        "and only names that are text or whole numbers can be saved. Rename it."
    )


def _words(path: tuple[Any, ...]) -> tuple[str | int, ...]:
    return tuple(_word("like", key) for key in path)
