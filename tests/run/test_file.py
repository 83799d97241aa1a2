"""One file: what is written is read, and what is damaged is refused."""

import hashlib
import json
import random
import re
import zlib
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from batchkit.run import CheckpointError, _file
from batchkit.run._file import encode, read_file, write_file
from batchkit.run._hdf5 import Dataset

from .sealed import seal


NATIVE = [
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128", ">f8", ">i4", ">c8"),
]
NARROW = ["bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4"]
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
KEYS = ["threefry2x32", "rbg", "unsafe_rbg"]

ARRAYS: dict[str, Any] = {
    "live/position": np.linspace(0, 1, 60).reshape(20, 3),
    "live/weights": jnp.arange(5, dtype=jnp.bfloat16),
    "key": jax.random.key(3),
    "done": np.array(True),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def sound(folder):
    """A checkpoint, as bytes."""
    write_file(folder / "sound.h5", {"step": 3}, ARRAYS)
    return (folder / "sound.h5").read_bytes()


def assert_same(array, expected):
    assert array.dtype == expected.dtype
    assert array.shape == expected.shape
    assert array.tobytes() == np.asarray(expected).tobytes()


def refusal(path, data):
    """The error with which bytes are refused."""
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as info:
        read_file(path)
    assert info.value.reason.startswith(repr(str(path)))
    return info.value


@given(st.data(), st.sampled_from(NATIVE + NARROW), SHAPES, st.booleans())
def test_every_bit_of_an_array_survives(folder, data, name, shape, turned):
    dtype = np.dtype(name)
    size = int(np.prod(shape)) * dtype.itemsize
    bits = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), np.uint8)
    bits = bits & 1 if name == "bool" else bits
    array = bits.view(dtype).reshape(shape)
    array = array.T if turned else array
    write_file(folder / "array.h5", {}, {"x": array})
    (found,) = read_file(folder / "array.h5")[1].values()
    assert type(found) is np.ndarray
    assert_same(found, array)


@pytest.mark.parametrize("name", ["bool", "int32", "float32", "complex64", *NARROW])
@pytest.mark.parametrize("shape", [(), (0,), (3, 2)])
def test_arrays_of_jax(name, shape, tmp_path):
    array = jnp.ones(shape, name)
    write_file(tmp_path / "run.h5", {}, {"a/b/c": array})
    header, arrays = read_file(tmp_path / "run.h5")
    assert header == {}
    assert set(arrays) == {"a/b/c"}
    assert_same(arrays["a/b/c"], array)


@pytest.mark.parametrize("impl", KEYS)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_keys(impl, shape, tmp_path):
    keys = jax.random.split(jax.random.key(1, impl=impl), shape)
    write_file(tmp_path / "run.h5", {}, {"keys": keys})
    found = read_file(tmp_path / "run.h5")[1]["keys"]
    assert isinstance(found, jax.Array)
    assert found.dtype == keys.dtype
    assert jax.random.key_impl(found) == impl
    data, expected = jax.random.key_data(found), jax.random.key_data(keys)
    assert_same(np.asarray(data), expected)
    if not shape:
        assert jax.random.bits(found) == jax.random.bits(keys)


@settings(max_examples=50)
@given(
    st.dictionaries(
        st.text(),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(),
            lambda x: st.lists(x) | st.dictionaries(st.text(), x),
            max_leaves=5,
        ),
        max_size=4,
    )
)
def test_headers(folder, header):
    write_file(folder / "header.h5", header, {})
    assert read_file(folder / "header.h5") == (header, {})


def test_a_long_header(tmp_path):
    header = {"text": "x" * 200_000}
    write_file(tmp_path / "run.h5", header, {})
    assert read_file(tmp_path / "run.h5")[0] == header


def test_the_same_again_is_the_same_file():
    assert encode({"step": 3}, ARRAYS) == encode({"step": 3}, ARRAYS)


def plain(file: h5py.File, name: str) -> Any:
    """What h5py alone has there."""
    return file[name]


def test_others_can_read_it(tmp_path):
    write_file(tmp_path / "run.h5", {"step": 3, "names": ["a", "b"]}, ARRAYS)
    with h5py.File(tmp_path / "run.h5", "r") as file:
        assert dict(file.attrs) == {
            "format": "batchkit checkpoint",
            "format_version": 1,
        }
        header = json.loads(plain(file, "header").asstr()[()])
        told = header.pop("contents")["live/position"]
        crc = zlib.crc32(ARRAYS["live/position"].tobytes())
        assert told == f"<f8 [20, 3] crc32 {crc:08x}"
        assert header == {"step": 3, "names": ["a", "b"]}
        arrays = plain(file, "arrays")
        assert arrays["live/position"][()].tolist() == ARRAYS["live/position"].tolist()
        assert arrays["done"][()] is np.True_
        weights = arrays["live/weights"]
        assert weights.attrs["dtype"] == "bfloat16"
        # A bfloat16 is the upper half of a float32.
        wide = (weights[()].astype(np.uint32) << 16).view(np.float32)
        assert wide.tolist() == [0, 1, 2, 3, 4]
        assert arrays["key"].attrs["prng_impl"] == "threefry2x32"
        assert arrays["key"][()].tolist() == [0, 3]


def test_complex_numbers_are_pairs_to_others(tmp_path):
    write_file(tmp_path / "run.h5", {}, {"z": np.array([1 + 2j])})
    with h5py.File(tmp_path / "run.h5", "r") as file:
        kind = plain(file, "arrays/z").id.get_type()
        assert isinstance(kind, h5py.h5t.TypeCompoundID)


