"""Refusal of files that were made to do harm, with a checksum that is right."""

import io
import json
import os
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from batchkit.run import CheckpointError, _file
from batchkit.run._file import encode, read_file
from batchkit.run._hdf5 import read_datasets

from .sealed import made_by, seal


X = np.arange(6.0)


def external(file: h5py.File) -> None:
    # An HDF5 library would read these bytes of the reader's machine.
    segments = [("/etc/hostname", 0, 8)]
    file.create_dataset("arrays/x", (8,), "u1", external=segments)


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((6,), "f8")
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "x", (6,))
    file.create_virtual_dataset("arrays/x", layout)


def resizable(file: h5py.File) -> None:
    file.create_dataset("arrays/x", data=X, maxshape=(None,))


def compact(file: h5py.File) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple((6,))
    kind = h5py.h5t.NATIVE_DOUBLE
    h5py.h5d.create(file["arrays"].id, b"x", kind, space, plist).write(
        h5py.h5s.ALL, h5py.h5s.ALL, X
    )


def array_of(dtype: Any, value: Any = 0) -> Callable[[h5py.File], None]:
    def make(file: h5py.File) -> None:
        file.create_dataset("arrays/x", data=np.full(3, value, dtype))

    return make


def array_type(file: h5py.File) -> None:
    dtype = np.dtype((np.float32, 3))
    file.create_dataset("arrays/x", (2,), dtype)[...] = np.ones((2, 3))


def link(target: Any) -> Callable[[h5py.File], None]:
    def make(file: h5py.File) -> None:
        file["arrays/y"] = X
        file["arrays/x"] = target(file) if callable(target) else target

    return make


def deep(file: h5py.File) -> None:
    file["arrays/" + "/".join("a" * 40)] = X


ATTACKS: dict[str, Callable[[h5py.File], object]] = {
    "external storage": external,
    "a virtual dataset": virtual,
    "8 TiB that are declared": lambda f: f.create_dataset("arrays/x", (2**40,), "f8"),
    "chunks": lambda f: f.create_dataset("arrays/x", data=X, chunks=(2,)),
    "a bomb": lambda f: f.create_dataset(
        "arrays/x", data=np.zeros(10**6), compression="gzip"
    ),
    "checksums of chunks": lambda f: f.create_dataset(
        "arrays/x", data=X, fletcher32=True
    ),
    "an array that can grow": resizable,
    "compact storage": compact,
    "texts": array_of(h5py.string_dtype(), "a"),
    "texts of a length": array_of("S5", b"a"),
    "a compound": array_of([("a", "f4"), ("b", "f4")]),
    "an array type": array_type,
    "references": array_of(h5py.ref_dtype, None),
    "opaque": array_of(h5py.opaque_dtype(np.dtype("M8[s]"))),
    "an enumeration": array_of(h5py.enum_dtype({"A": 0, "B": 1}, "i1")),
    "long doubles": array_of(np.longdouble),
    "booleans of 8 bits": lambda f: f.create_dataset(
        "arrays/x", data=np.array([7], "u1").view(bool)
    ),
    "no array": lambda f: f.create_dataset("arrays/x", data=h5py.Empty("f8")),
    "a soft link": link(h5py.SoftLink("/arrays/y")),
    "an external link": link(h5py.ExternalLink("/tmp/other.h5", "x")),
    "a second hard link": link(lambda file: file["arrays/y"]),
    "a cycle": link(lambda file: file["arrays"]),
    "a named type": lambda f: f.__setitem__("arrays/x", np.dtype("f8")),
    "an array elsewhere": lambda f: f.__setitem__("x", X),
    "many groups": deep,
    "other attributes": lambda f: f.create_dataset("arrays/x", data=X).attrs.update(
        {"a": "b"}
    ),
    "attributes that are arrays": lambda f: f.create_dataset(
        "arrays/x", data=X
    ).attrs.update({"dtype": X}),
    "a type of objects": lambda f: f.create_dataset(
        "arrays/x", data=np.zeros(2, "u8")
    ).attrs.update({"dtype": "O"}),
    "keys of another shape": lambda f: f.create_dataset(
        "arrays/x", data=np.zeros(3, "u4")
    ).attrs.update({"prng_impl": "threefry2x32"}),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_structures_that_saving_never_writes_are_refused(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.h5"
    path.write_bytes(made_by(ATTACKS[name]))
    with pytest.raises(CheckpointError, match="cannot be understood"):
        read_file(path)


@pytest.mark.parametrize("how", [{}, {"libver": "earliest"}])
def test_files_of_earlier_versions_are_read(
    how: dict[str, str], tmp_path: Path
) -> None:
    """Files of earlier versions, which do not name their arrays in the header."""
    path = tmp_path / "run.h5"
    path.write_bytes(made_by(lambda file: file.__setitem__("arrays/a/x", X), **how))
    header, arrays = read_file(path)
    assert header == {}
    np.testing.assert_array_equal(arrays["a/x"], X)


def test_layout_of_later_versions_of_hdf5_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    path.write_bytes(made_by(lambda file: None, libver="latest"))
    with pytest.raises(CheckpointError, match="superblock"):
        read_file(path)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        "[" * 100_000,
        '{"a": NaN}',
        '{"a": ' + "9" * 5000 + "}",
        '{"contents": {"x": "<f8 [6]"}}',
        '{"contents": null}',
    ],
    ids=lambda x: x[:20],
)
def test_malformed_headers_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"

    def make(file: h5py.File) -> None:
        del file["header"]
        file["header"] = text

    path.write_bytes(made_by(make))
    with pytest.raises(CheckpointError, match="cannot be understood"):
        read_file(path)


