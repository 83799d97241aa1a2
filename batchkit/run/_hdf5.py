"""A reader for the part of HDF5 that our files use, without the HDF5 library.

A file may come from an attacker, with a checksum that is right. The library would
follow such a file anywhere: to other files of this machine (external storage, links),
to memory that is declared and not in the file, and, as it is a large parser in C, to a
crash of the interpreter. So the library only writes. This reader accepts the subset
that it writes for us, which is superblock 0, groups with symbol tables, and contiguous
datasets of numbers, and refuses everything else by raising `ValueError`:

- All that it returns lies within the bytes of the file.
- No byte is read as part of two structures, so that pointers cannot form a cycle, and
  the work and the memory grow linearly with the size of the file.

Names are those of the HDF5 File Format Specification,
https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html
"""

import bisect
import math
import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, final

import numpy as np


# Groups inside each other. Reading is recursive; our files have three.
_MAX_GROUPS: Final = 32

_UNDEFINED: Final = 2**64 - 1
# Sizes of a node of a B-tree and of a symbol table node, by `_SUPERBLOCK`.
_TREE_NODE: Final = 544
_SYMBOL_NODE: Final = 328
# Signature, versions, 8 bytes for offsets and lengths, 4 and 16 as half the entries of
# a symbol table node and of a node of a B-tree, no flags.
_SUPERBLOCK: Final = b"\x89HDF\r\n\x1a\n" + struct.pack(
    "<8BHHI", 0, 0, 0, 0, 0, 8, 8, 0, 4, 16, 0
)
# Numbers of messages in object headers.
_NIL, _DATASPACE, _DATATYPE, _FILL_VALUE, _LAYOUT = 0, 1, 3, 5, 8
_ATTRIBUTE, _CONTINUATION, _SYMBOL_TABLE = 12, 16, 17
_GROUP: Final = {_SYMBOL_TABLE}
_DATASET: Final = {_DATASPACE, _DATATYPE, _FILL_VALUE, _LAYOUT}
# A string of any length in UTF-8; the characters are in a global heap.
_TEXT: Final = bytes.fromhex("1901010010000000100000000100000000000800")


@final
class Dataset(NamedTuple):
    """An array that shares the memory of the file, or a text; attributes are texts."""

    value: np.ndarray | str
    attributes: dict[str, str]


def read_datasets(data: bytes | memoryview, base: int) -> dict[str, Dataset]:
    """Return the datasets of a file by their paths, such as `"arrays/state/0"`.

    `base` is the size of the user block before the superblock. Raise `ValueError` if
    the file has anything that our files do not have.
    """
    try:
        return _File(memoryview(data), base).datasets()
    except struct.error as error:
        raise ValueError(f"it has a structure that is cut short: {error}") from error


