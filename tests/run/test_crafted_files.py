"""Refusal of files that were made to do harm, with a checksum that is right."""

import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from batchkit.run import CheckpointError, _file
from batchkit.run._file import decode, encode, read_file

from .sealed import crafted, header_of, header_place, seal


X = np.arange(6.0)
KEYS = {"prng_impl": "threefry2x32"}


def entry(place: Any = 512, name: Any = "x", *rest: Any) -> list[Any]:
    """Return an entry of `contents`; the rest is type, shape and attributes."""
    return [place, name, *rest, *["<f8", [6], {}][len(rest) :]]


# The file has 48 bytes at 512, which are `X`, and the header at 560.
PLACES: dict[str, list[Any]] = {
    "in the first block": [entry(504)],
    "at the start of the file": [entry(0)],
    "negative": [entry(-48)],
    "very negative": [entry(-(2**70))],
    "reaches into the header": [entry(520)],
    "in the header": [entry(561, "x", "|u1", [2])],
    "the header": [entry(560, "x", "|u1", [8])],
    "around the header": [entry(512, "x", "|u1", [64])],
    "empty and in the header": [entry(570, "x", "<f8", [0])],
    "beyond the end": [entry(2**40)],
    "far beyond the end": [entry(2**70)],
    "empty and beyond the end": [entry(2**40, "x", "<f8", [0])],
    "larger than the file": [entry(512, "x", "<f8", [2**17])],
    "two names of one array": [entry(512), entry(512, "y")],
    "overlap": [entry(512, "x", "<f8", [4]), entry(536, "y", "<f8", [2])],
    "not in order": [entry(536, "x", "<f8", [3]), entry(512, "y", "<f8", [3])],
    "empty and not in order": [entry(), entry(512, "y", "<f8", [0])],
}
ENTRIES: dict[str, list[Any]] = {
    "declares 8 TiB": [entry(512, "x", "<f8", [2**40])],
    "declares 8 TiB by many sizes": [entry(512, "x", "<f8", [2] * 32)],
    "overflows": [entry(512, "x", "<f8", [2**62, 2**62])],
    "a name twice": [entry(512, "x", "|u1", [8]), entry(520, "x", "|u1", [8])],
    "numbers": [1],
    "nothing": [None],
    "texts": ["abcde"],
    "four parts": [[512, "x", "<f8", [6]]],
    "six parts": [[*entry(), None]],
    **{f"place {x!r}": [entry(x)] for x in ("512", 512.0, None, [512])},
    **{f"name {x!r}": [entry(512, x)] for x in (1, None, ["x"])},
    **{
        f"type {x!r}": [entry(512, "x", x)]
        for x in (
            *("O", "|V8", "|S8", "<U2", "<M8[s]", "<f16", "<c32", "|T16", "bfloat16"),
            *("f8", "=f8", "float64", "", "a5", "f8,f8", "6f8", "(2,3)f8", "(2,"),
            *(None, 8, ["<f8"], [["a", "<f8"]], {"names": ["a"], "formats": ["f8"]}),
        )
    },
    **{
        f"shape {str(x)[:20]}": [entry(512, "x", "<f8", x)]
        for x in (
            *([-1], [-6], [-2, -3], [2, -3], [6.0], [True], ["6"], [None], [[6]]),
            *(6, "6", None, {"6": 6}, [1] * 33, [0] * 33, [2**63, 0], [0, 10**4000]),
            *([0, 2**62, 2**62], [0, 2**20 + 1], [2**11, 2**11, 0]),
        )
    },
    **{
        f"attributes {x!r}": [entry(512, "x", "<u2", [2], x)]
        for x in (
            *(None, [], "dtype", {"a": "b"}, {"dtype": None}, {"dtype": ["bfloat16"]}),
            *({"dtype": x} for x in ("O", "object", "uint16", "f2,f2", "a5", "(2,")),
            *({"dtype": x} for x in ("int4", "float8_e5m2", "complex32", "float7")),
            {"dtype": "bfloat16", "more": "x"},
            *({"prng_impl": x} for x in ("threefry2x32", None, 1)),
        )
    },
    "a narrow type for floats": [entry(512, "x", "<f2", [2], {"dtype": "bfloat16"})],
    "a narrow type, big-endian": [entry(512, "x", ">u2", [2], {"dtype": "bfloat16"})],
    "keys of another shape": [entry(512, "x", "<u4", [3], KEYS)],
    "keys without a shape": [entry(512, "x", "<u4", [], KEYS)],
    "keys of 64 bits": [entry(512, "x", "<u8", [2], KEYS)],
    "keys that are big-endian": [entry(512, "x", ">u4", [2], KEYS)],
    "keys that are signed": [entry(512, "x", "<i4", [2], KEYS)],
    "keys of no implementation": [entry(512, "x", "<u4", [2], {"prng_impl": "dice"})],
    "keys by default": [entry(512, "x", "<u4", [2], {"prng_impl": None})],
    "very many keys, of which none": [entry(512, "x", "<u4", [0, 2**40, 2], KEYS)],
    "keys that are narrow": [
        entry(512, "x", "<u4", [2], {"dtype": "complex32", **KEYS})
    ],
}
HEADERS = [
    b"",
    b"[]",
    b"{",
    b"{}",
    b'{"contents": []} {}',
    b'{"contents": null}',
    b'{"contents": 3}',
    b'{"contents": {"x": 1}}',
    b"[" * 100_000,
    b'{"a": ' * 100_000,
    b'{"a": NaN}',
    b'{"a": ' + b"9" * 5000 + b"}",
    b"\xef\xbb\xbf" + b'{"contents": []}',
    '{"contents": [], "a": "é"}'.encode(),
    '{"contents": []}'.encode("utf-16"),
    b"\xff\x00\xfe",
]


