"""Checkpoints as other versions would have written them."""

import os
from pathlib import Path
from typing import Any

from batchkit.run._file import read_file, write_file
from batchkit.run._packages import versions


OTHER = {**versions(), "jax": "0.0.1", "python": "3.0.1"}


def as_other_versions_wrote(path: str | os.PathLike[str], *parts: str) -> None:
    """Rewrite a checkpoint of this process as if other versions had written it.

    **Arguments:**

    - `path`: the checkpoint.
    - `parts`: the parts whose digests differ with the other versions.
    """

    def change(header: dict[str, Any]) -> None:
        for part in parts:
            header["identity"][part] = f"another {header['identity'][part]}"
        header["versions"] = OTHER
        header["provenance"] = [[0, OTHER]]

    rewrite(path, change)


def rewrite(path: str | os.PathLike[str], change: Any) -> None:
    """Change the header of a checkpoint, and remove the generation before it."""
    header, arrays = read_file(path)
    change(header)
    write_file(path, header, arrays)
    Path(f"{os.fspath(path)}.previous").unlink(missing_ok=True)