def test_the_checksum_is_what_the_format_says(sound):
    lines = sound[:512].split(b"\n")
    assert lines[:2] == [b"batchkit checkpoint", b"format 1"]
    assert lines[2] == f"bytes {len(sound)}".encode()
    expected = hashlib.sha256(b"\n".join(lines[:3]) + b"\n" + sound[512:]).hexdigest()
    assert lines[3] == f"sha256 {expected}".encode()


def flips(sound):
    """Every byte of the first block and some after it, with one bit or all turned."""
    rng = random.Random(0)
    places = [*range(512), *rng.sample(range(512, len(sound)), 500)]
    return [(i, rng.choice([1 << rng.randrange(8), 0xFF])) for i in places]


def test_every_flipped_byte_is_found(sound, tmp_path, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("the HDF5 library saw a damaged file")

    monkeypatch.setattr(h5py, "File", never)
    for place, bits in flips(sound):
        damaged = bytearray(sound)
        damaged[place] ^= bits
        error = refusal(tmp_path / "run.h5", damaged)
        assert error.damaged
        if place >= len(b"batchkit checkpoint\n"):
            assert "is damaged" in error.reason
            assert "`fresh=True`" in error.remedy


def test_every_lost_or_added_end_is_found(sound, tmp_path):
    sizes = [0, 1, 511, 512, 513, len(sound) - 1]
    sizes += random.Random(0).sample(range(len(sound)), 100)
    for size in sizes:
        assert refusal(tmp_path / "run.h5", sound[:size]).damaged
    error = refusal(tmp_path / "run.h5", sound[:-7])
    assert f"has {len(sound) - 7} bytes of {len(sound)}" in error.reason
    assert refusal(tmp_path / "run.h5", sound + b"\0").damaged


def test_a_stretch_of_zeros_is_found(sound, tmp_path):
    for start in range(0, len(sound) - 512, 512):
        damaged = bytearray(sound)
        damaged[start : start + 512] = bytes(512)
        if damaged != sound:
            assert refusal(tmp_path / "run.h5", damaged).damaged


def test_what_is_no_checkpoint(tmp_path):
    path = tmp_path / "run.h5"
    assert "It is empty" in refusal(path, b"").reason
    assert "something else" in refusal(path, b"a,b\n1,2\n" * 200).reason
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["arrays/x"] = [1, 2, 3]
    error = refusal(path, (tmp_path / "other.h5").read_bytes())
    assert "an HDF5 file from elsewhere" in error.reason
    assert error.remedy == "Choose another path, or move this file away."


def test_a_newer_format_is_told_from_a_damaged_one(tmp_path):
    data = seal(b"whatever will stand here", 2)
    error = refusal(tmp_path / "run.h5", data)
    assert "has format 2, and this batchkit reads formats up to 1" in error.reason
    assert not error.damaged
    damaged = refusal(tmp_path / "run.h5", data[:-1] + b"?")
    assert damaged.damaged
    assert "checksum" in damaged.reason


def test_what_is_signed_but_makes_no_sense(tmp_path):
    error = refusal(tmp_path / "run.h5", seal(b"no HDF5 at all"))
    assert "cannot be understood" in error.reason
    assert not error.damaged


@pytest.mark.parametrize(
    ("attribute", "value"), [("dtype", "float7"), ("prng_impl", "dice")]
)
def test_types_and_keys_that_are_not_known_here(
    attribute, value, tmp_path, monkeypatch
):
    def store(name, array):
        return Dataset(np.asarray(array), {attribute: value})

    monkeypatch.setattr(_file, "store_array", store)
    write_file(tmp_path / "run.h5", {}, {"x": np.zeros(2, np.uint32)})
    error = refusal(tmp_path / "run.h5", (tmp_path / "run.h5").read_bytes())
    assert value in error.reason
    assert "versions of batchkit and JAX" in error.remedy


def test_no_file_and_no_folder(tmp_path):
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
def test_what_cannot_be_stored(array):
    with pytest.raises(TypeError, match="arrays: 'a/x' has dtype"):
        encode({}, {"a/x": array})


@pytest.mark.parametrize("name", ["", "/", "/a", "a/", "a//b", "./a", "a/..", "a\0"])
def test_what_cannot_be_a_name(name):
    with pytest.raises(ValueError, match="cannot name an array"):
        encode({}, {name: np.zeros(1)})


@pytest.mark.parametrize("names", [("a", "a/b/c"), ("a/b/c", "a/b")])
def test_a_name_cannot_be_an_array_and_a_group(names):
    with pytest.raises(ValueError, match="cannot be an array and hold 'a/b/c'"):
        encode({}, dict.fromkeys(names, np.zeros(1)))


@pytest.mark.parametrize("name", ["é/ü", "with space", "['mu'].x[0]", "a.b", "..."])
def test_what_can_be_a_name(name, tmp_path):
    write_file(tmp_path / "run.h5", {}, {name: np.ones(2)})
    assert set(read_file(tmp_path / "run.h5")[1]) == {name}


@pytest.mark.parametrize(
    ("value", "error"), [(float("nan"), ValueError), (np.zeros(1), TypeError)]
)
def test_what_cannot_be_in_a_header(value, error):
    with pytest.raises(error, match=r"header: .* as text or as arrays"):
        encode({"x": [value]}, {})


def test_a_key_without_a_name_is_refused(monkeypatch):
    monkeypatch.setattr(_file.jax.random, "key_impl", lambda key: object())
    with pytest.raises(TypeError, match=r"'key' has keys of .* no name"):
        encode({}, {"key": jax.random.key(0)})