def refusal(path: Path, data: bytes) -> str:
    """Return the reason with which a file is refused."""
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="cannot be understood") as info:
        read_file(path)
    assert "versions of batchkit and JAX" in info.value.remedy
    assert not info.value.damaged
    return info.value.reason


def test_crafted_file_without_faults_is_read() -> None:
    """The files of this page are refused for what is wrong with them only."""
    data = crafted({"a": 1, "contents": [entry()]}, X.tobytes())
    header, arrays = decode("run.h5", data)
    assert header == {"a": 1}
    np.testing.assert_array_equal(arrays["x"], X)


@pytest.mark.parametrize("name", PLACES)
def test_arrays_outside_the_file_or_on_each_other_are_refused(
    name: str, tmp_path: Path
) -> None:
    data = crafted({"contents": PLACES[name]}, X.tobytes())
    assert header_place(data)[0] == 560
    reason = refusal(tmp_path / "run.h5", data)
    assert "is where no array can be" in reason
    assert f"its array {PLACES[name][-1][1]!r}" in reason


@pytest.mark.parametrize("name", ENTRIES)
def test_entries_that_saving_never_writes_are_refused(
    name: str, tmp_path: Path
) -> None:
    data = crafted({"contents": ENTRIES[name]}, X.tobytes())
    assert len(refusal(tmp_path / "run.h5", data)) < 600


def test_sizes_of_arrays_without_elements_are_bounded_on_saving() -> None:
    for shape in ((0, 2**20), (2**10, 0, 2**10), (0,) * 32):
        again = decode("run.h5", bytes(encode({}, {"x": np.zeros(shape)})))[1]["x"]
        assert again.shape == shape
    rows = np.zeros((2**21, 0), "u1")
    with pytest.raises(ValueError, match=r"'x' has shape \(2097152, 0\), .* at most"):
        encode({}, {"x": rows})
    # In a large file there is room for as many rows as it has bytes.
    data = bytes(encode({}, {"x": rows, "y": np.zeros(2**21, "u1")}))
    assert decode("run.h5", data)[1]["x"].shape == rows.shape


@pytest.mark.parametrize("value", [2, 7, 255])
def test_booleans_other_than_0_and_1_are_refused(value: int, tmp_path: Path) -> None:
    contents = [entry(512, "x", "|b1", [3])]
    data = crafted({"contents": contents}, bytes([0, 1, value]))
    assert "'x' has booleans other than" in refusal(tmp_path / "run.h5", data)


@pytest.mark.parametrize("text", HEADERS, ids=lambda x: repr(x[:20]))
def test_malformed_headers_are_refused(text: bytes, tmp_path: Path) -> None:
    assert refusal(tmp_path / "run.h5", crafted(text))


@pytest.mark.parametrize(
    ("place", "length"),
    [(0, 16), (500, 16), (513, 16), (512, 17), (528, 16), (10**17, 16), (512, 10**8)],
)
def test_headers_outside_the_file_are_refused(
    place: int, length: int, tmp_path: Path
) -> None:
    text = b'{"contents": []}'
    assert decode("run.h5", seal(text, 512, 16)) == ({}, {})
    reason = refusal(tmp_path / "run.h5", seal(text, place, length))
    assert "its header is where no header can be" in reason


