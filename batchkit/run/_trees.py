"""Pytrees in files: as arrays with names, or as JSON with arrays, without any code.

A checkpoint has the leaves of a state under a name and a number; resuming needs an
example of the state. A result is read without one. There JSON has the structure: text,
numbers, booleans, None and lists stand for themselves, and all else is a JSON object
with one entry:

    {"array": "positions/mass"}         an array, by its name
    {"float": "-inf"}                   a number that JSON has not
    {"tuple": [1, 2]}                   a tuple
    {"dict": [["mass", 1], [7, 2]]}     a dict; its keys are text or whole numbers
    {"fields": [["mass", 1]]}           any other node of a pytree, such as a NamedTuple

A class is code, so a file cannot hold one. Its fields come back as a dict, or as the
class of an example that the reader passes.
"""

import math
import types
import typing
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
from jaxtyping import AbstractArray, PyTree, jaxtyped

from ._names import path_name
from ._processes import gather_to_host


_PLAIN: Final = (str, int, bool, type(None))
# Both directions and JSON itself are recursive.
_MAX_DEPTH: Final = 64
_FLOATS: Final = {repr(x): x for x in (math.inf, -math.inf, math.nan)}


def to_host(tree: PyTree) -> PyTree:
    """Convert arrays to NumPy's; keys stay keys.

    Of arrays that span processes each process gets the whole: all must call it.
    """
    return jax.tree.map(
        lambda x: x if _is_key(x) else np.asarray(x), gather_to_host(tree)
    )


def named_arrays(name: str, tree: PyTree) -> dict[str, Any]:
    """Return the leaves of a pytree, on the host, under a name and a number."""
    leaves = jax.tree.leaves(to_host(tree))
    return {f"{name}/{i}": leaf for i, leaf in enumerate(leaves)}


def array_names(name: str, tree: PyTree) -> PyTree:
    """Return the names that `named_arrays` gives, in the structure of the pytree."""
    treedef = jax.tree.structure(tree)
    names = [f"{name}/{i}" for i in range(treedef.num_leaves)]
    return jax.tree.unflatten(treedef, names)


def names_to_save(tree: PyTree) -> Any:
    """Return names of arrays for `tree_from_json`; None if JSON has no such form."""
    try:
        return tree_to_json("names", tree, {})
    except (TypeError, ValueError):
        return None


