"""Files of an attacker: any content, with a checksum that is right."""

import hashlib
import io
from collections.abc import Callable
from typing import Any

import h5py


def seal(body: bytes, version: int = 1) -> bytes:
    """Return a file with this body and the first block that belongs to it."""
    first = b"batchkit checkpoint\nformat %d\nbytes %d\n" % (version, 512 + len(body))
    digest = hashlib.sha256(first + body).hexdigest().encode()
    return (first + b"sha256 " + digest + b"\n").ljust(511) + b"\n" + body


def made_by(make: Callable[[h5py.File], object], **how: Any) -> bytes:
    """Return a sealed file made by h5py, with a header and `arrays` in it."""
    image = io.BytesIO()
    with h5py.File(image, "w", userblock_size=512, **how) as file:
        file["header"] = "{}"
        file.create_group("arrays")
        make(file)
    return seal(image.getvalue()[512:])