@final
class _File:
    """The bytes of a file, each of which can be read as part of one structure only."""

    def __init__(self, data: memoryview, base: int) -> None:
        self._size = len(data)
        self._base = base
        self._data = data[base:]
        # Intervals of the structures that were read, sorted.
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._heaps: dict[int, dict[int, memoryview]] = {}

    def datasets(self) -> dict[str, Dataset]:
        signature, *addresses, root = self._unpack("<24s4Q8xQ24x", 0)
        _check(signature == _SUPERBLOCK, "its superblock")
        expected = [self._base, _UNDEFINED, self._size, _UNDEFINED]
        _check(addresses == expected, "the addresses in its superblock")
        found: dict[str, Dataset] = {}
        self._visit(root, (), found)
        return found

    def _unpack(self, layout: str, start: int) -> tuple[Any, ...]:
        return struct.unpack(layout, self._take(start, struct.calcsize(layout)))

    def _take(self, start: int, size: int) -> memoryview:
        """Return bytes of the file, once."""
        if size == 0:  # An array without elements has no address.
            return self._data[:0]
        end = start + size
        _check(end <= len(self._data), "a structure beyond the end of the file")
        i = bisect.bisect_right(self._starts, start)
        before = i == 0 or self._ends[i - 1] <= start
        after = i == len(self._starts) or end <= self._starts[i]
        _check(before and after, "a structure that overlaps another")
        self._starts.insert(i, start)
        self._ends.insert(i, end)
        return self._data[start:end]

    def _visit(
        self, address: int, path: tuple[str, ...], found: dict[str, Dataset]
    ) -> None:
        messages, attributes = self._object(address)
        name = "/".join(path)
        if messages.keys() == _GROUP:
            _check(len(path) <= _MAX_GROUPS, f"more than {_MAX_GROUPS} nested groups")
            for link, child in self._links(messages[_SYMBOL_TABLE]):
                self._visit(child, (*path, link), found)
        else:
            is_dataset = messages.keys() == _DATASET
            _check(is_dataset, f"an object at {name!r} of another kind")
            found[name] = self._dataset(messages, attributes)

    def _object(self, address: int) -> tuple[dict[int, memoryview], list[memoryview]]:
        """Return the messages of an object header (version 1) and its attributes."""
        version, total, links, size = self._unpack("<BxHII4x", address)
        _check((version, links) == (1, 1), "an object header of another kind")
        messages: dict[int, memoryview] = {}
        attributes: list[memoryview] = []
        blocks = [(address + 16, size)]
        for place in blocks:
            rest = self._take(*place)
            while rest:
                kind, size, flags = struct.unpack("<HHB", rest[:5])
                body, rest = rest[8 : 8 + size], rest[8 + size :]
                total -= 1
                # Other flags mark shared messages, which are stored elsewhere.
                is_own = len(body) == size and flags in (0, 1)
                _check(is_own, "a message of another kind")
                if kind == _CONTINUATION:
                    blocks.append(struct.unpack("<QQ", body))
                elif kind == _ATTRIBUTE:
                    attributes.append(body)
                elif kind != _NIL:
                    _check(kind not in messages, "a message twice")
                    messages[kind] = body
        _check(total == 0, "an object header with another number of messages")
        return messages, attributes

    def _links(self, table: memoryview) -> Iterator[tuple[str, int]]:
        """Yield the hard links of a group: their names and addresses of objects."""
        tree, heap = struct.unpack("<QQ", table)
        signature, version, size, segment = self._unpack("<4sB3xQ8xQ", heap)
        _check((signature, version) == (b"HEAP", 0), "a local heap of another kind")
        names = bytes(self._take(segment, size))
        seen: set[int] = set()
        for offset, address, kind in self._entries(tree, None):
            end = names.find(b"\0", offset)
            # Each name has bytes of its own, or few bytes could make many long names.
            is_whole = 0 < offset < end and names[offset - 1] == 0
            _check(is_whole and offset not in seen, "a name of another kind")
            seen.add(offset)
            # Kind 2 is a soft link.
            _check(kind in (0, 1), "a link that is not hard")
            name = names[offset:end].decode()
            _check("/" not in name and name not in (".", ".."), "a name that is a path")
            yield name, address

    def _entries(self, tree: int, level: int | None) -> Iterator[tuple[int, int, int]]:
        """Yield the entries of a B-tree (version 1) of symbol table nodes."""
        node = self._take(tree, _TREE_NODE)
        signature, kind, height, used = struct.unpack("<4sBBH", node[:8])
        _check((signature, kind) == (b"TREE", 0), "a B-tree of another kind")
        _check(level is None or height == level, "a B-tree of unequal height")
        _check(used <= 32, "a B-tree with too many entries")
        for (child,) in struct.iter_unpack("<8xQ", node[24 : 24 + 16 * used]):
            if height:
                yield from self._entries(child, height - 1)
                continue
            leaf = self._take(child, _SYMBOL_NODE)
            signature, version, symbols = struct.unpack("<4sBxH", leaf[:8])
            is_leaf = (signature, version) == (b"SNOD", 1) and symbols <= 8
            _check(is_leaf, "a symbol table node of another kind")
            yield from struct.iter_unpack("<QQI20x", leaf[8 : 8 + 40 * symbols])

    def _dataset(
        self, messages: dict[int, memoryview], attributes: list[memoryview]
    ) -> Dataset:
        shape = _shape(messages[_DATASPACE])
        kind = bytes(messages[_DATATYPE])
        version, layout, address, size = struct.unpack("<BBQQ", messages[_LAYOUT][:18])
        _check((version, layout) == (3, 1), "storage that is not contiguous")
        texts = dict(map(self._attribute, attributes))
        _check(len(texts) == len(attributes), "an attribute twice")
        if kind == _padded(_TEXT):
            _check(shape == () and size == 16, "an array of texts")
            return Dataset(self._text(self._take(address, size)), texts)
        _check(kind in _DTYPES, "an array of another type")
        dtype = _DTYPES[kind]
        _check(size == math.prod(shape) * dtype.itemsize, "storage of another size")
        raw = self._take(address, size)
        return Dataset(np.frombuffer(raw, dtype).reshape(shape), texts)

    def _attribute(self, message: memoryview) -> tuple[str, str]:
        version, *sizes = struct.unpack("<BxHHH", message[:8])
        parts, rest = [], message[8:]
        for size in sizes:
            parts.append(bytes(rest[:size]))
            rest = rest[size + -size % 8 :]
        name, kind, space = parts
        _check((version, kind) == (1, _TEXT), "an attribute of another kind")
        _check(_shape(space) == (), "an attribute of several texts")
        return name.rstrip(b"\0").decode(), self._text(rest)

    def _text(self, reference: memoryview) -> str:
        """Return a text from a global heap, each at most once."""
        size, address, index = struct.unpack("<IQI", reference[:16])
        if address not in self._heaps:
            self._heaps[address] = self._heap(address)
        text = self._heaps[address].pop(index, None)
        _check(text is not None and len(text) == size, "a text of another kind")
        assert text is not None
        return bytes(text).decode()

    def _heap(self, address: int) -> dict[int, memoryview]:
        """Return the objects of a collection of the global heap."""
        head = self._data[address : address + 16]
        signature, version, size = struct.unpack("<4sB3xQ", head)
        _check((signature, version) == (b"GCOL", 1), "a global heap of another kind")
        rest = self._take(address, size)[16:]
        objects: dict[int, memoryview] = {}
        while len(rest) >= 16:
            index, _, length = struct.unpack("<HH4xQ", rest[:16])
            if index == 0:  # What follows is free.
                break
            _check(16 + length <= len(rest), "a global heap of another size")
            objects[index] = rest[16 : 16 + length]
            rest = rest[16 + length + -length % 8 :]
        return objects


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(f"it has {what}, which batchkit never writes")


