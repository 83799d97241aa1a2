"""Pytrees in files: round trips, and refusals of unknown structures."""

import json
import math
from collections import OrderedDict
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from batchkit.run._trees import (
    describable,
    named_arrays,
    shaped_like,
    tree_from_arrays,
    tree_from_json,
    tree_to_json,
)

from ..helpers import assert_refuses, assert_same


class Lens(NamedTuple):
    mass: Any
    shear: Any


class Source(eqx.Module):
    flux: Any
    name: str = eqx.field(static=True, default="A")


def there_and_back(tree: Any) -> tuple[Any, dict[str, Any]]:
    arrays: dict[str, Any] = {}
    structure = tree_to_json("positions", tree, arrays)
    text = json.dumps(structure, allow_nan=False)
    return tree_from_json(json.loads(text), dict(arrays)), arrays


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=3)
    | st.integers(0, 9).map(lambda i: np.arange(i))
)
WORDS = st.text(max_size=3) | st.sampled_from(["a", "b", "a.b", "/", "..", "a/b"])
TREES = st.recursive(
    LEAVES,
    lambda x: (
        st.lists(x, max_size=3)
        | st.lists(x, max_size=3).map(tuple)
        | st.dictionaries(WORDS, x, max_size=3)
        | st.dictionaries(st.integers(-5, 5), x, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=200)
@given(TREES)
def test_containers_and_leaves_survive(tree):
    found, arrays = there_and_back(tree)
    same = jax.tree.map(np.array_equal, tree, found)
    assert jax.tree.all(same)
    assert jax.tree.structure(tree) == jax.tree.structure(found)
    types = [type(x) for x in jax.tree.leaves(tree)]
    assert [type(x) for x in jax.tree.leaves(found)] == types
    for name in arrays:
        assert name.count("/") <= 1
        assert name.removeprefix("positions/") not in ("", ".", "..")


def test_arrays_are_named_by_parameters():
    x = np.zeros(2)
    tree = {"lens": {"mass": x, "shear": [x, x]}, "a": {"b": x}, "a.b": x, "c/d": x}
    assert list(there_and_back(tree)[1]) == [
        "positions/a.b",
        "positions/a.b (2)",
        "positions/c_d",
        "positions/lens.mass",
        "positions/lens.shear[0]",
        "positions/lens.shear[1]",
    ]
    assert list(there_and_back(x)[1]) == ["positions"]


def test_infinities_and_nan_survive():
    found, _ = there_and_back([math.inf, -math.inf, math.nan, -0.0])
    assert found[:2] == [math.inf, -math.inf]
    assert math.isnan(found[2])
    assert math.copysign(1, found[3]) == -1


def test_classes_come_back_as_their_fields():
    x, y = np.arange(2), np.arange(3)
    tree = {"lens": Lens(y, [x]), "source": Source(x), "o": OrderedDict(b=x, a=y)}
    found, _ = there_and_back(tree)
    assert found["lens"]["mass"].tolist() == [0, 1, 2]
    assert list(found["o"]) == ["b", "a"]
    assert set(found["source"]) == {"flux"}
    like = {
        "source": Source(0.0, "B"),
        "lens": Lens(1.0, [2.0]),
        "o": OrderedDict(b=0, a=0),
    }
    again = shaped_like("load", like, found)
    assert isinstance(again["lens"], Lens)
    assert again["source"].name == "B"
    assert_same(again["lens"], tree["lens"], ulps=0)
    assert_same(again["o"], tree["o"], ulps=0)


def test_like_with_other_names_is_refused():
    found, _ = there_and_back(Lens(np.zeros(2), np.zeros(2)))
    words = ("mass, shear", "it has mass", "Pass one position")
    assert_refuses(lambda: shaped_like("load", {"mass": 0}, found), ValueError, words)


@pytest.mark.parametrize("tree", [{"a": object()}, [1j], {(1, 2): 1.0}, {0.5: 1}])
def test_leaves_and_keys_that_cannot_be_saved_are_refused(tree):
    with pytest.raises(TypeError, match=r"positions: .*(Convert|Rename)"):
        tree_to_json("positions", tree, {})


def nested(depth: int) -> Any:
    tree: Any = np.zeros(2)
    for _ in range(depth):
        tree = (tree,)
    return tree


def test_too_deep_nesting_is_refused_in_both_directions():
    assert jax.tree.structure(there_and_back(nested(64))[0]).num_leaves == 1
    with pytest.raises(ValueError, match="at most 64 containers"):
        tree_to_json("positions", nested(65), {})
    structure: Any = {"array": "x"}
    for _ in range(400):
        structure = {"tuple": [structure]}
    with pytest.raises(ValueError, match="too deep"):
        tree_from_json(structure, {"x": np.zeros(2)})


@pytest.mark.parametrize(
    "structure",
    [
        {},
        {"array": "x", "tuple": []},
        {"array": "y"},
        {"array": ["x"]},
        [{"array": "x"}, {"array": "x"}],
        {"float": "1e300"},
        {"float": 1},
        {"tuple": 3},
        {"tuple": {"a": 1}},
        {"dict": [["a", 1], ["a", 2]]},
        {"dict": [["a"]]},
        {"dict": [[True, 1]]},
        {"dict": [[["a"], 1]]},
        {"class": "os.system"},
    ],
)
def test_structures_that_saving_never_writes_are_refused(structure):
    with pytest.raises((LookupError, TypeError, ValueError)):
        tree_from_json(structure, {"x": np.zeros(2)})


def test_states_with_other_arrays_are_refused():
    state = {"a": np.zeros(2), "b": jax.random.key(0)}
    arrays = {**named_arrays("state", state), "states/0": np.zeros(1)}
    found = tree_from_arrays("state", arrays, state)
    assert found["a"] is arrays["state/0"]
    assert found["b"].dtype == state["b"].dtype
    for like in ({"a": state["a"]}, {**state, "c": 0.0}):
        with pytest.raises(ValueError, match="has 2 arrays of 'state', not"):
            tree_from_arrays("state", arrays, like)
    for other in (np.zeros(3), np.zeros(2, np.int32)):
        with pytest.raises(ValueError, match="its array state/0 is float"):
            tree_from_arrays("state", arrays, {**state, "a": other})


def test_settings_become_text_only_where_a_file_needs_it():
    setting = {"n": 3, "tol": 0.1, "deep": {"a": (1, None)}, 5: "x", "f": math.sin}
    kept = describable(setting)
    assert kept == {**setting, "f": repr(math.sin)}
    assert kept is not setting
    assert describable({(1, 2): 0}) == {"(1, 2)": 0}
    array, key = np.arange(3), jax.random.key(0)
    assert describable([array, key])[0] is array
    assert describable([array, key])[1] is key
    assert describable(np.array(["a"])) == "array(['a'], dtype='<U1')"
    assert describable(jnp.arange(2)).tolist() == [0, 1]
