"""One file: arrays and headers survive, and every damage is refused."""

import hashlib
import json
import random
import re
import tracemalloc
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

from batchkit.run import CheckpointError, _file
from batchkit.run._file import decode, encode, read_file, write_file

from .sealed import crafted, header_of, seal


NATIVE = [
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128", ">f8", ">i4", ">c8"),
]
NARROW = ["bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4"]
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    max_leaves=5,
)

ARRAYS: dict[str, Any] = {
    "live/position": np.linspace(0, 1, 60).reshape(20, 3),
    "live/weights": jnp.arange(5, dtype=jnp.bfloat16),
    "key": jax.random.key(3),
    "done": np.array(True),
    "z": np.array([1 + 2j]),
}


def read_again(header: dict[str, Any], arrays: dict[str, Any]) -> Any:
    return decode("run.h5", bytes(encode(header, arrays)))


@pytest.fixture(scope="module")
def sound() -> bytes:
    return bytes(encode({"step": 3, "names": ["a", "b"]}, ARRAYS))


def assert_same_bits(array: Any, expected: Any) -> None:
    assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
    assert array.tobytes() == np.asarray(expected).tobytes()


def assert_same_arrays(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert_same_bits(found[name], array)


def refusal(path: Any, data: bytes | bytearray) -> CheckpointError:
    """The error with which bytes are refused."""
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as info:
        read_file(path)
    assert info.value.reason.startswith(repr(str(path)))
    return info.value


@given(st.data(), st.sampled_from(NATIVE + NARROW), SHAPES, st.booleans())
def test_every_bit_of_an_array_survives(data, name, shape, transposed):
    dtype = np.dtype(name)
    size = int(np.prod(shape)) * dtype.itemsize
    bits = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), np.uint8)
    bits = bits & 1 if name == "bool" else bits
    array = bits.view(dtype).reshape(shape)
    array = array.T if transposed else array
    (found,) = read_again({}, {"x": array})[1].values()
    assert type(found) is np.ndarray
    assert_same_bits(found, array)


def test_arrays_and_keys_of_jax_survive():
    shapes = [(), (0,), (3, 2)]
    names = ["bool", "int32", "float32", "complex64", *NARROW]
    arrays = {f"{x}/{i}": jnp.ones(s, x) for x in names for i, s in enumerate(shapes)}
    keys = {
        f"keys/{impl}/{i}": jax.random.split(jax.random.key(1, impl=impl), s)
        for impl in ("threefry2x32", "rbg", "unsafe_rbg")
        for i, s in enumerate(shapes)
    }
    header, found = read_again({}, {**arrays, **keys})
    assert header == {}
    for name, key in keys.items():
        again = found.pop(name)
        assert again.dtype == key.dtype
        assert_same_bits(*map(np.asarray, map(jax.random.key_data, (again, key))))
    assert_same_arrays(found, arrays)


@settings(max_examples=50)
@given(st.dictionaries(st.text(), JSON, max_size=4))
@example({"text": "x" * 200_000})
def test_headers_survive(header):
    assert read_again(header, {}) == (header, {})


@pytest.mark.parametrize("name", ["é/ü", "with space", "['mu'].x[0]", "a.b", "..."])
def test_names_of_parameters_are_names_of_arrays(name):
    assert set(read_again({}, {name: np.ones(2)})[1]) == {name}


def test_encoding_is_deterministic(sound):
    assert encode({"step": 3, "names": ["a", "b"]}, ARRAYS) == sound


def test_h5py_alone_can_read_a_file(sound, tmp_path):
    (tmp_path / "run.h5").write_bytes(sound)
    with h5py.File(tmp_path / "run.h5", "r") as file:
        assert dict(file.attrs) == {
            "format": "batchkit checkpoint",
            "format_version": 1,
        }
        text: Any = file["header"]
        header = json.loads(text.asstr()[()])
        assert header == header_of(sound)
        del header["contents"]
        assert header == {"step": 3, "names": ["a", "b"]}
        arrays: Any = file["arrays"]
        assert arrays["live/position"][()].tolist() == ARRAYS["live/position"].tolist()
        assert arrays["done"][()] is np.True_
        weights = arrays["live/weights"]
        assert weights.attrs["dtype"] == "bfloat16"
        # A bfloat16 is the upper half of a float32.
        wide = (weights[()].astype(np.uint32) << 16).view(np.float32)
        assert wide.tolist() == [0, 1, 2, 3, 4]
        assert arrays["key"].attrs["prng_impl"] == "threefry2x32"
        assert arrays["key"][()].tolist() == [0, 3]
        assert isinstance(arrays["z"].id.get_type(), h5py.h5t.TypeCompoundID)