def test_two_names_of_one_array_are_refused() -> None:
    data = bytes(encode({}, {"x": X, "y": X}))
    library: Any = h5py  # type checkers do not see its compiled modules
    with h5py.File(io.BytesIO(data)) as file:
        x, y = (
            struct.pack("<Q", library.h5o.get_info(file[f"arrays/{name}"].id).addr)
            for name in "xy"
        )
    assert data.count(y) == 1
    with pytest.raises(ValueError, match="a structure that overlaps another"):
        read_datasets(data.replace(y, x), 512)


def test_more_arrays_than_the_header_names_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"

    def make(file: h5py.File) -> None:
        del file["header"]
        described = f"<f8 [6] crc32 {zlib.crc32(X.tobytes()):08x}"
        file["header"] = json.dumps({"contents": {"x": described}})
        file["arrays/x"] = X
        file["arrays/y"] = X

    path.write_bytes(made_by(make))
    with pytest.raises(CheckpointError, match="not those that its header names"):
        read_file(path)


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
    block = b"batchkit checkpoint\nformat 1\nbytes %d\nsha256 %s\n" % (2**43, b"0" * 64)
    path.write_bytes(block.ljust(511) + b"\n")
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


@pytest.mark.parametrize("count", [0, 1, 8, 9, 300])
def test_groups_of_any_size_are_read(count: int) -> None:
    """Groups with one node, with several, and with several levels of them."""
    arrays = {f"group/{i}": np.full(2, i) for i in range(count)}
    found = read_datasets(bytes(encode({}, arrays)), 512)
    del found["header"]
    assert {x.removeprefix("arrays/") for x in found} == arrays.keys()
    for name, item in found.items():
        expected = arrays[name.removeprefix("arrays/")]
        np.testing.assert_array_equal(item.value, expected)


def test_writer_of_another_layout_fails_on_saving(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = h5py.File
    monkeypatch.setattr(
        h5py, "File", lambda *a, **k: file(*a, **{**k, "libver": "v110"})
    )
    with pytest.raises(ValueError, match="superblock"):
        encode({}, {"x": X})
