"""Files of an attacker: any content, with a checksum that is right."""

import hashlib
import json
import re
from typing import Any


def seal(body: bytes, place: int = 512, length: int = 0, version: int = 1) -> bytes:
    """Return a file with this body and the first block that belongs to it.

    `place` and `length` are those of the header in the file.
    """
    first = b"batchkit checkpoint\nformat %d\nbytes %d\nheader %d %d\n" % (
        *(version, 512 + len(body), place, length),
    )
    digest = hashlib.sha256(first + body).hexdigest().encode()
    return (first + b"sha256 " + digest + b"\n").ljust(511) + b"\n" + body


def crafted(header: Any, content: bytes = b"") -> bytes:
    """Return a file with some bytes at 512 and a header after them, as text or JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return seal(content + text, 512 + len(content), len(text))


def header_place(data: bytes) -> tuple[int, int]:
    """Return the first place of the header in a file, and the one after it."""
    found = re.search(rb"\nheader (\d+) (\d+)\n", data[:512])
    assert found is not None
    return int(found[1]), int(found[1]) + int(found[2])


def header_of(data: bytes) -> dict[str, Any]:
    """Return the header of a file with the list of its arrays, `contents`."""
    start, end = header_place(data)
    return json.loads(data[start:end])
