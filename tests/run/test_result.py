"""Results as files: what is saved comes back, and other files are refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.run import Diagnostic, Provenance, Seconds, _file, _result

from ..helpers import assert_refuses, assert_same
from .results import (
    MAKERS,
    Lens,
    chains,
    checked_shards,
    contents,
    full_chains,
    nested,
    samples_of,
    shards,
)


WARNINGS = (
    Diagnostic("inner steps", 4.0, 10.0, "use more"),
    Diagnostic("p", np.inf, 0.0, ""),
)
SETTINGS = {"num_delete": 4, "x": (np.arange(2), None), "batcher": bk.Vmap()}
RESULTS: dict[str, Any] = {
    "nested": lambda: nested(
        warnings=WARNINGS,
        seconds=Seconds(compile=1.25, sampling=20.0),
        converged=False,
        num_evaluations=None,
        settings=SETTINGS,
        provenance=(Provenance(0, {"jax": "1"}), Provenance(9, {"jax": "2"})),
    ),
    "chains": full_chains,
    "chains, draws only": chains,
    "shards": shards,
    "shards, checked": checked_shards,
}
WAYS = {
    "array": lambda x: x.astype(np.float32),
    "matrices": lambda x: np.stack([x, -x], -1)[..., None, :],
    "list": lambda x: [x, (x, {"a": x})],
    "none": lambda x: {"a": None, "b": x, "c": ()},
    "numbers as names": lambda x: {7: x, -1: x},
    "types": lambda x: {
        "bfloat16": x.astype(jnp.bfloat16),
        "bool": x > 0.5,
        "int8": (10 * x).astype(np.int8),
        "half": x.astype(np.float16),
        "empty": np.zeros((*x.shape, 0, 2), np.float32),
    },
}


def there_and_back(run: Any, folder: Path, **how: Any) -> Any:
    run.save(folder / "result.h5")
    return type(run).load(folder / "result.h5", **how)


@pytest.mark.parametrize("name", RESULTS)
def test_everything_comes_back(name: str, tmp_path: Path) -> None:
    run = RESULTS[name]()
    again = there_and_back(run, tmp_path)
    if name == "nested":
        assert again.settings.pop("batcher") == repr(run.settings.pop("batcher"))
        assert again.log_evidence == run.log_evidence
        assert_same(again.weights, run.weights, ulps=0)
    found, expected = contents(again), contents(run)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if isinstance(b, float):
            np.testing.assert_equal(a, b)  # NaN equals NaN
        else:
            assert_same(a, b, ulps=0)
    assert repr(again) == repr(run)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["nested", "chains"])
def test_positions_keep_their_structure_and_types(
    kind: str, way: str, tmp_path: Path
) -> None:
    run = MAKERS[kind](WAYS[way])
    again = there_and_back(run, tmp_path)
    assert_same(samples_of(again), samples_of(run), ulps=0)


def test_complex_positions_come_back(tmp_path: Path) -> None:
    run = nested(lambda u: u + 1j)
    assert_same(there_and_back(run, tmp_path).dead.positions, run.dead.positions)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", None])
def test_keys_come_back(impl: str | None, tmp_path: Path) -> None:
    key = jax.random.PRNGKey(5) if impl is None else jax.random.key(5, impl=impl)
    again = there_and_back(nested(key=key), tmp_path)
    assert isinstance(again.key, jax.Array)
    assert_same(again.key, key, ulps=0)


@pytest.mark.parametrize("kind", MAKERS)
def test_classes_come_back_by_an_example(kind: str, tmp_path: Path) -> None:
    run = MAKERS[kind](lambda x: Lens(x, {"a": x[..., ::-1]}))
    plain = there_and_back(run, tmp_path)
    assert set(samples_of(plain)) == {"shear", "mass"}
    assert plain.summary().values.keys() == run.summary().values.keys()
    again = there_and_back(run, tmp_path, like=Lens(0.0, {"a": 0.0}))
    assert_same(samples_of(again), samples_of(run), ulps=0)
    if kind == "shards":
        for one, other in zip(again.shards, run.shards, strict=True):
            assert_same(one.samples, other.samples, ulps=0)
    with pytest.raises(ValueError, match=r"Run.load\(like=.*it has shear\."):
        there_and_back(run, tmp_path, like={"shear": 0.0})


def test_other_readers_find_arrays_and_json(tmp_path: Path) -> None:
    run = nested(lambda u: {"lens": {"mass": u}})
    run.save(tmp_path / "result.h5")
    with h5py.File(tmp_path / "result.h5") as file:
        arrays: Any = file["arrays"]
        np.testing.assert_array_equal(
            arrays["positions/lens.mass"][()], run.dead.positions["lens"]["mass"]
        )
        np.testing.assert_array_equal(arrays["weights"][()], run.weights)
        text: Any = file["header"]
        header = json.loads(text.asstr()[()])
    assert header["kind"] == "result of a nested run"
    assert header["values"]["log_evidence"] == run.log_evidence
    assert header["versions"]["jax"] == jax.__version__


@pytest.mark.parametrize("kind", MAKERS)
def test_other_kinds_are_refused_with_the_class_to_use(
    kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "result.h5"
    run = MAKERS[kind]()
    run.save(path)  # in the place of the result before
    name = type(run).__name__
    for cls in {bk.NestedRun, bk.ChainRun, bk.ShardRun} - {type(run)}:
        words = (f", and not a {cls.__name__}.", f"Load it with `{name}.load`")
        assert_refuses(lambda cls=cls: cls.load(path), bk.CheckpointError, words)


def test_a_result_replaces_a_result_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "result.h5"
    chains().save(path)
    nested().save(str(path))
    assert bk.NestedRun.load(str(path)).num_steps > 0
    (tmp_path / "mine.csv").write_text("a,b\n")
    with pytest.raises(bk.CheckpointError, match=r"Cannot replace.*Choose another"):
        nested().save(tmp_path / "mine.csv")
    assert (tmp_path / "mine.csv").read_text() == "a,b\n"
    checkpoint = tmp_path / "run.h5"
    _file.write_file(checkpoint, {"kind": "nested run"}, {})
    with pytest.raises(bk.CheckpointError, match="it is a checkpoint"):
        nested().save(checkpoint)


def test_checkpoints_that_are_no_results_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    for kind, cls, words in (
        ("nested run", bk.NestedRun, "without the names.*run_nested"),
        ("run of chains", bk.ChainRun, "without the names.*run_chains"),
        ("run of chains", bk.ShardRun, r"Load it with `ChainRun\.load`"),
        ("run of shards", bk.ShardRun, r"and no result\. Go on"),
        ("run of shards", bk.NestedRun, r"and no result\. Go on"),
    ):
        _file.write_file(path, {"kind": kind}, {})
        with pytest.raises(bk.CheckpointError, match=words):
            cls.load(path)


def test_foreign_damaged_and_newer_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.h5"

    def refused(*words: str) -> None:
        assert_refuses(lambda: bk.NestedRun.load(path), bk.CheckpointError, words)

    for missing in (path, tmp_path / "none" / "result.h5"):
        with pytest.raises(bk.CheckpointError, match=r"No such file.*Check the path"):
            bk.NestedRun.load(missing)
    with h5py.File(path, "w") as file:
        file["x"] = [1]
    refused("an HDF5 file from elsewhere")
    path.unlink()
    nested().save(path)
    path.write_bytes(path.read_bytes()[:-3])
    refused("is damaged", "Make the run again, or put a sound copy")
    for module, words in (
        (_result, ("a result in format 2", "formats up to 1", "or a newer one")),
        (_file, ("has format 2", "or make the run again")),
    ):
        path.unlink()
        with monkeypatch.context() as patch:
            patch.setattr(module, "FORMAT", 2)
            nested().save(path)
        refused(*words)


@pytest.mark.parametrize(
    ("load", "kind", "caller"),
    [
        (bk.NestedRun.load, "nested run", "run_nested"),
        (bk.ChainRun.load, "run of chains", "run_chains"),
    ],
)
def test_checkpoint_without_names_of_parameters_is_refused(
    tmp_path: Path, load: Callable[[Path], Any], kind: str, caller: str
) -> None:
    path = tmp_path / "run.h5"
    for names in (None, dict.fromkeys(("position", "live", "dead"))):
        _file.write_file(path, {"kind": kind, "result": names}, {})
        with pytest.raises(bk.CheckpointError, match=f"names of .*; call {caller}"):
            load(path)


NONSENSE: dict[str, dict[str, list[Any]]] = {
    "nested": {
        "num_steps": ["x", -0.5, None, True],
        "num_evaluations": ["x", 1.5],
        "converged": [1, None],
        "stop_reason": [None, ["x"]],
        "seconds": [[1.0], 3, ["a", "b"]],
        "warnings": [3, [["a"]], [[1, 2.0, 3.0, "x"]], [["a", "b", 3.0, "x"]]],
        "settings": [None, [1]],
        "positions": [1, {"dict": [["u", 3]]}, {"fields": []}, {"array": "weights"}],
        "key": [3, {"array": "loglikelihood"}],
        "loglikelihood": [None, {"array": "positions/u"}, [{"array": "loglikelihood"}]],
    },
    "chains": {
        "samples": [1, [], {"array": "step_size"}],
        "logdensity": [3, {"array": "step_size"}],
        "diverging": [{"array": "energy"}],
        "max_tree_depth": ["x", 1.5, True],
        "seconds": [[1.0, 2.0], None],
    },
    "shards": {
        "samples": [1, {"dict": [["b", {"array": "samples"}]]}],
        "combine": [3, "sum"],
        "used": [[0], [0, 1, 3], None],
        "left_out": [[], {"dict": [[2, 3]]}],
        "shards": [3, [], [3, 3, 3], [{"dict": []}] * 3],
        "tries": [3, [], [3, 3, 3], [[{"dict": []}]] * 3],
        "gradient_check": [3, {"dict": []}],
        "warnings": [[["a"]]],
    },
}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in NONSENSE for name in NONSENSE[kind]]
)
def test_values_that_make_no_sense_are_refused(
    kind: str, name: str, tmp_path: Path
) -> None:
    path = tmp_path / "result.h5"
    run = full_chains() if kind == "chains" else MAKERS[kind]()
    run.save(path)
    header, arrays = _file.read_file(path)
    values = header["values"]
    missing = {key: value for key, value in values.items() if key != name}
    for changed in (missing, *({**values, name: x} for x in NONSENSE[kind][name])):
        _file.write_file(path, {**header, "values": changed}, arrays)
        with pytest.raises(bk.CheckpointError, match="cannot be understood"):
            type(run).load(path)


def test_arrays_of_no_value_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "result.h5"
    chains().save(path)
    header, arrays = _file.read_file(path)
    _file.write_file(path, header, {**arrays, "more": np.zeros(3)})
    with pytest.raises(bk.CheckpointError, match="an array 'more' that is of no value"):
        bk.ChainRun.load(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('["max_tree_depth", 4]', '["max_tree_depth", "x"]'),
        ('["number", 1]', '["number", 2]'),
        ('["reason", "wild"]', '["reason", 3]'),
        ('["accepted", true]', '["accepted", 1]'),
        ('["seconds", [3.0, ', '["seconds", ["x", '),
        ('["seconds", [3.0, ', '["seconds", ['),
        ('["num_draws", ', '["num_draws", 0.'),
        ('{"tuple": ["a[0]", "a[1]"]}', '{"tuple": ["a[0]"]}'),
    ],
)
def test_records_of_shards_with_a_wrong_field_are_refused(
    old: str, new: str, tmp_path: Path
) -> None:
    path = tmp_path / "result.h5"
    checked_shards().save(path)
    header, arrays = _file.read_file(path)
    text = json.dumps(header)
    assert old in text
    _file.write_file(path, json.loads(text.replace(old, new)), arrays)
    with pytest.raises(bk.CheckpointError, match="cannot be understood"):
        bk.ShardRun.load(path)


def test_checks_by_gradients_of_other_shapes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "result.h5"
    checked_shards().save(path)
    header, arrays = _file.read_file(path)
    of_check = [name for name in arrays if name.startswith("gradient_check/")]
    assert len(of_check) == 8
    for name in of_check:
        for array in (arrays[name][..., :1], arrays[name].astype(int)):
            _file.write_file(path, header, {**arrays, name: array})
            with pytest.raises(bk.CheckpointError, match="cannot be understood"):
                bk.ShardRun.load(path)


def test_positions_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    run = nested(lambda u: {"u": u, "name": np.array(["a"] * len(u))})
    with pytest.raises(TypeError, match=r"positions/name.*only booleans and numbers"):
        run.save(tmp_path / "result.h5")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cls", [bk.NestedRun, bk.ChainRun, bk.ShardRun])
def test_reference_lists_every_method(cls: type) -> None:
    folder = Path(__file__).parents[2] / "docs" / "api"
    pages = "\n".join(page.read_text("utf-8") for page in folder.glob("*.md"))
    entry = pages.split(f"::: batchkit.{cls.__name__}\n")[1].split(":::")[0]
    # Without it mkdocstrings shows only what the class itself defines.
    assert "inherited_members: true" in entry
    public = {name for name in dir(cls) if not name.startswith("_")}
    fields = getattr(cls, "__dataclass_fields__", {}).keys()
    assert public - fields <= set(re.findall(r"- (\w+)", entry))