def _shape(message: bytes | memoryview) -> tuple[int, ...]:
    """Return the shape in a dataspace message (version 1)."""
    version, rank, flags = struct.unpack("<BBB", message[:3])
    is_simple = version == 1 and flags in (0, 1) and rank <= 32
    _check(is_simple, "a dataspace of another kind")
    dims = struct.unpack_from(f"<{rank}Q", message, 8)
    if flags:
        largest = struct.unpack_from(f"<{rank}Q", message, 8 + 8 * rank)
        _check(dims == largest, "an array that can grow")
    return dims


def _padded(message: bytes) -> bytes:
    """Fill a message up with zeros to a multiple of 8 bytes, as object headers do."""
    return message.ljust(len(message) + -len(message) % 8, b"\0")


def _number(dtype: np.dtype) -> bytes:
    """Return the datatype message (version 1) of integers or floating-point numbers."""
    size, big = dtype.itemsize, dtype.str[0] == ">"
    if dtype.kind in "iu":
        signed = dtype.kind == "i"
        return struct.pack("<BBHIHH", 0x10, big | signed << 3, 0, size, 0, 8 * size)
    info = np.finfo(dtype)
    # 0x20: the first bit of the mantissa is implied. The sign is the last bit.
    head = struct.pack("<BBHIHH", 0x11, 0x20 | big, 8 * size - 1, size, 0, 8 * size)
    fields = info.nmant, info.iexp, 0, info.nmant, 2 ** (info.iexp - 1) - 1
    return head + struct.pack("<4BI", *fields)


def _dtypes() -> dict[bytes, np.dtype]:
    """Return the types of arrays by their datatype messages."""
    found: dict[bytes, np.dtype] = {}
    for order in "<>":
        for name in (
            *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)),
            "f2",
        ):
            found.setdefault(_number(np.dtype(order + name)), np.dtype(order + name))
        for size in (4, 8):
            part = np.dtype(f"{order}f{size}")
            found[_number(part)] = part
            # Complex numbers are a compound of members `r` and `i`.
            members = [
                struct.pack("<8sI28x", name, offset) + _number(part)
                for name, offset in ((b"r", 0), (b"i", size))
            ]
            pair = struct.pack("<BHxI", 0x16, 2, 2 * size) + b"".join(members)
            found[pair] = np.dtype(f"{order}c{2 * size}")
    # Booleans are an enumeration of the integers of 8 bits.
    names = struct.pack("<8s8s2B", b"FALSE", b"TRUE", 0, 1)
    base = _number(np.dtype("i1"))
    found[struct.pack("<BHxI", 0x18, 2, 1) + base + names] = np.dtype(bool)
    return {_padded(message): dtype for message, dtype in found.items()}


_DTYPES: Final = _dtypes()
