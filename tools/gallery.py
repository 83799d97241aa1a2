"""Run notebooks, and store what they print and draw.

    python -m tools.gallery NOTEBOOK ...

What was written to the terminal, such as bars, is left out, and so is all that changes
from one run to the next without any change of the program: counts and times.
"""

import sys
import time
from pathlib import Path
from typing import Final

import nbformat

from .pages import run


KERNEL: Final = {"display_name": "Python 3", "language": "python", "name": "python3"}


def main() -> None:
    for path in map(Path, sys.argv[1:]):
        start = time.perf_counter()
        stored = run(nbformat.read(path, 4))
        stored.metadata = nbformat.from_dict({"kernelspec": KERNEL})
        for number, cell in enumerate(stored.cells):
            cell.id = f"cell-{number}"
            cell.metadata = {}
            if cell.cell_type == "code":
                cell.execution_count = None
                cell.outputs = [x for x in cell.outputs if x.get("name") != "stderr"]
                for output in cell.outputs:
                    if "execution_count" in output:
                        output.execution_count = None
        nbformat.write(stored, path)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