def test_header_of_enormous_length_is_not_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_file, "_MAX_HEADER", 100)
    data = crafted({"contents": [], "a": "b" * 100})
    assert "or too long" in refusal(tmp_path / "run.h5", data)


@pytest.mark.parametrize(
    "contents",
    [
        [entry(512, "x", "<f8", [2**40])],
        [entry(512, "x", "<f8", [10**3] * 32)],
        # A product of such numbers would take minutes.
        [entry(512, "x", "<f8", [10**4000] * 3000)],
        [entry(512, f"{i}", "|u1", [2**20]) for i in range(100)],
        [entry(512, f"{i}", "|u1", [48]) for i in range(10_000)],
        [entry(512, "x", "<u4", [2**40, 2], KEYS)],
        # XLA would compile programs that have room for the sizes which are not zero.
        [entry(512, "x", "<u4", [2**14, 2**14, 0], KEYS)],
    ],
    ids=["large", "many sizes", "long numbers", "many", "the same", "keys", "no keys"],
)
def test_declared_arrays_take_no_memory_and_no_time(
    contents: list[Any], tmp_path: Path
) -> None:
    data = crafted({"contents": contents}, X.tobytes())
    tracemalloc.start()
    start = time.perf_counter()
    try:
        refusal(tmp_path / "run.h5", data)
        assert tracemalloc.get_traced_memory()[1] < 2**20 + 30 * len(data)
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < 10


def test_hdf5_structure_is_not_read() -> None:
    """Links, external storage and filters cannot be followed: they are not read."""
    arrays = {"a/x": X, "b": np.ones((2, 3), ">i4"), "empty": np.zeros((0, 2))}
    data = bytes(encode({"a": 1}, arrays))
    start, end = header_place(data)
    bare = bytearray(len(data))
    bare[start:end] = data[start:end]
    for place, name, *_ in header_of(data)["contents"]:
        content = arrays[name].tobytes()
        bare[place : place + len(content)] = content
    assert b"HDF" not in bare
    header, found = decode("run.h5", seal(bytes(bare[512:]), start, end - start))
    assert header == {"a": 1}
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_hdf5_library_reads_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.h5"
    path.write_bytes(encode({"a": 1}, {"x": X}))
    monkeypatch.setattr(_file, "h5py", None)
    assert read_file(path)[0] == {"a": 1}


def test_large_foreign_file_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    with open(path, "wb") as file:
        file.truncate(2**43)
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match="no file of batchkit"):
        read_file(path)
    with open(path, "r+b") as file:
        file.write(seal(b"")[:512])
    with pytest.raises(CheckpointError, match="bytes of 512"):
        read_file(path)
    assert time.perf_counter() - start < 10


def test_file_larger_than_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.h5"
    block = seal(b"").replace(b"bytes 512", b"bytes %d" % 2**43)
    path.write_bytes((block.rstrip() + b"\n").ljust(511) + b"\n")
    os.truncate(path, 2**43)
    program = (
        "import resource, sys\n"
        "from batchkit.run._file import read_file\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**36, 2**36))\n"
        "try:\n    read_file(sys.argv[1])\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("CheckpointError")
    assert "no memory" in done.stdout


def in_chunks(**how: Any) -> dict[str, Any]:
    return {**how, "chunks": how["data"].shape or None}


def in_native_order(**how: Any) -> dict[str, Any]:
    return {**how, "dtype": how["data"].dtype.newbyteorder("=")}


@pytest.mark.parametrize("change", [in_chunks, in_native_order])
def test_writer_of_another_layout_fails_on_saving(
    change: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    create = h5py.Group.create_dataset
    monkeypatch.setattr(
        h5py.Group,
        "create_dataset",
        lambda group, name, **how: create(group, name, **change(**how)),
    )
    with pytest.raises(CheckpointError, match=r"'/arrays/x' .* version of h5py"):
        encode({}, {"x": X.astype(">f8")})


def test_writer_of_other_places_fails_on_saving(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place_of: Any = _file._place_of
    monkeypatch.setattr(_file, "_place_of", lambda *x: place_of(*x) - 512)
    with pytest.raises(CheckpointError, match=r"'header' .* version of h5py"):
        encode({}, {"x": X})