@pytest.mark.parametrize("count", [0, 1, 8, 9, 300])
def test_h5py_reads_the_arrays_that_the_header_lists(count, tmp_path):
    """Arrays of all types and shapes, in small and in large groups."""
    shapes = [(), (0,), (3, 0, 2), (3, 2)]
    arrays = {
        f"{name}/{i}": np.ones(shape, name).T
        for name in [*NATIVE, *NARROW]
        for i, shape in enumerate(shapes)
    }
    arrays |= {f"group/{i}": np.full(2, i) for i in range(count)}
    data = bytes(encode({}, arrays))
    assert_same_arrays(decode("run.h5", data)[1], arrays)
    (tmp_path / "run.h5").write_bytes(data)
    contents = {name: rest for _, name, *rest in header_of(data)["contents"]}
    found: dict[str, h5py.Dataset] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item

    with h5py.File(tmp_path / "run.h5", "r") as file:
        group: Any = file["arrays"]
        group.visititems(visit)
        assert found.keys() == contents.keys() == arrays.keys()
        for name, (dtype, shape, attributes) in contents.items():
            stored = found[name]
            assert (stored.dtype.str, [*stored.shape]) == (dtype, shape)
            assert dict(stored.attrs) == attributes
            # Of one element `h5py` changes the order of bytes.
            same = np.asarray(stored[()], dtype)
            assert same.tobytes() == arrays[name].tobytes()


def test_documented_format_is_enough_to_read_an_array(sound):
    place, length = map(int, sound[:512].split(b"\n")[3].split()[1:])
    contents = json.loads(sound[place : place + length])["contents"]
    assert [x[0] for x in contents] == sorted(x[0] for x in contents)
    entries = {name: (at, *rest) for at, name, *rest in contents}
    assert entries["live/weights"][1:] == ("<u2", [5], {"dtype": "bfloat16"})
    assert entries["key"][1:] == ("<u4", [2], {"prng_impl": "threefry2x32"})
    at, dtype, shape, _ = entries["live/position"]
    found = np.ndarray(shape, dtype, sound, at)
    assert found.tolist() == ARRAYS["live/position"].tolist()


def test_checksum_is_that_of_the_documented_format(sound):
    lines = sound[:512].split(b"\n")
    assert lines[:2] == [b"batchkit checkpoint", b"format 1"]
    assert lines[2] == f"bytes {len(sound)}".encode()
    expected = hashlib.sha256(b"\n".join(lines[:4]) + b"\n" + sound[512:]).hexdigest()
    assert lines[4] == f"sha256 {expected}".encode()


def test_large_arrays_are_in_memory_once_more_and_not_twice():
    """Encoding holds the file beside the arrays, decoding the arrays beside it."""
    array = np.random.default_rng(0).normal(size=2**20)
    # The buffer of the file grows by an eighth more than it needs.
    assert peak(lambda: encode({}, {"x": array})) < 1.2 * array.nbytes
    data = bytes(encode({}, {"x": array}))
    assert peak(lambda: decode("run.h5", data)) < 1.05 * array.nbytes


def peak(compute: Any) -> int:
    """Return the most bytes that were allocated at once."""
    tracemalloc.start()
    try:
        compute()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_arrays_that_were_read_are_writable_and_aligned(sound):
    found: Any = decode("run.h5", sound)[1]["live/position"]
    assert found.flags.writeable
    assert found.flags.aligned
    assert found.flags.owndata