def tree_from_arrays(name: str, arrays: Mapping[str, Any], like: PyTree) -> PyTree:
    """Return the pytree that `named_arrays` took apart, or raise `ValueError`."""
    leaves, treedef = jax.tree.flatten(like)
    found = [key for key in arrays if key.startswith(f"{name}/")]
    names = [f"{name}/{i}" for i in range(len(leaves))]
    if {*found} != {*names}:
        raise ValueError(f"it has {len(found)} arrays of {name!r}, not {len(names)}")
    for key, leaf in zip(names, leaves, strict=True):
        array = arrays[key]
        if (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
            raise ValueError(
                f"its array {key} is {array.dtype} of shape {array.shape} and not "
                f"{leaf.dtype} of shape {leaf.shape}"
            )
    return jax.tree.unflatten(treedef, [arrays[key] for key in names])


def tree_to_json(group: str, tree: PyTree, arrays: dict[str, Any]) -> Any:
    """Return the structure of a pytree as JSON has it; its arrays go to `arrays`.

    They get the names of parameters in a group, such as `"positions"`; a whole pytree
    that is one array has the name of the group. Raise `TypeError` or `ValueError` for
    other values, for keys of dicts that are neither text nor whole numbers, and for too
    many levels.
    """

    def node(x: Any, path: tuple[Any, ...]) -> Any:
        if len(path) > _MAX_DEPTH:
            raise ValueError(
                f"{group}: a pytree can be saved if at most {_MAX_DEPTH} containers "
                "are inside each other. Flatten it."
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


def tree_from_json(structure: Any, arrays: dict[str, Any], depth: int = 0) -> PyTree:
    """Return the pytree of a structure, and remove its arrays from `arrays`.

    Raise `LookupError`, `TypeError` or `ValueError` for arrays that are not there, or
    twice, and for other structures.
    """

    def inner(children: Any) -> list[Any]:
        if depth >= _MAX_DEPTH or not isinstance(children, list):
            raise ValueError("it has a container that is no list, or too deep")
        return [tree_from_json(x, arrays, depth + 1) for x in children]

    def pairs(children: list[Any]) -> dict[str | int, Any]:
        keys = [key for key, _ in children]
        if not {type(key) for key in keys} <= {str, int} or len({*keys}) != len(keys):
            raise ValueError("it has names that are no names, or the same twice")
        return dict(zip(keys, inner([x for _, x in children]), strict=True))

    if isinstance(structure, list):
        return inner(structure)
    if not isinstance(structure, dict):
        return structure
    ((kind, content),) = structure.items()
    make: dict[str, Callable[[Any], Any]] = {
        "array": arrays.pop,
        "float": _FLOATS.__getitem__,
        "tuple": lambda children: tuple(inner(children)),
        "dict": pairs,
        "fields": pairs,
    }
    return make[kind](content)


def shaped_like(where: str, like: PyTree, tree: PyTree) -> PyTree:
    """Return leaves in the structure of `like`, where classes may stand for dicts."""

    def words(path: tuple[Any, ...]) -> tuple[str | int, ...]:
        return tuple(_word("like", key) for key in path)

    leaves, _ = tree_flatten_with_path(tree)
    wanted, treedef = tree_flatten_with_path(like)
    by_words = {words(path): x for path, x in leaves}
    if {words(path) for path, _ in wanted} != by_words.keys():
        in_file, in_like = (
            ", ".join(path_name(path) for path, _ in x) for x in (leaves, wanted)
        )
        raise ValueError(
            f"{where}(like=...): like must have the names of the parameters in the "
            f"file, {in_file}; it has {in_like or 'none'}. Pass one position as the "
            "sampler had it."
        )
    return jax.tree.unflatten(treedef, [by_words[words(path)] for path, _ in wanted])


def typed(values: Mapping[str, Any], name: str, *types: type) -> Any:
    """Return a value of a file of just one of some types, or raise `ValueError`."""
    if type(values[name]) not in types:
        raise ValueError(f"its {name} is {values[name]!r}")
    return values[name]


def numbers(values: Mapping[str, Any], name: str, *counts: int) -> tuple[float, ...]:
    """Return a list of some length of numbers of a file, or raise `ValueError`."""
    found = typed(values, name, list)
    if len(found) not in counts or not {type(x) for x in found} <= {int, float}:
        raise ValueError(f"its {name} are {found!r}")
    return tuple(map(float, found))


def record_from(values: Mapping[str, Any], name: str, kind: Any) -> Any:
    """Return a value of a file as a type says, else raise `ValueError`.

    A dataclass or a named tuple is made from a dict or a list of its fields, whose
    types are its annotations; an axis has one size in all its arrays. Further types are
    `tuple[kind, ...]`, `list[kind]`, `kind | None`, arrays as jaxtyping writes them,
    and those of `typed`; a `float` may be an `int`.
    """
    value = values[name]
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (tuple, list):
        items = typed(values, name, origin)
        return origin(record_from({name: item}, name, inner[0]) for item in items)
    if origin is types.UnionType:
        return None if value is None else record_from(values, name, inner[0])
    if issubclass(kind, AbstractArray):
        if not isinstance(value, kind):
            raise ValueError(f"its {name} is {value!r}, and not {kind}")
        return value
    if fields := typing.get_type_hints(kind):
        found = typed(values, name, dict, list)
        if type(found) is list:
            found = dict(zip(fields, found, strict=True))
        with jaxtyped("context"):
            parts = {x: record_from(found, x, hint) for x, hint in fields.items()}
        return kind(**parts)
    return typed(values, name, *((int, float) if kind is float else (kind,)))


def describable(value: Any) -> Any:
    """Convert a setting to what a file can hold: the same, or else its text."""
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
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _free_name(group: str, path: tuple[Any, ...], arrays: Mapping[str, Any]) -> str:
    """Return a name that HDF5 can have, that of the parameter if it is one."""
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