def test_every_flipped_byte_is_found(sound, tmp_path, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("the HDF5 library saw a damaged file")

    monkeypatch.setattr(h5py, "File", never)
    rng = random.Random(0)
    for place in [*range(512), *rng.sample(range(512, len(sound)), 200)]:
        damaged = bytearray(sound)
        damaged[place] ^= rng.choice([1 << rng.randrange(8), 0xFF])
        error = refusal(tmp_path / "run.h5", damaged)
        assert error.damaged
        if place >= len(b"batchkit checkpoint\n"):
            assert "is damaged" in error.reason
            assert "`fresh=True`" in error.remedy


def test_every_lost_or_added_end_is_found(sound, tmp_path):
    sizes = [0, 1, 511, 512, 513, len(sound) - 1]
    sizes += random.Random(0).sample(range(len(sound)), 50)
    for size in sizes:
        assert refusal(tmp_path / "run.h5", sound[:size]).damaged
    error = refusal(tmp_path / "run.h5", sound[:-7])
    assert f"has {len(sound) - 7} bytes of {len(sound)}" in error.reason
    assert refusal(tmp_path / "run.h5", sound + b"\0").damaged


def test_foreign_files_are_refused_with_their_kind(tmp_path):
    path = tmp_path / "run.h5"
    assert "It is empty" in refusal(path, b"").reason
    assert "something else" in refusal(path, b"a,b\n1,2\n" * 200).reason
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["arrays/x"] = [1, 2, 3]
    error = refusal(path, (tmp_path / "other.h5").read_bytes())
    assert "an HDF5 file from elsewhere" in error.reason
    assert error.remedy == "Choose another path, or move this file away."


def test_newer_formats_are_distinguished_from_damage(tmp_path):
    data = seal(b"the content of a later format", version=2)
    error = refusal(tmp_path / "run.h5", data)
    assert "has format 2, and this batchkit reads formats up to 1" in error.reason
    assert not error.damaged
    damaged = refusal(tmp_path / "run.h5", data[:-1] + b"?")
    assert damaged.damaged
    assert "checksum" in damaged.reason


@pytest.mark.parametrize(
    ("attribute", "value"), [("dtype", "float7"), ("prng_impl", "dice")]
)
def test_unknown_types_and_keys_are_refused(attribute, value, tmp_path):
    contents = [[512, "x", "<u4", [2], {attribute: value}]]
    error = refusal(tmp_path / "run.h5", crafted({"contents": contents}, bytes(8)))
    assert value in error.reason
    assert "versions of batchkit and JAX" in error.remedy
    assert not error.damaged


def test_missing_files_and_folders_are_named(tmp_path):
    missing = tmp_path / "none" / "run.h5"
    words = re.escape(f"Make the folder {str(tmp_path / 'none')!r}")
    with pytest.raises(CheckpointError, match=words):
        write_file(missing, {}, {})
    with pytest.raises(CheckpointError, match=r"Cannot read .*run\.h5"):
        read_file(missing)
    with pytest.raises(CheckpointError, match="It is a folder"):
        read_file(tmp_path)
    with pytest.raises(CheckpointError, match="It is a folder"):
        write_file(tmp_path, {}, {})
    assert list(tmp_path.parent.glob("*.tmp")) == []


@pytest.mark.parametrize(
    "array",
    [
        np.array("text"),
        np.array(["text"], np.dtypes.StringDType()),
        np.array([None]),
        np.longdouble(1),
        np.zeros(2, [("a", "f4")]),
        np.datetime64("2020-01-01"),
        np.zeros(2, jax.dtypes.float0),
    ],
    ids=lambda x: str(x.dtype),
)
def test_types_without_a_form_in_hdf5_are_refused(array):
    with pytest.raises(TypeError, match="arrays: 'a/x' has dtype"):
        encode({}, {"a/x": array})


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (float("nan"), ValueError),
        (np.zeros(1), TypeError),
        ("a" * 2**26, ValueError),
    ],
    ids=["nan", "array", "too long"],
)
def test_headers_without_a_form_in_json_are_refused(value, error):
    with pytest.raises(error, match=r"header: .* as (text or as )?arrays"):
        encode({"x": [value]}, {})


def test_keys_of_an_unnamed_implementation_are_refused(monkeypatch):
    monkeypatch.setattr(_file.jax.random, "key_impl", lambda key: object())
    with pytest.raises(TypeError, match=r"'key' has keys of .* no name"):
        encode({}, {"key": jax.random.key(0)})
